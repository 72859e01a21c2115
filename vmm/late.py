"""What needs files only once a guest makes its devices need it, for threads that may open none: modules above all.

Another thread, started before, does the work. Where such a thread is about to import, it calls `load` first; what opens
files other than modules, or imports in many places, it hands over by `call`.
"""

from __future__ import annotations

import importlib
import sys
import threading
from contextlib import suppress

from vmm import host_threads
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Result = TypeVar("Result")


class _Here(threading.local):
    opens_files = True


_here = _Here()
_wanted = threading.Condition()
_requests: list[Callable[[], None]] = []
_started = False


def start() -> None:
    """Have a thread that opens files for others; the caller may open files. May be called again.

    Raises:
        HostError: the host gives no further thread.
    """
    global _started  # noqa: PLW0603  # one for the process, as sys.modules is
    with _wanted:
        if not _started:
            host_threads.start(threading.Thread(target=_serve, name="vmm-modules", daemon=True), "modules")
            _started = True


def restrict() -> None:
    """From now on the calling thread opens no file; `start` was called."""
    _here.opens_files = False


def load(name: str) -> None:
    """Make sure that an import of the module opens no file, if the calling thread may not."""
    if name not in sys.modules:
        # Whoever asked imports it, too, and gets the error.
        with suppress(Exception):
            call(lambda: importlib.import_module(name))


def call(function: Callable[[], Result]) -> Result:
    """What a function returns, or raises, on a thread that may open files; the caller holds no lock that it needs."""
    if _here.opens_files:
        return function()
    done = threading.Event()
    results: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001  # the caller's, whatever it is
            errors.append(error)
        finally:
            done.set()

    with _wanted:
        _requests.append(work)
        _wanted.notify()
    done.wait()
    if errors:
        raise errors[0]
    return results[0]


def _serve() -> None:
    while True:
        with _wanted:
            while not _requests:
                _wanted.wait()
            work = _requests.pop(0)
        work()
