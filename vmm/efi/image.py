"""Whether a file is a UEFI application that OVMF can start, and what else it is (PE Format, revision 11)."""

import struct
from pathlib import Path
from typing import Final

from vmm import inputs
from vmm.errors import ConfigError

_MACHINES: Final = {
    0x014C: "32-bit x86",
    0x0200: "Itanium",
    0x01C0: "ARM",
    0x01C2: "ARM",
    0x0EBC: "EFI byte code",
    0x5032: "32-bit RISC-V",
    0x5064: "64-bit RISC-V",
    0x6264: "LoongArch",
    0xAA64: "64-bit ARM",
}
_X64 = 0x8664
_SUBSYSTEMS: Final = {
    1: "a native Windows program",
    2: "a Windows program",
    3: "a Windows console program",
    11: "a UEFI boot service driver",
    12: "a UEFI runtime driver",
    13: "a UEFI ROM image",
    16: "a Windows boot application",
}
_APPLICATION = 10
_PE32_PLUS = 0x20B
_HEADERS: Final = struct.Struct("<4sHHIIIHHH")
"""Signature, file header, and the optional header's magic number."""
_SUBSYSTEM_AT = 20 + 4 + 68
"""From the signature."""
_CERTIFICATES_AT = 20 + 4 + 112 + 4 * 8
"""Its entry in the data directory, from the signature: offset in the file, and size, 4 bytes each."""

_OTHERS: Final = {
    b"\x7fELF": "an ELF file; a linker, or objcopy --target efi-app-x86_64, makes an application of it",
    b"VZ": "a terse executable (TE), which only firmware's own volumes have",
    b"#!": "a script",
    b"!<arch>": "an archive of object files",
    b"\xca\xfe\xba\xbe": "a Mach-O file",
    b"\xcf\xfa\xed\xfe": "a Mach-O file",
    b"\x1f\x8b": "packed; gzip -d unpacks it",
}

LIMIT = 1 << 30
"""Bytes that make sense."""


def check_application(path: Path, option: str) -> None:
    """Refuse a file that is no UEFI application for x86-64.

    Args:
        path: of the file.
        option: what messages call it.

    Raises:
        ConfigError: it says what the file is instead.
    """
    why = _why_not(bytes(inputs.load_file(path, option, limit=LIMIT).data))
    if why:
        raise ConfigError(f"{option}: no UEFI application for x86-64 (PE32+): it is {why}")


def is_signed(data: bytes) -> bool:
    """Whether a PE32+ file has a certificate table, which is where its signatures are."""
    at = int.from_bytes(data[60:64], "little")
    return int.from_bytes(data[at + _CERTIFICATES_AT + 4 : at + _CERTIFICATES_AT + 8], "little") > 0


def _why_not(data: bytes) -> str:
    if not data:
        return "empty"
    for magic, what in _OTHERS.items():
        if data.startswith(magic):
            return what
    if data[:2] != b"MZ" or len(data) < 64:
        return "neither PE nor anything else that is known here"
    at = int.from_bytes(data[60:64], "little")
    if data[at : at + 4] != b"PE\0\0" or len(data) < at + _SUBSYSTEM_AT + 2:
        return "a DOS program, or a part of a PE file"
    _, machine, _, _, _, _, _, _, magic = _HEADERS.unpack_from(data, at)
    if machine != _X64:
        return f"for {_MACHINES.get(machine, f'the machine {machine:#x}')}"
    if magic != _PE32_PLUS:
        return f"PE, but with the magic number {magic:#x} instead of {_PE32_PLUS:#x}"
    subsystem = int.from_bytes(data[at + _SUBSYSTEM_AT : at + _SUBSYSTEM_AT + 2], "little")
    if subsystem != _APPLICATION:
        return _SUBSYSTEMS.get(subsystem, f"of the subsystem {subsystem}")
    return ""
