"""Lay a guest's ELF file out as an option ROM: ``rom_image.py GUEST.elf GUEST.bin``.

Format: PCI Firmware Specification 3.3, 5.1.1 (size in units of 512 bytes at offset 2, all bytes sum to 0); Plug and
Play BIOS 1.0A, 3.2 (the expansion header, whose offset is at 0x1a, sums to 0).
"""

import struct
import sys
from pathlib import Path

from elftools.elf.elffile import ELFFile

UNIT = 512
SIZE_OFFSET = 2
PNP_POINTER = 0x1A
PNP_LENGTH, PNP_CHECKSUM = 5, 9
"""Offsets in the expansion header: its length in units of 16 bytes, the byte that makes its sum 0."""


def option_rom(elf: ELFFile) -> bytes:
    """Return the bytes of all segments at their load addresses, with size and checksums filled in.

    Raises:
        ValueError: it is larger than an option ROM can be.
    """
    rom = bytearray()
    for segment in elf.iter_segments("PT_LOAD"):
        if segment["p_filesz"]:
            rom = rom.ljust(segment["p_paddr"], b"\0") + segment.data()
    rom = rom.ljust(-(-(len(rom) + 1) // UNIT) * UNIT, b"\0")
    if len(rom) // UNIT > 0xFF:
        raise ValueError(f"{len(rom)} bytes: an option ROM has {0xFF * UNIT} at the most")
    rom[SIZE_OFFSET] = len(rom) // UNIT
    (pnp,) = struct.unpack_from("<H", rom, PNP_POINTER)
    rom[pnp + PNP_CHECKSUM] = -sum(rom[pnp : pnp + 16 * rom[pnp + PNP_LENGTH]]) & 0xFF
    rom[-1] = -sum(rom) & 0xFF
    return bytes(rom)


def main() -> None:
    """Convert the file named first into the file named second."""
    source, target = (Path(name) for name in sys.argv[1:])
    with source.open("rb") as stream:
        target.write_bytes(option_rom(ELFFile(stream)))


if __name__ == "__main__":
    main()
