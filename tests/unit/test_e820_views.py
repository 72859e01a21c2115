"""What firmware makes of a memory map."""

from vmm.tables import e820
from vmm.tables.e820 import E820Entry
from vmm.verify.e820_views import ovmf_view, seabios_view

GIB = 1 << 30


def test_all_three_readers_see_the_memory_that_we_mean() -> None:
    entries = e820.build_map(0xB000_0000, 5 * GIB, [E820Entry(0xD000_0000, 0x1000, 2)])
    for view in (ovmf_view(entries), ovmf_view(entries, contiguous=True), seabios_view(entries)):
        assert (view.low_memory, view.high_memory) == (0xB000_0000, 5 * GIB)


def test_readers_disagree_about_a_hole_at_640_kib() -> None:
    split = (E820Entry(0, 0xA0000, 1), E820Entry(0x100000, 0x7F0_0000, 1))
    assert ovmf_view(split).low_memory == 0x800_0000
    assert ovmf_view(split, contiguous=True).low_memory == 0xA0000
    assert seabios_view(split).low_memory == 0x800_0000


def test_each_firmware_drops_its_own_types() -> None:
    entries = e820.build_map(1 << 27, 0, [E820Entry(0xD000_0000 + 0x1000 * kind, 0x1000, kind) for kind in (2, 3, 4)])
    assert [entry.type for entry in seabios_view(entries).dropped] == [3, 4]
    assert [entry.type for entry in ovmf_view(entries).dropped] == [2, 3, 4]
    assert [entry.type for entry in ovmf_view(entries, contiguous=True).dropped] == [3, 4]
