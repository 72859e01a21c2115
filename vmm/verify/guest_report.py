"""What a report guest told: the stream of its records, decoded.

A record is a tag of 4 characters, its payload's size as u64, the payload; all numbers little-endian.
``firmware/README.md`` lists the records, ``firmware/report/`` is the code that writes them. The guest is
not trusted: whatever it sends becomes a `GuestReport` or a `ReportError`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from vmm.errors import VmmError
from vmm.layout import PAGE
from vmm.tables.e820 import RECORD, E820Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ROM_FILE = "genroms/vmm-report.bin"
"""SeaBIOS runs every file under genroms/ as an option ROM."""
ROM_PATH = f"/rom@{ROM_FILE}"
"""What SeaBIOS calls it in the boot order."""

STREAM_FILE = "opt/vmm/report"
"""The writable fw_cfg file that the guest writes the stream into, piece by piece from offset 0."""

STREAM_FILE_SIZE = 0x10000
STREAM_LIMIT = 1 << 30
"""Bytes that are taken from a guest; it can't make the host keep more."""

VERSION = 1
MAGIC = b"VMMR"
_RECORD = struct.Struct("<4sQ")
_TWO_WORDS = struct.Struct("<II")
_ADDRESS = struct.Struct("<Q")
_ITEM = struct.Struct("<IHH56s")
_LOOK = struct.Struct("<IQQQ")
_DESCRIPTOR = struct.Struct("<I4xQQQQ")


class ReportError(VmmError):
    """What the guest sent is not a whole report; the text says what is wrong."""


class Kind(IntEnum):
    """Under which firmware the report was made."""

    UEFI = 1
    BIOS = 2
    LINUX = 3
    """By Linux, whatever started it."""


@dataclass(frozen=True)
class MemoryDescriptor:
    """A row of the UEFI memory map: a range of GPAs in bytes, EFI_MEMORY_TYPE, attributes."""

    base: int
    length: int
    type: int
    attributes: int

    @property
    def end(self) -> int:
        """The first address behind the range."""
        return self.base + self.length


@dataclass(frozen=True)
class Located:
    """Bytes and the GPA where the guest found them."""

    address: int
    data: bytes


@dataclass(frozen=True)
class ItemRead:
    """An fw_cfg item as the guest's own client read it; fixed items have no name."""

    key: int
    name: str
    data: bytes
    size: int | None = None
    """Bytes that the item has, if `data` may be only its beginning."""


class Look(IntEnum):
    """What a guest looks for where a table says that it is."""

    ECAM = 1
    """0:0.0's first register there, and by the configuration ports."""
    PM_TIMER = 2
    """Twice, the second time when it had changed, or never would."""
    HPET = 3
    """The low half of its capability register."""
    LOCAL_APIC = 4
    """Its id register."""
    IO_APIC = 5
    """Its version register."""
    X2APIC = 6
    """The local APIC's id register where that is an MSR, because firmware has changed to x2APIC."""


@dataclass(frozen=True)
class Looked:
    """One look: the address or port, and what was there."""

    where: int
    first: int
    second: int


class LinuxCpu(NamedTuple):
    """A CPU that is online: numbers of sysfs."""

    apic_id: int
    package: int
    die: int
    core: int


class LinuxNode(NamedTuple):
    """A node: Linux's CPUs in it that are online, KiB of memory, distances."""

    cpus: tuple[int, ...]
    memory: int
    distances: tuple[int, ...]


class LinuxBlocks(NamedTuple):
    """What Linux takes memory in and out by: bytes of each, 0 where it does neither, and the numbers of those there."""

    size: int
    numbers: tuple[int, ...]


_NO_BLOCKS = LinuxBlocks(0, ())


@dataclass
class GuestReport:
    """All that a guest told."""

    kind: Kind = Kind.UEFI
    complete: bool = False
    firmware_vendor: str = ""
    firmware_revision: int = 0
    memory_map: list[MemoryDescriptor] = field(default_factory=list)
    """UEFI's; empty under a BIOS and Linux."""
    e820: list[E820Entry] = field(default_factory=list)
    """INT 15h E820, or what Linux took from boot_params; empty under UEFI."""
    rsdp: Located | None = None
    acpi: list[Located] = field(default_factory=list)
    """Every table that can be reached from the RSDP, in the order of reaching."""
    looks: dict[Look, Looked] = field(default_factory=dict)
    """What was where tables say; not by Linux."""
    smbios_entry_points: list[Located] = field(default_factory=list)
    smbios_tables: list[Located] = field(default_factory=list)
    processors: tuple[int, int] | None = None
    """Total and enabled: what MP Services say; under a BIOS, both are the CPUs that answered INIT and SIPI."""
    linux_cpus: dict[int, LinuxCpu] = field(default_factory=dict)
    linux_nodes: dict[int, LinuxNode] = field(default_factory=dict)
    """By Linux's numbers; empty under others."""
    linux_blocks: LinuxBlocks = _NO_BLOCKS
    variables: dict[str, bytes] = field(default_factory=dict)
    """UEFI's global variables whose names begin with Boot."""
    items: list[ItemRead] = field(default_factory=list)
    cmos: bytes = b""
    """128 registers; under a BIOS only."""
    name: str = ""
    """The product string of the option ROM that ran; under a BIOS only."""
    log: list[tuple[int, str]] = field(default_factory=list)
    """Level (0 to 7, the lower the worse) and text of each line that Linux logged."""

    def table(self, signature: str) -> bytes | None:
        """The first ACPI table with a signature."""
        return next((found.data for found in self.acpi if found.data[:4] == signature.encode("ascii")), None)


