"""Which thread runs a machine, and what ended the run: any thread may report it, and a caller of `Machine.run` gets it.

Nothing that ends a machine is lost between two runs: a power-off that comes while a run ends for another reason is what
the next one is told.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vmm.errors import ConfigError, DeviceError, VmmError
from vmm.run.outcome import Outcome, Reason, Reset, ResetKind

FINAL = frozenset(
    {
        Reason.POWER_OFF,
        Reason.SUSPENDED,
        Reason.PANIC,
        Reason.RESET,
        Reason.RESET_LOOP,
        Reason.TRIPLE_FAULT,
        Reason.EMULATION_FAILURE,
        Reason.KVM_FAILURE,
        Reason.REFUSED,
    }
)
"""After these there is no guest that could go on, unless the machine is reset, or woken up."""

BURST_SECONDS = 0.001
"""How long is waited, once something was printed, for what comes right behind it: most consoles print byte by byte."""

BURSTS = 16
"""After so many without such a pause, nobody looks that often any more: each look slows the guest down."""

KEPT_RESETS = 100
"""Resets that are remembered, the latest ones: a guest may reset for ever."""


class Lifetime:
    """The runs of one machine.

    Args:
        kick: makes all vCPUs leave the guest soon.
        max_resets: how often the guest may reset the machine within one run; None: its first reset ends it.

    Attributes:
        started_ns: when the first run began, CLOCK_MONOTONIC; 0 before.
        elapsed_s: seconds spent in runs that are over.
        ends: when each run ended, in seconds since the first began, why, and after how many instructions, where they
            are counted.
        instructions: how many the guest has executed; None: time does not go by them.
        final: how the guest ended for good; None while it could go on.
        end: what ended the run that goes on now, or the last one; None until something has.
        reset_count: how often the machine was reset.
        resets: the last `KEPT_RESETS` of these.
        reset_asked: the reset that is to be carried out once no vCPU runs, its time not known yet; None: there is none.
    """

    def __init__(self, kick: Callable[[], None], max_resets: int | None = None) -> None:
        self.started_ns = 0
        self.elapsed_s = 0.0
        self.ends: list[tuple[float, Reason, int | None]] = []
        self.instructions: Callable[[], int] | None = None
        self.final: Outcome | None = None
        self.end: Outcome | None = None
        self.reset_count = 0
        self.resets: deque[Reset] = deque(maxlen=KEPT_RESETS)
        self.reset_asked: Reset | None = None
        self._kick = kick
        self._max_resets = max_resets
        self._guest_resets = 0  # in this run
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._printed = False  # since `wait` returned
        self._bursts = 0
        self._idle = threading.Event()
        self._idle.set()
        self._owner: int | None = None
        self._brief = False
        self._began = 0.0
        self._stop_asked = False
        self._restart_asked = False
        self._closed = False
        self._failure: BaseException | None = None

    @property
    def running(self) -> bool:
        """Whether a thread is in a run."""
        return self._owner is not None

    def is_owner_calling(self) -> bool:
        """Whether the calling thread is the one in the run."""
        return self._owner == threading.get_ident()

    @property
    def is_leaving(self) -> bool:
        """Whether somebody has asked to end the run, or closes the machine."""
        return self._stop_asked or self._closed

    @property
    def state(self) -> str:
        """In a word or two."""
        if self._closed:
            return "closed"
        if self.running:
            return "running"
        if self.final is not None:
            return f"ended: {self.final.reason.value}"
        return "stopped" if self.started_ns else "not run yet"

    @property
    def run_s(self) -> float:
        """Seconds since this run began."""
        return time.monotonic() - self._began

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be the one thread that runs the machine.

        Raises:
            ValueError: the machine is closed.
            RuntimeError: another thread runs it, or this one does already.
        """
        with self._between_runs():
            if self._closed:
                raise ValueError("the machine is closed; run it inside its 'with' block")
            if self._owner is not None:
                raise RuntimeError("the machine is already running: run() or expect() has not returned yet")
            self._own()
            self._wake.clear()
            self._guest_resets = 0
            self._began = time.monotonic()
            self.end = self.final
            if self.end is None and self._stop_asked:
                self.end = Outcome(Reason.STOPPED, 0.0, "stopped")
        try:
            yield
        finally:
            with self._lock:
                self._stop_asked = False
                self._disown()

    @contextmanager
    def moment(self) -> Iterator[bool]:
        """Keep other threads, which wait, from running the machine meanwhile; False: one runs it.

        Raises:
            ValueError: the machine is closed.
        """
        with self._between_runs():
            free = self._owner is None
            if free and self._closed:
                raise ValueError("the machine is closed")
            if free:
                self._own()
                self._brief = True
        try:
            yield free
        finally:
            if free:
                with self._lock:
                    self._disown()

    @contextmanager
    def _between_runs(self) -> Iterator[None]:
        """Have the lock, and not in a `moment` of another thread's."""
        while True:
            with self._lock:
                if not self._brief or self.is_owner_calling():
                    yield
                    return
            self._idle.wait()

    def _own(self) -> None:
        self._owner = threading.get_ident()
        self._idle.clear()

    def _disown(self) -> None:
        # With the lock held: later, somebody else may be in a run.
        self._owner = None
        self._brief = False
        self._idle.set()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep every thread from running the machine meanwhile.

        Raises:
            ValueError: the machine is closed.
            RuntimeError: it is running.
            ConfigError: the guest has ended, or its reset is still to be carried out.
        """
        with self._between_runs():
            if self._closed:
                raise ValueError("the machine is closed")
            if self._owner is not None:
                raise RuntimeError("the machine is running: run() or expect() has not returned yet")
            if self.final is not None:
                raise ConfigError(f"the machine has ended: {self.final.message}; no snapshot")
            if self.reset_asked is not None:
                raise ConfigError("the machine is about to be reset: no snapshot before it has run again")
            self._own()
        try:
            yield
        finally:
            with self._lock:
                self._disown()

    def note_start(self) -> None:
        """The guest is about to execute."""
        self.started_ns = self.started_ns or int(self._began * 1e9)

    def note_end(self, outcome: Outcome) -> None:
        """The guest has executed, and stopped."""
        t_s = self._began - self.started_ns / 1e9 + outcome.elapsed_s
        self.ends.append((t_s, outcome.reason, self._count()))

    def amend(self, outcome: Outcome) -> None:
        """More is known of how the run ended, which later runs are told, too, if that was for good."""
        with self._lock:
            if self.final is self.end:
                self.final = outcome
            self.end = outcome

    def wait(self, seconds: float) -> bool:
        """Sleep, but not beyond the end of the run, a reset, output or a `nudge`; whether the run has ended."""
        began = time.monotonic()
        if self._wake.wait(seconds) and self.end is None and self.reset_asked is None:
            self._wake.clear()
            if self._printed:
                paused = time.monotonic() - began > BURST_SECONDS
                self._bursts = 1 if paused else self._bursts + 1
                self._wake.wait(BURST_SECONDS if self._bursts <= BURSTS else seconds)
        self._printed = False
        return self.end is not None

    def nudge(self) -> None:
        """Let the thread that waits look around; any thread may."""
        self._wake.set()

    def note_output(self) -> None:
        """Let it look at what a console shows now and in the next moment; any thread may."""
        self._printed = True
        self._wake.set()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside takes no time of the run."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._began += time.monotonic() - began

    def finish(self, reason: Reason, message: str, details: str = "") -> None:
        """End the run, unless something else did before; between runs, only the end of the guest counts."""
        with self._lock:
            self._finish(reason, message, details)

    def reset(self, kind: ResetKind, cause: str, details: str = "") -> None:
        """Let whoever runs the machine reset it, or end the run where the guest may not reset it (again).

        Args:
            kind: who wants it.
            cause: in a few words.
            details: lines of evidence.
        """
        with self._lock:
            if self.reset_asked is not None:
                # The software CPU goes on for some instructions, and there may be other vCPUs.
                if not kind.by_guest:
                    self.reset_asked = Reset(0.0, kind, cause, details)
                return
            if kind.by_guest:
                if self._max_resets is None:
                    self._finish(kind.end, kind.message(cause), details)
                    return
                if self._guest_resets >= self._max_resets:
                    loop = f"the guest resets the machine again and again, after {self._guest_resets} resets still"
                    self._finish(Reason.RESET_LOOP, f"{loop}: {cause} (--max-resets allows more)", details)
                    return
                self._guest_resets += 1
            self.reset_asked = Reset(0.0, kind, cause, details)
            self._signal()

    @property
    def wants_reset(self) -> bool:
        """Whether a reset is to be carried out: that of a guest which has ended is not."""
        asked = self.reset_asked
        return asked is not None and (self.final is None or not asked.kind.by_guest)

    def note_reset(self) -> None:
        """The machine was reset, and no vCPU has run since; what was asked for meanwhile has happened, too."""
        with self._lock:
            if self.reset_asked is not None:
                t_s = time.monotonic() - self.started_ns / 1e9 if self.started_ns else 0.0
                self.resets.append(self.reset_asked._replace(t_s=t_s, instructions=self._count()))
            self.reset_count += 1
            self.reset_asked = self.final = None
            if self.end is None:
                self._wake.clear()

    def restart(self) -> None:
        """Let the threads of the vCPUs be others soon, for not all of them are there any more."""
        self._restart_asked = True
        self._wake.set()

    def take_restart(self) -> bool:
        """Whether that was asked for since the last call."""
        if not self._restart_asked:
            return False  # without a write, which could take back what is asked for meanwhile
        self._restart_asked = False
        return True

    def fail(self, error: BaseException) -> None:
        """Let the caller of this run, and of every later one, see what a device or a thread of ours raised."""
        with self._lock:
            if self._failure is None:
                self._failure = error
        self.finish(Reason.DEVICE_FAILURE, f"a device of vmm failed: {error!r}")

    def raise_failure(self) -> None:
        """Raise what `fail` was told.

        Raises:
            DeviceError: it was an `Exception`; what is none, or a `VmmError`, comes as it is.
        """
        error = self._failure
        if isinstance(error, Exception) and not isinstance(error, VmmError):
            raise DeviceError(f"a device of vmm failed: {error!r}") from error
        if error is not None:
            raise error

    def check_alive(self) -> None:
        """Refuse what only a guest that can go on would notice.

        Raises:
            SendError: it has ended.
            ValueError: the machine is closed.
            VmmError: what `raise_failure` raises.
        """
        if self._closed:
            raise ValueError("the machine is closed; type inside its 'with' block")
        self.raise_failure()
        if self.final is not None:
            from vmm.run.expected import SendError

            raise SendError(self.final)

    def _count(self) -> int | None:
        return None if self.instructions is None else self.instructions()

    def _finish(self, reason: Reason, message: str, details: str) -> None:
        outcome = Outcome(reason, self.run_s, message, details)
        if self.final is None and reason in FINAL:
            self.final = outcome
        if self.end is None:
            self.end = outcome
        self._signal()

    def _signal(self) -> None:
        # With the lock held: a late kick would stop the vCPUs of the next run, or those after a reset.
        self._kick()
        self._wake.set()

    def stop(self) -> None:
        """End the run; where there is none, the next one as soon as it begins."""
        with self._lock:
            self._stop_asked = True
        self.finish(Reason.STOPPED, "stopped")

    def close(self) -> None:
        """Allow no further run, and end this one."""
        with self._lock:
            self._closed = True
        self.finish(Reason.STOPPED, "the machine was closed while it ran")

    def wait_until_idle(self, seconds: float) -> None:
        """Wait, but not longer than this, until no thread is in a run."""
        self._idle.wait(seconds)


class Power:
    """What the guest can do to its own machine.

    Args:
        lifetime: of the machine.
    """

    def __init__(self, lifetime: Lifetime) -> None:
        self._lifetime = lifetime

    def reset(self, reason: str) -> None:
        """Reset the machine; ``reason`` names the register that the guest used."""
        self._lifetime.reset(ResetKind.GUEST, reason)

    def suspend(self) -> None:
        """End the run, until somebody wakes the machine up."""
        self._lifetime.finish(Reason.SUSPENDED, "the guest suspended the machine to RAM (ACPI's S3)")

    def power_off(self) -> None:
        """End the machine."""
        self._lifetime.finish(Reason.POWER_OFF, "the guest powered the machine off")

    def remove_cpu(self) -> None:
        """Let its thread end."""
        self._lifetime.restart()

    def panic(self) -> None:
        """End the machine."""
        self._lifetime.finish(Reason.PANIC, "the guest's kernel panicked, and said so at its pvpanic port")
