"""The report guests on Debian's QEMU, and our loader rules against what real firmware made of QEMU's tables."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vmm.config.machine import MachineConfig
from vmm.firmware import guests
from vmm.tables import loader_rules
from vmm.tables.loader_result import Rules
from vmm.tables.smbios_options import END_OF_TABLE, split_structures
from vmm.verify import guest_report
from vmm.verify.guest_report import GuestReport, Kind
from vmm.verify.memory import found_map

pytestmark = pytest.mark.usefixtures("each_qemu")

Report = Callable[..., GuestReport]
MEMORY = 256 << 20


@pytest.fixture
def on_qemu(tmp_path: Path) -> Report:
    """Run QEMU with a report guest that firmware starts; there is no opt/vmm/report, so the debug port carries it."""
    program = shutil.which("qemu-system-x86_64")
    assert program, "these tests need Debian's package qemu-system-x86 (scripts/setup test installs it)"

    def run(*options: str) -> GuestReport:
        output = tmp_path / "debugcon"
        command = [program, "-nodefaults", "-display", "none", "-no-reboot", "-accel", "tcg", "-m", str(MEMORY >> 20)]
        command += ["-chardev", f"file,id=debugcon,path={output}", "-smp", "2,maxcpus=3"]
        command += ["-device", "isa-debugcon,iobase=0x402,chardev=debugcon", *options]
        subprocess.run(command, check=True, capture_output=True, timeout=240)
        return guest_report.decode(output.read_bytes())

    return run


def files(report: GuestReport) -> dict[str, bytes]:
    return {item.name: item.data for item in report.items if item.name}


def check(report: GuestReport, rules: Rules) -> None:
    published = files(report)
    # Every table that our rules say firmware takes is there, and no other that is in the script.
    result = loader_rules.run(
        published["etc/table-loader"], published, rules, writable=[name for name in published if "addr" in name]
    )
    assert result.ok, result.reason
    roots = {"RSDT", "XSDT"}
    expected = sorted((table.signature, table.length) for table in result.tables if table.accepted)
    found = sorted((table.data[:4].decode(), len(table.data)) for table in report.acpi)
    assert [table for table in found if table[0] not in roots] == [table for table in expected if table[0] not in roots]
    for table in report.acpi:
        assert sum(table.data) & 0xFF == 0 or table.data[:4] == b"FACS"
    structures = {structure[:4]: structure for structure in split_structures(report.smbios_tables[0].data)}
    for structure in split_structures(published["etc/smbios/smbios-tables"]):
        # The end of the table is firmware's own.
        assert structure[0] == END_OF_TABLE or structures[structure[:4]] == structure
    assert report.processors == (2, 2)
    ram = sum(entry.length for entry in found_map(report) if entry.type == 1)
    assert MEMORY - (4 << 20) < ram <= MEMORY


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_under_seabios(on_qemu: Report, machine: str) -> None:
    rom = guests.report("report.bin")
    report = on_qemu("-machine", machine, "-fw_cfg", f"name=genroms/vmm-report.bin,file={rom}")
    assert report.kind is Kind.BIOS
    assert report.name == "vmm report A"
    check(report, Rules.SEABIOS)


def test_under_ovmf(on_qemu: Report) -> None:
    images = MachineConfig.create("ovmf").firmware
    assert images.variables is not None
    report = on_qemu(
        *("-machine", "q35", "-kernel", str(guests.report("report.efi"))),
        *("-drive", f"if=pflash,format=raw,readonly=on,file={images.path}"),
        *("-drive", f"if=pflash,format=raw,snapshot=on,file={images.variables.path}"),
        *("-device", "vmgenid,guid=324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"),
    )
    assert report.kind is Kind.UEFI
    assert report.firmware_vendor
    assert "BootOrder" in report.variables
    check(report, Rules.OVMF)
