"""UEFI's executables in memory, as the specifications lay them out; and memory that makes no sense."""

import struct
from uuid import UUID

import pytest
from efi_memory import GUID, pe, table
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.debug import efi
from vmm.debug.secure_boot import Refusal, refusals

RAM_END = 16 << 20


class Memory:
    """RAM from 0 to `RAM_END`."""

    def __init__(self) -> None:
        self.bytes = bytearray(RAM_END)

    def read(self, gpa: int, size: int) -> bytes:
        if not 0 <= gpa <= gpa + size <= RAM_END:
            raise ValueError
        return bytes(self.bytes[gpa : gpa + size])

    def put(self, gpa: int, data: bytes) -> None:
        self.bytes[gpa : gpa + len(data)] = data


def code_view(kind: bytes, path: bytes) -> bytes:
    """Microsoft's PE format: NB10 has 12 bytes behind its name, RSDS 20; GenFw's MTOC 16."""
    return kind + bytes({b"NB10": 12, b"RSDS": 20, b"MTOC": 16}[kind]) + path + b"\0"


def te(base: int, record: bytes) -> bytes:
    """A TE image whose PE headers had 0x260 bytes; one section, from RVA 0x260 to 0x1260."""
    stripped = 0x260
    image = bytearray(0x1260 - stripped + 40)
    struct.pack_into("<2sHBBHIIQ", image, 0, b"VZ", 0x8664, 1, 0x0B, stripped, 0x300, 0x260, base)
    struct.pack_into("<II", image, 32, 0x400, 28)
    struct.pack_into("<8sIII", image, 40, b".text", 0x1000, 0x260, 0x1000)
    struct.pack_into("<III", image, 0x400 - stripped + 40 + 12, 2, len(record), 0x500)
    image[0x500 - stripped + 40 :][: len(record)] = record
    at = 0x500 - stripped + 40
    image[at : at + len(record)] = record
    return bytes(image)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize(
    ("kind", "path", "name"),
    [
        (b"NB10", b"/build/edk2/Build/DEBUG_GCC5/X64/DxeCore.dll", "DxeCore"),
        (b"RSDS", b"c:\\edk2\\Build\\X64\\DxeCore.pdb", "DxeCore"),
        (b"MTOC", b"/edk2/DxeCore.dSYM", "DxeCore"),
        (b"", b"", ""),
    ],
)
def test_a_loaded_image_is_told_from_a_copy_of_its_file(wide: bool, kind: bytes, path: bytes, name: str) -> None:
    memory = Memory()
    record = code_view(kind, path) if kind else b""
    memory.put(0x200000, pe(0x200000, wide=wide, record=record))
    memory.put(0x300000, pe(0x200000, wide=wide, record=record))
    memory.put(0x400000, pe(0, wide=wide, record=record))
    found = list(efi.scan(bytes(memory.bytes), 0, memory.read))
    assert [(image.base, image.size, image.path.encode(), image.name) for image in found] == [
        (0x200000, 0x3000, path, name)
    ]
    assert efi.header_at(pe(0, wide=wide, record=record), 0) == (0, 0x3000, found[0].key, 0x1000 if record else 0)


def test_a_te_image_begins_where_its_stripped_headers_were() -> None:
    memory = Memory()
    base = 0x820000 - 0x260 + 40
    memory.put(0x820000, te(base, code_view(b"NB10", b"/x/SecMain.dll")))
    memory.put(0x900000, te(base, b""))
    (image,) = efi.scan(bytes(memory.bytes), 0, memory.read)
    assert (image.base, image.size, image.name) == (base, 0x1260, "SecMain")


@pytest.mark.parametrize("wide", [True, False])
def test_the_debug_image_info_table(wide: bool) -> None:
    memory = Memory()
    table(memory.put, wide=wide)
    (image,) = efi.listed(memory.read, RAM_END)
    assert (image.base, image.size, image.guid, image.is_listed) == (0x200000, 0x3000, GUID, True)
    table(memory.put, wide=wide, spoil=True)
    assert efi.listed(memory.read, RAM_END) == []


