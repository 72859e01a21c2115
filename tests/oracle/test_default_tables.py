"""ACPI and SMBIOS of a machine without options, beside those of Debian's QEMU 7.2 for the same machine.

Each difference stands in docs/tables.md, with its reason; that page is what these tests check.
"""

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from qemu_qtest import Qemu

from vmm.config.machine import MachineConfig
from vmm.config.parts import RamPlaces
from vmm.handoff import tables
from vmm.platform import Standing
from vmm.tables import loader_rules
from vmm.tables.files import ACPI_FILES, LOADER_FILE, RSDP_FILE, SMBIOS_FILE
from vmm.tables.loader_result import Rules
from vmm.tables.smbios_options import split_structures
from vmm.verify.acpi_fields import field_at

pytestmark = pytest.mark.usefixtures("qemu_of_debian_12")

PAGE = Path(__file__).parents[2] / "docs" / "tables.md"
BOARDS = ["q35", "pc"]
MEMORY = 256 << 20
CPUS = 2
ECAM = range(0xE000_0000, 0xF000_0000)
HPET = range(0xFED0_0000, 0xFED0_0400)
STANDING = {
    "q35": Standing(pm_base=0x600, gpe0=range(0x620, 0x630), ecam=ECAM, hpet=HPET),
    "pc": Standing(pm_base=0x600, gpe0=range(0xAFE0, 0xAFE4), hpet=HPET),
}
FIRMWARE_DOES = {
    "q35": [(0, 0, 0x60, ECAM.start | 1), (31, 0, 0x40, 0x601), (31, 0, 0x44, 0x80)],
    "pc": [(1, 3, 0x40, 0x601), (1, 3, 0x80, 1)],
}
"""Writes to PCI functions: device, function, register, value."""

IDENTITY = {"OEM id", "OEM table id", "creator id", "checksum", "length"}
POINTERS = {"FIRMWARE_CTRL", "DSDT", "X_FIRMWARE_CTRL", "X_DSDT"}
BODY = {
    "HPET": (("block id", 4), ("address", 12), ("sequence number", 1), ("minimum tick", 2), ("page protection", 1)),
    "WAET": (("flags", 4),),
    "MCFG": (("reserved", 8), ("base", 8), ("segment", 2), ("first bus", 1), ("last bus", 1), ("reserved", 4)),
}
STRINGS = {
    1: {4: "manufacturer", 5: "product", 6: "version", 7: "serial number", 25: "SKU", 26: "family"},
    3: {4: "manufacturer", 6: "version", 7: "serial number", 8: "asset tag", 21: "SKU"},
    4: {4: "socket", 7: "manufacturer", 16: "version", 32: "serial number", 33: "asset tag", 34: "part number"},
    17: {16: "locator", 17: "bank", 23: "manufacturer", 24: "serial number", 25: "asset tag", 26: "part number"},
}
NUMBERS = {4: {20: "maximum speed", 22: "current speed", 38: "characteristics"}}
"""Offset and name of 16-bit fields of SMBIOS structures (DMTF DSP0134, chapter 7)."""

Facts = dict[tuple[str, str], str]
"""What tables say: (table, field) to value."""


def acpi_facts(files: dict[str, bytes], directory: Path) -> Facts:
    result = loader_rules.run(files[LOADER_FILE], files, Rules.SEABIOS)
    assert result.ok, result.reason
    facts: Facts = {("RSDP", "length"): str(len(files[RSDP_FILE]))}
    for found in result.tables:
        data = files[found.file][found.offset : found.offset + found.length]
        facts["tables", found.signature] = "there"
        if found.signature == "DSDT":
            facts["DSDT", "revision"] = hex(data[8])
            facts |= dsdt_facts(bytes(result.blobs[found.file].data[found.offset :][: found.length]), directory)
        elif found.signature == "APIC":
            facts["APIC", "revision"] = hex(data[8])
            facts |= {("APIC", f"entry {entry.hex(' ')}"): "there" for entry in madt_entries(data)}
        elif found.signature != "FACS":
            facts |= fixed_facts(found.signature, data)
    return facts


def fixed_facts(signature: str, data: bytes) -> Facts:
    facts: Facts = {}
    at = 0
    while at < min(len(data), 36 if signature in BODY else 1 << 16):
        name, start, size = field_at(signature, at)
        value = data[start : start + size]
        at = start + size
        if name not in IDENTITY | POINTERS | {"signature", "OEM revision", "creator revision"}:
            facts[signature, name] = shown(value)
    for name, size in BODY.get(signature, ()):
        facts[signature, name] = shown(data[at : at + size])
        at += size
    return facts


