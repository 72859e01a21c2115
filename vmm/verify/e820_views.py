"""What OVMF and SeaBIOS make of the memory map that fw_cfg offers: how much RAM, and which records get lost.

`vmm.tables.e820` says how they read it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from vmm.layout import FOUR_GIB
from vmm.tables.e820 import E820Entry, E820Type


class FirmwareView(NamedTuple):
    """What a firmware makes of a map: sizes in bytes, and records it doesn't pass on."""

    low_memory: int
    high_memory: int
    dropped: tuple[E820Entry, ...]


def ovmf_view(entries: Sequence[E820Entry], *, contiguous: bool = False) -> FirmwareView:
    """Tell what OVMF makes of a map.

    Args:
        entries: the records in file order.
        contiguous: the rule of newer edk2: low memory is the run of RAM records
            that starts at 0 and is contiguous in file order. Otherwise the rule
            of edk2 2022.11: the highest RAM end below 4 GiB.

    """
    ram = [entry for entry in entries if entry.type == E820Type.RAM]
    if contiguous:
        low = 0
        for entry in ram:
            if entry.base == low:
                low = entry.end
        high = sum(entry.length for entry in ram if entry.base >= low and entry.base >= FOUR_GIB)
        dropped = [entry for entry in entries if entry.type not in {1, 2}]
    else:
        low = max((entry.end for entry in ram if entry.end < FOUR_GIB), default=0)
        high = sum(entry.length for entry in ram if entry.base >= FOUR_GIB)
        dropped = [entry for entry in entries if entry.type != E820Type.RAM]
    return FirmwareView(low, high, tuple(dropped))


def seabios_view(entries: Sequence[E820Entry]) -> FirmwareView:
    """Tell what SeaBIOS makes of a map (qemu_cfg_e820 in src/fw/paravirt.c)."""
    ram = [entry for entry in entries if entry.type == E820Type.RAM]
    low = max((entry.end for entry in ram if entry.base < FOUR_GIB), default=0)
    high = max((entry.end - FOUR_GIB for entry in ram if entry.base >= FOUR_GIB), default=0)
    dropped = tuple(entry for entry in entries if entry.type not in {E820Type.RAM, E820Type.RESERVED})
    return FirmwareView(low, high, dropped)
