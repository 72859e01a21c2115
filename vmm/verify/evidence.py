"""What is known about why firmware dropped something: its rules, and what it read."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from vmm.firmware.images import FirmwareKind
from vmm.tables import loader_rules
from vmm.tables.files import LOADER_FILE
from vmm.tables.loader_result import LoaderResult, Rules

if TYPE_CHECKING:
    from vmm.verify.collect import Collected

NAMES = {FirmwareKind.OVMF: "OVMF", FirmwareKind.SEABIOS: "SeaBIOS", FirmwareKind.NONE: "vmm's direct boot"}


class Evidence:
    """What the firmware at hand makes of the published files, as far as its rules are known.

    Args:
        collected: both sides.
    """

    def __init__(self, collected: Collected) -> None:
        self._collected = collected
        self.firmware = NAMES[collected.config.firmware.kind]

    @property
    def is_ovmf(self) -> bool:
        """Whether OVMF's rules apply; else SeaBIOS's."""
        return self._collected.config.firmware.kind is FirmwareKind.OVMF

    @cached_property
    def loader(self) -> LoaderResult:
        """The published table-loader script, run by the firmware's rules."""
        return self._run(self._collected.published)

    @cached_property
    def intended(self) -> LoaderResult:
        """The script and tables as they were built, run by OVMF's rules: they look at every table."""
        return loader_rules.run(
            self._collected.tables.get(LOADER_FILE, b""),
            self._collected.published | self._collected.tables,
            Rules.OVMF,
            writable=self._collected.writable,
        )

    def never_read(self, name: str) -> str:
        """Say that firmware never selected a file; nothing if it did."""
        if self._collected.config.direct:
            return ""
        item = self._collected.firmware_reads.get(name)
        if item is not None and item.selects == 0:
            return f"{self.firmware} never read {name}"
        return ""

    def _run(self, files: dict[str, bytes]) -> LoaderResult:
        return loader_rules.run(
            files.get(LOADER_FILE, b""),
            files,
            Rules.OVMF if self.is_ovmf else Rules.SEABIOS,
            writable=self._collected.writable,
        )
