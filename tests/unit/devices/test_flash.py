"""The flash chip, by the command sequences of OVMF's driver and of the CFI specification."""

import mmap
import random
from collections.abc import Callable

import pytest
from device_rig import ManualTimers, Rig

from vmm.devices.flash import SECTOR_SIZE, WRITE_BACK_NS, Flash, WriteBack

GPA = 0xFFC0_0000
SIZE = 0x84000  # OVMF's variable store


class FlashRig(Rig):
    def __init__(
        self,
        contents: mmap.mmap | None = None,
        *,
        read_only: bool = False,
        secure: bool = False,
        coalesce: Callable[[bool], bool] | None = None,
    ) -> None:
        super().__init__()
        self.contents = mmap.mmap(-1, SIZE) if contents is None else contents
        self.flash = Flash(self.memory, GPA, self.contents, read_only=read_only, secure=secure, coalesce=coalesce)
        self.mmio.add(GPA, GPA + SIZE - 1, self.flash, "flash")

    @property
    def mapped(self) -> bool:
        return any(region.gpa == GPA for region in self.memory.regions())

    @property
    def in_c(self) -> int:
        """Data cycles that C served."""
        return int(self.flash.front.state.programs) if self.flash.front else 0

    def always_to_the_chip(self, address: int, size: int, value: int) -> None:
        """A store as KVM brings it, for the mapping is read-only."""
        self._access("mmio", address, size, 1, value.to_bytes(size, "little"))

    def command(self, *values: int, at: int = 0) -> None:
        for value in values:
            self.store(GPA + at, 1, value)


@pytest.fixture
def rig() -> FlashRig:
    rig = FlashRig()
    rig.contents[:SECTOR_SIZE] = bytes(range(256)) * 16
    return rig


def test_secure_flash_is_commanded_by_smm_alone() -> None:
    rig = FlashRig(secure=True)
    rig.command(0x10, 0x55)
    assert rig.mapped, "others' commands are lost"
    assert rig.load(GPA, 1) == 0
    rig.in_smm = True
    rig.command(0x10, 0x55)
    rig.command(0x10, 0x56, at=1)
    assert rig.load(GPA, 1) == 0x80, "a status for the one who asked"
    rig.in_smm = False
    assert rig.load(GPA, 2) == 0x5655, "contents for the others"
    rig.command(0xFF)
    rig.command(0x20, 0xD0)
    assert not rig.mapped
    rig.in_smm = True
    rig.command(0xFF)
    assert rig.mapped
    assert rig.load(GPA, 2) == 0x5655


def test_kvm_may_keep_stores_while_reads_come_to_the_chip() -> None:
    said: list[bool] = []
    waits = False

    def coalesce(wanted: bool) -> bool:
        said.append(wanted)
        return not waits

    rig = FlashRig(coalesce=coalesce)
    assert said == [False]
    assert rig.mapped
    rig.command(0x10, 0x55)
    assert said == [False, True]
    rig.command(0x10, 0x56, at=1)
    assert rig.load(GPA, 1) == 0x80
    rig.command(0xFF)
    assert not rig.mapped, "stores behind it may wait"
    waits = True
    assert rig.load(GPA, 2) == 0x5655
    assert not rig.mapped, "one that waits may be a command"
    waits = False
    assert rig.load(GPA, 2) == 0x5655
    assert rig.mapped
    assert said == [False, True, False, False]


def test_no_store_of_secure_flash_is_kept() -> None:
    def coalesce(wanted: bool) -> bool:
        raise AssertionError(wanted)

    rig = FlashRig(secure=True, coalesce=coalesce)
    rig.in_smm = True
    rig.command(0x10, 0x55, 0xFF)
    assert rig.mapped


def test_read_array_mode_is_plain_memory(rig: FlashRig) -> None:
    assert rig.mapped
    assert rig.load(GPA + 1, 4) == 0x0403_0201
    assert rig.mmio.ranges()[0].reads == 0


def test_ovmf_probe_finds_flash(rig: FlashRig) -> None:
    # OvmfPkg/QemuFlashFvbServicesRuntimeDxe: 50, then 70, and a status of 00 means flash.
    original = rig.load(GPA + 0x10, 1)
    rig.command(0x50, at=0x10)
    assert rig.load(GPA + 0x10, 1) == original != 0x50, "neither RAM nor"
    rig.command(0x70, at=0x10)
    assert rig.load(GPA + 0x10, 1) == 0x00, "ROM"
    rig.command(0xFF, at=0x10)
    assert rig.load(GPA + 0x10, 1) == original


