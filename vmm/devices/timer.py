"""Deadlines for devices: one thread, there since the first run, that calls back under io_lock."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from vmm import host_threads
from vmm.devices.clock import GuestClock

_LONGEST_WAIT_S = 3600.0
"""A guest may set a deadline centuries ahead, which is more than a lock's time-out takes."""

_NEVER = float("inf")


def _nothing() -> None:
    pass


class TimerService:
    """Calls devices back at points in time.

    Args:
        lock: the machine's io_lock; held during callbacks.
        on_failure: gets the exception, should a callback raise.
        clock: the guest's, which the deadlines are measured with.
    """

    def __init__(
        self,
        lock: AbstractContextManager[object],
        on_failure: Callable[[BaseException], None],
        clock: GuestClock,
    ) -> None:
        self.clock = clock
        self._lock = lock
        self._on_failure = on_failure
        self._timers: list[Timer] = []
        self._thread: threading.Thread | None = None
        # Below this line: with _wake held. A thread that holds it does not take io_lock.
        self._wake = threading.Condition()
        self._waits_until = _NEVER
        self._overtaken = False
        self._closed = False
        self._driver: Callable[[int], None] | None = None

    def timer(self, callback: Callable[[], None]) -> "Timer":
        """A timer that is not armed yet."""
        timer = Timer(self, callback)
        self._timers.append(timer)
        return timer

    def drive(self, driver: Callable[[int], None]) -> None:
        """Have no thread: who calls `run_due` is told of deadlines that come before those that it knows."""
        self._driver = driver

    def start(self, first: Callable[[], None] = _nothing) -> None:
        """Have the thread from now on; before a guest runs, whose devices could not do anything about there being none.

        May be called again.

        Args:
            first: what the thread does before all else.

        Raises:
            HostError: the host gives no further thread.
        """
        if self._thread is not None or self._closed or self._driver is not None:
            return
        thread = threading.Thread(target=self._run, args=(first,), name="vmm-timers", daemon=True)
        host_threads.start(thread, "the devices' timers")
        self._thread = thread

    def close(self) -> None:
        """No more callbacks; waits for one that runs, so the caller must not hold io_lock."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()

    def run_due(self) -> int | None:
        """Call back what is due, the earliest first; nanoseconds until the next deadline, or None."""
        with self._lock:
            while not self._closed:
                timer = min(self._timers, key=lambda timer: timer.deadline, default=None)
                if timer is None or timer.deadline == _NEVER:
                    break
                wait = int(timer.deadline) - self.clock()
                if wait > 0:
                    return wait
                timer.fire()
        return None

    def next_deadline(self) -> int:
        """The earliest deadline; 2^64 - 1: there is none, or it is centuries ahead."""
        deadline = min((timer.deadline for timer in self._timers), default=_NEVER)
        return (1 << 64) - 1 if deadline >= 1 << 64 else int(deadline)

    def wake(self) -> None:
        """Let the thread take io_lock once, soon, for that serves what the guest wrote (`native/coalesced.c`)."""
        self.note_deadline(0)

    def note_deadline(self, deadline: int) -> None:
        """A timer was armed; it calls back once there is the thread."""
        if self._driver is not None:
            self._driver(self.next_deadline())
            return
        with self._wake:
            if deadline < self._waits_until:
                self._overtaken = True
                self._wake.notify()

    def _run(self, first: Callable[[], None]) -> None:
        self._thread = threading.current_thread()  # `start` may not come to it, for Ctrl-C may end that
        try:
            first()
        except BaseException as error:  # noqa: BLE001 - without it, the machine must not run
            self._on_failure(error)
            return
        while True:
            with self._wake:
                self._waits_until = _NEVER
                self._overtaken = False
            try:
                wait = self.run_due()
            except BaseException as error:  # noqa: BLE001 - a defect of a device; it ends the machine, not this process
                self._on_failure(error)
                return
            with self._wake:
                if self._closed:
                    return
                if not self._overtaken and wait is None:
                    self._wake.wait()
                elif not self._overtaken and wait is not None:
                    self._waits_until = self.clock() + wait
                    self._wake.wait(min(wait / 1e9, _LONGEST_WAIT_S))


class Timer:
    """One deadline at a time. Arm and cancel it with io_lock held.

    Attributes:
        deadline: nanoseconds of the service's clock; infinity: not armed.
    """

    def __init__(self, service: TimerService, callback: Callable[[], None]) -> None:
        self._service = service
        self._callback = callback
        self.deadline = _NEVER

    @property
    def armed(self) -> bool:
        """Whether it will call back."""
        return self.deadline != _NEVER

    def arm(self, deadline: int) -> None:
        """Call back at ``deadline``, nanoseconds of the service's clock, instead of any earlier one."""
        self.deadline = deadline
        self._service.note_deadline(deadline)

    def cancel(self) -> None:
        """Do not call back."""
        self.deadline = _NEVER

    def state(self) -> int | None:
        """The deadline; None: not armed."""
        return int(self.deadline) if self.armed else None

    def restore(self, deadline: int | None) -> None:
        """Call back at the deadline that `state` gave."""
        self.cancel()
        if deadline is not None:
            self.arm(deadline)

    def fire(self) -> None:
        """Call back now."""
        self.cancel()
        self._callback()
