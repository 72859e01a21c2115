"""How a run ended, and the resets before that."""

from __future__ import annotations

from typing import Literal, TypedDict


class OutcomeReport(TypedDict):
    """How the run ended."""

    reason: Literal[
        "until",
        "power-off",
        "panic",
        "suspended",
        "reset",
        "reset-loop",
        "triple-fault",
        "emulation-failure",
        "kvm-failure",
        "refused",
        "device-failure",
        "timeout",
        "interrupted",
        "stopped",
    ]
    exit_status: int
    """What vmm boot returns to its shell; 0: the guest reached what was waited for."""
    elapsed_s: float
    """Since this run began."""
    message: str
    """One line for people."""
    details: str
    """More lines of evidence, such as registers; may be empty."""


class ResetReport(TypedDict):
    """A reset of the machine, which then went on."""

    t_s: float
    kind: Literal["guest", "triple-fault", "user", "wakeup"]
    """Who reset it: the guest by a register, or by a triple fault, or the program that ran the machine, which may also
    have woken it up from S3."""
    cause: str
    """For people: the register and what was written there, or the vCPU of the triple fault."""
    details: str
    """Of a triple fault, the registers; else empty."""


class ResetsReport(TypedDict):
    """Resets of the machine."""

    count: int
    latest: list[ResetReport]
    """In order; 100 at the most."""
