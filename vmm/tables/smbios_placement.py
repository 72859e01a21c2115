"""SMBIOS laid out in guest memory by the VMM, for firmware that looks for it there instead of in fw_cfg."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.errors import ConfigError
from vmm.tables.files import SMBIOS_ANCHOR_FILE, SMBIOS_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping

ALIGNMENT: Final = 16
"""The anchor is searched on 16-byte boundaries (DMTF DSP0134 3.7, 5.2.1); structures may lie anywhere."""

_V2_SIZE, _V2_CHECKSUM, _V2_INTERMEDIATE, _V2_INTERMEDIATE_CHECKSUM, _V2_ADDRESS = 31, 0x04, 0x10, 0x15, 0x18
_V3_CHECKSUM, _V3_ADDRESS = 0x05, 0x10
"""Offsets in the entry points: DSP0134, tables 1 and 2."""


def place(files: Mapping[str, bytes], address: int, room: int) -> bytes:
    """Return what to store at ``address``: the anchor, then the structures, with addresses and checksums filled in.

    Args:
        files: from `vmm.tables.smbios.build_smbios`.
        address: guest physical address, a multiple of 16.
        room: bytes there.

    Raises:
        ConfigError: the structures need more room.
    """
    anchor, tables = bytearray(files[SMBIOS_ANCHOR_FILE]), files[SMBIOS_FILE]
    start = -(-len(anchor) // ALIGNMENT) * ALIGNMENT
    if start + len(tables) > room:
        raise ConfigError(
            f"-smbios: {len(tables)} bytes of structures; {room - start} fit where this machine's firmware looks for "
            f"them, at {address:#x}"
        )
    if anchor.startswith(b"_SM3_"):
        anchor[_V3_ADDRESS : _V3_ADDRESS + 8] = (address + start).to_bytes(8, "little")
        _balance(anchor, 0, _V3_CHECKSUM)
    else:
        anchor[_V2_ADDRESS : _V2_ADDRESS + 4] = (address + start).to_bytes(4, "little")
        _balance(anchor, _V2_INTERMEDIATE, _V2_INTERMEDIATE_CHECKSUM)
        _balance(anchor, 0, _V2_CHECKSUM)
    return bytes(anchor).ljust(start, b"\0") + tables


def _balance(anchor: bytearray, start: int, checksum: int) -> None:
    """Make the bytes from ``start`` on add up to 0, modulo 256."""
    anchor[checksum] = 0
    anchor[checksum] = -sum(anchor[start:_V2_SIZE]) & 0xFF