def shown(value: bytes) -> str:
    return hex(int.from_bytes(value, "little")) if len(value) <= 8 else value.hex(" ")


def madt_entries(data: bytes) -> Iterator[bytes]:
    at = 44
    while at < len(data):
        yield data[at : at + data[at + 1]]
        at += data[at + 1]


def dsdt_facts(data: bytes, directory: Path) -> Facts:
    (directory / "dsdt.aml").write_bytes(data)
    iasl = shutil.which("iasl")
    assert iasl, "these tests need Debian's package acpica-tools (scripts/setup test installs it)"
    subprocess.run([iasl, "-d", "dsdt.aml"], cwd=directory, check=True, capture_output=True)
    text = (directory / "dsdt.dsl").read_text(encoding="ascii")
    facts: Facts = {}
    for device in re.findall(r'Name \(_HID, (?:EisaId \()?"(\w+)"', text):
        facts["DSDT", f"device {device}"] = "there"
    for state in re.findall(r"Name \(_S(\d), Package", text):
        facts["DSDT", f"sleep state S{state}"] = "there"
    start = text.index("WordBusNumber")
    windows = text[start : text.index("})", start)]
    pattern = r"(\w+) \(ResourceProducer.*?\n.*?\n *0x(\w+), .*?\n *0x(\w+), "
    for kind, first, last in re.findall(pattern, windows):
        facts["DSDT", f"window {kind} {int(first, 16):#x}-{int(last, 16):#x}"] = "there"
    return facts


def smbios_facts(structures: bytes) -> Facts:
    facts: Facts = {}
    for structure in split_structures(structures):
        kind, length = structure[0], structure[1]
        table = f"SMBIOS type {kind}"
        facts["tables", table] = "there"
        texts = structure[length:].split(b"\0")
        area = bytearray(structure[:length])
        for at, name in STRINGS.get(kind, {}).items():
            facts[table, name] = texts[area[at] - 1].decode() if area[at] else "none"
            area[at] = 0
        for at, name in NUMBERS.get(kind, {}).items():
            facts[table, name] = hex(struct.unpack_from("<H", area, at)[0])
            area[at : at + 2] = bytes(2)
        facts[table, "all else"] = area.hex()
    return facts


def of_qemu(board: str, directory: Path) -> tuple[Facts, int]:
    """What QEMU says, and its processor's id."""
    with Qemu(directory, MEMORY, ["-smp", str(CPUS), "-serial", "null"], machine=board) as qemu:
        for device, function, register, value in FIRMWARE_DOES[board]:
            address = 1 << 31 | device << 11 | function << 8 | register
            qemu.commands([f"outl 0xcf8 {address:#x}", f"outl 0xcfc {value:#x}"])
        names = [*ACPI_FILES, SMBIOS_FILE]
        files = qemu.files()
        got = {name: qemu.item(*files[name]) for name in names}
    processor = next(each for each in split_structures(got[SMBIOS_FILE]) if each[0] == 4)
    facts = acpi_facts(got, directory) | smbios_facts(got[SMBIOS_FILE])
    return facts, int.from_bytes(processor[8:16], "little")


def of_ours(board: str, directory: Path, processor_id: int) -> Facts:
    config = MachineConfig.create("probe", machine=board, memory=MEMORY, cpus=CPUS)
    files = tables.AcpiFiles(config, RamPlaces(MEMORY, 0)).build(STANDING[board])
    smbios = tables.smbios_files(config, RamPlaces(MEMORY, 0), processor_id)[SMBIOS_FILE]
    return acpi_facts(files, directory) | smbios_facts(smbios)


def differences(theirs: Facts, mine: Facts) -> set[tuple[str, ...]]:
    """Rows as on the page. Of the FADT, whose revisions have different lengths, fields that both have."""
    return {
        (*key, theirs.get(key, "-"), mine.get(key, "-"))
        for key in theirs.keys() | mine.keys()
        if theirs.get(key, "-") != mine.get(key, "-") and (key[0] != "FACP" or key in theirs)
    }


def documented(board: str) -> set[tuple[str, ...]]:
    """Rows of the page's table for one board: table, field, what QEMU says, what we say."""
    rows = set()
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 6 and cells[0] in {"both", board}:
            assert cells[5], f"no reason: {line}"
            rows.add(tuple(cells[1:5]))
    return rows


@pytest.mark.parametrize("board", BOARDS)
def test_each_difference_from_qemu_has_a_reason(tmp_path: Path, board: str) -> None:
    theirs, processor_id = of_qemu(board, tmp_path)
    mine = of_ours(board, tmp_path, processor_id)
    assert differences(theirs, mine) == documented(board)
