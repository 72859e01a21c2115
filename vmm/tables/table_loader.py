"""``etc/table-loader``: the script by which firmware places and links tables.

The item is a sequence of 128-byte records: u32 LE command, 124 bytes of
arguments. File names are NUL-padded ASCII of 56 bytes, offsets u32 LE (edk2
OvmfPkg/Include/IndustryStandard/QemuLoader.h, SeaBIOS src/fw/romfile_loader.h).

This module builds and decodes scripts; ``loader_rules`` runs them as firmware does.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from vmm.typed import NamedTuple

RECORD_SIZE = 128
NAME_SIZE = 56
_COMMAND = struct.Struct("<I")
_ALLOCATE = struct.Struct("<I56sIB63x")
_ADD_POINTER = struct.Struct("<I56s56sIB7x")
_ADD_CHECKSUM = struct.Struct("<I56sIII56x")
_WRITE_POINTER = struct.Struct("<I56s56sIIB3x")


class Opcode(IntEnum):
    """Command numbers."""

    ALLOCATE = 1
    ADD_POINTER = 2
    ADD_CHECKSUM = 3
    WRITE_POINTER = 4


class Zone(IntEnum):
    """Where SeaBIOS allocates: high memory, or the F segment. OVMF ignores it."""

    HIGH = 1
    FSEG = 2


class Allocate(NamedTuple):
    """Allocate guest RAM for a file and load it; ``align`` is in bytes, a power of two."""

    file: str
    align: int
    zone: int

    def encode(self) -> bytes:
        """Encode the 128-byte record."""
        return _ALLOCATE.pack(Opcode.ALLOCATE, encode_name(self.file), self.align, self.zone)

    def __str__(self) -> str:
        """Describe the command for a report."""
        return f"ALLOCATE {self.file} align {self.align} zone {self.zone}"


class AddPointer(NamedTuple):
    """Add the address of file ``source`` to the ``size``-byte value at ``dest`` + ``offset``."""

    dest: str
    source: str
    offset: int
    size: int

    def encode(self) -> bytes:
        """Encode the 128-byte record."""
        return _ADD_POINTER.pack(
            Opcode.ADD_POINTER,
            encode_name(self.dest),
            encode_name(self.source),
            self.offset,
            self.size,
        )

    def __str__(self) -> str:
        """Describe the command for a report."""
        return f"ADD_POINTER {self.dest}+{self.offset:#x} size {self.size} -> {self.source}"


class AddChecksum(NamedTuple):
    """Make ``length`` bytes from ``start`` sum up to 0 by the byte at ``result``."""

    file: str
    result: int
    start: int
    length: int

    def encode(self) -> bytes:
        """Encode the 128-byte record."""
        return _ADD_CHECKSUM.pack(Opcode.ADD_CHECKSUM, encode_name(self.file), self.result, self.start, self.length)

    def __str__(self) -> str:
        """Describe the command for a report."""
        return f"ADD_CHECKSUM {self.file}+{self.result:#x} over {self.start:#x}+{self.length:#x}"


class WritePointer(NamedTuple):
    """Write the address of ``source`` + ``source_offset`` into the fw_cfg item ``dest``."""

    dest: str
    source: str
    dest_offset: int
    source_offset: int
    size: int

    def encode(self) -> bytes:
        """Encode the 128-byte record."""
        return _WRITE_POINTER.pack(
            Opcode.WRITE_POINTER,
            encode_name(self.dest),
            encode_name(self.source),
            self.dest_offset,
            self.source_offset,
            self.size,
        )

    def __str__(self) -> str:
        """Describe the command for a report."""
        return (
            f"WRITE_POINTER {self.dest}+{self.dest_offset:#x} size {self.size} <- {self.source}+{self.source_offset:#x}"
        )


class Unknown(NamedTuple):
    """A record whose command number firmware skips; 0 is QEMU's padding."""

    opcode: int

    def __str__(self) -> str:
        """Describe the record for a report."""
        return f"command {self.opcode:#x}"


class Malformed(NamedTuple):
    """A known command with a file name that isn't terminated within its 56 bytes."""

    opcode: Opcode

    def __str__(self) -> str:
        """Describe the record for a report."""
        return f"{self.opcode.name} with an unterminated file name"


Command = Allocate | AddPointer | AddChecksum | WritePointer | Unknown | Malformed


def encode_name(name: str) -> bytes:
    """Encode a file name; ``struct`` pads it to 56 bytes with NULs.

    Raises:
        ValueError: empty, not ASCII, or longer than 55 characters.

    """
    try:
        encoded = name.encode("ascii")
    except UnicodeEncodeError:
        raise ValueError(f"file name {name!r} is not ASCII") from None
    if not 0 < len(encoded) < NAME_SIZE or b"\0" in encoded:
        raise ValueError(f"file name {name!r}: must have 1 to {NAME_SIZE - 1} characters")
    return encoded


