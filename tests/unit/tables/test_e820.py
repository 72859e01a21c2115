"""The memory map: bytes of the record, the rules firmware reads it by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import ConfigError
from vmm.tables import e820
from vmm.tables.e820 import E820Entry, E820Type
from vmm.verify.e820_views import ovmf_view

GIB = 1 << 30


def test_records_of_six_gib_are_those_that_qemu_pc_publishes() -> None:
    entries = e820.build_map(0xC000_0000, 0xC000_0000)
    assert e820.encode(entries) == bytes.fromhex(
        "0000000000000000 000000c000000000 01000000 0000000001000000 000000c000000000 01000000"
    )


def test_ram_below_the_hole_is_one_entry_from_zero_and_comes_first() -> None:
    entries = e820.build_map(0xB000_0000, 4 * GIB, [E820Entry(0xFD_0000_0000, 0x3_0000_0000, 2)])
    assert entries == (
        E820Entry(0, 0xB000_0000, E820Type.RAM),
        E820Entry(4 * GIB, 4 * GIB, E820Type.RAM),
        E820Entry(0xFD_0000_0000, 0x3_0000_0000, E820Type.RESERVED),
    )


def test_no_high_entry_without_high_memory() -> None:
    assert len(e820.build_map(128 << 20)) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base=0xd0000000,size=64K,type=reserved", E820Entry(0xD000_0000, 0x10000, 2)),
        ("base=8G,size=0x1000,type=nvs", E820Entry(8 * GIB, 0x1000, 4)),
        ("size=1M,type=acpi,base=3584M", E820Entry(0xE000_0000, 1 << 20, 3)),
        ("base=0xd0000000,size=4096,type=12", E820Entry(0xD000_0000, 4096, 12)),
        ("base=0xd0000000,size=4096,type=0xefffffff", E820Entry(0xD000_0000, 4096, 0xEFFFFFFF)),
        ("base=16G,size=1G,type=ram", E820Entry(16 * GIB, GIB, 1)),
        ("base=16G,size=1G,type=soft-reserved", E820Entry(16 * GIB, GIB, 0xEFFFFFFF)),
        ("base=16G,size=1G,type=persistent", E820Entry(16 * GIB, GIB, 7)),
        ("base=640K,size=384K,type=hole", E820Entry(640 << 10, 384 << 10, e820.HOLE)),
    ],
)
def test_option(text: str, expected: E820Entry) -> None:
    assert E820Entry.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("base=0,size=1", "type= is missing"),
        ("base=0,type=ram", "size= is missing"),
        ("base=x,size=1,type=ram", "base=x: not a size"),
        ("base=-1,size=1,type=ram", "not a size"),
        ("base=0,size=1,type=rom", "must be a number or one of hole, ram, reserved, acpi, nvs, unusable"),
        ("base=0,size=1,type=ram,foo=1", "unknown key 'foo'"),
        ("base=0,base=1,size=1,type=ram", "given twice"),
        ("base", "size= is missing"),
    ],
)
def test_option_errors(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        E820Entry.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (E820Entry(0x1000, 0x1000, 2), "overlap: 0x0-0x7ffffff ram and 0x1000-0x1fff reserved"),
        (E820Entry(4 * GIB, 1, 3), "overlap"),
        (E820Entry(0xD000_0000, 0x1000, 1), "RAM below 4 GiB must be the one entry"),
        (E820Entry((1 << 64) - 1, 2, 2), "beyond the 64-bit address space"),
        (E820Entry(2, (1 << 64) - 1, 2), "beyond the 64-bit address space"),
        (E820Entry(0xD000_0000, 0, 2), "empty or beyond"),
        (E820Entry(0xD000_0000, 1, 0), "a type is from 1 to 4294967295"),
        (E820Entry(0xD000_0000, 1, 1 << 32), "a type is from 1 to 4294967295"),
    ],
)
def test_refused_maps(extra: E820Entry, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        e820.check_map(e820.build_map(128 << 20, GIB, [extra]))


def test_holes_cut_ram_and_make_room() -> None:
    hole, nvs = E820Entry(0x4000_0000, 0x1000, e820.HOLE), E820Entry(0x4000_0000, 0x800, 4)
    high = E820Entry(5 * GIB, GIB, e820.HOLE)
    assert e820.build_map(0x8000_0000, 4 * GIB, [high, nvs, hole]) == (
        E820Entry(0, 0x4000_0000, 1),
        E820Entry(0x4000_1000, 0x3FFF_F000, 1),
        E820Entry(4 * GIB, GIB, 1),
        E820Entry(6 * GIB, 2 * GIB, 1),
        nvs,
    )
    ordinary = e820.build_map(0x8000_0000, 0, [hole])
    e820.check_map(ordinary, holes=True)
    with pytest.raises(ConfigError, match="RAM below 4 GiB must be the one entry"):
        e820.check_map(ordinary)
    with pytest.raises(ConfigError, match="overlap"):
        e820.check_map(e820.build_map(0x8000_0000, 0, [hole, nvs._replace(length=0x1001)]), holes=True)


@pytest.mark.parametrize(
    ("hole", "reason"),
    [
        (E820Entry(0xD000_0000, 0x1000, e820.HOLE), "not in RAM, which is 0x0-0x7ffffff ram"),
        (E820Entry(0x7FF_F000, 0x2000, e820.HOLE), "not in RAM"),
        (E820Entry(0x1000, 0, e820.HOLE), "not in RAM"),
        (E820Entry(0, 0x800_0000, e820.HOLE), "no RAM is left below 4 GiB"),
    ],
)
def test_holes_are_in_ram_and_leave_some(hole: E820Entry, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        e820.build_map(128 << 20, 0, [hole])


def test_two_holes_that_overlap_are_both_named() -> None:
    holes = [E820Entry(0xAF000, 0x1000, e820.HOLE), E820Entry(0xA0000, 0x60000, e820.HOLE)]
    with pytest.raises(ConfigError, match="overlap: 0xa0000-0xfffff hole and 0xaf000-0xaffff hole"):
        e820.build_map(128 << 20, 0, holes)
    assert len(e820.build_map(128 << 20, 0, [holes[0], holes[1]._replace(length=0xF000)])) == 2


@pytest.mark.parametrize(
    ("entries", "remedy"),
    [
        (
            [E820Entry(0x1000, 0x1000, 2)],
            "ram and 0x1000-0x1fff reserved; move .* type=hole of the same range$",
        ),
        ([E820Entry(GIB, 9, 2), E820Entry(GIB + 8, 1, 4)], "and 0x40000008-0x40000008 nvs; move or shorten one$"),
    ],
)
def test_entries_that_overlap_say_what_to_do(entries: list[E820Entry], remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        e820.check_map(e820.build_map(128 << 20, 0, entries))
    holes = [entry._replace(type=e820.HOLE) for entry in entries if entry.base < GIB]
    if holes:
        e820.check_map(e820.build_map(128 << 20, 0, [*entries, *holes]), holes=True)


@given(
    entry=st.tuples(st.integers(0, 100), st.integers(1, 100)),
    others=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60)), max_size=6),
)
def test_what_no_other_entry_covers(entry: tuple[int, int], others: list[tuple[int, int]]) -> None:
    rest = e820.without(E820Entry(*entry, 1), [E820Entry(*other, 2) for other in others])
    covered = {at for base, length in others for at in range(base, base + length)}
    assert [at for part in rest for at in range(part.base, part.end)] == [
        at for at in range(entry[0], sum(entry)) if at not in covered
    ]


def test_two_extra_entries_that_overlap_are_both_named() -> None:
    extra = [E820Entry(0xE000_0000, 0x2000, 2), E820Entry(0xE000_1000, 0x2000, 4)]
    with pytest.raises(ConfigError, match=r"0xe0000000-0xe0001fff reserved and 0xe0001000-0xe0002fff nvs"):
        e820.check_map(e820.build_map(128 << 20, 0, extra))


@pytest.mark.parametrize("low", [0, 4 * GIB, -1])
def test_low_memory_must_end_below_four_gib(low: int) -> None:
    with pytest.raises(ConfigError, match="must be above 0 and below 4 GiB"):
        e820.build_map(low)


def test_a_size_that_is_no_multiple_of_twenty_is_refused() -> None:
    with pytest.raises(ValueError, match="21 bytes"):
        e820.decode(bytes(21))


@given(
    low=st.integers(1, 4 * GIB - 1),
    high=st.integers(0, 1 << 40),
    extra=st.lists(st.tuples(st.integers(0, 1 << 42), st.integers(1, 1 << 34), st.integers(1, 6)), max_size=6),
)
def test_a_map_is_refused_or_has_no_overlap_and_survives_encoding(
    low: int, high: int, extra: list[tuple[int, int, int]]
) -> None:
    entries = [E820Entry(*fields) for fields in extra]
    try:
        result = e820.build_map(low, high, entries)
        e820.check_map(result)
    except ConfigError:
        return
    assert e820.decode(e820.encode(result)) == result
    covered = sum(entry.length for entry in result)
    points = sorted(point for entry in result for point in ((entry.base, 1), (entry.end, -1)))
    union, depth, start = 0, 0, 0
    for position, step in points:
        if depth:
            union += position - start
        depth += step
        start = position
    assert union == covered
    assert ovmf_view(result).low_memory == low
