"""What firmware makes of our tables, asked from inside: OVMF and SeaBIOS, sizes and CPU counts, the user's own."""

import json
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import debian
import pytest
from virt.firmware.efi import devpath
from virt.firmware.varstore import edk2

from vmm.cli import main
from vmm.config.machine import MachineConfig
from vmm.firmware import guests
from vmm.tables import table_loader
from vmm.tables.e820 import RECORD, E820Entry, E820Type, decode
from vmm.tables.files import ACPI_FILE, LOADER_FILE, SMBIOS_ANCHOR_FILE
from vmm.tables.smbios_options import split_structures
from vmm.tables.table_loader import AddPointer, Allocate
from vmm.verify.collect import Collected, collect
from vmm.verify.memory import found_map
from vmm.verify.result import Row, Verification
from vmm.verify.run import compare, verify
from vmm.verify.values import Verdict

pytestmark = pytest.mark.needs_kvm

FIRMWARE = ["ovmf", "seabios"]
GUID = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"
SSDT = """
DefinitionBlock ("", "SSDT", 2, "USER", "USERTEST", 1)
{
    Scope (\\_SB) { Device (USRD) { Name (_HID, "USER0001") } }
}
"""


def rows(result: Verification, subject: str) -> dict[str, Row]:
    return {row.name: row for row in result.subject(subject).rows}


def wrong(result: Verification) -> dict[str, Row]:
    return {row.name: row for subject in result.subjects for row in subject.rows if not row.verdict.ok}