def _decode_name(raw: bytes) -> str | None:
    """Decode a 56-byte name; None if its last byte isn't NUL, which both firmwares refuse."""
    if raw[-1]:
        return None
    return raw.split(b"\0", 1)[0].decode("latin-1")


def decode_record(record: bytes) -> Command:
    """Decode one 128-byte record; any content gives a command."""
    (opcode,) = _COMMAND.unpack_from(record)
    if opcode == Opcode.ALLOCATE:
        _, raw, align, zone = _ALLOCATE.unpack(record)
        name = _decode_name(raw)
        return Malformed(Opcode.ALLOCATE) if name is None else Allocate(name, align, zone)
    if opcode == Opcode.ADD_CHECKSUM:
        _, raw, result, start, length = _ADD_CHECKSUM.unpack(record)
        name = _decode_name(raw)
        if name is None:
            return Malformed(Opcode.ADD_CHECKSUM)
        return AddChecksum(name, result, start, length)
    if opcode == Opcode.ADD_POINTER:
        _, raw, raw_source, offset, size = _ADD_POINTER.unpack(record)
        name, source = _decode_name(raw), _decode_name(raw_source)
        if name is None or source is None:
            return Malformed(Opcode.ADD_POINTER)
        return AddPointer(name, source, offset, size)
    if opcode == Opcode.WRITE_POINTER:
        _, raw, raw_source, dest_offset, source_offset, size = _WRITE_POINTER.unpack(record)
        name, source = _decode_name(raw), _decode_name(raw_source)
        if name is None or source is None:
            return Malformed(Opcode.WRITE_POINTER)
        return WritePointer(name, source, dest_offset, source_offset, size)
    return Unknown(opcode)


def decode(script: bytes) -> tuple[Command, ...]:
    """Decode a whole script.

    Raises:
        ValueError: the size is not a multiple of 128; both firmwares refuse that.

    """
    if len(script) % RECORD_SIZE:
        raise ValueError(f"{len(script)} bytes are not a whole number of {RECORD_SIZE}-byte records")
    return tuple(decode_record(script[offset : offset + RECORD_SIZE]) for offset in range(0, len(script), RECORD_SIZE))


class Script:
    """A script under construction.

    ALLOCATE commands go in front of all others, whenever they are added: a file
    must be allocated before anything refers to it. The other commands keep their
    order, so add a table's pointers before its checksum.
    """

    def __init__(self) -> None:
        self._allocations: list[Allocate] = []
        self._links: list[AddPointer | AddChecksum | WritePointer] = []

    def allocate(self, file: str, *, align: int, zone: Zone = Zone.HIGH) -> None:
        """Add ALLOCATE.

        Raises:
            ValueError: ``file`` is allocated already, or ``align`` isn't a power
                of two up to 4096 (OVMF's limit).

        """
        if any(known.file == file for known in self._allocations):
            raise ValueError(f"{file} is allocated already; OVMF refuses a second ALLOCATE")
        if align not in {1 << shift for shift in range(13)}:
            raise ValueError(f"alignment {align} of {file}: must be a power of two up to 4096")
        encode_name(file)
        self._allocations.append(Allocate(file, align, zone))

    def add_pointer(self, dest: str, offset: int, size: int, source: str) -> None:
        """Add ADD_POINTER; ``dest`` holds the offset into ``source`` already.

        Raises:
            ValueError: a file isn't allocated, or ``size`` isn't 1, 2, 4 or 8.

        """
        self._need(dest)
        self._need(source)
        _check_size(size)
        self._links.append(AddPointer(dest, source, offset, size))

    def add_checksum(self, file: str, *, result: int, start: int, length: int) -> None:
        """Add ADD_CHECKSUM; ship the byte at ``result`` as 0, or the firmwares disagree.

        Raises:
            ValueError: ``file`` isn't allocated.

        """
        self._need(file)
        self._links.append(AddChecksum(file, result, start, length))

    def write_pointer(self, dest: str, source: str, *, source_offset: int, dest_offset: int = 0, size: int = 8) -> None:
        """Add WRITE_POINTER; ``dest`` is a writable fw_cfg item, never allocated.

        Raises:
            ValueError: ``source`` isn't allocated, or ``size`` isn't 1, 2, 4 or 8.

        """
        self._need(source)
        encode_name(dest)
        _check_size(size)
        self._links.append(WritePointer(dest, source, dest_offset, source_offset, size))

    def encode(self) -> bytes:
        """Encode the script: 128 bytes per command, no padding records."""
        return b"".join(command.encode() for command in (*self._allocations, *self._links))

    def _need(self, file: str) -> None:
        if not any(known.file == file for known in self._allocations):
            raise ValueError(f"{file} is not allocated")


def _check_size(size: int) -> None:
    if size not in {1, 2, 4, 8}:
        raise ValueError(f"pointer size {size}: must be 1, 2, 4 or 8")
