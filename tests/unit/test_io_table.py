"""How an access that touches several ranges is taken apart."""

from typing import Any

import pytest
from vmm._native import ffi, lib

from vmm.devices.clock import GuestClock


class Table:
    """A port table whose one-line handlers are C's PM timer; counters show who was asked."""

    def __init__(self, *ranges: tuple[int, int]) -> None:
        self.core = ffi.gc(lib.vmm_vm_new(-1), lib.vmm_vm_free)
        self.table = ffi.addressof(self.core, "ports")
        self.timer = ffi.new("struct pm_timer *")
        self.clock = GuestClock()
        lib.pm_timer_init(self.timer, self.clock.core, 32)
        for first, last in ranges:
            assert lib.io_table_add(self.table, first, last, ffi.addressof(lib, "pm_timer_access"), self.timer) == 0

    def read(self, address: int, size: int) -> bytes:
        data = ffi.new("uint8_t[]", size)
        access = ffi.new("struct io_access *")
        access.address, access.size, access.count, access.data = address, size, 1, data
        lib.io_table_access(self.table, access)
        return bytes(data)

    def counts(self) -> list[Any]:
        return [self.table.ranges[i].reads for i in range(self.table.count)] + [self.table.unassigned_reads]


@pytest.mark.parametrize(
    ("ranges", "address", "size", "counts"),
    [
        ([(0x10, 0x13)], 0x10, 4, [1, 0]),
        ([(0x10, 0x13)], 0x12, 2, [1, 0]),
        ([(0x10, 0x13)], 0x0E, 4, [1, 1]),  # two halves
        ([(0x10, 0x13)], 0x0F, 4, [2, 1]),  # 1 nobody's, 2 + 1 of the range
        ([(0x10, 0x10), (0x11, 0x11)], 0x10, 2, [1, 1, 0]),
        ([(0x11, 0x11)], 0x10, 4, [1, 2]),  # nobody's on both sides: 1, then 2
        ([(0x10, 0x11), (0x12, 0x13)], 0x10, 4, [1, 1, 0]),
        ([(0x10, 0x13)], 0x20, 4, [0, 1]),
    ],
)
def test_pieces(ranges: list[tuple[int, int]], address: int, size: int, counts: list[int]) -> None:
    table = Table(*ranges)
    table.read(address, size)
    assert table.counts() == counts


def test_what_nobody_owns_reads_as_ones() -> None:
    table = Table((0x10, 0x10))
    assert table.read(0x0E, 4)[:2] == b"\xff\xff"
    assert table.read(0x0E, 4)[3:] == b"\xff"
