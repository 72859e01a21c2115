"""verify's third column: each statement of a table can be found untrue, from outside and by the guest that looks."""

import re
import struct
from collections.abc import Callable

import pytest

from vmm.config.machine import MachineConfig
from vmm.tables.acpi_tables import CHECKSUM_OFFSET
from vmm.tables.files import ACPI_FILE
from vmm.verify.result import Row
from vmm.verify.run import verify
from vmm.verify.values import Verdict

pytestmark = pytest.mark.needs_kvm

Files = dict[str, bytes]
GIB = 1 << 30
ELSEWHERE = 0xFED4_0000
"""Where nothing is."""


def stated(firmware: str, alter: Callable[[Files], Files] | None = None, **options: object) -> dict[str, Row]:
    """Rows by name and, where there is more than one, by what was found."""
    config = MachineConfig.create(firmware, **options)  # type: ignore[arg-type]
    rows = verify(config, alter=alter).subject("what tables state").rows
    return {row.name if "window" not in row.name else f"{row.name} {row.found}": row for row in rows}


def start_of(tables: bytes | bytearray, signature: bytes) -> int:
    """Where the table with this signature and our OEM id begins; -1 if there is none."""
    starts = range(0, len(tables), 4)
    return next((at for at in starts if tables[at : at + 4] == signature and tables[at + 10 : at + 13] == b"VMM"), -1)


def patched(
    signature: bytes, offset: int, value: bytes, *, also: tuple[int, bytes] | None = None
) -> Callable[[Files], Files]:
    """Change some bytes of a table, and its checksum if it comes with one."""

    def alter(files: Files) -> Files:
        tables = bytearray(files[ACPI_FILE])
        start = start_of(tables, signature)
        if start < 0:
            return files  # not yet: MCFG is there once firmware has placed ECAM
        end = start + int.from_bytes(tables[start + 4 : start + 8], "little")
        for at, data in [(offset, value), *([also] if also else [])]:
            tables[start + at : start + at + len(data)] = data
        if signature != b"FACP":
            tables[start + CHECKSUM_OFFSET] = 0
            tables[start + CHECKSUM_OFFSET] = -sum(tables[start:end]) & 0xFF
        return files | {ACPI_FILE: bytes(tables)}

    return alter


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def port(at: int, extended: int, value: int) -> Callable[[Files], Files]:
    return patched(b"FACP", at, u32(value), also=(extended + 4, struct.pack("<Q", value)))


def window_over_ram(files: Files) -> Files:
    """Let the first window begin 1 MiB earlier, where RAM is."""
    tables = files[ACPI_FILE]
    at = tables.index(b"\x87\x17\x00\x00")
    first, last = struct.unpack_from("<II", tables, at + 10)
    start = start_of(tables, b"DSDT")
    alter = patched(
        b"DSDT", at - start + 10, u32(first - (1 << 20)), also=(at - start + 22, u32(last + 1 - first + (1 << 20)))
    )
    return alter(files)


