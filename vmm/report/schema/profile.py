"""What the vCPUs executed, by phase, image and function."""

from __future__ import annotations

from typing import TypedDict


class ProfilePhaseReport(TypedDict):
    """A phase of the boot, and what the guest did in it."""

    name: str
    t_s: float
    """When it began."""
    seconds: float
    samples: int
    """Of all vCPUs together; one that waits for an interrupt makes none."""
    instructions: int | None
    """That the software CPU executed; null: KVM did, which does not count them."""
    accesses: int
    """To devices outside of KVM."""
    fw_cfg_bytes: int
    """Of items that were delivered."""


class StackReport(TypedDict):
    """What was executed, and how often that was seen."""

    phase: str
    module: str
    """The image; ? where that is not known."""
    function: str
    """May be empty: not known."""
    samples: int


class PlaceReport(TypedDict):
    """An address that was executed often."""

    module: str
    """The image; ? where that is not known."""
    offset: int
    """In the image; where that is not known, the linear address."""
    function: str
    """May be empty: not known."""
    samples: int


class ProfileReport(TypedDict):
    """What the vCPUs executed, looked at all the time."""

    interval_ns: int
    """Between two looks at a vCPU."""
    samples: int
    lost: int
    """How many more were not kept."""
    phases: list[ProfilePhaseReport]
    """In order; a firmware whose phases nobody knows here has one."""
    stacks: list[StackReport]
    """The most frequent first."""
    hottest: list[PlaceReport]
    """Likewise."""
