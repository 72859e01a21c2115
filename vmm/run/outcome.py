"""How a run ended."""

from enum import Enum
from typing import NamedTuple, Self

from vmm.errors import ExitStatus


class Reason(Enum):
    """What ended a run; the value is what ``--json`` prints."""

    UNTIL = "until"
    POWER_OFF = "power-off"
    RESET = "reset"
    TRIPLE_FAULT = "triple-fault"
    EMULATION_FAILURE = "emulation-failure"
    KVM_FAILURE = "kvm-failure"
    DEVICE_FAILURE = "device-failure"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    STOPPED = "stopped"


_EXIT_STATUS = {
    Reason.UNTIL: ExitStatus.OK,
    Reason.POWER_OFF: ExitStatus.OK,
    Reason.STOPPED: ExitStatus.OK,
    Reason.TIMEOUT: ExitStatus.TIMEOUT,
    Reason.INTERRUPTED: ExitStatus.INTERRUPTED,
}


class Outcome(NamedTuple):
    """The end of one `Machine.run`.

    Attributes:
        reason: what ended the run.
        elapsed_s: seconds since this run began.
        message: one line for people: what happened, where, and the remedy if there is one.
        details: more lines of evidence (registers, last console line); may be empty.
        missed_until: the pattern that was waited for and never came, if there was one.
    """

    reason: Reason
    elapsed_s: float
    message: str
    details: str = ""
    missed_until: str | None = None

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
        if self.missed_until is not None and self.reason is Reason.POWER_OFF:
            return ExitStatus.GUEST_FAILED
        if self.missed_until is not None and self.reason is Reason.STOPPED:
            return ExitStatus.INTERRUPTED
        return _EXIT_STATUS.get(self.reason, ExitStatus.GUEST_FAILED)
