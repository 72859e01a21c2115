"""Pages of all kinds in a row, on which guests of ours run string instructions; they end within 2 MiB."""

from vmm.bus import Device

TABLE = 0x520000
"""What a guest is to do, one thing in `ENTRY` bytes; what came of it behind that."""
ENTRY = 128

WINDOW = 0x410000
"""Neither its pages nor any that the guests use besides have the same place in a TLB of 64 entries."""
PAGE = 0x1000
PAGES = 16
ABSENT, READ_ONLY, CODE, MMIO, WATCHED = 2, 3, 4, 6, 9
"""Pages of the window that are not plain RAM."""
MMIO_GPA = 0xD0000000

MAP_WINDOW = f"""
    .set window, {WINDOW:#x}
    .set entries, 0x40000                   # of the page table for 2 MiB
    .set window_entries, entries + 8 * (window >> 12 & 0x1ff)
    .macro map_window
        mov $entries, %edi
        mov $(window & ~0x1fffff) + 7, %eax
    1:  mov %rax, (%rdi)
        add $0x1000, %eax
        add $8, %edi
        cmp $entries + 0x1000, %edi
        jne 1b
        movq $0, window_entries + 8 * {ABSENT}
        andb $~2, window_entries + 8 * {READ_ONLY}
        mov ${MMIO_GPA + 7:#x}, %eax
        mov %rax, window_entries + 8 * {MMIO}
        movq $entries + 7, 0x22000 + 8 * (window >> 21)
        mov %cr3, %rax
        mov %rax, %cr3
        mov $window + {WATCHED} * 0x1000 + 0x234, %eax
        mov %rax, %dr0
    .endm
"""
"""A macro, ``map_window``; DR0 has an address in the page that is watched where DR7 says so."""


class Stores(Device):
    """Memory of a device, which remembers what was stored.

    Args:
        byte: what it reads as.
    """

    def __init__(self, byte: int) -> None:
        self._byte = byte
        self.stores: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(bytes([self._byte]) * size, "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.stores.append((offset, size, value))
