"""Lay a guest's ELF file out as the ROM image that ends at 4 GiB: ``image.py GUEST.elf GUEST.fd``."""

import sys
from pathlib import Path

from elftools.elf.elffile import ELFFile

ROM_END = 1 << 32
"""The last byte below is the last of the reset vector's paragraph (Intel SDM vol. 3A, 10.1.4)."""
ERASED = b"\xff"
"""What flash reads where nothing was programmed."""


def rom_image(elf: ELFFile) -> bytes:
    """Return the bytes of all segments that lie in the ROM window, from the lowest of them up to 4 GiB.

    Segments without file contents (RAM) are left out; a gap reads as erased flash.

    Raises:
        ValueError: No segment reaches the reset vector, or the image is not a multiple of 64 KiB.
    """
    segments = [s for s in elf.iter_segments("PT_LOAD") if s["p_filesz"]]
    if not segments or max(s["p_paddr"] + s["p_filesz"] for s in segments) != ROM_END:
        raise ValueError("no segment ends at 4 GiB, where the reset vector is")
    start = min(s["p_paddr"] for s in segments)
    size = ROM_END - start
    if size % 0x10000:
        raise ValueError(f"the image would have {size:#x} bytes, which is not a multiple of 64 KiB")
    image = bytearray(ERASED * size)
    for segment in segments:
        offset = segment["p_paddr"] - start
        image[offset : offset + segment["p_filesz"]] = segment.data()
    return bytes(image)


def main() -> None:
    """Convert the file named first into the file named second."""
    source, target = (Path(name) for name in sys.argv[1:])
    with source.open("rb") as stream:
        target.write_bytes(rom_image(ELFFile(stream)))


if __name__ == "__main__":
    main()
