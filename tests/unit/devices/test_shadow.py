"""PAM registers: what the guest reads and where its stores go, in each of the four modes of a segment."""

import mmap

import pytest
from device_rig import Rig

from vmm import layout
from vmm.devices.shadow import LegacyArea, ShadowArea

ROM_BYTE, RAM_BYTE, STORED = 0xB1, 0x5A, 0x77


class ShadowRig(Rig):
    def __init__(self) -> None:
        super().__init__()
        rom = mmap.mmap(-1, 0x20000)
        rom[:] = bytes((ROM_BYTE,)) * 0x20000
        self.shadow = ShadowArea(self.memory, memoryview(rom))
        area = layout.LEGACY_ROM
        self.mmio.add(area.start, area.stop - 1, LegacyArea(self.shadow), "legacy ROM area")
        self.shadow.update(bytes(7))
        for gpa in range(area.start, area.stop, 0x1000):
            self.memory.store_behind(gpa, bytes((RAM_BYTE,)))


@pytest.fixture
def rig() -> ShadowRig:
    return ShadowRig()


def all_segments(mode: int) -> bytes:
    return bytes((mode << 4, *(mode << 4 | mode,) * 6))


def test_power_on_shows_rom_in_the_upper_half_only(rig: ShadowRig) -> None:
    assert [rig.load(gpa, 1) for gpa in (0xC0000, 0xDFFFF, 0xE0000, 0xFFFFF)] == [0xFF, 0xFF, ROM_BYTE, ROM_BYTE]


@pytest.mark.parametrize("gpa", [0xC0000, 0xD4000, 0xE8000, 0xF3000, 0xFF000])
@pytest.mark.parametrize(
    ("mode", "reads_ram", "writes_ram"), [(0, False, False), (1, True, False), (2, False, True), (3, True, True)]
)
def test_modes(rig: ShadowRig, gpa: int, mode: int, reads_ram: bool, writes_ram: bool) -> None:
    rom = ROM_BYTE if gpa >= 0xE0000 else 0xFF
    rig.shadow.update(all_segments(mode))
    assert rig.load(gpa, 1) == (RAM_BYTE if reads_ram else rom)
    rig.store(gpa, 1, STORED)
    assert rig.load(gpa, 1) == ((STORED if writes_ram else RAM_BYTE) if reads_ram else rom)
    rig.shadow.update(all_segments(3))
    assert rig.load(gpa, 1) == (STORED if writes_ram else RAM_BYTE)


@pytest.mark.parametrize(
    ("register", "nibble", "gpa", "size"),
    [(0, 4, 0xF0000, 0x10000)] + [(1 + i // 2, 4 * (i % 2), 0xC0000 + 0x4000 * i, 0x4000) for i in range(12)],
)
def test_each_nibble_switches_its_segment_alone(
    rig: ShadowRig, register: int, nibble: int, gpa: int, size: int
) -> None:
    pam = bytearray(7)
    pam[register] = 1 << nibble
    rig.shadow.update(bytes(pam))
    shown = [at for at in range(0xC0000, 0x100000, 0x1000) if rig.load(at, 1) == RAM_BYTE]
    assert shown == list(range(gpa, gpa + size, 0x1000))


def test_copying_rom_over_itself_shadows_it(rig: ShadowRig) -> None:
    rig.shadow.update(all_segments(2))
    for gpa in range(0xF0000, 0xF1000, 8):
        rig.store(gpa, 8, rig.load(gpa, 8))
    rig.shadow.update(all_segments(1))
    assert rig.load(0xF0FF8, 8) == int.from_bytes(bytes((ROM_BYTE,)) * 8, "little")


def test_neighbours_of_one_kind_share_a_memory_slot(rig: ShadowRig) -> None:
    rig.shadow.update(all_segments(3))
    assert [(r.gpa, r.size) for r in rig.memory.regions() if r.gpa in layout.LEGACY_ROM] == [(0xC0000, 0x40000)]


def test_any_order_of_modes_leaves_no_slot_behind(rig: ShadowRig) -> None:
    for i in range(256):
        rig.shadow.update(bytes((i, i ^ 0x5A, 255 - i, i * 7 & 255, i * 13 & 255, i * 29 & 255, i * 31 & 255)))
    rig.shadow.update(bytes(7))
    assert [(r.gpa, r.size) for r in rig.memory.regions() if r.gpa in layout.LEGACY_ROM] == [(0xE0000, 0x20000)]
