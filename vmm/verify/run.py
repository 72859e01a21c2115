"""The whole of it: boot, collect, compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.legible import counted, shortened
from vmm.verify import acpi, boot, items, linux, memory, processors, smbios, truth
from vmm.verify.collect import DEADLINE, Collected, collect
from vmm.verify.evidence import NAMES, Evidence
from vmm.verify.guest_report import Kind
from vmm.verify.result import Subject, Verification
from vmm.verify.taken import leave_disks
from vmm.verify.values import Verdict

if TYPE_CHECKING:
    from vmm.config.machine import MachineConfig
    from vmm.config.outputs import Outputs
    from vmm.verify.collect import Alter


def verify(
    config: MachineConfig,
    *,
    alter: Alter | None = None,
    deadline: float = DEADLINE,
    with_linux: bool = False,
    outputs: Outputs | None = None,
) -> Verification:
    """Boot a machine with our report guest in it, and tell what of all that was offered arrived.

    Args:
        config: the machine; its firmware is OVMF or SeaBIOS.
        alter: gets the files of tables by name, etc/e820 among them, and gives those to publish instead.
        deadline: seconds for the boot.
        with_linux: see `collect`.
        outputs: as `vmm.Machine` takes it.

    Raises:
        ConfigError: see `collect`.
        HostError: no KVM.
    """
    config = leave_disks(config)
    return compare(collect(config, alter=alter, deadline=deadline, linux=with_linux, outputs=outputs))


def compare(collected: Collected) -> Verification:
    """Compare both sides, subject by subject."""
    config, report = collected.config, collected.report
    evidence = Evidence(collected)
    if report is None:
        failed = Subject("report guest")
        failed.add(
            "report", "one", "none", Verdict.MISSING, difference=collected.failure, reason=_why_no_report(collected)
        )
        subjects, maps = [failed], {}
    else:
        maps = memory.maps(collected, report)
        subjects = [
            memory.compare(collected, report, evidence),
            acpi.compare(collected, report, evidence),
            truth.compare(collected, report, evidence),
            smbios.compare(collected, report, evidence),
            processors.compare(collected, report, evidence),
            linux.compare(collected, report)
            if report.kind is Kind.LINUX
            else boot.compare(collected, report, evidence),
            items.compare(collected, report),
        ]
    cpus = counted(config.cpus, "CPU")
    words = f"{config.machine_type}, {cpus}, {config.memory >> 20} MiB"
    firmware = "no firmware" if config.direct else str(config.firmware.path)
    return Verification(firmware, words, collected.outcome.elapsed_s, tuple(subjects), maps, report)


def _why_no_report(collected: Collected) -> str:
    firmware = NAMES[collected.config.firmware.kind]
    if not collected.guest_was_read:
        what = f"{firmware} never read the report guest"
    else:
        what = f"{firmware} read the report guest, but did not start it, or it did not finish"
    lines = [line for line in collected.log.splitlines() if line.strip()]
    last = f"; the last line was {shortened(lines[-1].strip())!r}" if lines else ""
    started, cpus = collected.facts.started, collected.config.cpus
    slow = f"; {started} of {cpus} CPUs had started: --timeout gives them longer" if 0 < started < cpus else ""
    return what + last + slow + _where(collected)


def _where(collected: Collected) -> str:
    """What the first CPU was doing at the end."""
    seen = collected.outcome.evidence
    if seen is None or not seen.vcpus:
        return ""
    after = f", after {seen.accesses[-1]}" if seen.accesses else ""
    return f"; vCPU 0 was {seen.vcpus[0].where}{after}"
