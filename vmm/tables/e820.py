"""The memory map that fw_cfg publishes as ``etc/e820``.

A record is 20 packed little-endian bytes: u64 base, u64 length, u32 type. There
is no header; the number of records is the item's size divided by 20.

The map obeys what its readers do with it, because none of them complains:

* OVMF takes low memory from the RAM records below 4 GiB: older versions the
  highest end among them, newer ones only the run that starts at address 0 and
  is contiguous in file order (edk2 PlatformInitLib). RAM is therefore one
  record from 0 to the PCI hole and one from 4 GiB, without holes for VGA or
  the BIOS area, and no further RAM record may lie below 4 GiB, unless somebody
  wants to see what becomes of it, and makes a hole.
* SeaBIOS takes the highest RAM end below 4 GiB as its RamSize, keeps reserved
  records, and drops ACPI and NVS ones (src/fw/paravirt.c).
"""

from __future__ import annotations

import itertools
import struct
from enum import IntEnum

from vmm import options
from vmm.errors import ConfigError
from vmm.layout import FOUR_GIB
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Self

RECORD = struct.Struct("<QQI")
_ADDRESS_END = 1 << 64
HOLE = -1
"""No type of a record: what an option takes out of RAM's, for another entry or for nothing."""

_TYPE_NAMES = {
    "hole": HOLE,
    "ram": 1,
    "reserved": 2,
    "acpi": 3,
    "nvs": 4,
    "unusable": 5,
    "disabled": 6,
    "persistent": 7,
    "soft-reserved": 0xEFFF_FFFF,
}
"""ACPI 6.5, table 15.4; the last is Linux's (arch/x86/include/asm/e820/types.h): memory for special purposes (EFI's
EFI_MEMORY_SP), which it leaves to device drivers."""