@pytest.mark.parametrize("wide", [True, False])
def test_a_table_that_claims_too_much_is_left(wide: bool) -> None:
    memory = Memory()
    table(memory.put, wide=wide, count=0xFFFFFFFF)
    assert len(efi.listed(memory.read, RAM_END)) == 1
    for gpa in (0x14000, 0x15000, 0x16000):
        memory = Memory()
        table(memory.put, wide=wide)
        memory.put(gpa, b"\xff" * 256)
        assert len(efi.listed(memory.read, RAM_END)) <= 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0x10000, 0x16100), st.binary(min_size=1, max_size=16)), max_size=6),
    st.lists(st.tuples(st.integers(0, 0x1200), st.binary(min_size=1, max_size=16)), max_size=6),
    st.booleans(),
)
def test_nothing_in_memory_makes_it_raise(
    tables: list[tuple[int, bytes]], headers: list[tuple[int, bytes]], wide: bool
) -> None:
    memory = Memory()
    table(memory.put, wide=wide)
    memory.put(0x200000, pe(0x200000, wide=wide, record=code_view(b"RSDS", b"/a/b.pdb")))
    for gpa, data in tables:
        memory.put(gpa, data)
    for offset, data in headers:
        memory.put(0x200000 + offset, data)
    assert len(efi.listed(memory.read, RAM_END)) <= 4096
    for image in efi.scan(memory.read(0x200000, 0x4000), 0x200000, memory.read):
        assert 0 < image.size <= 64 << 20


def test_memory_full_of_headers_is_not_looked_at_for_long() -> None:
    memory = Memory()
    memory.put(0x100000, b"PE\0\0\x64\x86" * 20000)
    memory.put(0x200000, pe(0x200000))
    data = memory.read(0x100000, 0x200000)
    assert list(efi.scan(data, 0x100000, memory.read)) == []
    memory.put(0x100000, bytes(6))
    assert len(list(efi.scan(memory.read(0x100000, 0x200000), 0x100000, memory.read))) == 1


IMAGE_EXECUTION_TABLE = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")


def execution_table(memory: Memory, *entries: tuple[int, str], wide: bool = True, count: int | None = None) -> None:
    """UEFI 2.10, 32.4.2: how many, then for each its action, its size, its name, and what nobody reads here."""
    table(memory.put, wide=wide)
    form = "<Q" if wide else "<I"
    memory.put(0x11000, IMAGE_EXECUTION_TABLE.bytes_le + struct.pack(form, 0x30000))
    records = b""
    for action, name in entries:
        rest = f"{name}\0".encode("utf-16-le") + b"device path and signature"
        records += struct.pack("<II", action, 8 + len(rest)) + rest
    memory.put(0x30000, struct.pack(form, len(entries) if count is None else count) + records)


@pytest.mark.parametrize("wide", [True, False])
def test_what_secure_boot_refused(wide: bool) -> None:
    memory = Memory()
    entries = [(0, "one"), (3, "two"), (0, "one"), (2, "passed"), (1, "three"), (4, "four"), (8, "initialized")]
    execution_table(memory, *entries, wide=wide)
    assert refusals(memory.read, RAM_END) == [
        Refusal("one", "not-in-db"),
        Refusal("two", "not-in-db"),
        Refusal("three", "certificate-in-dbx"),
        Refusal("four", "hash-in-dbx"),
    ]
    table(memory.put, wide=wide)
    assert refusals(memory.read, RAM_END) == [], "no such table"


def test_a_table_of_refusals_that_claims_too_much_is_left() -> None:
    memory = Memory()
    execution_table(memory, (0, "one"), count=1 << 63)
    assert refusals(memory.read, RAM_END) == [Refusal("one", "not-in-db")]
    execution_table(memory, *((0, str(number)) for number in range(1000)))
    assert len(refusals(memory.read, RAM_END)) == 32
    execution_table(memory, (0, "one"))
    memory.put(0x3000C, struct.pack("<I", 0xFFFFFFFF))
    assert refusals(memory.read, RAM_END) == []
    memory.put(0x11010, struct.pack("<Q", RAM_END - 12))
    assert refusals(memory.read, RAM_END) == []
