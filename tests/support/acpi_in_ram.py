"""ACPI tables as an OS would find them in guest RAM: from the RSDP on, every checksum checked."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from vmm.machine import Machine

RSDP = b"RSD PTR "
_XSDT_ENTRIES = 36
_MADT_ENTRIES = 44
_LOCAL_APIC, _ENABLED = 0, 1
"""ACPI 6.5: 5.2.8, 5.2.12, 5.2.12.2."""


@dataclass(frozen=True)
class Table:
    address: int
    data: bytes

    @property
    def signature(self) -> str:
        return self.data[:4].decode("latin-1")

    @property
    def oem(self) -> str:
        return self.data[10:16].decode("latin-1").rstrip()


def tables(machine: Machine) -> dict[str, Table]:
    """Tables by signature, from the ACPI 2.0 RSDP in RAM above 1 MiB; fails if there is none, or two that disagree."""
    found = [table for rsdp in _rsdps(machine) for table in [_from_xsdt(machine, rsdp)] if table]
    assert found, "no RSDP in RAM that leads to an XSDT"
    assert all(each == found[0] for each in found), "RSDPs in RAM lead to different tables"
    return found[0]


def cpus_of(madt: Table) -> list[int]:
    """APIC ids of the enabled CPUs."""
    entries = madt.data[_MADT_ENTRIES:]
    ids: list[int] = []
    while entries:
        kind, length = entries[0], entries[1]
        assert 2 <= length <= len(entries)
        if kind == _LOCAL_APIC and struct.unpack_from("<I", entries, 4)[0] & _ENABLED:
            ids.append(entries[3])
        entries = entries[length:]
    return ids


def _rsdps(machine: Machine) -> Iterator[bytes]:
    start = 1 << 20
    ram = machine.memory.read(start, machine.memory.low_size - start)
    at = ram.find(RSDP)
    while at >= 0:
        rsdp = ram[at : at + 36]
        # edk2 puts ACPI 2.0's RSDP behind ACPI 1.0's, at 20 bytes from a page's start: UEFI hands over its address.
        if at % 4 == 0 and len(rsdp) == 36 and rsdp[15] >= 2 and not sum(rsdp[:20]) % 256 and not sum(rsdp) % 256:
            yield rsdp
        at = ram.find(RSDP, at + 1)


def _from_xsdt(machine: Machine, rsdp: bytes) -> dict[str, Table]:
    xsdt = _table(machine, struct.unpack_from("<Q", rsdp, 24)[0])
    if xsdt.signature != "XSDT":
        return {}
    entries = [_table(machine, address) for (address,) in struct.iter_unpack("<Q", xsdt.data[_XSDT_ENTRIES:])]
    return {table.signature: table for table in [xsdt, *entries]}


def _table(machine: Machine, address: int) -> Table:
    size = struct.unpack("<I", machine.memory.read(address + 4, 4))[0]
    table = Table(address, machine.memory.read(address, size))
    assert not sum(table.data) % 256, f"checksum of {table.signature}"
    return table
