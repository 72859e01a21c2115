"""What was offered and what was found, as values that a test can compare; their texts are short."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.tables.e820 import E820Entry


class Verdict(StrEnum):
    """What became of something that was offered."""

    ARRIVED = "arrived"
    """The guest found what was offered, apart from what firmware has to fill in."""
    EXTRA = "not ours"
    """The guest found more than was offered: firmware's own."""
    ALTERED = "altered"
    """The guest found something else."""
    MISSING = "missing"
    """The guest found nothing."""
    TRUE = "true"
    """The machine is as the guest was told."""
    UNTRUE = "untrue"
    """The machine is otherwise."""

    @property
    def ok(self) -> bool:
        """Whether the user got what they asked for."""
        return self in {Verdict.ARRIVED, Verdict.EXTRA, Verdict.TRUE}


T = TypeVar("T")


class Table(NamedTuple):
    """An ACPI table. Equal means byte for byte: found, it has pointers and a checksum that firmware filled in."""

    signature: str
    data: bytes

    def __repr__(self) -> str:
        """Give the size instead of the bytes."""
        return f"<{self.signature}, {len(self.data)} bytes>"


class Structure(NamedTuple):
    """An SMBIOS structure: its type, its handle, and all its bytes with the strings."""

    type: int
    handle: int
    data: bytes

    @property
    def strings(self) -> list[str]:
        """The strings behind the formatted area, first to last."""
        texts = self.data[self.data[1] :].rstrip(b"\0").split(b"\0")
        return [text.decode("utf-8", "surrogateescape") for text in texts if text]

    def __repr__(self) -> str:
        """Give the strings instead of the bytes."""
        return f"<SMBIOS type {self.type}, handle {self.handle:#x}, {len(self.data)} bytes: {self.strings}>"


class Cpus(NamedTuple):
    """How many CPUs: counted by the guest, enabled in the MADT, and listed there."""

    counted: int
    enabled: int
    possible: int


@dataclass(frozen=True, repr=False)
class Compared(Generic[T]):
    """One thing on both sides.

    Attributes:
        name: as `vmm verify` prints it.
        offered: what the machine offered; None if that was nothing.
        found: what the guest found; None if it found nothing.
        verdict: whether it arrived, apart from what firmware has to fill in.
        why: what differs, and the reason, in words.
    """

    name: str
    offered: T | None
    found: T | None
    verdict: Verdict
    why: str = ""

    @property
    def arrived(self) -> bool:
        """Whether the user got what they asked for."""
        return self.verdict.ok

    def __repr__(self) -> str:
        """Give the verdict and the reason, for a failed `assert`."""
        return f"<{self.name}: {self.verdict}{f', {self.why}' if self.why else ''}>"


@dataclass(frozen=True)
class Side:
    """All of one side, by the names that `vmm verify` prints.

    Attributes:
        tables: ACPI tables: `"MCFG"`, `"SSDT USERTEST"`; a second of one name ends with " (2)".
        smbios: SMBIOS structures: `"type 1 system"`.
        cpus: how many; None if the guest did not tell.
        boot_order: firmware device paths, first to last.
        items: named fw_cfg items.
        e820: memory map, by address; the guest's has neighbours of one type joined.
    """

    tables: Mapping[str, Table]
    smbios: Mapping[str, Structure]
    cpus: Cpus | None
    boot_order: tuple[str, ...]
    items: Mapping[str, bytes]
    e820: tuple[E820Entry, ...]
