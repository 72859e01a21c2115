"""A BIOS's option ROMs: where they are in memory, and what they call themselves.

Source: BIOS Boot Specification 1.01, 3.3 and appendix A (Plug and Play expansion header); PCI Firmware Specification
3.0, 5.1 (PCI data structure). They are the guest's: whatever they say, offsets and sizes stay within the area.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from vmm.layout import LEGACY_ROM

_STEP: Final = 0x800
"""Where they may begin."""
_BLOCK: Final = 512
_SIGNATURE: Final = b"\x55\xaa"
_PNP, _PCI = b"$PnP", b"PCIR"
_MOST_NAME: Final = 80
_HEADER: Final = 0x1C


class OptionRom(NamedTuple):
    """One of them.

    Attributes:
        base: its address.
        size: bytes.
        name: of the product, by its Plug and Play header; "" if it has none.
        detail: whose PCI function it drives; "" for none.
    """

    base: int
    size: int
    name: str
    detail: str


def option_roms(read: Callable[[int, int], bytes]) -> Iterator[OptionRom]:
    """Give those that are in the area for them, in order.

    Args:
        read: physical memory; raises `ValueError` where there is none.
    """
    at = LEGACY_ROM.start
    while at < LEGACY_ROM.stop:
        size = 0
        with suppress(ValueError):
            signature, blocks = read(at, 2), read(at + 2, 1)[0]
            size = blocks * _BLOCK if signature == _SIGNATURE and at + blocks * _BLOCK <= LEGACY_ROM.stop else 0
            if size:
                data = read(at, size)
                yield OptionRom(at, size, _name(data), _detail(data))
        at += max(_STEP, -(-size // _STEP) * _STEP)


def _name(data: bytes) -> str:
    found = _structure(data, 0x1A, _PNP, "<16xH")
    text = data[found[0] :][:_MOST_NAME].partition(b"\0")[0] if found and found[0] else b""
    return text.decode("ascii", "replace").strip()


def _detail(data: bytes) -> str:
    found = _structure(data, 0x18, _PCI, "<4xHH")
    return "of PCI device {:04x}:{:04x}".format(*found) if found else ""


def _structure(data: bytes, pointer: int, signature: bytes, fields: str) -> tuple[int, ...]:
    """What a structure has that is pointed at from the ROM's header; empty where there is none."""
    if len(data) < _HEADER:
        return ()
    at = int.from_bytes(data[pointer : pointer + 2], "little")
    whole = data[at : at + struct.calcsize(fields)]
    is_there = whole.startswith(signature) and len(whole) == struct.calcsize(fields)
    return struct.unpack(fields, whole) if is_there else ()
