"""UEFI's executables in a guest's memory: found by their headers, or by the table that UEFI keeps for debuggers.

Whatever is read is the guest's and may be wrong: sizes and counts are bounded, and what makes no sense is left out.

Sources: UEFI specification 2.10, section 18.4 (the debug image info table, and the pointer to the system table, at a
multiple of 4 MiB); PI specification 1.8, volume 1, 15 (TE); Microsoft's PE format; edk2's BasePeCoffLib, which stores
the address at which an image was loaded into its header.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

if TYPE_CHECKING:
    from vmm.memory import GuestMemory

Read = Callable[[int, int], bytes]
"""Gives bytes from a guest physical address; raises ValueError where no memory is."""

_SIGNATURE = b"IBI SYST"
_POINTER_ALIGNMENT = 4 << 20
_DEBUG_TABLE = UUID("49152e77-1ada-4764-b7a2-7afefed95e8b")
_NORMAL = 1
_MAX_TABLES = 256
_MAX_IMAGES = 4096
_MAX_IMAGE_BYTES = 64 << 20
_MAX_NODES = 16
_MAX_HEADERS = 20000
"""That are looked at in one piece of memory."""

_MZ_BEFORE_PE = 0x1000
"""How far in front of a PE header its MS-DOS header is looked for: of images that are aligned to pages it is 0xe58."""

_TE_BYTES = 40
_PATH_BYTES = 512

_HEADERS = re.compile(rb"PE\0\0(?:\x64\x86|\x4c\x01)|VZ(?:\x64\x86|\x4c\x01)[\x01-\x20][\x0a-\x0d]", re.DOTALL)
"""A PE header for x64 or IA-32; a TE header for these, with up to 32 sections and a subsystem of EFI's."""

_CODE_VIEW = 2
_PATH_AT = {b"NB10": 16, b"RSDS": 24, b"MTOC": 20}
"""Where a CodeView record of each kind has its path."""

DOS_HEADER_BYTES = 64


def reader(memory: "GuestMemory") -> Read:
    """As `GuestMemory.read`, for addresses that a guest made up."""

    def read(gpa: int, size: int) -> bytes:
        if gpa >> 52:
            raise ValueError(f"no memory at {gpa:#x}")
        return memory.read(gpa, size)

    return read


class EfiImage(NamedTuple):
    """An executable where it runs.

    Attributes:
        base: its address.
        size: bytes that it takes there.
        path: of the file with its symbols, as the linker wrote it; "" where the header names none.
        guid: of the file in a firmware volume that it was loaded from, if that is known.
        key: the header without the address that the loader stored: the same as in the file.
        is_listed: UEFI's own table has it.
    """

    base: int
    size: int
    path: str
    guid: UUID | None
    key: bytes
    is_listed: bool

    @property
    def name(self) -> str:
        """The last part of the path, without the suffix; "" if there is no path."""
        path = PureWindowsPath(self.path) if "\\" in self.path else PurePosixPath(self.path)
        return path.stem


def header_at(data: bytes, at: int) -> tuple[int, int, bytes, int] | None:
    """Read the PE or TE header at an offset of ``data``.

    Returns:
        The address that it gives its image (RVA 0), the image's size, its key as in `EfiImage`, and the RVA of its
        debug directory (0: it has none); None: it is none, or not all of it is there.
    """
    try:
        return _te_header(data, at) if data[at : at + 2] == b"VZ" else _pe_header(data, at)
    except struct.error:
        return None


def _pe_header(data: bytes, at: int) -> tuple[int, int, bytes, int] | None:
    (pe,) = struct.unpack_from("<I", data, at + 0x3C)
    if (
        data[at : at + 2] != b"MZ"
        or not DOS_HEADER_BYTES <= pe <= _MZ_BEFORE_PE
        or data[at + pe : at + pe + 4] != b"PE\0\0"
    ):
        return None
    optional = at + pe + 24
    (magic,) = struct.unpack_from("<H", data, optional)
    wide = magic == 0x20B
    base_at = optional + (24 if wide else 28)
    (base,) = struct.unpack_from("<Q" if wide else "<I", data, base_at)
    (size,) = struct.unpack_from("<I", data, optional + 56)
    directory = optional + (112 if wide else 96) + 6 * 8
    (debug,) = struct.unpack_from("<I", data, directory)
    key = data[at + pe : base_at] + data[base_at + (8 if wide else 4) : directory]
    return base, size, key, debug


def _te_header(data: bytes, at: int) -> tuple[int, int, bytes, int] | None:
    _, _, sections, _, _, _, _, base = struct.unpack_from("<HHBBHIIQ", data, at)
    size = 0
    for number in range(sections):
        virtual_size, rva, raw_size = struct.unpack_from("<III", data, at + _TE_BYTES + 40 * number + 8)
        size = max(size, rva + max(virtual_size, raw_size))
    (debug,) = struct.unpack_from("<I", data, at + 32)
    return base, size, data[at : at + 16] + data[at + 24 : at + _TE_BYTES], debug


def scan(data: bytes, gpa: int, read: Read) -> Iterator[EfiImage]:
    """Find the executables whose headers are in ``data``, which is at ``gpa``, and give that address: they run there.

    A file's copy in a firmware volume, which is only read, gives another.
    """
    for match in islice(_HEADERS.finditer(data), _MAX_HEADERS):
        at = match.start()
        if match[0].startswith(b"PE"):
            at = _dos_header(data, at)
        header = header_at(data, at) if at >= 0 else None
        if header is None:
            continue
        base, size, key, debug = header
        if base + _stripped(data, at) == gpa + at and 0 < size <= _MAX_IMAGE_BYTES:
            yield EfiImage(base, size, _path(base, debug, read), None, key, is_listed=False)


