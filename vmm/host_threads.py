"""Threads of the host, which gives only so many."""

from __future__ import annotations

import os

from vmm._native import lib
from vmm.errors import HostError
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    import threading


def start(thread: threading.Thread, purpose: str, remedy: str = "") -> None:
    """Start a thread.

    Args:
        thread: has not run yet.
        purpose: what it is for, as in "no thread for …".
        remedy: what helps besides higher limits.

    Raises:
        HostError: the host gives no further thread.
    """
    remedy = f"; raise the limits of processes (ulimit -u) and of address space (ulimit -v){remedy}"
    # Python waits for ever for a thread that has its stack and then no memory in which to say that it runs.
    if error := lib.host_threads_room():
        raise HostError(f"no thread for {purpose}: {os.strerror(error).lower()}{remedy}")
    try:
        thread.start()
    except RuntimeError as error:
        raise HostError(f"no thread for {purpose}: {error}{remedy}") from error
