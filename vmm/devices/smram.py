"""Q35's memory of system management mode: SMRAM at 0xa0000 or 0xfeda0000, TSEG at the end of low RAM, and 0x30000.

The last is where CPUs that are plugged in take their first SMI.

Registers: Intel 3 Series (316966) 5.1.32 SMRAM and 5.1.33 ESMRAMC; the size of the extended TSEG, which the chipset
does not have, is QEMU's (hw/pci-host/q35.c, MCH_HOST_BRIDGE_EXT_TSEG_MBYTES), and so is the register of the default
SMBASE (MCH_HOST_BRIDGE_F_SMBASE). What they do where the data sheet leaves it open is what QEMU does.
"""

from __future__ import annotations

from itertools import pairwise

from vmm import layout
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vmm.devices.signals import MemoryMapper

SMRAM_RESET = 0x02
"""C_BASE_SEG, which has no other value."""

OPEN = 0x40
LOCK = 0x10
ENABLE = 0x08
"""SMRAM: D_OPEN, D_LCK, G_SMRAME."""

SMRAM_WRITABLE = 0x78
SMRAM_WRITABLE_LOCKED = 0x20
"""All but C_BASE_SEG; D_CLS alone once D_LCK is set."""

ESMRAMC_RESET = 0x38
"""SM_CACHE, SM_L1 and SM_L2, which have no other values."""

HIGH = 0x80
_TSEG_ENABLE = 0x01
_TSEG_SIZE = 0x06
ESMRAMC_WRITABLE = HIGH | _TSEG_SIZE | _TSEG_ENABLE
"""ESMRAMC: H_SMRAME, TSEG_SZ and T_EN."""

EXTENDED_TSEG_MIB = 16
"""QEMU's default: TSEG_SZ 3, which the chipset reserves."""

EXTENDED_TSEG_QUERY = 0xFFFF
"""What firmware writes to be told the size."""

TSEG_SIZES = (1 * layout.MIB, 2 * layout.MIB, 8 * layout.MIB, EXTENDED_TSEG_MIB * layout.MIB)


SMBASE_QUERY, SMBASE_IN_RAM, SMBASE_LOCK = 0xFF, 0x01, 0x02
"""What firmware writes to ask, the answer, and what it writes to have that RAM for system management mode alone."""


class Shown(NamedTuple):
    """A range of addresses at which RAM is shown.

    Attributes:
        gpa: the first address.
        size: bytes.
        ram: which RAM it is: where it would be without a chipset.
    """

    gpa: int
    size: int
    ram: int


LOW = Shown(layout.LEGACY_VIDEO.start, len(layout.LEGACY_VIDEO), layout.LEGACY_VIDEO.start)
_HIGH = Shown(layout.HIGH_SMRAM.start, len(layout.HIGH_SMRAM), layout.LEGACY_VIDEO.start)


def boundaries(ram_low: int, *, plugging: bool) -> tuple[int, ...]:
    """Where RAM is cut so that all of this can be hidden, by rising address.

    Args:
        ram_low: bytes of RAM from 0.
        plugging: whether the default SMBASE is part of it.
    """
    smbase = (layout.DEFAULT_SMBASE.start, layout.DEFAULT_SMBASE.stop) if plugging else ()
    return *smbase, *tseg_boundaries(ram_low)


def tseg_boundaries(ram_low: int) -> tuple[int, ...]:
    """Where RAM is cut so that a TSEG of any size can be hidden by taking whole pieces away, by rising address."""
    cuts = (ram_low - size for size in reversed(TSEG_SIZES))
    return tuple(cut for cut in cuts if cut > layout.LEGACY_END)


class Smram:
    """Shows and hides it, as the two registers say.

    Args:
        memory: where to map; its low RAM is cut at `boundaries`.
        ram_low: bytes of RAM from 0.
        plugging: whether the default SMBASE can be hidden.

    Attributes:
        plugging: the same.
    """

    def __init__(self, memory: MemoryMapper, ram_low: int, *, plugging: bool = False) -> None:
        self._memory = memory
        self.plugging = plugging
        self._smbase_hidden = False
        self._end = ram_low
        self._open: set[Shown] = set()
        self._closed: set[Shown] = set()
        self._hidden = ram_low
        """From here on low RAM is TSEG."""

    def update(self, smram: int, esmramc: int) -> None:
        """Apply the registers."""
        place = _HIGH if esmramc & HIGH else LOW
        wanted_open = {place} if smram & OPEN else set()
        wanted_closed = {place} if smram & ENABLE and not smram & OPEN else set()
        hidden = self._end
        if smram & ENABLE and esmramc & _TSEG_ENABLE:
            hidden -= TSEG_SIZES[(esmramc & _TSEG_SIZE) >> 1]
            if hidden <= layout.LEGACY_END:
                hidden = self._end  # more than there is: no TSEG
        if hidden < self._end:
            wanted_closed.add(Shown(hidden, self._end - hidden, hidden))
        # What goes, goes first: no range is ever shown twice.
        for shown in self._open - wanted_open:
            self._memory.unmap(shown.gpa)
        for shown in self._closed - wanted_closed:
            self._memory.unmap_smm(shown.gpa)
        self._hide(hidden)
        for shown in wanted_open - self._open:
            self._memory.map_ram(shown.gpa, shown.size, ram=shown.ram)
        for shown in wanted_closed - self._closed:
            self._memory.map_smm(shown.gpa, shown.size, shown.ram)
        self._open, self._closed = wanted_open, wanted_closed

    def hide_smbase(self, hidden: bool) -> None:
        """Show the RAM at the default SMBASE to system management mode alone, or to everybody again."""
        if hidden == self._smbase_hidden:
            return
        first, size = layout.DEFAULT_SMBASE.start, len(layout.DEFAULT_SMBASE)
        if hidden:
            self._memory.unmap(first)
            self._memory.map_smm(first, size, first)
        else:
            self._memory.unmap_smm(first)
            self._memory.map_ram(first, size)
        self._smbase_hidden = hidden

    def _hide(self, hidden: int) -> None:
        cuts = (*tseg_boundaries(self._end), self._end)
        for start, end in pairwise(cuts):
            if hidden <= start < self._hidden:
                self._memory.unmap(start)
            elif self._hidden <= start < hidden:
                self._memory.map_ram(start, end - start)
        self._hidden = hidden
