"""The firmware volumes that an image of edk2's is a row of: where each begins and ends, and whether it holds variables.

What is inside of them, :mod:`vmm.firmware.contents` finds out; that takes longer, and few runs need it.

Source: UEFI Platform Initialization Specification 1.8, volume 3, section 3.2.1, EFI_FIRMWARE_VOLUME_HEADER.
"""

from __future__ import annotations

import struct

from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNATURE = b"_FVH"
SIGNATURE_OFFSET = 40
"""Bytes from a volume's start."""

HEADER = struct.Struct("<16x16sQ4s4xH2xH2x")
"""File system GUID, length, "_FVH", header length, offset of the extended header (0: none); little-endian. Left out are
reset vector area, attributes, checksum, revision."""

NVRAM_GUID = bytes.fromhex("8d2bf1ff96768b4ca9852747075b4f50")
"""gEfiSystemNvDataFvGuid, fff12b8d-7696-4c8b-a985-2747075b4f50, as a header has it. Not by :class:`uuid.UUID`, which
takes 2 ms to load."""


class Volume(NamedTuple):
    """A firmware volume, as its header says."""

    offset: int
    """Bytes from the start of what holds it."""
    size: int
    header_size: int
    extended_header: int
    """Bytes from the volume's start; 0 where it has none."""
    guid: bytes
    """Of its file system, in the header's byte order."""

    @property
    def is_variable_store(self) -> bool:
        """Whether the volume holds UEFI variables rather than code."""
        return self.guid == NVRAM_GUID


def volume_at(data: bytes, offset: int) -> Volume | None:
    """Return the volume whose header is at ``offset``; None where no header is.

    A volume may claim to end beyond ``data``: that is for the caller to see.
    """
    if offset < 0 or offset + HEADER.size > len(data):
        return None
    guid, size, signature, header_size, extended_header = HEADER.unpack_from(data, offset)
    if signature != SIGNATURE or size < HEADER.size:
        return None
    return Volume(offset, size, header_size, extended_header, guid)


def volumes(data: bytes) -> Iterator[Volume]:
    """Yield the volumes that follow each other from the image's start; stops at the first gap."""
    volume = volume_at(data, 0)
    while volume is not None:
        yield volume
        volume = volume_at(data, volume.offset + volume.size)
