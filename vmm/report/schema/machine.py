"""The machine as it was when the run ended: firmware, CPUs, memory, disks, and what executed and confined it."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class FirmwareReport(TypedDict):
    """What was booted."""

    path: str
    kind: Literal["ovmf", "seabios", "bhyve", "probe", "none", "unknown"]
    interface: Literal["qemu", "bhyve"]
    """What answers at ports 0x510 and 0x511: QEMU's fw_cfg or bhyve's fwctl."""
    interface_why: str
    variables: str | None
    """The file of the variable store; null: the firmware has none."""
    variables_persist: bool
    """Whether what the guest stored was written back into it."""
    notes: list[str]
    """What was decided about the files, one sentence each."""


class RefusedImageReport(TypedDict):
    """An image that Secure Boot did not let the firmware start, by the firmware's own account."""

    image: str
    """Its UEFI device path."""
    cause: Literal["not-in-db", "certificate-in-dbx", "hash-in-dbx"]
    """No certificate in db verifies a signature of it, nor is its hash in there; the certificate, or the hash, is in
    dbx, which forbids it."""
    signed: bool | None
    """Whether it has a signature; null: that is not known, for it is neither -kernel's nor on a FAT volume."""


class MadtReport(TypedDict):
    """ACPI's list of processors, as firmware left it in guest RAM."""

    address: int
    oem: str
    """Who made it: VMM where firmware took ours."""
    enabled: list[int]
    """APIC ids."""
    possible: int
    """Processors in all."""


class CpusReport(TypedDict):
    """The vCPUs."""

    requested: int
    max: int
    """That the tables have room for."""
    plugged: list[int]
    """Indices of those that were plugged in."""
    started: int
    """Since the last reset, as the next one, too."""
    all_started_s: float | None
    """When the last one executed its first instruction, after the first one did; null: not all have."""
    madt: MadtReport | None
    """null: no firmware has left one."""


class RegionReport(TypedDict):
    """Guest physical addresses with memory behind them."""

    gpa: int
    size: int
    kind: Literal["ram", "rom"]
    read_only: bool


class MemoryRoomReport(TypedDict):
    """Guest physical addresses where memory may be plugged in."""

    gpa: int
    size: int
    max_memory: int
    """What RAM may become."""
    slots: int
    """In how many pieces."""


class MemoryReport(TypedDict):
    """The guest's memory."""

    size: int
    """Of RAM."""
    room: NotRequired[MemoryRoomReport]
    """Where more may be plugged in, if it may."""
    regions: list[RegionReport]
    """What was mapped when the run ended, by address."""


class VmgenidReport(TypedDict):
    """The VM generation id."""

    guid: str
    address: int | None
    """Where firmware has placed it; null: nowhere."""


class VmcoreinfoReport(TypedDict):
    """Where the guest's kernel says that its crash notes are."""

    guest_format: int
    size: int
    address: int


class DiskReport(TypedDict):
    """A disk, and what the guest did with it."""

    path: str
    slot: int
    """PCI device number."""
    size: int
    """Bytes."""
    read_only: bool
    snapshot: bool
    """What the guest wrote is gone."""
    reads: int
    writes: int
    flushes: int
    discards: int
    """And write-zeroes."""
    bytes_read: int
    bytes_written: int
    errors: int
    """Requests that the image failed; the guest was told."""
    last_error: str | None
    """Why the last of these failed."""


class AcceleratorReport(TypedDict):
    """Who executed the guest's instructions, and how many where."""

    name: Literal["kvm", "kvm+softcpu", "softcpu"]
    why: str
    instructions: int
    """Executed by the software CPU."""
    kvm_steps: int
    """Accesses to interrupt controllers and the 8254: single instructions that it handed to KVM, if there is one."""
    interrupts: int
    """Delivered to the vCPUs by the software CPU."""
    halts: NotRequired[int]
    swaps: NotRequired[int]
    """Times that it went from one vCPU to another."""
    invalidations: NotRequired[int]
    """Times that a device's write or a new memory map dropped translated code."""
    translations_flushed: NotRequired[int]
    """Times that all translated code was dropped because its buffer was full."""


class SandboxReport(TypedDict):
    """What the process had given up when the guest began."""

    kind: Literal["off", "threads", "whole"]
    landlock: int
    """The version that kept files from the process; 0: none did."""
    missing: list[str]
    """What this kernel does not offer."""
