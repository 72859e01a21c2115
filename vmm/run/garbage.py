"""Python's garbage is collected by the threads that run machines, not by those that serve guests.

Any thread that allocates may have to collect, and then runs finalizers, of the caller's objects as well. They may take
long while a guest waits, and close or remove files, which a sandbox refuses to a thread that serves a guest.
"""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_runs = 0
_enabled = False


@contextmanager
def left_to_the_runner() -> Iterator[None]:
    """Let nothing be collected but by `collect` meanwhile; any number of machines may run side by side."""
    global _runs, _enabled  # noqa: PLW0603  # one for the process, as the collector is
    with _lock:
        if _runs == 0:
            _enabled = gc.isenabled()
            gc.disable()
        _runs += 1
    try:
        yield
    finally:
        with _lock:
            _runs -= 1
            if _runs == 0 and _enabled:
                gc.enable()


def collect() -> None:
    """Collect on the calling thread what Python would have collected by now."""
    if not _enabled:
        return
    for generation, (count, threshold) in reversed([*enumerate(zip(gc.get_count(), gc.get_threshold(), strict=True))]):
        if 0 < threshold < count:
            gc.collect(generation)
            return
