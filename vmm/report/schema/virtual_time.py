"""What is the same in every run with virtual time, and what became of a recording."""

from __future__ import annotations

from typing import TypedDict


class VirtualPhaseReport(TypedDict):
    """A phase of a firmware, by what the guest executed."""

    name: str
    instructions: int


class VirtualTimeReport(TypedDict):
    """What is the same in every run with virtual time: of the same images and options, on any host."""

    time_s: float
    """That passed for the guest."""
    instructions: int
    phases: list[VirtualPhaseReport]
    """In order; a firmware whose phases nobody knows here has none."""
    events: int
    """Accesses to devices, each element of a string instruction for itself, and interrupts."""
    trace_hash: str
    """Of all of these, each with its address, value and instruction: 16 hexadecimal digits."""
    inputs: int
    """From outside: how often something was typed, or the power button pressed."""


class ReplayReport(TypedDict):
    """What became of a recording."""

    inputs: int
    """That it has."""
    given: int
    """That the guest got."""
    same: bool
    """Whether it got all of them, each where it was recorded: otherwise the run was not the recorded one."""