def test_program_bytes_as_ovmf_does_changes_the_slot_once(rig: FlashRig) -> None:
    for i in range(64):
        rig.command(0x10, 0xA0 + i, at=0x100 + i)
        assert not rig.mapped
    assert rig.load(GPA + 0x100, 1) == 0x80, "status: ready"
    rig.command(0xFF, at=0x13F)
    assert rig.mapped
    assert rig.contents[0x100:0x140] == bytes(range(0xA0, 0xE0))
    assert rig.load(GPA + 0x100, 2) == 0xA1A0
    assert rig.flash.programs == 64


@pytest.mark.parametrize("seed", range(20))
def test_c_programs_as_python_does(rig: FlashRig, seed: int) -> None:
    other = FlashRig()
    other.contents[:SECTOR_SIZE] = rig.contents[:SECTOR_SIZE]
    likely = random.Random(seed)
    for _ in range(2000):
        # Programming, mostly, so that the loop is entered, and left by every other command, and at every place.
        value = likely.choice((0x10, 0x10, 0x40, 0x42, 0x70, 0xFF, 0x20, 0xD0, 0x50, 0x60, 0x90, 0x98, 0xE8, 0x33))
        for command in (value, likely.getrandbits(8)) if likely.random() < 0.9 else (value,):
            at, size = likely.choice((0, 5, SECTOR_SIZE - 1, SIZE - 8)), likely.choice((1, 1, 1, 2, 4, 8))
            data = likely.getrandbits(8 * size) & ~0xFF | command
            rig.always_to_the_chip(GPA + at, size, data)
            other.flash.write(at, size, data)
        at = likely.randrange(0, SIZE, 99)
        assert rig.load(GPA + at, 1) == other.flash.read(at, 1)
        if likely.random() < 0.01:
            rig.flash.reset()
            other.flash.reset()
        assert rig.mapped == other.mapped
    assert rig.contents[:] == other.contents[:]
    assert rig.flash.programs == other.flash.programs > 100
    assert rig.in_c > 20
    assert other.in_c == 0


def test_program_0x40_and_wide_data(rig: FlashRig) -> None:
    rig.command(0x40, at=8)
    rig.store(GPA + 8, 4, 0x1122_3344)
    rig.command(0xFF)
    assert rig.load(GPA + 8, 4) == 0x1122_3344


def test_data_that_looks_like_a_command_is_data(rig: FlashRig) -> None:
    for value in (0xFF, 0x10, 0x70, 0x20):
        rig.command(0x10, value, at=5)
        assert rig.contents[5] == value


def test_erase_sets_one_sector_to_ones(rig: FlashRig) -> None:
    rig.command(0x20, 0xD0, at=SECTOR_SIZE + 77)
    assert rig.load(GPA, 1) == 0x80
    rig.command(0xFF)
    assert rig.contents[SECTOR_SIZE : 2 * SECTOR_SIZE] == b"\xff" * SECTOR_SIZE
    assert rig.contents[SECTOR_SIZE - 1] == 0xFF
    assert rig.contents[0] == 0
    assert rig.contents[2 * SECTOR_SIZE] == 0
    assert rig.flash.erases == 1


def test_erase_without_confirmation_is_a_sequence_error(rig: FlashRig) -> None:
    rig.command(0x20, 0x00 + 1, at=0)
    assert rig.load(GPA, 1) == 0xB0
    rig.command(0x50, 0x70)
    assert rig.load(GPA, 1) == 0
    rig.command(0xFF)
    assert rig.load(GPA + 1, 1) == 1


def test_identifier(rig: FlashRig) -> None:
    rig.command(0x90)
    assert (rig.load(GPA, 1), rig.load(GPA + 1, 1), rig.load(GPA + 2, 1)) == (0x89, 0x18, 0)


def test_cfi_query(rig: FlashRig) -> None:
    rig.command(0x98, at=0x55)
    assert bytes(rig.load(GPA + i, 1) for i in range(0x10, 0x15)) == b"QRY\x01\x00"
    assert rig.load(GPA + 0x27, 1) == 20, "0x84000 bytes need 20 address bits"
    blocks = rig.load(GPA + 0x2D, 2) + 1
    block_size = rig.load(GPA + 0x2F, 2) * 256
    assert blocks * block_size == SIZE
    assert 1 << rig.load(GPA + 0x2A, 2) == 256
    assert rig.load(GPA + 0xF0, 1) == 0


def test_buffered_program(rig: FlashRig) -> None:
    rig.command(0xE8, at=0x200)
    assert rig.load(GPA, 1) & 0x80
    rig.command(3, at=0x200)
    for i, byte in enumerate(b"wxyz"):
        rig.command(byte, at=0x200 + i)
    assert rig.contents[0x200:0x204] == b"\0\1\2\3", "nothing before the confirmation"
    rig.command(0xD0, at=0x200)
    assert rig.load(GPA, 1) == 0x80
    assert rig.contents[0x200:0x204] == b"wxyz"


