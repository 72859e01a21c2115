"""Threads of the host, which gives only so many."""

from __future__ import annotations

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
    try:
        thread.start()
    except RuntimeError as error:
        raise HostError(
            f"no thread for {purpose}: {error}; raise the limits of processes (ulimit -u) "
            f"and of address space (ulimit -v){remedy}"
        ) from error