class E820Type(IntEnum):
    """Types that this project names (ACPI specification, address range types)."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4


def type_name(number: int) -> str:
    """Name a record type, or give its number as text."""
    return next((name for name, value in _TYPE_NAMES.items() if value == number), str(number))


class E820Entry(NamedTuple):
    """One range of guest-physical addresses: base and length in bytes, type 1 to 2^32-1, or `HOLE`."""

    base: int
    length: int
    type: int

    @classmethod
    def parse(cls, value: Self | str) -> Self:
        """Read ``base=ADDRESS,size=BYTES,type=NAME|N``.

        Names are ram, reserved, acpi, nvs, soft-reserved, hole and others. Numbers are decimal or ``0x``, with K, M, G
        or T behind them if wanted.

        Raises:
            ConfigError: a field is missing, unknown, or no number.
        """
        if isinstance(value, E820Entry):
            return value
        fields = options.parse_keys(value, "-e820", known=("base", "size", "type"))
        for name in ("base", "size", "type"):
            if name not in fields:
                raise ConfigError(f"-e820 {value}: {name}= is missing (base=…,size=…,type=…)")
        base = options.parse_size(fields["base"], "-e820 base=")
        size = options.parse_size(fields["size"], "-e820 size=")
        kind = fields["type"]
        if kind in _TYPE_NAMES:
            number = _TYPE_NAMES[kind]
        elif kind[:1].isdigit():
            number = options.parse_int(kind, "-e820 type=")
        else:
            raise ConfigError(f"-e820 type={kind}: must be a number or one of {', '.join(_TYPE_NAMES)}")
        return cls(base, size, number)

    @property
    def end(self) -> int:
        """The first address behind the range."""
        return self.base + self.length

    def __str__(self) -> str:
        """Give the range as firmware logs do, the last address included."""
        return f"{self.base:#x}-{self.end - 1:#x} {type_name(self.type)}"


def build_map(
    low_size: int, high_size: int = 0, extra: Iterable[E820Entry] = (), high_base: int = FOUR_GIB
) -> tuple[E820Entry, ...]:
    """Build the map: RAM from 0, the rest of RAM, both without the holes, then the extra entries by address.

    Args:
        low_size: bytes of RAM from address 0 to the PCI hole, above 0 and below 4 GiB.
        high_size: bytes of the rest of RAM; 0 for none.
        extra: further entries. They describe address space; they don't create RAM, and holes don't take it away: the
            guest is not told of it.
        high_base: where the rest of RAM begins, 4 GiB or beyond.

    Raises:
        ConfigError: a size out of range, or a hole that is not in RAM or overlaps another; `check_map` looks at the
            entries.
    """
    if not 0 < low_size < FOUR_GIB:
        raise ConfigError(f"RAM below the PCI hole is {low_size:#x} bytes: must be above 0 and below 4 GiB")
    if high_size < 0:
        raise ConfigError(f"RAM above 4 GiB is {high_size} bytes: must not be negative")
    ram = [E820Entry(0, low_size, E820Type.RAM)]
    if high_size:
        ram.append(E820Entry(high_base, high_size, E820Type.RAM))
    extra = sorted(extra)
    holes = [entry for entry in extra if entry.type == HOLE]
    for hole in holes:
        if hole.length <= 0 or not any(entry.base <= hole.base and hole.end <= entry.end for entry in ram):
            raise ConfigError(f"e820 entry {hole}: not in RAM, which is {' and '.join(map(str, ram))}")
    _check_overlaps(holes)
    entries = [part for entry in ram for part in without(entry, holes)]
    if not any(entry.base < FOUR_GIB for entry in entries):
        raise ConfigError(f"e820 entry {holes[0]}: no RAM is left below 4 GiB")
    return (*entries, *(entry for entry in extra if entry.type != HOLE))


def has_holes(extra: Iterable[E820Entry]) -> bool:
    """Whether some of the extra entries are holes."""
    return any(entry.type == HOLE for entry in extra)


def without(entry: E820Entry, others: Iterable[E820Entry]) -> list[E820Entry]:
    """Return what of an entry no other one covers, by address."""
    rest, at = [], entry.base
    for other in sorted(others):
        base, end = max(entry.base, other.base), min(entry.end, other.end)
        if base >= end:
            continue
        if at < base:
            rest.append(E820Entry(at, base - at, entry.type))
        at = max(at, end)
    if at < entry.end:
        rest.append(E820Entry(at, entry.end - at, entry.type))
    return rest


def check_map(entries: Sequence[E820Entry], *, holes: bool = False) -> None:
    """Refuse a map that firmware would misread or that contradicts itself.

    Args:
        entries: in file order.
        holes: RAM below 4 GiB is in pieces because somebody wants it so.

    Raises:
        ConfigError: entries that overlap, a range that is empty or leaves the 64-bit space, a type of more than 32
            bits, or RAM below 4 GiB outside the low entry.
    """
    for entry in entries:
        if entry.length <= 0 or entry.base < 0 or entry.end > _ADDRESS_END:
            raise ConfigError(f"e820 entry {entry}: empty or beyond the 64-bit address space")
        if not 0 < entry.type <= 0xFFFFFFFF:
            raise ConfigError(f"e820 entry {entry}: a type is from 1 to {0xFFFFFFFF}")
        if entry.type == E820Type.RAM and 0 < entry.base < FOUR_GIB and not holes:
            raise ConfigError(
                f"e820 entry {entry}: RAM below 4 GiB must be the one entry that starts at 0, "
                "firmware takes its end as the size of low memory; use -m, type=reserved, or type=hole to cut that one"
            )
    _check_overlaps(sorted(entries))


def _check_overlaps(entries: Iterable[E820Entry]) -> None:
    """Refuse two entries, by address, that overlap."""
    for before, after in itertools.pairwise(entries):
        if after.base < before.end:
            in_ram = (before.type == E820Type.RAM) != (after.type == E820Type.RAM)
            remedy = ", or cut the machine's RAM there by a type=hole of the same range" if in_ram else ""
            raise ConfigError(f"e820 entries overlap: {before} and {after}; move or shorten one{remedy}")


def encode(entries: Iterable[E820Entry]) -> bytes:
    """Encode entries as 20-byte records, in the order given."""
    return b"".join(RECORD.pack(entry.base, entry.length, entry.type) for entry in entries)


def decode(data: bytes) -> tuple[E820Entry, ...]:
    """Decode 20-byte records.

    Raises:
        ValueError: the size is not a multiple of 20, which OVMF refuses too.

    """
    if len(data) % RECORD.size:
        raise ValueError(f"{len(data)} bytes are not a whole number of {RECORD.size}-byte e820 records")
    return tuple(E820Entry(*fields) for fields in RECORD.iter_unpack(data))
