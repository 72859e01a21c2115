"""Lay a guest's ELF file out for UEFI: ``efi_image.py GUEST.elf GUEST.efi driver|application``.

The format is Microsoft's PE32+ (PE Format, revision 11; UEFI 2.10, 2.1.1). The code is position-independent and has no
absolute addresses in its data, so there is nothing to relocate, which is checked.
"""

import struct
import sys
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection

ALIGNMENT = 0x1000
"""Of sections, in memory as in the file."""
MACHINE_X64 = 0x8664
EXECUTABLE, LARGE_ADDRESS_AWARE = 0x0002, 0x0020
PE32_PLUS = 0x20B
SUBSYSTEMS = {"application": 10, "driver": 11}
"""A driver stays loaded after its entry point has returned."""
DIRECTORIES = 16
CODE, DATA, EXECUTE, READ, WRITE = 0x20, 0x40, 0x2000_0000, 0x4000_0000, 0x8000_0000

ABSOLUTE = {1: "R_X86_64_64", 10: "R_X86_64_32", 11: "R_X86_64_32S"}
"""System V ABI for AMD64, 4.4.1."""

_OPTIONAL = struct.Struct("<HBBIIIIIQIIHHHHHHIIIIHHQQQQII")
_SECTION = struct.Struct("<8sIIIIIIHHI")


def check_relocations(elf: ELFFile) -> None:
    """Refuse code that knows where it was linked to lie; the ELF file was linked with ``--emit-relocs``.

    Raises:
        ValueError: there is an absolute address in a section that is loaded.
    """
    for section in elf.iter_sections():
        if not isinstance(section, RelocationSection) or not elf.get_section(section["sh_info"])["sh_flags"] & 2:
            continue
        for relocation in section.iter_relocations():
            kind = relocation["r_info_type"]
            if kind in ABSOLUTE:
                raise ValueError(f"{section.name}: {ABSOLUTE[kind]} at {relocation['r_offset']:#x} is absolute")


def efi_image(elf: ELFFile, subsystem: int) -> bytes:
    """Return the image: headers in the first page, then a section for each loaded segment.

    Raises:
        ValueError: see `check_relocations`.
    """
    check_relocations(elf)
    segments = [segment for segment in elf.iter_segments("PT_LOAD") if segment["p_memsz"]]
    sections, bodies, size = b"", b"", ALIGNMENT
    for segment in segments:
        executable = segment["p_flags"] & 1
        raw = segment.data() + bytes(-segment["p_filesz"] % ALIGNMENT)
        sections += _SECTION.pack(
            b".text" if executable else b".data",
            segment["p_memsz"],
            segment["p_vaddr"],
            len(raw),
            ALIGNMENT + len(bodies) if raw else 0,
            0,
            0,
            0,
            0,
            READ | (CODE | EXECUTE if executable else DATA | WRITE),
        )
        bodies += raw
        size = -(-(segment["p_vaddr"] + segment["p_memsz"]) // ALIGNMENT) * ALIGNMENT
    optional = _OPTIONAL.pack(
        PE32_PLUS,
        *(0, 0),
        *(len(bodies), 0, 0),
        elf["e_entry"],
        ALIGNMENT,
        0,
        *(ALIGNMENT, ALIGNMENT),
        *(0, 0, 0, 0, 0, 0),
        0,
        size,
        ALIGNMENT,
        0,
        subsystem,
        0,
        *(0, 0, 0, 0),
        0,
        DIRECTORIES,
    )
    optional += bytes(8 * DIRECTORIES)
    flags = EXECUTABLE | LARGE_ADDRESS_AWARE
    header = struct.pack("<4sHHIIIHH", b"PE\0\0", MACHINE_X64, len(segments), 0, 0, 0, len(optional), flags)
    mz = struct.pack("<2s58xI", b"MZ", 64)
    # QEMU takes byte 0x1f1 of a kernel for its number of setup sectors; the padding there makes it 0.
    return (mz + header + optional + sections).ljust(ALIGNMENT, b"\0") + bodies


def main() -> None:
    """Convert the file named first into the file named second."""
    source, target, kind = sys.argv[1:]
    with Path(source).open("rb") as stream:
        Path(target).write_bytes(efi_image(ELFFile(stream), SUBSYSTEMS[kind]))


if __name__ == "__main__":
    main()
