"""The report of a run as an object: what ``--json`` writes, with the meaning of everything in it.

docs/schemas/report.schema.json is made of these types (scripts/report-schema). A key may be added at any time;
``schema`` changes when one goes or means something else. Sizes are in bytes, addresses are the guest's physical ones,
times are seconds since the first run began unless a name says otherwise. Most runs do without this module: their report
is text, and types take longer to make than that.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from vmm.report.why_schema import (
    AccessReport,
    ExceptionReport,
    InstructionReport,
    VcpuReport,
    WalkReport,
    WalkStepReport,
    WherePlace,
    WhyReport,
)

__all__ = [
    "AccessReport",
    "ExceptionReport",
    "InstructionReport",
    "VcpuReport",
    "WalkReport",
    "WalkStepReport",
    "WherePlace",
]


class ImageReport(TypedDict):
    """A file that the guest began with."""

    role: Literal["firmware", "variables", "kernel"]
    path: str
    size: int
    sha256: str
    """Of the whole file as it was read; where that is an ELF file, of the ROM that was made of it."""


class HostReport(TypedDict):
    """What the run ran on."""

    cpu: str
    cpus: int | None
    virtualization: Literal["vmx", "svm"] | None
    kernel: str


class OriginReport(TypedDict):
    """Where a report comes from."""

    vmm: str
    """The version."""
    date: str
    """When the report was made: UTC, as in ISO 8601."""
    command: str | None
    """For a shell; null: no command line began the run."""
    host: HostReport
    images: list[ImageReport]


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


class ItemReport(TypedDict):
    """An item of fw_cfg, and what the guest did with it."""

    name: str
    key: int
    size: int
    selects: int
    reads: int
    """Port accesses and DMA transfers that delivered bytes of it; a string instruction's batch is one."""
    bytes_read: int
    writes: int
    read_to_end: bool
    """Whether its last byte was delivered."""


class FwCfgReport(TypedDict):
    """QEMU's fw_cfg."""

    items: list[ItemReport]
    """By key."""
    never_read: list[str]
    """Names of items that were never selected."""
    probes: int
    """How often the signature was asked for."""


class RequestReport(TypedDict):
    """A request to fwctl, and its answer."""

    t_s: float
    operation: str
    txid: int
    oid: str
    """As the guest spelled it."""
    error: str
    """OK, or bhyve's name of the error."""
    matched: str | None
    """The OID that was answered; null: none."""
    value: str
    """In hexadecimal."""


class FwctlReport(TypedDict):
    """bhyve's fwctl."""

    requests: list[RequestReport]
    """The last ones, if there were many."""
    count: int
    """Of all requests."""
    probes: int
    """How often the signature was read."""
    oids: list[str]
    """Offered."""
    never_asked: list[str]
    """Of those."""


class AreaReport(TypedDict):
    """A device's ports (up to 0xffff) or addresses, and how often the guest accessed them."""

    name: str
    first: int
    last: int
    reads: int
    writes: int


class TimesReport(TypedDict):
    """How long vmm took for an exit reason, or for the answer of the device at a port or in a page."""

    name: str
    kind: str
    """exit, port or page."""
    address: int
    """The port, the page's address, or the number of the exit reason."""
    is_write: bool
    count: int
    total_ns: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    max_ns: int
    buckets: list[list[int]]
    """Pairs: from how many nanoseconds on, how many."""


class ExitsReport(TypedDict):
    """Why the guest came to vmm."""

    by_reason: dict[str, int]
    """How often KVM_RUN returned, of all vCPUs together."""
    by_device: list[AreaReport]
    """The busiest first; those that were never accessed are missing."""
    times: list[TimesReport]
    """Of --exit-times; what took longest in all first."""
    times_lost: int
    """How many measurements are not in there."""


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


class RefusedImageReport(TypedDict):
    """An image that Secure Boot did not let the firmware start, by the firmware's own account."""

    image: str
    """Its UEFI device path."""
    cause: Literal["not-in-db", "certificate-in-dbx", "hash-in-dbx"]
    """No certificate in db verifies a signature of it, nor is its hash in there; the certificate, or the hash, is in
    dbx, which forbids it."""
    signed: bool | None
    """Whether it has a signature; null: that is not known, for it is neither -kernel's nor on a FAT volume."""


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


class EventReport(TypedDict):
    """Something that happened."""

    t_s: float
    kind: Literal["vcpu-started", "first-output", "console-line", "fw-cfg-item", "fwctl-request", "reset", "end"]
    subject: int | str
    """Of vcpu-started the vCPU's index, of first-output and console-line the console, of fw-cfg-item the item that was
    selected for the first time, of fwctl-request the OID, of reset the same as kind in resets, of end the reason."""
    instructions: NotRequired[int]
    """How many the guest had executed; with virtual time."""
    event: str
    """The same for people; of console-line the line that ended then, or its first 200 bytes. Where a console has more
    than 512 lines, an even choice of them."""


class Report(TypedDict):
    """The report of a run of vmm boot."""

    schema: Literal["vmm-report/1"]
    origin: NotRequired[OriginReport]
    """In every report that is written to a file."""
    outcome: OutcomeReport
    why: NotRequired[WhyReport]
    """Of ends that nobody wants: failures, resets that end the run, deadlines, Ctrl-C."""
    firmware: FirmwareReport
    machine: Literal["q35", "pc", "bhyve"]
    resets: ResetsReport
    cpus: CpusReport
    memory: MemoryReport
    consoles: dict[str, int]
    """Bytes that the guest printed, by console."""
    console_tails: dict[str, str]
    """The last lines of each, without terminal escape sequences."""
    vmgenid: NotRequired[VmgenidReport]
    vmcoreinfo: NotRequired[VmcoreinfoReport | None]
    """null: the machine has the device, and no kernel has written to it."""
    fw_cfg: NotRequired[FwCfgReport]
    fwctl: NotRequired[FwctlReport]
    disks: NotRequired[list[DiskReport]]
    """In the order in which they were given."""
    refused_images: NotRequired[list[RefusedImageReport]]
    """By Secure Boot; missing where it refused none."""
    exits: ExitsReport
    accelerator: AcceleratorReport
    virtual_time: NotRequired[VirtualTimeReport]
    """With --clock virtual."""
    replay: NotRequired[ReplayReport]
    """With --replay."""
    profile: NotRequired[ProfileReport]
    """Of --profile."""
    sandbox: NotRequired[SandboxReport]
    """Missing in reports of earlier versions."""
    timeline: list[EventReport]
    """In order."""


def as_json(report: Report) -> str:
    """Return the report as a JSON object, with its last newline."""
    import json

    return json.dumps(report, indent=2) + "\n"
