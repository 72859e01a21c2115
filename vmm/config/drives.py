"""The files of flash, as QEMU users name them: ``-drive if=pflash``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self

from vmm import options
from vmm.errors import ConfigError


class PflashDrive(NamedTuple):
    """One ``-drive if=pflash``: unit 0 is CODE or a single image, unit 1 is VARS."""

    path: Path
    readonly: bool = False
    unit: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``if=pflash,format=raw,file=PATH[,readonly=on|off][,unit=0|1]``.

        Raises:
            ConfigError: another interface or format, no file, or a unit that does not exist.
        """
        keys = options.parse_keys(text, "-drive", known=("if", "format", "file", "readonly", "read-only", "unit"))
        if keys.get("if") != "pflash":
            raise ConfigError(f"-drive {text}: only if=pflash exists here: firmware flash")
        if keys.get("format", "raw") != "raw":
            raise ConfigError(f"-drive {text}: format={keys['format']} is not known; raw is (qemu-img convert -O raw)")
        if not keys.get("file"):
            raise ConfigError(f"-drive {text}: file=PATH is missing")
        unit = keys.get("unit")
        return cls(
            Path(keys["file"]),
            options.parse_bool(keys.get("readonly", keys.get("read-only", "off")), "-drive readonly"),
            None if unit is None else options.parse_int(unit, "-drive unit=", minimum=0, maximum=1),
        )


def flash_files(drives: Iterable[PflashDrive]) -> dict[str, Any]:
    """Return what ``-drive if=pflash`` options mean in the words of `MachineConfig.create`.

    Drives without unit take the free ones in order.

    Raises:
        ConfigError: a unit twice, or VARS without CODE.
    """
    units: dict[int, PflashDrive] = {}
    for drive in drives:
        unit = drive.unit if drive.unit is not None else next((n for n in (0, 1) if n not in units), 2)
        if unit > 1:
            raise ConfigError(f"-drive file={drive.path}: there are two flash units, CODE (0) and VARS (1)")
        if unit in units:
            raise ConfigError(f"-drive file={drive.path}: unit {unit} is taken by {units[unit].path}")
        units[unit] = drive
    if 0 not in units:
        raise ConfigError(f"-drive file={units[1].path}: unit 0, the firmware's CODE, is missing")
    code, variables = units[0], units.get(1)
    return {
        "firmware": code.path,
        "variables": None if variables is None else variables.path,
        "persist": not (code if variables is None else variables).readonly,
    }
