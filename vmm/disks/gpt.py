"""A GUID partition table with one partition (UEFI 2.10, chapter 5)."""

import struct
import uuid
import zlib
from typing import Final

from vmm._native import lib

SECTOR: Final[int] = lib.SECTOR_SIZE

EFI_SYSTEM_PARTITION: Final = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
"""The type of a partition that firmware boots from."""

FIRST_SECTOR: Final = (1 << 20) // SECTOR
"""Of the partition: 1 MiB, where partitioning tools put the first."""

_ENTRIES, _ENTRY_SIZE = 128, 128
_TABLE_SECTORS: Final = _ENTRIES * _ENTRY_SIZE // SECTOR
TRAILER_SECTORS: Final = _TABLE_SECTORS + 1
"""Behind the partition: the backup of the table, and of its header."""

_HEADER: Final = struct.Struct("<8sIIII QQQQ 16s Q III")
_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
_REVISION = 0x10000
_GUIDS: Final = uuid.uuid5(uuid.NAMESPACE_OID, "vmm, a folder as a disk")
_PROTECTIVE = 0xEE


def tables(sectors: int, name: str, number: int) -> tuple[bytes, bytes]:
    """Return what a disk with one EFI system partition begins and ends with.

    Args:
        sectors: of the whole disk; the partition has all that is between `FIRST_SECTOR` and `TRAILER_SECTORS`.
        name: of the partition, up to 36 characters.
        number: tells the machine's disks of this kind apart: their GUIDs come from it, the same in each run.
    """
    last = sectors - 1
    disk, partition = (uuid.uuid5(_GUIDS, f"{number} {what}").bytes_le for what in ("disk", "partition"))
    entry = _ENTRY.pack(
        EFI_SYSTEM_PARTITION.bytes_le,
        partition,
        FIRST_SECTOR,
        last - TRAILER_SECTORS,
        0,
        name.encode("utf-16-le"),
    )
    entries = entry.ljust(_ENTRIES * _ENTRY_SIZE, b"\0")

    def header(own: int, other: int, at: int) -> bytes:
        usable = 2 + _TABLE_SECTORS, last - TRAILER_SECTORS
        places = (own, other, *usable, disk, at, _ENTRIES, _ENTRY_SIZE, zlib.crc32(entries))
        unchecked = _HEADER.pack(b"EFI PART", _REVISION, _HEADER.size, 0, 0, *places)
        checksum = zlib.crc32(unchecked)
        return _HEADER.pack(b"EFI PART", _REVISION, _HEADER.size, checksum, 0, *places).ljust(SECTOR, b"\0")

    start = _protective_mbr(sectors) + header(1, last, 2) + entries
    return start, entries + header(last, 1, last - _TABLE_SECTORS)


def _protective_mbr(sectors: int) -> bytes:
    """UEFI 2.10, 5.2.3: one partition over all of the disk, for who knows nothing of GPT."""
    record = struct.pack("<B3sB3sII", 0, b"\0\2\0", _PROTECTIVE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFF_FFFF))
    return record.rjust(446 + len(record), b"\0").ljust(SECTOR - 2, b"\0") + b"\x55\xaa"
