"""What running a table-loader script gave, by the rules of one firmware; `vmm.tables.loader_rules` runs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.tables.table_loader import Command


class Rules(Enum):
    """Whose rules to run by."""

    OVMF = "ovmf"
    SEABIOS = "seabios"


@dataclass
class Blob:
    """A file that ALLOCATE loaded: its guest-physical base address and current bytes."""

    file: str
    base: int
    data: bytearray
    zone: int
    only_tables: bool = True


@dataclass(frozen=True)
class Step:
    """What became of one command; ``reason`` is empty if it succeeded."""

    index: int
    command: Command
    ok: bool
    reason: str = ""


@dataclass(frozen=True)
class FoundTable:
    """A table that firmware looked at: offset in bytes into its file, and the verdict."""

    signature: str
    file: str
    offset: int
    length: int
    address: int
    accepted: bool
    reason: str = ""


@dataclass
class LoaderResult:
    """All that running a script gave.

    ``ok`` is false if firmware would publish no table of the script: for OVMF
    after any failure, for SeaBIOS if the script as a whole is refused or no
    usable RSDP results. ``written`` maps fw_cfg items to what WRITE_POINTER
    left in them.
    """

    rules: Rules
    ok: bool = True
    reason: str = ""
    steps: list[Step] = field(default_factory=list)
    blobs: dict[str, Blob] = field(default_factory=dict)
    tables: list[FoundTable] = field(default_factory=list)
    written: dict[str, bytes] = field(default_factory=dict)

    @property
    def failures(self) -> list[Step]:
        """The commands that failed."""
        return [step for step in self.steps if not step.ok]
