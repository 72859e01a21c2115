"""How much of a machine's RAM is below 4 GiB: each board's own rule, in bytes."""

from __future__ import annotations

from typing import Final

from vmm import layout
from vmm.config.parts import MachineType

Q35_MOST: Final = 0xB000_0000
Q35_SPLIT: Final = 0x8000_0000
"""QEMU, pc_q35_init in hw/i386/pc_q35.c: RAM that reaches to 2816 MiB is cut at 2 GiB, so that both parts are whole
GiB; less than that stays below."""

PC_MOST: Final = 0xE000_0000
PC_SPLIT: Final = 0xC000_0000
"""QEMU, pc_init1 in hw/i386/pc_piix.c: RAM that reaches to 3.5 GiB is cut at 3 GiB, likewise."""

BHYVE_MOST: Final = 3 * layout.GIB
"""bhyve: lib/libvmmapi/vmmapi.c, vm_open: lowmem_limit."""


def low_memory(machine: MachineType, size: int, most: int | None = None) -> int:
    """Bytes of RAM from 0; the rest begins at 4 GiB.

    Args:
        machine: the board, not AUTO.
        size: bytes of RAM.
        most: as ``-machine max-ram-below-4g=``; what a board has no room for below 4 GiB goes above in any case.
    """
    if machine is MachineType.BHYVE:
        limit = min(BHYVE_MOST, most or BHYVE_MOST)
    elif machine is MachineType.Q35:
        limit = min(Q35_SPLIT if size >= Q35_MOST else Q35_MOST, most or Q35_MOST)
    else:
        limit = min(PC_MOST, most or PC_MOST)
        if size >= limit:
            limit = min(limit, PC_SPLIT)
    return min(size, limit)
