"""Option ROMs that SeaBIOS takes from fw_cfg: QEMU's ``-option-rom``."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Self

from vmm import inputs, options
from vmm.config.items import FwCfgItem
from vmm.errors import ConfigError
from vmm.tables.boot_order import MAX_BOOTINDEX

DIRECTORY = "genroms/"
"""SeaBIOS runs all of fw_cfg's files whose names begin so (src/optionroms.c)."""

_OPTION = "-option-rom"
_SIGNATURE = b"\x55\xaa"
"""What an option ROM begins with (BIOS Boot Specification 1.01, appendix; PCI Firmware 3.0, 5.1)."""


class OptionRom(NamedTuple):
    """An option ROM, and its place in the boot order; None: it has none."""

    item: FwCfgItem
    bootindex: int | None = None

    @property
    def path(self) -> str:
        """What SeaBIOS calls it in the boot order, as QEMU writes it (hw/core/loader.c, rom_add_file)."""
        return f"/rom@{self.item.name}"

    @classmethod
    def parse(cls, value: Self | Path | str) -> Self:
        """Read ``[romfile=]PATH[,bootindex=N]``.

        Raises:
            ConfigError: an unreadable file, or one that is no option ROM.
        """
        if isinstance(value, OptionRom):
            return value
        keys = {"romfile": str(value)}
        if isinstance(value, str):
            keys = options.parse_keys(value, _OPTION, known=("romfile", "bootindex"), implied="romfile")
        if "romfile" not in keys:
            raise ConfigError(f"{_OPTION} {value}: romfile= is missing")
        name = keys["romfile"]
        path, data = inputs.load_file(Path(name), f"{_OPTION} {name}")
        if bytes(data[:2]) != _SIGNATURE:
            raise ConfigError(f"{_OPTION} {name}: is no option ROM, which begins with 55 aa")
        index = keys.get("bootindex")
        return cls(
            FwCfgItem(DIRECTORY + path.name, data, path),
            bootindex=None
            if index is None
            else options.parse_int(index, f"{_OPTION} bootindex=", minimum=0, maximum=MAX_BOOTINDEX),
        )
