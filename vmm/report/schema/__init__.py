"""The report of a run as an object: what ``--json`` writes, with the meaning of everything in it.

docs/schemas/report.schema.json is made of these types (scripts/report-schema). A key may be added at any time;
``schema`` changes when one goes or means something else. Sizes are in bytes, addresses are the guest's physical ones,
times are seconds since the first run began unless a name says otherwise. The modules beside this one have a part of it
each; all is imported from here, for type checkers alone: to make these types takes longer than to make a report.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from vmm.report.schema.exits import AreaReport, ExitsReport, TimesReport
from vmm.report.schema.handoff import FwCfgReport, FwctlReport, ItemReport, RequestReport
from vmm.report.schema.machine import (
    AcceleratorReport,
    CpusReport,
    DiskReport,
    FirmwareReport,
    MadtReport,
    MemoryReport,
    MemoryRoomReport,
    RefusedImageReport,
    RegionReport,
    SandboxReport,
    VmcoreinfoReport,
    VmgenidReport,
)
from vmm.report.schema.origin import HostReport, ImageReport, OriginReport
from vmm.report.schema.outcome import OutcomeReport, ResetReport, ResetsReport
from vmm.report.schema.profile import PlaceReport, ProfilePhaseReport, ProfileReport, StackReport
from vmm.report.schema.timeline import EventReport
from vmm.report.schema.virtual_time import ReplayReport, VirtualPhaseReport, VirtualTimeReport
from vmm.report.schema.why import (
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
    "AcceleratorReport",
    "AccessReport",
    "AreaReport",
    "CpusReport",
    "DiskReport",
    "EventReport",
    "ExceptionReport",
    "ExitsReport",
    "FirmwareReport",
    "FwCfgReport",
    "FwctlReport",
    "HostReport",
    "ImageReport",
    "InstructionReport",
    "ItemReport",
    "MadtReport",
    "MemoryReport",
    "MemoryRoomReport",
    "OriginReport",
    "OutcomeReport",
    "PlaceReport",
    "ProfilePhaseReport",
    "ProfileReport",
    "RefusedImageReport",
    "RegionReport",
    "ReplayReport",
    "Report",
    "RequestReport",
    "ResetReport",
    "ResetsReport",
    "SandboxReport",
    "StackReport",
    "TimesReport",
    "VcpuReport",
    "VirtualPhaseReport",
    "VirtualTimeReport",
    "VmcoreinfoReport",
    "VmgenidReport",
    "WalkReport",
    "WalkStepReport",
    "WherePlace",
    "WhyReport",
]


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
