"""Disks made from nothing: a FAT file system with one file."""

import struct
from pathlib import Path

SECTOR = 512
_SECTORS = 2880
"""Of a floppy disk of 1.44 MB, whose parameters every FAT driver knows."""

_RESERVED, _FATS, _FAT_SECTORS, _ENTRIES = 1, 2, 9, 224


def write_fat(path: Path, name: str, contents: bytes) -> None:
    """Write an image of a FAT12 file system without partitions (Microsoft's FAT specification 1.03, section 3).

    Args:
        path: of the image.
        name: of the file in it, 8.3 in capitals.
        contents: up to one cluster, which is a sector.
    """
    boot = bytearray(SECTOR)
    boot[:11] = b"\xeb\x3c\x90VMM     "
    boot[11:36] = struct.pack(
        "<HBHBHHBHHHII", SECTOR, 1, _RESERVED, _FATS, _ENTRIES, _SECTORS, 0xF0, _FAT_SECTORS, 18, 2, 0, 0
    )
    boot[36:62] = struct.pack("<BBBI11s8s", 0, 0, 0x29, 0x12345678, b"NO NAME    ", b"FAT12   ")
    boot[510:] = b"\x55\xaa"
    # Entries of 12 bits: two for the medium, and one for the only cluster, which is the end of its chain.
    fat = bytes.fromhex("f0ffff ff0f00").ljust(_FAT_SECTORS * SECTOR, b"\0")
    stem, _, extension = name.partition(".")
    entry = stem.ljust(8).encode() + extension.ljust(3).encode() + b"\x20" + bytes(14)
    root = (entry + struct.pack("<HI", 2, len(contents))).ljust(_ENTRIES * 32, b"\0")
    path.write_bytes((bytes(boot) + fat * _FATS + root + contents).ljust(_SECTORS * SECTOR, b"\0"))
