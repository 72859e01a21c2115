"""Why a run ended, by what each vCPU was doing."""

from __future__ import annotations

from typing import Literal, TypedDict


class WherePlace(TypedDict):
    """An address in an image that is known."""

    address: int
    """Linear."""
    module: str
    """The image; empty: it has no name."""
    offset: int
    """In the image."""
    function: str
    """May be empty: not known."""
    function_offset: int


class InstructionReport(TypedDict):
    """An instruction."""

    address: int
    """Linear."""
    code: str
    """Its bytes, in hexadecimal."""
    text: str
    """As Intel writes it."""


class ExceptionReport(TypedDict):
    """An exception of the guest's, on its way to its handler."""

    vector: int
    name: str
    """As processors' manuals call it: #PF."""
    error_code: int | None
    """null: this one has none."""
    rip: int | None
    """Linear, of the instruction; null: not known."""
    cr2: int | None
    """Of a page fault, the address that was accessed; null: it is none, or that is not known."""
    place: WherePlace | None
    """What RIP is in; null: no image that is known."""


class WalkStepReport(TypedDict):
    """An entry of a table on the way from a linear address to a physical one."""

    level: int
    """5 (PML5E) to 1 (PTE)."""
    gpa: int
    """Where the entry is."""
    entry: int | None
    """null: no memory is there."""


class WalkReport(TypedDict):
    """The way of a linear address that is not mapped through the page tables."""

    register: Literal["RIP", "CR2"]
    """Which has the address."""
    address: int
    steps: list[WalkStepReport]


class VcpuReport(TypedDict):
    """What a vCPU was doing when the run ended."""

    vcpu: int
    """By index."""
    started: bool
    """Whether it had executed anything; else the rest is empty."""
    halted: bool
    """Whether it waited in HLT."""
    mode: str
    """Of the code, in words."""
    ring: int
    rip: int
    """Linear."""
    place: WherePlace | None
    """What RIP is in; null: no image that is known."""
    registers: dict[str, int]
    """By name; cs_base, cs_limit and cs_attributes belong to cs."""
    code: list[InstructionReport]
    """From RIP on; empty: no memory is there."""
    verdict: str
    """Why that code never ends by itself, for people; empty: it may."""
    stack: list[WherePlace]
    """Who called, the innermost first: return addresses that were found on the stack."""
    walks: list[WalkReport]
    exceptions: list[ExceptionReport]
    """The last 8 of them, in order; where KVM executes the guest, one that is under way, or those on the stack."""


class AccessReport(TypedDict):
    """An access to a device."""

    vcpu: int | None
    """null: KVM did not say whose."""
    device: str
    """Its name; empty: nobody answers there."""
    kind: Literal["port", "mmio"]
    address: int
    """The port, or guest physical."""
    size: int
    """Of an element, in bytes."""
    elements: int
    """Of a string instruction; else 1."""
    is_write: bool
    value: int
    """That was read or written last."""
    times: int
    """How often the same was done in a row."""


class WhyReport(TypedDict):
    """What is known of why a run ended that somebody will ask about."""

    vcpus: list[VcpuReport]
    """By index; a vCPU that tells nothing any more is missing."""
    accesses: list[AccessReport]
    """The last 32 to devices outside of KVM, of all vCPUs together, in order."""
    said: str
    """What the guest printed of a failure of its own, such as an assertion; may be empty."""