BROKEN = {
    "FADT: PM1a event": (port(56, 148, 0x700), {}),
    "FADT: PM1a control": (port(64, 172, 0x700), {}),
    "FADT: PM timer": (port(76, 208, 0x700), {"the guest's look: PM timer": "stands at 0xffffffff"}),
    "FADT: GPE0": (port(80, 220, 0x700), {}),
    "FADT: SCI": (patched(b"FACP", 46, b"\x0b"), {}),
    "FADT: PM timer's width": (patched(b"FACP", 113, b"\x05"), {}),
    "MCFG: ECAM": (patched(b"MCFG", 44, u32(0xD000_0000)), {"the guest's look: ECAM": "0:0.0 is ffffffff"}),
    "HPET: address": (patched(b"HPET", 44, u32(ELSEWHERE)), {"the guest's look: HPET": "id 0xffffffff"}),
    "HPET: id": (patched(b"HPET", 36, u32(0x8086A201)), {}),
    "MADT: local APIC": (patched(b"APIC", 36, u32(ELSEWHERE)), {"the guest's look: local APIC": "id 255"}),
    "MADT: enabled APIC ids": (patched(b"APIC", 47, b"\x03"), {}),
    "MADT: I/O APIC": (patched(b"APIC", 56, u32(ELSEWHERE)), {"the guest's look: I/O APIC": "256 inputs"}),
    "MADT: the PIT's IRQ 0": (patched(b"APIC", 68, u32(5)), {}),
    "DSDT: PCI window 0xff00000-0xafffffff": (window_over_ram, {}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_so_is_found(name: str) -> None:
    alter, seen = BROKEN[name]
    rows = stated("seabios", alter, machine="q35")
    untrue = {row: rows[row].found for row in rows if rows[row].verdict is Verdict.UNTRUE}
    assert untrue.keys() == {name, *seen}
    assert untrue.items() >= seen.items()
    assert rows[name].found != rows[name].true
    assert rows[name].reason


def window_over_room(files: Files) -> Files:
    """Let the window behind the room begin in its last GiB."""
    tables = files[ACPI_FILE]
    at = tables.index(b"\x8a\x2b\x00\x00")
    first, last = struct.unpack_from("<QQ", tables, at + 14)
    offset = at - start_of(tables, b"DSDT")
    sizes = struct.pack("<Q", last + 1 - first + GIB)
    return patched(b"DSDT", offset + 14, struct.pack("<Q", first - GIB), also=(offset + 38, sizes))(files)


HOTPLUG = 48 + 16 + 3 * 40
"""Where the SRAT has the range, behind one processor and what is there of memory."""
BROKEN_ROOM = {
    "memory that is there": (patched(b"SRAT", HOTPLUG + 28, u32(1)), {"SRAT: RAM of node 0", "SRAT: room for memory"}),
    "another place": (patched(b"SRAT", HOTPLUG + 12, u32(2)), {"SRAT: room for memory"}),
    "another node": (patched(b"SRAT", HOTPLUG + 2, u32(1)), {"SRAT: room for memory"}),
    "a window over it": (window_over_room, {"DSDT: PCI window 0x140000000-0x97fffffff"}),
}


@pytest.mark.parametrize("case", [None, *BROKEN_ROOM])
def test_where_memory_may_be_plugged_in(case: str | None) -> None:
    alter, wrong = BROKEN_ROOM[case] if case else (None, set())
    rows = stated("seabios", alter, machine="q35", memory="256M", max_memory="1280M", memory_slots=1)
    assert {row for row in rows if rows[row].verdict is Verdict.UNTRUE} == wrong
    assert rows["SRAT: room for memory"].true == "node 0 0x100000000-0x17fffffff"
    assert rows["etc/reserved-memory-end"].offered == "0x180000000"
    if case == "a window over it":
        assert rows[next(iter(wrong))].true == "room for memory at 0x100000000"


def test_ram_that_is_not_there_is_found() -> None:
    rows = stated("ovmf", e820=["base=8G,size=1G,type=ram"])
    untrue = {row: rows[row].true for row in rows if rows[row].verdict is Verdict.UNTRUE}
    assert untrue == dict.fromkeys(("etc/e820: RAM", "the guest's map: RAM"), "nothing at 0x200000000")
    rows = stated("ovmf", e820=["base=0x1000000000000000,size=1G,type=reserved"])
    assert all(row.verdict is Verdict.TRUE for row in rows.values())


def test_ram_beyond_the_processors_addresses_is_found() -> None:
    rows = stated("seabios", e820=[f"base={1 << 52:#x},size=1G,type=ram"])  # no x86-64 has more bits
    untrue = {row: rows[row].true for row in rows if rows[row].verdict is Verdict.UNTRUE}
    assert untrue.keys() == {"etc/e820: RAM", "the guest's map: RAM"}
    for true in untrue.values():
        assert re.match(r"addresses have (3[6-9]|4\d|5[0-2]) bits, ", true)


@pytest.mark.parametrize("firmware", ["ovmf", "seabios"])
@pytest.mark.parametrize("board", ["q35", "pc"])
def test_all_that_is_stated_is_true(firmware: str, board: str) -> None:
    rows = stated(firmware, machine=board, cpus=2, memory="4G")
    assert all(row.verdict is Verdict.TRUE for row in rows.values())
    looks = {name.partition("look: ")[2] for name in rows if "look" in name}
    assert looks == {"PM timer", "HPET", "local APIC", "I/O APIC"} | ({"ECAM"} if board == "q35" else set())


@pytest.mark.parametrize("firmware", ["seabios", "ovmf"])
def test_more_than_255_processors_report_from_x2apic_mode(firmware: str) -> None:
    """Firmware leaves them in that mode, where nothing answers at the local APIC's address."""
    result = verify(MachineConfig.create(firmware, cpus=300))
    assert result.ok
    rows = {row.name: row for subject in result.subjects for row in subject.rows}
    look = rows["the guest's look: x2APIC"]
    assert (look.offered, look.found, look.true) == ("MSR 0x802", "id 0", "id 0")
    assert result.found.cpus == (300, 300, 300)
