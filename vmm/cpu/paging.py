"""The walk from a linear address to a guest physical one, through the guest's own page tables.

All four forms of paging (Intel SDM volume 3, chapter 4): 32-bit, PAE, 4-level and 5-level. What is read is the guest's
memory alone: nothing is marked accessed, and a processor's TLB may say otherwise.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

_PRESENT = 1
_LARGE = 1 << 7
_ADDRESS = (1 << 52) - (1 << 12)

_CR0_PG = 1 << 31
_CR4_PSE = 1 << 4
_CR4_PAE = 1 << 5
_CR4_LA57 = 1 << 12
_EFER_LMA = 1 << 10

_NAMES = {5: "PML5E", 4: "PML4E", 3: "PDPTE", 2: "PDE", 1: "PTE"}


class Step(NamedTuple):
    """One entry of a table.

    Attributes:
        level: 5 (PML5E) to 1 (PTE).
        gpa: where the entry is.
        entry: its value; None where no memory is.
    """

    level: int
    gpa: int
    entry: int | None


class Walk(NamedTuple):
    """How a linear address is translated.

    Attributes:
        linear: the address.
        gpa: what it is, guest physical; None: not present, not canonical, or a table is where no memory is.
        steps: the entries that were read, from the top; empty without paging.
    """

    linear: int
    gpa: int | None
    steps: tuple[Step, ...]

    @property
    def text(self) -> str:
        """For people, an entry a line."""
        if not self.steps:
            how = "paging is off" if self.gpa is not None else "not canonical"
            return f"{self.linear:#x}: {how}"
        lines = [
            f"{_NAMES[step.level]} at {step.gpa:#x}: " + ("no memory" if step.entry is None else f"{step.entry:#x}")
            for step in self.steps
        ]
        end = "not present" if self.gpa is None else f"GPA {self.gpa:#x}"
        return "\n".join([f"{self.linear:#x}: {end}", *lines])


def walk(linear: int, registers: Mapping[str, int], read: Callable[[int, int], bytes]) -> Walk:
    """Translate a linear address.

    Args:
        linear: the address.
        registers: ``cr0``, ``cr3``, ``cr4`` and ``efer``.
        read: gives a number of bytes from a GPA; raises ValueError where no memory is.
    """
    if not registers["cr0"] & _CR0_PG:
        return Walk(linear, linear & 0xFFFFFFFF, ())
    long_mode = bool(registers["efer"] & _EFER_LMA)
    if not long_mode and not registers["cr4"] & _CR4_PAE:
        return _walk_32_bit(linear & 0xFFFFFFFF, registers, read)
    levels = 3
    if long_mode:
        levels = 5 if registers["cr4"] & _CR4_LA57 else 4
        width = 12 + 9 * levels
        if linear >> width - 1 not in {0, (1 << 65 - width) - 1}:
            return Walk(linear, None, ())
    else:
        linear &= 0xFFFFFFFF
    # PAE's first table has four entries, and begins at a multiple of 32 bytes.
    table = registers["cr3"] & (_ADDRESS if long_mode else 0xFFFFFFE0)
    steps: list[Step] = []
    for level in range(levels, 0, -1):
        shift = 12 + 9 * (level - 1)
        at = table + 8 * (linear >> shift & 0x1FF)
        entry = _entry(at, 8, read)
        steps.append(Step(level, at, entry))
        if entry is None or not entry & _PRESENT:
            return Walk(linear, None, tuple(steps))
        if level == 1 or (entry & _LARGE and level <= 2 + long_mode):
            offset = (1 << shift) - 1
            return Walk(linear, (entry & _ADDRESS & ~offset) | (linear & offset), tuple(steps))
        table = entry & _ADDRESS
    raise AssertionError  # level 1 returns


def _walk_32_bit(linear: int, registers: Mapping[str, int], read: Callable[[int, int], bytes]) -> Walk:
    at = (registers["cr3"] & 0xFFFFF000) + 4 * (linear >> 22)
    entry = _entry(at, 4, read)
    steps = [Step(2, at, entry)]
    if entry is None or not entry & _PRESENT:
        return Walk(linear, None, tuple(steps))
    if entry & _LARGE and registers["cr4"] & _CR4_PSE:
        # PSE-36: bits 20 to 13 are the address's bits 39 to 32.
        base = (entry & 0xFFC00000) | (entry >> 13 & 0xFF) << 32
        return Walk(linear, base | (linear & 0x3FFFFF), tuple(steps))
    at = (entry & 0xFFFFF000) + 4 * (linear >> 12 & 0x3FF)
    entry = _entry(at, 4, read)
    steps.append(Step(1, at, entry))
    gpa = None if entry is None or not entry & _PRESENT else (entry & 0xFFFFF000) | (linear & 0xFFF)
    return Walk(linear, gpa, tuple(steps))


def _entry(gpa: int, size: int, read: Callable[[int, int], bytes]) -> int | None:
    try:
        return int.from_bytes(read(gpa, size), "little")
    except ValueError:
        return None
