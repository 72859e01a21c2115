"""What only an operating system can tell: what it says about our tables, vmcoreinfo, power-off."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from vmm.config.machine import MachineType
from vmm.run.outcome import Reason
from vmm.verify.result import Subject
from vmm.verify.values import Verdict

if TYPE_CHECKING:
    from vmm.verify.collect import Collected
    from vmm.verify.guest_report import GuestReport

_WARNING: Final = 4
"""KERN_WARNING in include/linux/kern_levels.h; lower is worse."""

_ABOUT_FIRMWARE: Final = re.compile(
    r"ACPI|acpi|AE_[A-Z]+|Firmware (Bug|Warn|Info)|BIOS bug|FADT|MADT|MCFG|MMCONFIG|DSDT|_OSC|DMI|SMBIOS|e820"
)

_CLAIMED_TWICE: Final = re.compile(r"could not be reserved")
"""drivers/pnp/system.c says so at KERN_INFO of ports and memory that another device, or the memory map, has."""

_ABOUT_TIME: Final = re.compile(r"clocksource|timekeeping watchdog|acpi_pm")
"""kernel/time/clocksource.c names the PM timer when a busy host made the clocks disagree: no table is at fault."""

NO_CPC: Final = "amd_pstate: the _CPC object is not present"
"""Linux 6.12 looks for it on AMD's processors, Linux 6.1 does not."""

QEMU_CAUSES_TOO: Final[dict[MachineType, tuple[str, ...]]] = {
    # No PCI Express on a 440FX, so no MCFG.
    MachineType.PC: ("fail to add MMCONFIG information", NO_CPC),
    MachineType.Q35: (NO_CPC,),
}
"""What Linux says about QEMU's tables for that machine, too; tests/kvm/firmware/test_linux.py asks it."""


def complaints(report: GuestReport) -> list[str]:
    """Return what Linux logged about firmware and its tables as a warning or worse, or about what is claimed twice."""
    return [
        text
        for level, text in report.log
        if (level <= _WARNING and _ABOUT_FIRMWARE.search(text) and not _ABOUT_TIME.search(text))
        or _CLAIMED_TWICE.search(text)
    ]


def compare(collected: Collected, report: GuestReport) -> Subject:
    """Look at the log, at what was written back, and at how the run ended."""
    subject = Subject("Linux")
    subject.add("kernel", "-", report.firmware_vendor, Verdict.EXTRA)
    common = QEMU_CAUSES_TOO.get(collected.config.machine_type, ())
    said = complaints(report)
    for text in [text for text in said if any(words in text for words in common)]:
        said.remove(text)
        subject.add("log", "-", text[:80], Verdict.EXTRA, difference="Linux says so of QEMU's machine, too")
    for text in said:
        subject.add(
            "log", "no complaint about tables", text[:80], Verdict.ALTERED, reason="Linux does not like a table"
        )
    if not said:
        subject.add("log", "no complaint about tables", f"none in {len(report.log)} lines", Verdict.ARRIVED)
    if collected.config.vmcoreinfo:
        note = collected.vmcoreinfo
        subject.add(
            "etc/vmcoreinfo",
            "written by the kernel",
            "-" if note is None else f"{note.size} bytes at {note.address:#x}",
            Verdict.MISSING if note is None else Verdict.ARRIVED,
            reason="the kernel's driver for fw_cfg wrote nothing valid" if note is None else "",
        )
    off = collected.outcome.reason is Reason.POWER_OFF
    subject.add(
        "power-off by ACPI",
        "S5",
        collected.outcome.message[:80],
        Verdict.ARRIVED if off else Verdict.MISSING,
        reason="" if off else "the kernel found no way to S5, or the run ended before",
    )
    return subject
