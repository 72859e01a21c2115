"""Look into UEFI firmware volumes: files, sections, and what is compressed inside of them.

An image of edk2's is a row of *firmware volumes*. A volume holds *files*, a file holds *sections*, and a section holds
an executable, a name, or, compressed or not, more sections and volumes. OVMF's code volume is one file, with LZMA over
two further volumes.

The parser is for images of unknown origin: it never raises on their content, follows no size that leads outside, and
stops at fixed limits of depth, count and decompressed size. What it could not read is told in ``problems``.

Source: UEFI Platform Initialization Specification 1.8, volume 3, chapter 3 (all numbers little-endian). virt-firmware
reads the same structures and is the tests' oracle; it decompresses without a limit, and raises on damaged images.
"""

from __future__ import annotations

import lzma
import struct
from dataclasses import dataclass, field
from uuid import UUID

from vmm.firmware.volumes import HEADER, NVRAM_GUID, SIGNATURE, SIGNATURE_OFFSET, Volume, volume_at

FILE_HEADER = struct.Struct("<16s2sBB3sB")
"""GUID, checksums, type, attributes, size, state."""

LARGE_FILE = 0x01
"""File attribute: the size is the u64 behind the header."""

VARIABLE_STORE = UUID(bytes_le=NVRAM_GUID)

FILE_SYSTEMS = {
    UUID("8c8ce578-8a3d-4f1c-9935-896185c32dd3"): "FFS2",
    UUID("5473c07a-3dcb-4dca-bd6f-1e9689e7349a"): "FFS3",
    VARIABLE_STORE: "variable store",
}

LZMA = UUID("ee4e5898-3914-4259-9d6e-dc7bd79403cf")
LZMA_X86 = UUID("d42ae6bd-1352-4bfb-909a-ca72a6eae889")
CRC32 = UUID("fc1bcdb0-7d31-49aa-936a-a4600d9dd083")

ENCAPSULATIONS = {
    LZMA: "LZMA",
    LZMA_X86: "LZMA with x86 filter",
    CRC32: "CRC32 (not compressed)",
    UUID("a31280ad-481e-41b6-95e8-127f4c984779"): "Tiano",
    UUID("3d532050-5cda-4fd0-879e-0f7f630d5afb"): "Brotli",
    UUID("1d301fe9-be79-4353-91c2-d23bc959ae0c"): "gzip",
}
"""GUIDs of guided sections (MdeModulePkg.dec, MdePkg.dec, IntelFrameworkModulePkg)."""

SECTION_COMPRESSION = 0x01
SECTION_GUIDED = 0x02
SECTION_PE32 = 0x10
SECTION_TE = 0x12
SECTION_NAME = 0x15
SECTION_VOLUME = 0x17
SECTION_RAW = 0x19

FILE_RAW = 0x01
FILE_PADDING = 0xF0

MAX_DEPTH = 8
MAX_FILES = 8192
MAX_DECOMPRESSED = 128 << 20
"""Bytes that all compressed sections of an image may expand to; OVMF's come to 13 MiB."""

DECODER_MEMORY = 256 << 20
"""Bytes that LZMA's decoder may take for its dictionary."""

MACHINES = {0x014C: "ia32", 0x8664: "x64", 0xAA64: "aarch64", 0x01C2: "arm", 0x5064: "riscv64"}
"""PE/COFF machine types."""


@dataclass(frozen=True, slots=True)
class FoundVolume:
    """A firmware volume, and where it was found.

    Attributes:
        volume: Its offset is from the start of the image, or of the section that holds the volume.
        depth: How many volumes it lies inside of.
        inside: How the enclosing sections are encoded, outermost first; empty for depth 0.
    """

    volume: Volume
    depth: int
    inside: tuple[str, ...] = ()

    @property
    def file_system(self) -> str:
        """Return "FFS2", "FFS3", "variable store", or the GUID."""
        guid = UUID(bytes_le=self.volume.guid)
        return FILE_SYSTEMS.get(guid, str(guid))


@dataclass(frozen=True, slots=True)
class Module:
    """An executable, or a file of raw bytes.

    Attributes:
        guid: The file's GUID.
        name: Its user interface name, else the GUID.
        data: The PE/COFF or TE image, or the raw bytes.
        architecture: "x64", "ia32" …, or None for raw bytes.
    """

    guid: UUID
    name: str
    data: bytes
    architecture: str | None


