"""Threads of the host, which gives only so many."""

from __future__ import annotations

import os
import time

from vmm._native import lib
from vmm.errors import HostError
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    import threading
    from typing import Final

_BEGINS_SECONDS: Final = 1.0
"""How long a thread that was interrupted while it waited for a new one waits for that, which may be none."""


def start(thread: threading.Thread, purpose: str, remedy: str = "") -> None:
    """Start a thread.

    Args:
        thread: has not run yet.
        purpose: what it is for, as in "no thread for …".
        remedy: what helps besides higher limits.

    Raises:
        HostError: the host gives no further thread.
        KeyboardInterrupt: Ctrl-C, if the caller is the main thread; the other one has begun unless its `ident` is None.
    """
    remedy = f"; raise the limits of processes (ulimit -u) and of address space (ulimit -v){remedy}"
    # Python waits for ever for a thread that has its stack and then no memory in which to say that it runs.
    if error := lib.host_threads_room():
        raise HostError(f"no thread for {purpose}: {os.strerror(error).lower()}{remedy}")
    try:
        thread.start()
    except RuntimeError as error:
        raise HostError(f"no thread for {purpose}: {error}{remedy}") from error
    except KeyboardInterrupt:
        _let_begin(thread)
        raise


def _let_begin(thread: threading.Thread) -> None:
    """Wait until it can be joined: `Thread.start` does, but for Ctrl-C."""
    until = time.monotonic() + _BEGINS_SECONDS
    while time.monotonic() < until:
        try:
            thread.join(0)
        except RuntimeError:  # not begun
            time.sleep(0.001)
        else:
            return