def test_buffered_program_without_confirmation_stores_nothing(rig: FlashRig) -> None:
    rig.command(0xE8, 0, 0x99, 0xFF, at=0x200)
    assert rig.load(GPA, 1) == 0xB0
    assert rig.contents[0x200] == 0


def test_lock_commands_are_accepted(rig: FlashRig) -> None:
    rig.command(0x60, 0xD0)
    assert rig.load(GPA, 1) == 0x80


def test_unknown_command_reads_the_array(rig: FlashRig) -> None:
    rig.command(0x70)
    rig.command(0x33)
    assert rig.mapped


def test_read_only_chip_reports_errors_and_keeps_its_contents() -> None:
    rig = FlashRig(read_only=True)
    rig.command(0x10, 0xAA)
    assert rig.load(GPA, 1) == 0x90
    rig.command(0x50, 0x20, 0xD0)
    assert rig.load(GPA, 1) == 0xA0
    rig.command(0x50, 0xE8, 0, 0x55, 0xD0)
    assert rig.load(GPA, 1) == 0x90
    assert rig.contents[0] == 0


def test_last_byte_and_accesses_across_the_end(rig: FlashRig) -> None:
    rig.command(0x10, at=SIZE - 1)
    rig.store(GPA + SIZE - 1, 4, 0xDDCC_BBAA)
    assert rig.contents[SIZE - 1] == 0xAA


def test_reset_returns_to_read_array(rig: FlashRig) -> None:
    rig.command(0x20)
    rig.flash.reset()
    assert rig.mapped
    rig.command(0xD0)
    assert rig.contents[0] == 0
    assert rig.contents[1] == 1


class KeptRig(FlashRig):
    """A chip whose contents are kept, beside it, in `kept`."""

    def __init__(self) -> None:
        super().__init__()
        self.timers = ManualTimers(self.lock)
        self.kept = bytearray(SIZE)
        self.stores: list[tuple[int, int]] = []
        self.mmio.remove(GPA)
        self.flash.close()
        write_back = WriteBack(self.keep, self.timers, self.lock)
        self.flash = Flash(self.memory, GPA, self.contents, read_only=False, write_back=write_back)
        self.mmio.add(GPA, GPA + SIZE - 1, self.flash, "flash")

    def keep(self, first: int, end: int) -> None:
        self.stores.append((first, end))
        self.kept[first:end] = self.contents[first:end]


def test_a_driver_that_has_finished_has_its_bytes_kept() -> None:
    rig = KeptRig()
    for i in range(64):
        rig.command(0x10, 0xA0 + i, at=0x100 + i)
    assert rig.in_c > 60
    rig.command(0x20, 0xD0, at=3 * SECTOR_SIZE)
    assert rig.stores == []
    rig.command(0xFF)
    assert rig.stores == [(0x100, 4 * SECTOR_SIZE)]
    assert rig.kept == rig.contents[:]
    rig.command(0x70, 0xFF)
    rig.timers.advance(10 * WRITE_BACK_NS)
    assert len(rig.stores) == 1, "nothing changed since"


def test_a_driver_that_never_finishes_loses_no_more_than_a_moment() -> None:
    rig = KeptRig()
    for round_ in range(3):
        rig.command(0x10, 0xA0 + round_, at=0x100 + round_)
        rig.timers.advance(WRITE_BACK_NS)
        assert rig.kept == rig.contents[:]
    assert rig.in_c == 2
    rig.command(0xE8, 0, 0x99, 0xD0, at=0x200)
    rig.timers.advance(WRITE_BACK_NS)
    assert rig.kept == rig.contents[:]
    rig.timers.advance(WRITE_BACK_NS)
    assert len(rig.stores) == 4


def test_what_waits_is_kept_at_the_end() -> None:
    rig = KeptRig()
    rig.command(0x10, 0x42, at=SIZE - 1)
    rig.flash.flush()
    assert rig.stores == [(SIZE - 1, SIZE)]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_kept_is_what_the_chip_holds(seed: int) -> None:
    rig = KeptRig()
    likely = random.Random(seed)
    for _ in range(2000):
        value = likely.choice((0x10, 0x10, 0x40, 0x70, 0xFF, 0x20, 0xD0, 0x50, 0xE8, 0x33))
        at, size = likely.choice((0, 5, SECTOR_SIZE - 1, SIZE - 8, SIZE - 1)), likely.choice((1, 1, 1, 2, 4, 8))
        rig.always_to_the_chip(GPA + at, min(size, SIZE - at), value)
        if likely.random() < 0.01:
            rig.timers.advance(WRITE_BACK_NS)
        if rig.mapped:
            assert rig.kept == rig.contents[:]
    assert len(rig.stores) > 30


def test_close_lets_go_of_the_contents(rig: FlashRig) -> None:
    rig.flash.close()
    assert not rig.mapped
    rig.contents.close()
