"""How a run ended, and how a machine was reset in it."""

from __future__ import annotations

from enum import Enum, StrEnum

from vmm.errors import ExitStatus
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Self

    from vmm.run.evidence import Evidence


class Reason(Enum):
    """What ended a run; the value is what ``--json`` prints."""

    UNTIL = "until"
    POWER_OFF = "power-off"
    SUSPENDED = "suspended"
    PANIC = "panic"
    """The guest's kernel said so, by pvpanic."""
    RESET = "reset"
    RESET_LOOP = "reset-loop"
    TRIPLE_FAULT = "triple-fault"
    EMULATION_FAILURE = "emulation-failure"
    KVM_FAILURE = "kvm-failure"
    DEVICE_FAILURE = "device-failure"
    REFUSED = "refused"
    """By the sandbox: a system call that no guest should lead to."""
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    STOPPED = "stopped"


_EXIT_STATUS = {
    Reason.UNTIL: ExitStatus.OK,
    Reason.POWER_OFF: ExitStatus.OK,
    Reason.SUSPENDED: ExitStatus.OK,
    Reason.STOPPED: ExitStatus.OK,
    Reason.TIMEOUT: ExitStatus.TIMEOUT,
    Reason.INTERRUPTED: ExitStatus.INTERRUPTED,
}


EXPLAINED = frozenset(
    {
        Reason.RESET,
        Reason.RESET_LOOP,
        Reason.TRIPLE_FAULT,
        Reason.EMULATION_FAILURE,
        Reason.KVM_FAILURE,
        Reason.REFUSED,
        Reason.TIMEOUT,
        Reason.INTERRUPTED,
        Reason.PANIC,
    }
)
"""Ends of which somebody will ask why."""


class Outcome(NamedTuple):
    """The end of one `Machine.run`.

    Attributes:
        reason: what ended the run.
        elapsed_s: seconds since this run began.
        message: one line for people: what happened, where, and the remedy if there is one.
        details: more lines of evidence (registers, last console line); may be empty.
        missed_until: the pattern that was waited for and never came, if there was one.
        evidence: what every vCPU was doing and the last accesses to devices, where the end is one that nobody wants.
    """

    reason: Reason
    elapsed_s: float
    message: str
    details: str = ""
    missed_until: str | None = None
    evidence: Evidence | None = None

    @property
    def reached(self) -> bool:
        """Did the guest reach what the caller waited for: ``until``, or power-off where none was given?"""
        return self.exit_status is ExitStatus.OK

    def raise_interrupt(self) -> Self:
        """Give back the outcome, for callers who have nothing to do with one that Ctrl-C made.

        Raises:
            KeyboardInterrupt: Ctrl-C ended the run.
        """
        if self.reason is Reason.INTERRUPTED:
            raise KeyboardInterrupt
        return self

    @property
    def exit_status(self) -> ExitStatus:
        """The process status that the command line returns; what ends before ``--until`` showed is no success."""
        if self.missed_until is not None and self.reason in {Reason.POWER_OFF, Reason.SUSPENDED}:
            return ExitStatus.GUEST_FAILED
        if self.missed_until is not None and self.reason is Reason.STOPPED:
            return ExitStatus.INTERRUPTED
        return _EXIT_STATUS.get(self.reason, ExitStatus.GUEST_FAILED)


class ResetKind(StrEnum):
    """Who reset a machine."""

    GUEST = "guest"
    """By a register."""
    TRIPLE_FAULT = "triple-fault"
    USER = "user"
    """`Machine.reset`."""
    WAKEUP = "wakeup"
    """`Machine.wakeup`, after S3."""

    @property
    def by_guest(self) -> bool:
        """Whether it is the guest's doing, which may become too much."""
        return self in {ResetKind.GUEST, ResetKind.TRIPLE_FAULT}

    @property
    def end(self) -> Reason:
        """How a run ends where the guest must not reset the machine."""
        return Reason.TRIPLE_FAULT if self is ResetKind.TRIPLE_FAULT else Reason.RESET

    def message(self, cause: str) -> str:
        """One line for people."""
        return f"the guest reset the machine: {cause}" if self is ResetKind.GUEST else cause


class Reset(NamedTuple):
    """A reset of a machine that went on.

    Attributes:
        t_s: when, in seconds since the first run began.
        kind: who wanted it.
        cause: in a few words: the register and what was written to it, or the vCPU with the triple fault.
        details: of a triple fault, the registers; else empty.
        instructions: how many the guest had executed, where time goes by them.
    """

    t_s: float
    kind: ResetKind
    cause: str
    details: str = ""
    instructions: int | None = None
