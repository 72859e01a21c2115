"""ACPI in guest RAM: what firmware leaves there is found, and nothing that a guest leaves there does harm."""

import struct

from device_rig import Rig
from hypothesis import given
from hypothesis import strategies as st

from vmm.tables import acpi, loader_rules
from vmm.tables.acpi_tables import AcpiDescription
from vmm.tables.files import ACPI_FILE, LOADER_FILE, RSDP_FILE
from vmm.tables.in_ram import find_tables, processors
from vmm.tables.loader_result import Rules

TOP = 16 << 20
"""The rig's RAM ends here; the area below 1 MiB is not mapped."""

BASES = {RSDP_FILE: TOP - 0x10000 + 20, ACPI_FILE: TOP - 0x8000}


def left_by_firmware(machine: AcpiDescription) -> Rig:
    rig = Rig()
    files = acpi.build_acpi(machine)
    for blob in loader_rules.run(files[LOADER_FILE], files, Rules.SEABIOS, bases=BASES).blobs.values():
        rig.memory.write(blob.base, bytes(blob.data))
    return rig


def test_the_madt_that_firmware_left() -> None:
    rig = left_by_firmware(AcpiDescription(cpus=2, max_cpus=3, apic_ids=(0, 5, 300)))
    tables = find_tables(rig.memory)
    assert {"XSDT", "FACP", "APIC", "MCFG", "WAET"} == tables.keys()
    madt = tables["APIC"]
    assert (madt.signature, madt.oem) == ("APIC", "VMM")
    assert rig.memory.read(madt.address, len(madt.data)) == madt.data
    assert [tuple(each) for each in processors(madt.data)] == [(0, True), (5, True), (300, False)]


def test_what_is_damaged_is_not_found() -> None:
    rig = left_by_firmware(AcpiDescription())
    madt = find_tables(rig.memory)["APIC"]
    rig.memory.write(madt.address + 10, b"X")
    assert find_tables(rig.memory).keys() == {"XSDT", "FACP", "MCFG", "WAET"}
    rig.memory.write(BASES[RSDP_FILE] + 9, b"X")
    assert find_tables(rig.memory) == {}
    assert find_tables(Rig().memory) == {}


@given(st.integers(0, (1 << 64) - 1), st.binary(max_size=200), st.integers(0, 0xFFFF_FFFF))
def test_no_guest_makes_it_fail(address: int, table: bytes, length: int) -> None:
    rig = Rig()
    rsdp = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, b"GUEST ", 2, 0, 36, address, 0))
    rsdp[8] = -sum(rsdp[:20]) & 0xFF
    rsdp[32] = -sum(rsdp) & 0xFF
    rig.memory.write(TOP - 0x1000, bytes(rsdp))
    rig.memory.write(TOP - 0x800, b"XSDT" + struct.pack("<I", length) + table)
    assert find_tables(rig.memory).keys() <= {"XSDT"}
    list(processors(table))


def test_a_guest_that_leaves_131000_pointers_to_the_largest_table_is_not_believed() -> None:
    rig = Rig()
    xsdt, largest, size = TOP - (4 << 20), TOP - (2 << 20), 1 << 20
    for address, signature, entries in ((xsdt, b"XSDT", struct.pack("<Q", largest)), (largest, b"HUGE", bytes(8))):
        data = bytearray(signature + struct.pack("<I", size) + bytes(28) + entries * ((size - 36) // 8)).ljust(
            size, b"\0"
        )
        data[9] = -sum(data) & 0xFF
        rig.memory.write(address, bytes(data))
    rsdp = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, b"GUEST ", 2, 0, 36, xsdt, 0))
    rsdp[8] = -sum(rsdp[:20]) & 0xFF
    rsdp[32] = -sum(rsdp) & 0xFF
    rig.memory.write(TOP - 0x1000, bytes(rsdp))
    left = 128 << 20

    class Counting:
        low_size = rig.memory.low_size

        def read(self, address: int, size: int) -> bytes:
            nonlocal left
            left -= size
            assert left > 0
            return rig.memory.read(address, size)

    assert find_tables(Counting()).keys() == {"XSDT", "HUGE"}  # type: ignore[arg-type]  # all that it needs


def test_of_memory_full_of_rsdps_the_first_ones_are_looked_at() -> None:
    rig = Rig()
    rig.memory.write(TOP - (4 << 20), b"RSD PTR ".ljust(16, b"\0") * (4 << 16))
    looked = 0

    class Counting:
        low_size = rig.memory.low_size

        def read(self, address: int, size: int) -> bytes:
            nonlocal looked
            looked += size == 36  # an RSDP's
            return rig.memory.read(address, size)

    assert find_tables(Counting()) == {}  # type: ignore[arg-type]  # as above
    assert looked == 256
