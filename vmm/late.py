"""Modules that are loaded only once a guest makes its devices need them, also by threads that may open no file.

Where such a thread is about to import, it calls `load` first: another thread, started before, does the work.
"""

import importlib
import sys
import threading


class _Here(threading.local):
    opens_files = True


_here = _Here()
_wanted = threading.Condition()
_requests: list[tuple[str, threading.Event]] = []  # names, and what is told when they are loaded
_started = False


def start() -> None:
    """Have a thread that loads modules for others; the caller may open files. May be called again."""
    global _started  # noqa: PLW0603  # one for the process, as sys.modules is
    with _wanted:
        if not _started:
            threading.Thread(target=_serve, name="vmm-modules", daemon=True).start()
            _started = True


def restrict() -> None:
    """From now on the calling thread opens no file; `start` was called."""
    _here.opens_files = False


def may_open_files() -> bool:
    """Whether the calling thread may."""
    return _here.opens_files


def load(name: str) -> None:
    """Make sure that an import of the module opens no file, if the calling thread may not."""
    if _here.opens_files or name in sys.modules:
        return
    done = threading.Event()
    with _wanted:
        _requests.append((name, done))
        _wanted.notify()
    done.wait()


def _serve() -> None:
    while True:
        with _wanted:
            while not _requests:
                _wanted.wait()
            name, done = _requests.pop(0)
        try:
            importlib.import_module(name)
        except Exception:  # noqa: BLE001, S110  # whoever asked imports it, too, and gets the error
            pass
        finally:
            done.set()
