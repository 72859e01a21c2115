"""Processors: how many the guest was told of, and how many there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.tables.in_ram import processors
from vmm.verify import linux_cpus
from vmm.verify.guest_report import GuestReport, Kind
from vmm.verify.result import Subject
from vmm.verify.values import Cpus, Verdict

if TYPE_CHECKING:
    from vmm.verify.collect import Collected
    from vmm.verify.evidence import Evidence

_COUNTED_BY = {Kind.UEFI: "MP Services, enabled", Kind.BIOS: "answered INIT and SIPI", Kind.LINUX: "nproc"}


def compare(collected: Collected, report: GuestReport, evidence: Evidence) -> Subject:
    """Compare the counts that the guest has from firmware and from the MADT."""
    subject = Subject("processors")
    cpus, most = collected.config.cpus, collected.config.max_cpus
    if report.processors is None:
        subject.add("MP Services", str(cpus), "-", Verdict.MISSING, reason=f"{evidence.firmware} has no such protocol")
    else:
        total, enabled = report.processors
        name = _COUNTED_BY[report.kind]
        reason = evidence.never_read("nb_cpus") or "not all of them answered in time"
        verdict = Verdict.ARRIVED if enabled == cpus and total == cpus else Verdict.ALTERED
        found = str(enabled) if total == enabled else f"{enabled} of {total}"
        subject.add(name, str(cpus), found, verdict, reason="" if verdict.ok else reason)
    counted = 0 if report.processors is None else report.processors[1]
    subject.whole = Cpus(cpus, cpus, most), Cpus(counted, 0, 0)
    madt = report.table("APIC")
    if madt is None and not collected.config.acpi:
        return subject
    if madt is None:
        subject.add("MADT", f"{cpus} of {most}", "-", Verdict.MISSING, reason="the guest has no MADT; see ACPI tables")
        return subject
    listed = list(processors(madt))
    enabled = sum(processor.enabled for processor in listed)
    subject.whole = Cpus(cpus, cpus, most), Cpus(counted, enabled, len(listed))
    if report.kind is Kind.LINUX:
        linux_cpus.compare(subject, collected.config, collected.ram, report)
    verdict = Verdict.ARRIVED if (enabled, len(listed)) == (cpus, most) else Verdict.ALTERED
    subject.add("MADT, enabled of possible", f"{cpus} of {most}", f"{enabled} of {len(listed)}", verdict,
                reason="" if verdict.ok else "see ACPI tables")  # fmt: skip
    return subject