@pytest.fixture
def ssdt(tmp_path: Path) -> Path:
    source = tmp_path / "user.asl"
    source.write_text(SSDT, encoding="ascii")
    iasl = shutil.which("iasl")
    assert iasl, "these tests need Debian's package acpica-tools (scripts/setup test installs it)"
    subprocess.run([iasl, "-p", "user", source.name], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path / "user.aml"


@pytest.mark.parametrize("firmware", FIRMWARE)
@pytest.mark.parametrize(("cpus", "memory"), [pytest.param(1, "128M", marks=pytest.mark.hw_long), (8, "6G")])
def test_everything_arrives(firmware: str, cpus: int, memory: str) -> None:
    result = verify(MachineConfig.create(firmware, cpus=cpus, memory=memory))
    assert result.ok, wrong(result)
    ram = rows(result, "memory map")
    assert len(ram) == 1 + (memory == "6G")
    tables = rows(result, "ACPI tables")
    assert {"FACS", "DSDT", "FACP", "APIC", "WAET"} <= tables.keys()
    assert ("MCFG" in tables) == (firmware == "ovmf")
    assert rows(result, "processors")["MADT, enabled of possible"].found == f"{cpus} of {cpus}"


@pytest.mark.parametrize(
    ("firmware", "board"),
    [
        ("ovmf", "q35"),
        ("ovmf", "pc"),
        ("seabios", "q35"),
        ("seabios", "pc"),
        ("ovmf-trixie", "q35"),
        ("ovmf-sid", "q35"),
        ("seabios-sid", "q35"),
        ("seabios-sid", "pc"),
    ],
)
def test_tables_name_the_addresses_that_firmware_chose(firmware: str, board: str) -> None:
    image = debian.firmware(firmware)
    collected = collect(MachineConfig.create(image, machine=board))
    result = compare(collected)
    assert result.ok, wrong(result)
    report, standing = collected.report, collected.facts.standing
    assert report is not None
    mcfg, fadt = report.table("MCFG"), report.table("FACP")
    assert fadt is not None
    assert int.from_bytes(fadt[76:80], "little") - 8 == standing.pm_base  # PM_TMR_BLK
    assert standing.pm_base == (0xB000 if (firmware, board) == ("ovmf", "pc") else 0x600)
    if board == "pc":
        assert mcfg is None
        return
    assert mcfg is not None
    assert standing.ecam is not None
    assert int.from_bytes(mcfg[44:52], "little") == standing.ecam.start
    if firmware in {"ovmf-trixie", "ovmf-sid"}:
        assert standing.ecam.start == 0xE000_0000  # edk2 chose 0xb0000000 up to 2023


@pytest.mark.parametrize("firmware", FIRMWARE)
def test_the_users_own_arrives(firmware: str, ssdt: Path) -> None:
    # OVMF lists RAM wherever it is told of some; SeaBIOS takes its end for the end of RAM from 4 GiB on.
    far = ["base=0x800000000,size=64M,type=ram"] if firmware == "ovmf" else []
    config = MachineConfig.create(
        firmware,
        cpus=3,
        max_cpus=5,
        memory="3584M",
        acpi_tables=[f"file={ssdt}"],
        smbios=["type=1,product=Thing,serial=4711", "type=11,value=one,value=two"],
        e820=["base=0xfd000000,size=1M,type=reserved", "base=0xfd100000,size=64K,type=nvs", *far],
        fw_cfg={"opt/org.example/greeting": b"hello", "opt/org.example/large": bytes(range(256)) * 1000},
        devices=[f"vmgenid,guid={GUID}", "vmcoreinfo"],
        boot="order=dc,menu=on,splash-time=0",
        smbios_entry_point=64,
    )
    collected = collect(config)
    result = compare(collected)
    report = collected.report
    assert report is not None
    # Each record of the map that this firmware does not pass on is named, and nothing else is wrong.
    drops_reserved = firmware == "ovmf" and debian.version("ovmf") <= (2022, 11)
    dropped = {"0xfd100000-0xfd10ffff nvs"} | ({"0xfd000000-0xfd0fffff reserved"} if drops_reserved else set())
    # So is the RAM that an entry states, and that is not there.
    untrue = {name: row for name, row in wrong(result).items() if row.verdict is Verdict.UNTRUE}
    assert untrue.keys() == ({"etc/e820: RAM", "the guest's map: RAM"} if far else set())
    missing = {name: row for name, row in wrong(result).items() if name not in untrue}
    assert missing.keys() == dropped
    assert all("drops the others" in row.reason for row in missing.values())
    reserved = E820Entry(0xFD00_0000, 1 << 20, E820Type.RESERVED)
    assert (reserved in found_map(report)) == (not drops_reserved)
    assert (E820Entry(0x8_0000_0000, 64 << 20, E820Type.RAM) in found_map(report)) == (firmware == "ovmf")
    # And byte by byte, without the comparison's help.
    assert ssdt.read_bytes() in [table.data for table in report.acpi]
    structures = list(split_structures(report.smbios_tables[0].data))
    assert any(b"Thing\0" in structure and b"4711\0" in structure for structure in structures if structure[0] == 1)
    assert any(structure[5:] == b"one\0two\0\0" for structure in structures if structure[0] == 11)
    items = {item.name: item.data for item in report.items}
    assert items["opt/org.example/greeting"] == b"hello"
    assert items["opt/org.example/large"] == bytes(range(256)) * 1000
    assert any(found.data[:5] == b"_SM3_" for found in report.smbios_entry_points)
    assert report.processors == (3, 3)
    assert rows(result, "processors")["MADT, enabled of possible"].found == "3 of 5"
    assert rows(result, "fw_cfg items")["VM generation id"].verdict is Verdict.ARRIVED


def test_seabios_obeys_the_boot_order(tmp_path: Path) -> None:
    # A second copy of the report guest, which says a name of its own.
    rom = bytearray(guests.report("report.bin").read_bytes())
    rom[rom.index(b"vmm report A") + 11] += 1
    rom[-1] = (rom[-1] - 1) & 0xFF
    second = tmp_path / "second.bin"
    second.write_bytes(rom)
    names = []
    for order in (["vmm-report.bin", "second.bin"], ["second.bin", "vmm-report.bin"]):
        collected = collect(
            MachineConfig.create(
                "seabios",
                fw_cfg={"genroms/second.bin": second},
                bootorder=[f"/rom@genroms/{name}" for name in order],
            )
        )
        assert collected.report is not None
        assert compare(collected).ok
        assert f"1: /rom@genroms/{order[0]}" in collected.log
        names.append(collected.report.name)
    assert names == ["vmm report A", "vmm report B"]


def acpi_node(hid: int, uid: int) -> bytes:
    return struct.pack("<BBHII", 2, 1, 12, hid, uid)


def floppy_path(unit: int) -> bytes:
    pci = struct.pack("<BBHBB", 1, 1, 6, 0, 0x1F)
    return acpi_node(0x0A0341D0, 0) + pci + acpi_node(0x060441D0, unit) + b"\x7f\xff\x04\0"


@pytest.fixture
def variables_with_floppies(tmp_path: Path) -> Path:
    """OVMF's variables with two boot options of the user's: floppies 0 and 1, which do not exist."""
    template = MachineConfig.create("ovmf").firmware.variables
    assert template is not None
    store = edk2.Edk2VarStore(str(template.path))
    variables = store.get_varlist()
    for unit in (0, 1):
        variables.set_boot_entry(0x10 + unit, f"floppy {unit}", devpath.DevicePath(floppy_path(unit)))
        variables.append_boot_order(0x10 + unit)
    store.write_varstore(str(tmp_path / "vars.fd"), variables)
    return tmp_path / "vars.fd"


def test_ovmf_obeys_the_boot_order(variables_with_floppies: Path) -> None:
    order = [1, 0]  # the variables have 0 first
    collected = collect(
        MachineConfig.create(
            "ovmf",
            variables=variables_with_floppies,
            persist=False,
            bootorder=[f"/pci@i0cf8/isa@1f/fdc@03f0/floppy@{unit}" for unit in order],
        )
    )
    assert collected.report is not None
    assert collected.report.variables["BootOrder"][:4] == struct.pack("<HH", *(0x10 + unit for unit in order))
    result = compare(collected)
    assert result.ok, wrong(result)
    assert result.boot_order.found == tuple(f"/pci@i0cf8/isa@1f/fdc@03f0/floppy@{unit}" for unit in order)


# -- deliberately broken ----------------------------------------------------------------------------------------------


def offset_of(files: dict[str, bytes], signature: bytes) -> int:
    return files[ACPI_FILE].index(signature)


def wrong_checksum(files: dict[str, bytes]) -> dict[str, bytes]:
    tables = bytearray(files[ACPI_FILE])
    tables[offset_of(files, b"APIC") + 9] ^= 0xFF
    return files | {ACPI_FILE: bytes(tables)}


def pointer_outside(files: dict[str, bytes]) -> dict[str, bytes]:
    tables = bytearray(files[ACPI_FILE])
    at = offset_of(files, b"FACP") + 40
    tables[at : at + 4] = (len(tables) + 0x1000).to_bytes(4, "little")
    return files | {ACPI_FILE: bytes(tables)}


def duplicate_allocate(files: dict[str, bytes]) -> dict[str, bytes]:
    again = Allocate(ACPI_FILE, 64, 1).encode()
    return files | {LOADER_FILE: again + files[LOADER_FILE]}


def unlinked_table(files: dict[str, bytes]) -> dict[str, bytes]:
    """Drop the pointers in RSDT and XSDT to the WAET, and leave offsets behind."""
    waet = offset_of(files, b"WAET")
    script = files[LOADER_FILE]
    kept = b""
    for at in range(0, len(script), table_loader.RECORD_SIZE):
        record = script[at : at + table_loader.RECORD_SIZE]
        command = table_loader.decode_record(record)
        if isinstance(command, AddPointer):
            field = files[command.dest][command.offset : command.offset + command.size]
            if int.from_bytes(field, "little") == waet:
                continue
        kept += record
    return files | {LOADER_FILE: kept}


def overlapping_e820(files: dict[str, bytes]) -> dict[str, bytes]:
    extra = RECORD.pack(0x100_0000, 0x1000, E820Type.RESERVED)
    return files | {"etc/e820": files["etc/e820"] + extra}


def smbios_length(files: dict[str, bytes]) -> dict[str, bytes]:
    anchor = bytearray(files[SMBIOS_ANCHOR_FILE])
    anchor[22] ^= 1
    return files | {SMBIOS_ANCHOR_FILE: bytes(anchor)}


def several_at_once(files: dict[str, bytes]) -> dict[str, bytes]:
    """Break what does not hide one another."""
    for broken in (unlinked_table, wrong_checksum, overlapping_e820, smbios_length):
        files = broken(files)
    return files


Broken = Callable[[dict[str, bytes]], dict[str, bytes]]
Expected = dict[str, tuple[Verdict, str]]
SMBIOS_LENGTH = "etc/smbios/smbios-anchor says 252 bytes of structures, etc/smbios/smbios-tables has 253"


@pytest.mark.parametrize(
    ("firmware", "broken", "expected"),
    [
        (
            "ovmf",
            several_at_once,
            {
                "APIC": (Verdict.MISSING, "OVMF's second pass rejects it: checksum is wrong"),
                "WAET": (Verdict.MISSING, "no ADD_POINTER of the script leads to etc/acpi/tables"),
                "etc/e820": (Verdict.ALTERED, "entries overlap: 0x0-0xfffffff ram and 0x1000000-0x1000fff reserved"),
                "type 1 system": (Verdict.MISSING, SMBIOS_LENGTH),
            },
        ),
        ("ovmf", pointer_outside, {"DSDT": (Verdict.MISSING, "points outside etc/acpi/tables")}),
        ("ovmf", duplicate_allocate, {"FACP": (Verdict.MISSING, "duplicate ALLOCATE of etc/acpi/tables")}),
        (
            "seabios",
            several_at_once,
            {
                "APIC": (Verdict.ALTERED, "checksum is wrong"),
                "etc/e820": (Verdict.ALTERED, "entries overlap"),
                "type 1 system": (Verdict.ALTERED, SMBIOS_LENGTH),
            },
        ),
        ("seabios", pointer_outside, {"FACP": (Verdict.ALTERED, "points outside the file")}),
    ],
)
def test_broken_tables_get_their_reason_named(firmware: str, broken: Broken, expected: Expected) -> None:
    result = verify(MachineConfig.create(firmware), alter=broken)
    assert not result.ok
    problems = wrong(result)
    for row, (verdict, reason) in expected.items():
        assert row in problems, problems
        assert problems[row].verdict is verdict
        assert reason in problems[row].reason


def test_seabios_takes_a_second_allocate_as_our_rules_say() -> None:
    assert verify(MachineConfig.create("seabios"), alter=duplicate_allocate).ok


# -- the comparison itself, on what real firmware gave, changed -------------------------------------------------------


@pytest.fixture(scope="module")
def collected() -> Collected:
    return collect(MachineConfig.create("seabios"))


def test_a_field_that_firmware_overrides_is_named(collected: Collected) -> None:
    assert collected.report is not None

    def override(data: bytes) -> bytes:
        if data[:4] != b"FACP":
            return data
        changed = bytearray(data)
        changed[46] = 11  # SCI_INT
        changed[9] = (changed[9] + 9 - 11) & 0xFF
        return bytes(changed)

    tables = [replace(table, data=override(table.data)) for table in collected.report.acpi]
    result = compare(replace(collected, report=replace(collected.report, acpi=tables)))
    row = wrong(result)["FACP"]
    assert row.difference == "SCI_INT was 0x9, is 0xb"
    assert row.reason == "overridden by firmware"


def test_an_item_that_firmware_never_read_is_named(collected: Collected) -> None:
    assert collected.report is not None
    reads = dict(collected.firmware_reads)
    reads[LOADER_FILE] = reads[LOADER_FILE]._replace(selects=0)
    report = replace(collected.report, rsdp=None, acpi=[])
    result = compare(replace(collected, report=report, firmware_reads=reads))
    assert {row.reason for row in result.subject("ACPI tables").rows} == {"SeaBIOS never read etc/table-loader"}


def test_ram_that_is_lost_is_named(collected: Collected) -> None:
    assert collected.report is not None
    low = decode(collected.published["etc/e820"])[0]
    half = [E820Entry(0, low.length // 2, E820Type.RAM)]
    result = compare(replace(collected, report=replace(collected.report, e820=half)))
    assert f"lost {E820Entry(low.length // 2, low.length // 2, E820Type.RAM)}" in wrong(result)[str(low)].difference


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_exits_with_0_only_if_all_arrived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, data = tmp_path / "report.html", tmp_path / "report.json"
    assert main(["verify", "seabios", "--html", str(page), "--json", str(data)]) == 0
    assert "arrived" in capsys.readouterr().out.splitlines()[-1]
    found: dict[str, Any] = json.loads(data.read_text(encoding="utf-8"))
    assert found["ok"]
    assert [subject["name"] for subject in found["subjects"]] == [
        "memory map", "ACPI tables", "what tables state", "SMBIOS", "processors", "boot order", "fw_cfg items",
    ]  # fmt: skip
    html = page.read_text(encoding="utf-8")
    assert "Everything arrived" in html
    assert "Memory map, as a picture" in html
    assert found["origin"]["command"] == f"vmm verify seabios --html {page} --json {data}"
    assert found["origin"]["images"][0]["sha256"] in html
    assert "http" not in html
    assert main(["verify", "seabios", "-e820", "base=0xfd000000,size=4K,type=acpi"]) == 1
    shown = capsys.readouterr().out
    assert "because: SeaBIOS takes only RAM and reserved records" in shown


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["probe"], 2, "the report guest runs under OVMF and SeaBIOS"),
        (["seabios", "--timeout", "0"], 2, "--timeout 0: not a number of seconds above 0"),
        (["seabios", "-acpitable", "file=/nonexistent"], 2, "cannot read /nonexistent"),
        (["seabios", "-e820", "base=0,size=1M,type=reserved"], 2, "overlap"),
        (["seabios", "-device", "nvme"], 2, "-device nvme: the only disks are virtio ones"),
    ],
)
def test_what_makes_no_sense_is_said(
    words: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *words]) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_a_guest_that_never_reports_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    # Nothing is tried after the boot order's HALT, the report guest neither.
    assert main(["verify", "seabios", "-boot", "strict=on", "--timeout", "3"]) == 1
    assert "SeaBIOS read the report guest, but did not start it" in capsys.readouterr().out.replace("\n        ", " ")


def test_where_no_report_comes_it_says_where_the_guest_is() -> None:
    (report,) = verify(MachineConfig.create("ovmf"), deadline=0.3).subjects
    (row,) = report.rows
    assert re.search(r"; vCPU 0 was (at RIP 0x[0-9a-f]+.*, ring 0|not started)", row.reason), row
