"""Boot order: ``-boot``, and the fw_cfg files and CMOS bytes that carry it.

``bootorder`` is text: OpenFirmware device paths, one per line, and one NUL at
the end; empty where nothing has a place in the order. SeaBIOS takes it as
prefixes and stops at ``HALT``; OVMF (QemuBootOrderLib) rewrites BootOrder after it.
``order=`` doesn't go there: its letters are in CMOS, as in QEMU, for a BIOS.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmm.errors import ConfigError
from vmm.tables import options

if TYPE_CHECKING:
    from collections.abc import Iterable

BOOT_ORDER_FILE: Final = "bootorder"
MENU_WAIT_FILE: Final = "etc/boot-menu-wait"
FAIL_WAIT_FILE: Final = "etc/boot-fail-wait"
BOOT_MENU_KEY: Final = 0x0E
CMOS_FLAGS: Final = 0x38
CMOS_DEVICES: Final = 0x3D
HALT: Final = "HALT"

_OPTION = "-boot"
_FIELDS = ("order", "once", "menu", "splash", "splash-time", "reboot-timeout", "strict")
_CMOS_CODES = {"a": 1, "c": 2, "d": 3, "n": 4}
_MAX_MILLISECONDS = 0xFFFF


@dataclass(frozen=True)
class BootOptions:
    """``-boot`` as given; times in milliseconds.

    Attributes:
        order: letters a (floppy), c (disk), d (CD), n (network), first first.
        once: the same for the first boot only; empty for none.
        menu: whether firmware shows its boot menu.
        splash: path of a picture for SeaBIOS; None for none.
        splash_time: how long the menu or picture stays, 0 to 65535; None to leave it to firmware.
        reboot_timeout: wait before a reboot when nothing boots, up to 65535;
            -1 never reboots.
        strict: stop after the entries of ``bootorder`` rather than try the rest.
    """

    order: str = "cad"
    once: str = ""
    menu: bool = False
    splash: str | None = None
    splash_time: int | None = None
    reboot_timeout: int = -1
    strict: bool = False


def parse_boot(text: str) -> BootOptions:
    """Parse ``-boot [order=]LETTERS,once=…,menu=on|off,splash=…,splash-time=MS,…``.

    Raises:
        ConfigError: an unknown field, a bad device letter, a time out of range.

    """
    fields = options.split_once(text, option=_OPTION, known=_FIELDS, implied="order")
    timeout = options.number(
        fields.get("reboot-timeout", "-1"), what=f"{_OPTION} reboot-timeout", low=-1, high=_MAX_MILLISECONDS
    )
    splash_time = None
    if "splash-time" in fields:
        splash_time = options.number(
            fields["splash-time"], what=f"{_OPTION} splash-time", low=0, high=_MAX_MILLISECONDS
        )
    return BootOptions(
        order=_letters(fields.get("order", "cad"), "order"),
        once=_letters(fields.get("once", ""), "once"),
        menu=options.switch(fields.get("menu", "off"), what=f"{_OPTION} menu"),
        splash=fields.get("splash"),
        splash_time=splash_time,
        reboot_timeout=timeout,
        strict=options.switch(fields.get("strict", "off"), what=f"{_OPTION} strict"),
    )


def _letters(value: str, field: str) -> str:
    for letter in value:
        if letter not in _CMOS_CODES:
            raise ConfigError(
                f"{_OPTION} {field}={value}: '{letter}' is no boot device (a floppy, c disk, d CD, n network)"
            )
        if value.count(letter) > 1:
            raise ConfigError(f"{_OPTION} {field}={value}: '{letter}' is given twice")
    return value


def check_paths(paths: Iterable[str]) -> tuple[str, ...]:
    """Give back device paths that a line of ``bootorder`` can hold.

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
    return tuple(checked)


def encode_boot_order(paths: Iterable[str], *, strict: bool = False) -> bytes:
    """Encode ``bootorder``: lines joined by newlines and one NUL; nothing for no lines.

    With ``strict``, a last line ``HALT`` makes SeaBIOS try nothing else; OVMF ignores it.

    Raises:
        ConfigError: see ``check_paths``.

    """
    lines = list(check_paths(paths))
    if strict:
        lines.append(HALT)
    return "\n".join(lines).encode("ascii") + b"\0" if lines else b""


def boot_files(boot: BootOptions, paths: Iterable[str] = ()) -> dict[str, bytes]:
    """Build the fw_cfg files: ``bootorder``, the fail wait, and the menu wait if there is one.

    ``etc/boot-fail-wait`` is s32 LE and ``etc/boot-menu-wait`` u16 LE, both in ms.

    Raises:
        ConfigError: see ``check_paths``.

    """
    files = {
        BOOT_ORDER_FILE: encode_boot_order(paths, strict=boot.strict),
        FAIL_WAIT_FILE: struct.pack("<i", boot.reboot_timeout),
    }
    if boot.splash_time is not None:
        files[MENU_WAIT_FILE] = struct.pack("<H", boot.splash_time)
    return files


def boot_menu_item(boot: BootOptions) -> bytes:
    """Give the value of fw_cfg key 0x0e, u16 LE: 1 if the menu is wanted."""
    return struct.pack("<H", int(boot.menu))


def cmos_boot_bytes(order: str) -> dict[int, int]:
    """Give the CMOS bytes of a legacy boot order, by index.

    0x3d has the first device in its low and the second in its high nibble,
    0x38 the third in its high one; bit 0 of 0x38 clear keeps the check of
    a floppy's boot signature (Bochs' rombios, QEMU hw/i386/pc.c).
    """
    codes = [_CMOS_CODES[letter] for letter in order[:3]] + [0, 0, 0]
    return {CMOS_DEVICES: codes[1] << 4 | codes[0], CMOS_FLAGS: codes[2] << 4}