def _dos_header(data: bytes, pe: int) -> int:
    """Where the MS-DOS header of the PE header at ``pe`` is; -1: nowhere."""
    least = max(0, pe - _MZ_BEFORE_PE)
    at = data.rfind(b"MZ", least, pe)
    while at >= 0 and int.from_bytes(data[at + 0x3C : at + 0x40], "little") != pe - at:
        at = data.rfind(b"MZ", least, at)
    return at


def _stripped(data: bytes, at: int) -> int:
    """Bytes by which an image begins in front of its header: what a TE header has taken the place of."""
    return int.from_bytes(data[at + 6 : at + 8], "little") - _TE_BYTES if data[at : at + 2] == b"VZ" else 0


def _path(base: int, debug: int, read: Read) -> str:
    """What the debug directory at an RVA says; "" if nothing."""
    if not debug:
        return ""
    try:
        kind, size, rva = struct.unpack_from("<III", read(base + debug, 28), 12)
        if kind != _CODE_VIEW or not 20 < size <= 4096:
            return ""
        record = read(base + rva, min(size, _PATH_BYTES))
    except ValueError:
        return ""
    start = _PATH_AT.get(record[:4])
    return "" if start is None else record[start:].partition(b"\0")[0].decode("utf-8", "replace")


def listed(read: Read, ram_end: int) -> list[EfiImage]:
    """What UEFI's debug image info table lists; empty where there is no such table, or not yet.

    Args:
        read: physical memory, which is the linear one while firmware runs.
        ram_end: where RAM below 4 GiB ends.
    """
    found = configuration_table(read, ram_end, _DEBUG_TABLE)
    try:
        return [] if found is None else list(_listed(found, read))
    except ValueError:
        return []


class ConfigurationTable(NamedTuple):
    """One of those that UEFI's system table lists.

    Attributes:
        gpa: where it is.
        pointer: bytes of a pointer, 4 or 8.
    """

    gpa: int
    pointer: int

    def address(self, gpa: int, read: Read) -> int:
        """The pointer at an address."""
        return int.from_bytes(read(gpa, self.pointer), "little")


def configuration_table(read: Read, ram_end: int, guid: UUID) -> ConfigurationTable | None:
    """The table of that GUID; None where there is none, or not yet. For the arguments see `listed`."""
    for gpa in range(ram_end & -_POINTER_ALIGNMENT, 0, -_POINTER_ALIGNMENT):
        try:
            signature, table, checksum = struct.unpack("<8sQI", read(gpa, 20))
            if signature == _SIGNATURE and zlib.crc32(signature + table.to_bytes(8, "little") + bytes(8)) == checksum:
                return _configuration_table(table, read, guid)
        except ValueError:
            continue
    return None


def _configuration_table(system_table: int, read: Read, guid: UUID) -> ConfigurationTable | None:
    signature, _, header_size = struct.unpack("<8sII", read(system_table, 16))
    if signature != _SIGNATURE:
        return None
    # An EFI_SYSTEM_TABLE with pointers of 8 or of 4 bytes: where it has its configuration tables, and their form.
    wide = header_size >= 120
    made = ConfigurationTable(system_table, 8 if wide else 4)
    at = system_table + (104 if wide else 64)
    count, tables = made.address(at, read), made.address(at + made.pointer, read)
    for number in range(min(count, _MAX_TABLES)):
        entry = tables + number * (16 + made.pointer)
        if read(entry, 16) == guid.bytes_le:
            return made._replace(gpa=made.address(entry + 16, read))
    return None


def _listed(table: ConfigurationTable, read: Read) -> Iterator[EfiImage]:
    def address(gpa: int) -> int:
        return table.address(gpa, read)

    (size,) = struct.unpack("<I", read(table.gpa + 4, 4))
    images = address(table.gpa + 8)
    for index in range(min(size, _MAX_IMAGES)):
        image = _listed_image(address(images + index * table.pointer), table.pointer, address, read)
        if image is not None:
            yield image


def _listed_image(info: int, pointer: int, address: Callable[[int], int], read: Read) -> EfiImage | None:
    """From an EFI_DEBUG_IMAGE_INFO_NORMAL to its EFI_LOADED_IMAGE_PROTOCOL."""
    try:
        if not info or int.from_bytes(read(info, 4), "little") != _NORMAL:
            return None
        protocol = address(info + pointer)
        device_path = address(protocol + 4 * pointer)
        base_at = protocol + 8 * pointer
        base, size = address(base_at), int.from_bytes(read(base_at + pointer + (0 if pointer == 8 else 4), 8), "little")
        if not 0 < size <= _MAX_IMAGE_BYTES:
            return None
        header = header_at(read(base, min(size, 4096)), 0)
        path = "" if header is None else _path(base, header[3], read)
        return EfiImage(
            base, size, path, _file(device_path, read), b"" if header is None else header[2], is_listed=True
        )
    except ValueError:
        return None


def _file(device_path: int, read: Read) -> UUID | None:
    """The GUID in a device path of a file in a firmware volume (PI specification, volume 2, 8.2: type 4, subtype 6)."""
    for _ in range(_MAX_NODES if device_path else 0):
        kind, subkind, length = struct.unpack("<BBH", read(device_path, 4))
        if (kind, subkind, length) == (4, 6, 20):
            return UUID(bytes_le=read(device_path + 4, 16))
        if kind == 0x7F or length < 4:
            return None
        device_path += length
    return None
