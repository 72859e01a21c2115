"""Deadlines for devices: one thread, started with the first deadline, that calls back under io_lock."""

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from vmm._native import ffi

Clock = Callable[[], int]
"""Nanoseconds that only grow."""

_LONGEST_WAIT_S = 3600.0
"""A guest may set a deadline centuries ahead, which is more than a lock's time-out takes."""


class TimerService:
    """Calls devices back at points in time.

    Args:
        lock: the machine's io_lock; held during callbacks.
        on_failure: gets the exception, should a callback raise.
        clock: what the deadlines are measured with.

    Attributes:
        core_clock: where C reads the same clock, a ``uint64_t *``; NULL: `time.monotonic_ns`, which it has itself.
    """

    core_clock: Any = ffi.NULL

    def __init__(
        self,
        lock: AbstractContextManager[object],
        on_failure: Callable[[Exception], None],
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self.clock = clock
        self._lock = lock
        self._on_failure = on_failure
        self._wake = threading.Condition()
        self._queue: list[tuple[int, int, Timer]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def timer(self, callback: Callable[[], None]) -> "Timer":
        """A timer that is not armed yet."""
        return Timer(self, callback)

    def close(self) -> None:
        """No more callbacks; waits for one that runs, so the caller must not hold io_lock."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def run_due(self) -> int | None:
        """Call back what is due; nanoseconds until the next deadline, or None."""
        with self._lock:
            while True:
                with self._wake:
                    if self._closed or not self._queue:
                        return None
                    deadline, order, timer = self._queue[0]
                    wait = deadline - self.clock()
                    if wait > 0:
                        return wait
                    heapq.heappop(self._queue)
                timer.fire(order)

    def enqueue(self, deadline: int, timer: "Timer") -> int:
        """Queue a deadline; returns the number that tells it from older ones of the same timer."""
        with self._wake:
            order = next(self._order)
            heapq.heappush(self._queue, (deadline, order, timer))
            if self._queue[0][1] == order:
                self._wake.notify()
            if self._thread is None and not self._closed:
                self._thread = self._start()
        return order

    def _start(self) -> threading.Thread | None:
        thread = threading.Thread(target=self._run, name="vmm-timers", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        while True:
            try:
                wait = self.run_due()
            except Exception as error:  # noqa: BLE001 - a defect of a device; it ends the machine, not this process
                self._on_failure(error)
                return
            with self._wake:
                if self._closed:
                    return
                if wait is None and not self._queue:
                    self._wake.wait()
                elif self._queue:
                    self._wake.wait(min(max(0, self._queue[0][0] - self.clock()) / 1e9, _LONGEST_WAIT_S))


class Timer:
    """One deadline at a time. Arm and cancel it with io_lock held."""

    def __init__(self, service: TimerService, callback: Callable[[], None]) -> None:
        self._service = service
        self._callback = callback
        self._armed: int | None = None

    def arm(self, deadline: int) -> None:
        """Call back at ``deadline``, nanoseconds of the service's clock, instead of any earlier one."""
        self._armed = self._service.enqueue(deadline, self)

    def cancel(self) -> None:
        """Do not call back."""
        self._armed = None

    def fire(self, order: int) -> None:
        """The deadline numbered ``order`` passed."""
        if self._armed == order:
            self._armed = None
            self._callback()
