"""Option ROMs in a guest's memory, whatever they say of themselves."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from vmm.debug.option_roms import option_roms
from vmm.layout import LEGACY_ROM


def reader(area: bytes) -> Callable[[int, int], bytes]:
    def read(gpa: int, size: int) -> bytes:
        at = gpa - LEGACY_ROM.start
        if at < 0 or at + size > len(area):
            raise ValueError("no memory there")
        return area[at : at + size]

    return read


def test_they_follow_each_other() -> None:
    first = b"\x55\xaa\x05".ljust(0x1000, b"\xff")
    second = b"\x55\xaa\x01".ljust(0x800, b"\0")
    found = list(option_roms(reader(first + second + b"\x55\xab\x01".ljust(0x800, b"\0"))))
    assert [(rom.base - LEGACY_ROM.start, rom.size, rom.name) for rom in found] == [(0, 0xA00, ""), (0x1000, 0x200, "")]


HEADERS = st.builds(
    lambda blocks, pointers, rest: b"\x55\xaa" + bytes([blocks]) + bytes(21) + pointers + rest,
    st.integers(0, 255),
    st.sampled_from([b"\x20\0\x20\0", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xf0\x07\xf0\x07"]),
    st.sampled_from([b"$PnP", b"PCIR", b""]).flatmap(lambda start: st.binary(max_size=40).map(start.__add__)),
)


@given(st.lists(HEADERS.map(lambda header: header.ljust(0x800, b"A")), max_size=4), st.integers(0, 0x2000))
def test_nothing_in_them_makes_it_raise(roms: list[bytes], end: int) -> None:
    for rom in option_roms(reader(b"".join(roms)[:end])):
        assert rom.size
        assert rom.base + rom.size <= LEGACY_ROM.stop
        assert len(rom.name) <= 80
