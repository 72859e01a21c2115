"""Boot order: ``-boot``, and the fw_cfg file and CMOS bytes that carry it.

``bootorder`` is text: OpenFirmware device paths, one per line, and one NUL at
the end; empty where nothing has a place in the order. SeaBIOS takes it as
prefixes and stops at ``HALT``; OVMF (QemuBootOrderLib) rewrites BootOrder after it.
``order=`` doesn't go there: its letters are in CMOS, as in QEMU, for a BIOS.
"""

from __future__ import annotations

from vmm import inputs, options
from vmm.errors import ConfigError
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import Final, Self

BOOT_ORDER_FILE: Final = "bootorder"
CMOS_FLAGS: Final = 0x38
CMOS_DEVICES: Final = 0x3D
HALT: Final = "HALT"
DEFAULT_ORDER: Final = "cad"

MAX_BOOTINDEX: Final = (1 << 31) - 1

HOST_BRIDGE_PATH: Final = "/pci@i0cf8"
"""A PC's PCI bus 0, by the port that configures it (PCI Bus Binding to IEEE 1275, 2.1; QEMU, hw/pci-host)."""

_OPTION = "-boot"
_KEYS = ("order", "once", "menu", "splash", "splash-time", "reboot-timeout", "strict")
_CMOS_CODES = {"a": 1, "c": 2, "d": 3, "n": 4}
_MAX_MILLISECONDS = 0xFFFF


class Splash(NamedTuple):
    """A picture, under the name by which SeaBIOS (src/bootsplash.c) knows its format."""

    name: str
    data: inputs.Contents
    path: Path
    """Where it was read."""

    def __repr__(self) -> str:
        """Leave the contents out, which may be megabytes."""
        return f"Splash({self.name}, {len(self.data)} bytes)"

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a picture's file.

        Raises:
            ConfigError: unreadable, or of another format.
        """
        what = f"{_OPTION} splash={path}"
        file = inputs.load_file(path, what)
        for magic, name in ((b"\xff\xd8", "bootsplash.jpg"), (b"BM", "bootsplash.bmp")):
            if file.data[:2] == magic:
                return cls(name, file.data, file.path)
        raise ConfigError(f"{what}: neither a JPEG nor a BMP picture")


class BootOptions(NamedTuple):
    """``-boot`` as given."""

    order: str | None = None
    """Letters a (floppy), c (disk), d (CD), n (network), the first first; None leaves QEMU's ``cad``."""
    once: str | None = None
    """The same, for the first boot only."""
    menu: bool = False
    """Whether firmware shows its boot menu."""
    splash_time_ms: int | None = None
    """How long the menu or picture stays, 0 to 65535; None leaves it to firmware."""
    reboot_timeout_ms: int | None = None
    """Wait before a reboot when nothing boots, 0 to 65535; -1 or None never reboots."""
    strict: bool = False
    """Stop after the entries of ``bootorder`` rather than try the rest."""
    splash: Splash | None = None
    """A picture for SeaBIOS, JPEG or BMP."""

    @classmethod
    def parse(cls, value: Self | str) -> Self:
        """Read ``[order=]LETTERS,once=LETTERS,menu=on|off,splash=PATH,splash-time=MS,reboot-timeout=MS,strict=on|off``.

        Raises:
            ConfigError: an unknown key or letter, or a number out of range.
        """
        if isinstance(value, BootOptions):
            return value
        options.check_type(value, _OPTION, str)
        keys = options.parse_keys(value, _OPTION, known=_KEYS, implied="order")
        return cls(
            order=_letters(keys, "order"),
            once=_letters(keys, "once"),
            menu=options.parse_bool(keys.get("menu", "off"), f"{_OPTION} menu"),
            splash_time_ms=_milliseconds(keys, "splash-time", minimum=0),
            reboot_timeout_ms=_milliseconds(keys, "reboot-timeout", minimum=-1),
            strict=options.parse_bool(keys.get("strict", "off"), f"{_OPTION} strict"),
            splash=Splash.read(keys["splash"]) if "splash" in keys else None,
        )


def _milliseconds(keys: Mapping[str, str], key: str, *, minimum: int) -> int | None:
    if key not in keys:
        return None
    return options.parse_int(keys[key], f"{_OPTION} {key}=", minimum=minimum, maximum=_MAX_MILLISECONDS)


def _letters(keys: Mapping[str, str], key: str) -> str | None:
    letters = keys.get(key)
    for letter in letters or "":
        if letter not in _CMOS_CODES:
            raise ConfigError(
                f"{_OPTION} {key}={letters}: '{letter}' is no boot device (a floppy, c disk, d CD, n network)"
            )
        if (letters or "").count(letter) > 1:
            raise ConfigError(f"{_OPTION} {key}={letters}: '{letter}' is given twice")
    return letters


def check_paths(paths: Iterable[str]) -> None:
    """Refuse device paths that no line of ``bootorder`` can hold.

    Raises:
        ConfigError: a path is empty, doesn't start with ``/``, has a blank, a
            control character or a non-ASCII one, or is given twice.

    """
    checked: list[str] = []
    for path in paths:
        if not path.isascii() or not path.isprintable() or " " in path or not path.startswith("/"):
            raise ConfigError(f"boot order entry '{path}': must be an OpenFirmware path such as /pci@i0cf8/scsi@3")
        if path in checked:
            raise ConfigError(f"boot order entry '{path}' is given twice")
        checked.append(path)


def encode_boot_order(paths: Iterable[str], *, strict: bool = False) -> bytes:
    """Encode ``bootorder``: lines joined by newlines and one NUL; nothing for no lines.

    With ``strict``, a last line ``HALT`` makes SeaBIOS try nothing else; OVMF ignores it.
    """
    lines = list(paths)
    if strict:
        lines.append(HALT)
    return "\n".join(lines).encode("ascii") + b"\0" if lines else b""


def cmos_boot_bytes(order: str | None) -> dict[int, int]:
    """Give the CMOS bytes of a legacy boot order, by index.

    0x3d has the first device in its low and the second in its high nibble,
    0x38 the third in its high one; bit 0 of 0x38 clear keeps the check of
    a floppy's boot signature (Bochs' rombios, QEMU hw/i386/pc.c).
    """
    codes = [_CMOS_CODES[letter] for letter in (order or DEFAULT_ORDER)[:3]] + [0, 0, 0]
    return {CMOS_DEVICES: codes[1] << 4 | codes[0], CMOS_FLAGS: codes[2] << 4}
