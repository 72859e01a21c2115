"""ACPI tables as an operating system would find them in guest RAM, and the processors of a MADT.

The guest is not trusted: what makes no sense is not found. Source: ACPI 6.5, 5.2.5 (RSDP), 5.2.8 (XSDT), 5.2.12 (MADT).
"""

from __future__ import annotations

import struct
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm import layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.memory import GuestMemory

_RSDP: Final = b"RSD PTR "
_RSDP_SIZE, _RSDP_V1_SIZE, _RSDP_REVISION, _RSDP_XSDT = 36, 20, 15, 24
_HEADER_SIZE: Final = 36
_MOST: Final = 1 << 20
"""Bytes of a table that is still believed."""
_MOST_IN_ALL: Final = 64 << 20
"""Bytes of tables that are read: a guest may have each of 131,072 pointers lead to the largest."""
_MOST_POINTERS: Final = 256
"""RSDPs that are followed."""

_BIOS_AREA: Final = range(0xE0000, layout.LEGACY_END)
_BELOW_TOP: Final = 256 * layout.MIB
_CHUNK: Final = 4 * layout.MIB
"""A BIOS leaves the RSDP in its own area; UEFI's is in the last RAM below 4 GiB, where edk2 allocates from."""

_MADT_ENTRIES: Final = 44
_LOCAL_APIC, _LOCAL_X2APIC = 0, 9
_ENABLED: Final = 1


class Table(NamedTuple):
    """A table, its checksum right, and the GPA where it lies."""

    address: int
    data: bytes

    @property
    def signature(self) -> str:
        """Its four characters."""
        return self.data[:4].decode("latin-1")

    @property
    def oem(self) -> str:
        """Who made it."""
        return self.data[10:16].decode("latin-1").rstrip("\0 ")


class Processor(NamedTuple):
    """A processor of a MADT."""

    apic_id: int
    enabled: bool


def find_tables(memory: GuestMemory) -> dict[str, Table]:
    """Tables by signature, XSDT among them, of the first RSDP that leads to one; empty if none does."""
    tables = _Tables(memory)
    for address in islice(_rsdps(memory), _MOST_POINTERS):
        rsdp = _bytes(memory, address, _RSDP_SIZE)
        if len(rsdp) == _RSDP_SIZE and rsdp[_RSDP_REVISION] >= 2 and not sum(rsdp[:_RSDP_V1_SIZE]) & 0xFF:
            xsdt = None if sum(rsdp) & 0xFF else tables.at(*struct.unpack_from("<Q", rsdp, _RSDP_XSDT))
            if xsdt is not None and xsdt.signature == "XSDT":
                rest = len(xsdt.data) - (len(xsdt.data) - _HEADER_SIZE) % 8
                entries = (tables.at(*entry) for entry in struct.iter_unpack("<Q", xsdt.data[_HEADER_SIZE:rest]))
                return {table.signature: table for table in (xsdt, *entries) if table is not None}
    return {}


def processors(madt: bytes) -> Iterator[Processor]:
    """The processors of a MADT, up to an entry that makes no sense."""
    at = _MADT_ENTRIES
    while at + 2 <= len(madt) and 2 <= madt[at + 1] <= len(madt) - at:
        entry = madt[at : at + madt[at + 1]]
        at += len(entry)
        if entry[0] == _LOCAL_APIC and len(entry) == 8:
            yield Processor(entry[3], bool(entry[4] & _ENABLED))
        elif entry[0] == _LOCAL_X2APIC and len(entry) == 16:
            yield Processor(int.from_bytes(entry[4:8], "little"), bool(entry[8] & _ENABLED))


def _rsdps(memory: GuestMemory) -> Iterator[int]:
    """GPAs of what begins like one: in the BIOS's area, then from the top of low RAM downwards."""
    areas = [_BIOS_AREA]
    end, lowest = memory.low_size, max(layout.LEGACY_END, memory.low_size - _BELOW_TOP)
    while end > lowest:
        areas.append(range(max(lowest, end - _CHUNK), end))
        end -= _CHUNK
    for area in areas:
        data = _bytes(memory, area.start, len(area))
        at = data.find(_RSDP)
        while at >= 0:
            if at % 4 == 0:  # edk2 puts it behind ACPI 1.0's, at 20 bytes from a page's start
                yield area.start + at
            at = data.find(_RSDP, at + 1)


class _Tables:
    """Reads tables, but no more than `_MOST_IN_ALL` of them together."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._left = _MOST_IN_ALL

    def at(self, address: int) -> Table | None:
        size = int.from_bytes(_bytes(self._memory, address + 4, 4), "little")
        if not _HEADER_SIZE <= size <= min(_MOST, self._left):
            return None
        self._left -= size
        data = _bytes(self._memory, address, size)
        return Table(address, data) if data and not sum(data) & 0xFF else None


def _bytes(memory: GuestMemory, address: int, size: int) -> bytes:
    try:
        return memory.read(address, size) if address + size < 1 << 64 else b""
    except ValueError:
        return b""
