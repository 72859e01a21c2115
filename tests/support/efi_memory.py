"""What UEFI has in memory, as the specifications lay it out."""

import struct
import zlib
from collections.abc import Callable
from uuid import UUID

GUID = UUID("7c04a583-9e3e-4f1c-ad65-e05268d0b4d1")
DEBUG_TABLE = UUID("49152e77-1ada-4764-b7a2-7afefed95e8b")


def pe(base: int, *, wide: bool = True, size: int = 0x3000, record: bytes = b"") -> bytes:
    """A PE32+ or PE32 image of three pages, its debug directory at RVA 0x1000 and its CodeView record at 0x1100."""
    image = bytearray(size)
    image[0:2] = b"MZ"
    struct.pack_into("<I", image, 0x3C, 0x80)
    image[0x80:0x84] = b"PE\0\0"
    struct.pack_into("<HH", image, 0x84, 0x8664 if wide else 0x14C, 1)
    optional = 0x80 + 24
    struct.pack_into("<H", image, optional, 0x20B if wide else 0x10B)
    struct.pack_into("<Q" if wide else "<I", image, optional + (24 if wide else 28), base)
    struct.pack_into("<I", image, optional + 56, size)
    if record:
        struct.pack_into("<II", image, optional + (112 if wide else 96) + 48, 0x1000, 28)
        struct.pack_into("<III", image, 0x1000 + 12, 2, len(record), 0x1100)
        image[0x1100 : 0x1100 + len(record)] = record
    return bytes(image)


def table(put: Callable[[int, bytes], object], *, wide: bool, count: int = 1, spoil: bool = False) -> None:
    """An EFI system table with a debug image info table of one image at 0x200000, from a file in a volume."""
    size, form = (8, "<Q") if wide else (4, "<I")
    pointer = struct.pack("<8sQ", b"IBI SYST", 0x10000)
    put(0x400000, pointer + struct.pack("<I", zlib.crc32(pointer + bytes(8)) ^ spoil))
    put(0x10000, struct.pack("<8sII", b"IBI SYST", 0x2_0046, 120 if wide else 72))
    counts = 104 if wide else 64
    put(0x10000 + counts, struct.pack(form, 2) + struct.pack(form, 0x11000))
    put(0x11000, UUID(int=5).bytes_le + struct.pack(form, 1))
    put(0x11000 + 16 + size, DEBUG_TABLE.bytes_le + struct.pack(form, 0x12000))
    put(0x12000, struct.pack("<II", 0, count) + struct.pack(form, 0x13000))
    put(0x13000, struct.pack(form, 0x14000))
    put(0x14000, struct.pack("<I", 1))
    put(0x14000 + size, struct.pack(form, 0x15000))
    put(0x15000 + 4 * size, struct.pack(form, 0x16000))
    put(0x15000 + 8 * size, struct.pack(form, 0x200000) + bytes(8 - size) + struct.pack("<Q", 0x3000))
    put(0x16000, struct.pack("<BBH", 1, 1, 6) + b"xx" + struct.pack("<BBH", 4, 6, 20) + GUID.bytes_le)
    put(0x200000, pe(0x200000, wide=wide))