@dataclass(slots=True)
class Contents:
    """Everything that was found in an image, in the order of the image."""

    volumes: list[FoundVolume] = field(default_factory=list)
    modules: list[Module] = field(default_factory=list)
    encodings: list[str] = field(default_factory=list)
    """How guided and compressed sections are encoded: one name each, those that could not be read included."""
    files: list[UUID] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read(data: bytes, limit: int | None = None) -> Contents:
    """Return what is in an image; empty contents for one without firmware volumes.

    Args:
        data: the image.
        limit: bytes that its compressed sections may expand to (`MAX_DECOMPRESSED`); 0 leaves them alone.
    """
    contents = Contents()
    _Reader(contents, MAX_DECOMPRESSED if limit is None else limit).volumes(data, 0, ())
    return contents


class _Reader:
    """Walks an image once, with a budget."""

    def __init__(self, contents: Contents, limit: int) -> None:
        self._contents = contents
        self._budget = limit

    def volumes(self, data: bytes, depth: int, inside: tuple[str, ...]) -> None:
        """Read each volume in some bytes, whatever lies between them."""
        at = data.find(SIGNATURE)
        while at >= 0:
            after = at + len(SIGNATURE)
            volume = volume_at(data, at - SIGNATURE_OFFSET)
            if volume is not None and _is_consistent(data, volume):
                self._volume(data, volume, depth, inside)
                after = volume.offset + volume.size
            at = data.find(SIGNATURE, after)

    def _volume(self, data: bytes, volume: Volume, depth: int, inside: tuple[str, ...]) -> None:
        start, size, first, extended, _ = volume
        found = FoundVolume(volume, depth, inside)
        self._contents.volumes.append(found)
        if start + size > len(data):
            self._problem(f"the volume at {start:#x} has {size:#x} bytes; only {len(data) - start:#x} are there")
        if not found.file_system.startswith("FFS"):
            return
        content = data[start : start + size]
        if extended and extended + 20 <= len(content):
            first = extended + int.from_bytes(content[extended + 16 : extended + 20], "little")
        self._files(content, _align(first, 8), depth, inside)

    def _files(self, volume: bytes, at: int, depth: int, inside: tuple[str, ...]) -> None:
        while at + FILE_HEADER.size <= len(volume):
            guid, _, kind, attributes, size_bytes, _ = FILE_HEADER.unpack_from(volume, at)
            header_size = FILE_HEADER.size
            size = int.from_bytes(size_bytes, "little")
            if attributes & LARGE_FILE:
                header_size += 8
                size = int.from_bytes(volume[at + FILE_HEADER.size : at + header_size], "little")
            if kind == 0xFF or size_bytes == b"\xff\xff\xff":
                return  # erased flash: free space behind the last file
            if size < header_size or at + size > len(volume):
                self._problem(f"the file at {at:#x} of a volume has {size:#x} bytes; {len(volume) - at:#x} are left")
                return
            if len(self._contents.files) >= MAX_FILES:
                self._problem(f"more than {MAX_FILES} files; the rest was not looked at")
                return
            if kind != FILE_PADDING:
                identity = UUID(bytes_le=guid)
                self._contents.files.append(identity)
                body = volume[at + header_size : at + size]
                if kind == FILE_RAW:
                    self._contents.modules.append(Module(identity, str(identity), body, None))
                else:
                    name, leaves = self._sections(body, depth, inside)
                    self._add_modules(identity, name, leaves)
            at = _align(at + size, 8)

    def _add_modules(self, guid: UUID, name: str | None, leaves: list[tuple[int, bytes]]) -> None:
        for kind, data in leaves:
            architecture = _architecture(data) if kind in {SECTION_PE32, SECTION_TE} else None
            self._contents.modules.append(Module(guid, name or str(guid), data, architecture))

    def _sections(self, data: bytes, depth: int, inside: tuple[str, ...]) -> tuple[str | None, list[tuple[int, bytes]]]:
        """Return the name among a file's sections, and its leaves as (section type, bytes)."""
        name: str | None = None
        leaves: list[tuple[int, bytes]] = []
        at = 0
        while at + 4 <= len(data):
            size = int.from_bytes(data[at : at + 3], "little")
            kind = data[at + 3]
            header_size = 4
            if size == 0xFFFFFF and at + 8 <= len(data):
                header_size = 8
                size = int.from_bytes(data[at + 4 : at + 8], "little")
            if size < header_size or at + size > len(data):
                if data[at:].strip(b"\0\xff"):
                    self._problem(f"a section of type {kind:#x} has {size:#x} bytes; {len(data) - at:#x} are left")
                break
            body = data[at + header_size : at + size]
            if kind == SECTION_NAME:
                name = body.decode("utf-16-le", "replace").split("\0", 1)[0] or None
            elif kind == SECTION_VOLUME:
                if self._may_descend(depth, inside):
                    self.volumes(body, depth + 1, inside)
            elif kind in {SECTION_GUIDED, SECTION_COMPRESSION}:
                encoding, decoded = self._decode(kind, body, header_size)
                self._contents.encodings.append(encoding)
                if decoded is not None and self._may_descend(depth, inside):
                    inner_name, inner = self._sections(decoded, depth, (*inside, encoding))
                    name = name or inner_name
                    leaves += inner
            elif kind in {SECTION_PE32, SECTION_TE, SECTION_RAW}:
                leaves.append((kind, body))
            at = _align(at + size, 4)
        return name, leaves

    def _may_descend(self, depth: int, inside: tuple[str, ...]) -> bool:
        if depth + len(inside) < MAX_DEPTH:
            return True
        self._problem(f"volumes and sections nested more than {MAX_DEPTH} deep; the inner ones were not looked at")
        return False

    def _decode(self, kind: int, body: bytes, header_size: int) -> tuple[str, bytes | None]:
        """Return how a section is encoded, and the sections in it, or None if they can't be had."""
        if kind == SECTION_COMPRESSION:
            if len(body) >= 5 and body[4] == 0:
                return "none", body[5:]
            self._problem("a section with UEFI's own compression was not looked into")
            return "UEFI compression", None
        if len(body) < 20:
            self._problem("a guided section is too short for its header")
            return "unknown", None
        guid = UUID(bytes_le=body[:16])
        start = int.from_bytes(body[16:18], "little") - header_size
        encoding = ENCAPSULATIONS.get(guid, str(guid))
        if start < 20 or start > len(body):
            self._problem(f"a section encoded by {encoding} says that its data starts at {start + header_size:#x}")
            return encoding, None
        if guid == CRC32:
            return encoding, body[start:]
        if guid in {LZMA, LZMA_X86}:
            # The x86 filter rewrites only the targets of calls and jumps, which are not looked at here.
            return encoding, self._decompress(body[start:])
        self._problem(f"a section encoded by {encoding} was not looked into")
        return encoding, None

    def _decompress(self, data: bytes) -> bytes | None:
        if not self._budget:
            return None
        decompressor = lzma.LZMADecompressor(format=lzma.FORMAT_ALONE, memlimit=DECODER_MEMORY)
        try:
            decoded = decompressor.decompress(data, self._budget)
        except (lzma.LZMAError, EOFError, MemoryError) as error:
            self._problem(f"an LZMA section cannot be decompressed: {error}")
            return None
        self._budget -= len(decoded)
        if not decompressor.eof:
            limit = f"compressed sections expand to more than {MAX_DECOMPRESSED >> 20} MiB"
            self._problem("an LZMA section ends too early" if decompressor.needs_input else limit)
        return decoded

    def _problem(self, text: str) -> None:
        if len(self._contents.problems) < 32 and text not in self._contents.problems:
            self._contents.problems.append(text)


def _is_consistent(data: bytes, volume: Volume) -> bool:
    """Whether a header's sizes make sense and its 16-bit sum is 0, so that "_FVH" in code is not taken for a volume."""
    header_size = volume.header_size
    header = data[volume.offset : volume.offset + header_size]
    if not HEADER.size <= header_size <= volume.size or len(header) < header_size or header_size % 2:
        return False
    words = struct.unpack(f"<{header_size // 2}H", header)
    return bool(sum(words) & 0xFFFF == 0)


def _architecture(image: bytes) -> str | None:
    """The machine type of a PE/COFF or TE image."""
    if image[:2] == b"VZ" and len(image) >= 4:
        machine = int.from_bytes(image[2:4], "little")
    elif image[:2] == b"MZ" and len(image) >= 0x40:
        header = int.from_bytes(image[0x3C:0x40], "little")
        if image[header : header + 4] != b"PE\0\0":
            return None
        machine = int.from_bytes(image[header + 4 : header + 6], "little")
    else:
        return None
    return MACHINES.get(machine, f"{machine:#06x}")


def _align(value: int, to: int) -> int:
    return -(-value // to) * to