def records(stream: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Split a stream into tags and payloads, up to the END record.

    Raises:
        ReportError: it ends inside a record, or before END.
    """
    offset = 0
    while offset + _RECORD.size <= len(stream):
        tag, size = _RECORD.unpack_from(stream, offset)
        offset += _RECORD.size
        if size > len(stream) - offset:
            raise ReportError(f"the guest's report ends inside its record {tag!r}, {size} bytes at {offset}")
        yield tag, stream[offset : offset + size]
        offset += size
        if tag == b"END ":
            return
    raise ReportError(f"the guest's report of {len(stream)} bytes has no end: the guest stopped while it wrote it")


def decode(stream: bytes) -> GuestReport:
    """Decode a stream; what stands before its first record, such as firmware's log on a debug port, is skipped.

    Raises:
        ReportError: there is no report, or it is cut short or malformed.
    """
    start = stream.find(MAGIC + (8).to_bytes(8, "little"))
    if start < 0:
        raise ReportError("the guest sent no report")
    report = GuestReport()
    for tag, payload in records(stream[start:]):
        try:
            _RECORDS.get(tag, _ignore)(report, payload)
        except (struct.error, ValueError) as error:
            raise ReportError(f"the guest's record {tag!r} is malformed: {error}") from None
    report.complete = True
    return report


def _ignore(_report: GuestReport, _payload: bytes) -> None:
    """Skip a record that a newer guest may send."""


def _head(report: GuestReport, payload: bytes) -> None:
    version, kind = _TWO_WORDS.unpack_from(payload)
    if version != VERSION:
        raise ValueError(f"version {version} of the stream, not {VERSION}")
    report.kind = Kind(kind)


def _firmware(report: GuestReport, payload: bytes) -> None:
    (report.firmware_revision,) = struct.unpack_from("<I", payload)
    report.firmware_vendor = payload[4:].decode("utf-16-le", "replace")


def _memory_map(report: GuestReport, payload: bytes) -> None:
    size, _version = _TWO_WORDS.unpack_from(payload)
    if size < _DESCRIPTOR.size:
        raise ValueError(f"descriptors of {size} bytes")
    for offset in range(_TWO_WORDS.size, len(payload) - size + 1, size):
        kind, base, _virtual, pages, attributes = _DESCRIPTOR.unpack_from(payload, offset)
        report.memory_map.append(MemoryDescriptor(base, pages * PAGE, kind, attributes))


def _e820(report: GuestReport, payload: bytes) -> None:
    report.e820 += [E820Entry(*fields) for fields in RECORD.iter_unpack(payload)]


def _located(payload: bytes) -> Located:
    (address,) = _ADDRESS.unpack_from(payload)
    return Located(address, payload[_ADDRESS.size :])


def _rsdp(report: GuestReport, payload: bytes) -> None:
    report.rsdp = _located(payload)


def _acpi(report: GuestReport, payload: bytes) -> None:
    report.acpi.append(_located(payload))


def _look(report: GuestReport, payload: bytes) -> None:
    what, *seen = _LOOK.unpack(payload)
    if what in list(Look):
        report.looks[Look(what)] = Looked(*seen)


def _entry_point(report: GuestReport, payload: bytes) -> None:
    report.smbios_entry_points.append(_located(payload))


def _smbios(report: GuestReport, payload: bytes) -> None:
    report.smbios_tables.append(_located(payload))


def _processors(report: GuestReport, payload: bytes) -> None:
    total, enabled = _TWO_WORDS.unpack(payload)
    report.processors = total, enabled


def _variable(report: GuestReport, payload: bytes) -> None:
    _attributes, size = _TWO_WORDS.unpack_from(payload)
    end = _TWO_WORDS.size + size
    name = payload[_TWO_WORDS.size : end].decode("utf-16-le", "replace")
    report.variables[name] = payload[end:]


def _item(report: GuestReport, payload: bytes) -> None:
    size, key, _reserved, name = _ITEM.unpack_from(payload)
    data = payload[_ITEM.size :]
    if len(data) != size:
        raise ValueError(f"an item of {size} bytes with {len(data)}")
    report.items.append(ItemRead(key, name.split(b"\0")[0].decode("latin-1"), data))


def _cmos(report: GuestReport, payload: bytes) -> None:
    report.cmos = payload


def _name(report: GuestReport, payload: bytes) -> None:
    report.name = payload.decode("latin-1")


_RECORDS = {
    b"VMMR": _head,
    b"FIRM": _firmware,
    b"UMAP": _memory_map,
    b"E820": _e820,
    b"RSDP": _rsdp,
    b"ACPI": _acpi,
    b"LOOK": _look,
    b"SMEP": _entry_point,
    b"SMBT": _smbios,
    b"CPUS": _processors,
    b"VAR ": _variable,
    b"ITEM": _item,
    b"CMOS": _cmos,
    b"NAME": _name,
}
