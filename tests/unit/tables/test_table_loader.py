"""The loader script: record bytes, builder, decoder."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.tables import table_loader
from vmm.tables.table_loader import (
    AddChecksum,
    AddPointer,
    Allocate,
    Malformed,
    Opcode,
    Script,
    Unknown,
    WritePointer,
    Zone,
)

RSDP, TABLES = "etc/acpi/rsdp", "etc/acpi/tables"


def padded(*parts: bytes) -> bytes:
    return b"".join(parts).ljust(128, b"\0")


def name(text: str) -> bytes:
    return text.encode().ljust(56, b"\0")


def test_allocate_record() -> None:
    expected = padded(b"\x01\0\0\0", name(RSDP), b"\x10\0\0\0", b"\x02")
    assert Allocate(RSDP, 16, Zone.FSEG).encode() == expected


def test_add_pointer_record() -> None:
    expected = padded(b"\x02\0\0\0", name(RSDP), name(TABLES), b"\x10\0\0\0", b"\x04")
    assert AddPointer(RSDP, TABLES, 16, 4).encode() == expected


def test_add_checksum_record() -> None:
    expected = padded(b"\x03\0\0\0", name(RSDP), b"\x08\0\0\0", b"\0\0\0\0", b"\x14\0\0\0")
    assert AddChecksum(RSDP, 8, 0, 20).encode() == expected


def test_write_pointer_record() -> None:
    expected = padded(
        b"\x04\0\0\0", name("etc/vmgenid_addr"), name("etc/vmgenid_guid"), b"\0\0\0\0", b"\x28\0\0\0", b"\x08"
    )
    assert WritePointer("etc/vmgenid_addr", "etc/vmgenid_guid", 0, 40, 8).encode() == expected


def test_allocations_come_first_and_links_keep_their_order() -> None:
    script = Script()
    script.allocate(RSDP, align=16, zone=Zone.FSEG)
    script.allocate(TABLES, align=64)
    script.add_pointer(RSDP, 16, 4, TABLES)
    script.allocate("etc/extra", align=4096)
    script.add_checksum(RSDP, result=8, start=0, length=20)
    script.write_pointer("etc/addr", "etc/extra", source_offset=40)
    encoded = script.encode()
    assert len(encoded) == 6 * 128
    assert [type(command).__name__ for command in table_loader.decode(encoded)] == [
        "Allocate",
        "Allocate",
        "Allocate",
        "AddPointer",
        "AddChecksum",
        "WritePointer",
    ]


def test_padding_and_unknown_commands_decode_as_unknown() -> None:
    assert table_loader.decode(bytes(128) + b"\x63\0\0\0" + bytes(124)) == (Unknown(0), Unknown(0x63))


def test_an_unterminated_name_is_malformed() -> None:
    record = bytearray(AddPointer(RSDP, TABLES, 0, 4).encode())
    record[60:116] = b"x" * 56
    assert table_loader.decode(bytes(record)) == (Malformed(Opcode.ADD_POINTER),)


def test_a_partial_record_is_refused() -> None:
    with pytest.raises(ValueError, match="129 bytes"):
        table_loader.decode(bytes(129))


@pytest.mark.parametrize("align", [0, 3, 48, 8192])
def test_bad_alignments_are_refused(align: int) -> None:
    with pytest.raises(ValueError, match=f"alignment {align}"):
        Script().allocate(RSDP, align=align)


@pytest.mark.parametrize("bad", ["", "x" * 56, "etc/ä", "a\0b"])
def test_bad_names_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="file name"):
        Script().allocate(bad, align=16)


def test_a_second_allocation_is_refused() -> None:
    script = Script()
    script.allocate(RSDP, align=16)
    with pytest.raises(ValueError, match="allocated already"):
        script.allocate(RSDP, align=16)


def test_references_need_an_allocation() -> None:
    script = Script()
    script.allocate(RSDP, align=16)
    with pytest.raises(ValueError, match=f"{TABLES} is not allocated"):
        script.add_pointer(RSDP, 16, 4, TABLES)
    with pytest.raises(ValueError, match=f"{TABLES} is not allocated"):
        script.add_checksum(TABLES, result=9, start=0, length=36)
    with pytest.raises(ValueError, match=f"{TABLES} is not allocated"):
        script.write_pointer(RSDP, TABLES, source_offset=0)
    with pytest.raises(ValueError, match="pointer size 3"):
        script.add_pointer(RSDP, 16, 3, RSDP)


@given(st.binary(min_size=128, max_size=128))
def test_any_record_decodes(record: bytes) -> None:
    command = table_loader.decode_record(record)
    if not isinstance(command, Unknown | Malformed):
        assert str(command).startswith(Opcode(record[0]).name)


@given(
    file=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=55),
    numbers=st.tuples(*[st.integers(0, 0xFFFFFFFF)] * 3),
)
def test_checksum_commands_round_trip(file: str, numbers: tuple[int, int, int]) -> None:
    command = AddChecksum(file, *numbers)
    assert table_loader.decode(command.encode()) == (command,)
