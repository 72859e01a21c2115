"""Whole boards: everything in place, restored by a reset, and not impressed by anything a guest does."""

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from device_rig import Rig
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm import layout
from vmm.config.machine import MachineType
from vmm.firmware.images import FirmwareImages, FirmwareKind, Layout, VariableStore
from vmm.firmware.variables import VariableFile
from vmm.platform import Platform, builder

CODE = bytes(range(256)) * 1024
VARIABLES = b"\x5a" * 0x84000
BOARDS = [MachineType.Q35, MachineType.PC]


class PlatformRig(Rig):
    def __init__(
        self,
        board: MachineType,
        variables: VariableStore | None = None,
        boot_order: str = "cad",
        images: Mapping[str, mmap.mmap] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        if variables is None:
            variables = VariableStore(Path("template.fd"), VARIABLES)
        firmware = FirmwareImages(FirmwareKind.UNKNOWN, Layout.FLASH, "code.fd", CODE, variables)
        file = VariableFile(variables.path, len(variables.data)) if variables.persist else None
        fields = {"ram_high": 5 << 30, "cpus": 4, "variables": file, "boot_order": boot_order, "images": images}
        room = {"apic_ids": (0, 1, 2, 4, 5, 6), "present": [True] * 4 + [False] * 2}
        self.platform: Platform = builder(board)(self.parts(firmware, **fields, **room))

    def plug(self) -> None:
        """Plug a CPU in, the last of those that there is room for."""
        assert self.platform.cpu_hotplug is not None
        with self.lock:
            self.platform.cpu_hotplug.plug(5)

    def cmos(self, register: int, size: int = 1) -> int:
        value = 0
        for i in range(size):
            self.outb(0x70, register + i)
            value |= self.inb(0x71) << (8 * i)
        return value


@pytest.fixture(params=BOARDS)
def rig(request: pytest.FixtureRequest) -> Iterator[PlatformRig]:
    rig = PlatformRig(request.param)
    yield rig
    rig.platform.close()
    assert rig.failures == []


def test_reset_vector_is_the_end_of_the_code(rig: PlatformRig) -> None:
    assert rig.load(layout.FOUR_GIB - 16, 8) == int.from_bytes(CODE[-16:-8], "little")


def test_variables_lie_below_the_code_and_take_commands(rig: PlatformRig) -> None:
    gpa = layout.FOUR_GIB - len(CODE) - len(VARIABLES)
    assert rig.load(gpa, 1) == 0x5A
    rig.store(gpa, 1, 0x10)
    rig.store(gpa, 1, 0x77)
    rig.store(gpa, 1, 0xFF)
    assert rig.load(gpa, 1) == 0x77


def test_private_variables_leave_the_template_alone(tmp_path: Path) -> None:
    path = tmp_path / "VARS.fd"
    path.write_bytes(VARIABLES)
    gpa = layout.FOUR_GIB - len(CODE) - len(VARIABLES)
    for persist, expected in ((False, 0x5A), (True, 0x77)):
        rig = PlatformRig(MachineType.Q35, VariableStore(path, VARIABLES, persist=persist))
        for value in (0x10, 0x77, 0xFF):
            rig.store(gpa, 1, value)
        assert path.read_bytes()[0] == expected
        rig.platform.close()
        assert path.stat().st_size == len(VARIABLES)


def test_cmos_tells_sizes_cpus_and_boot_order(rig: PlatformRig) -> None:
    assert rig.cmos(0x15, 2) == 640
    assert rig.cmos(0x30, 2) == rig.cmos(0x17, 2) == 15 * 1024
    assert rig.cmos(0x34, 2) == 0
    assert rig.cmos(0x5B, 3) == 5 << 14
    assert rig.cmos(0x5F) == 3
    assert (rig.cmos(0x3D), rig.cmos(0x38)) == (0x12, 0x30)


def test_a_plugged_cpu_is_in_cmos_in_the_count_and_in_what_tables_say(rig: PlatformRig) -> None:
    rig.plug()
    assert rig.cmos(0x5F) == 4
    assert rig.platform.cpu_count == b"\5\0"
    rig.platform.reset()
    assert (rig.cmos(0x5F), rig.platform.standing().plugged) == (4, frozenset((5,)))


def test_boot_order_in_cmos() -> None:
    rig = PlatformRig(MachineType.PC, boot_order="n")
    assert (rig.cmos(0x3D), rig.cmos(0x38)) == (0x04, 0x00)
    rig.platform.close()


def test_consoles_print(rig: PlatformRig) -> None:
    rig.outb(0x3F8, ord("s"))
    rig.outb(0x402, ord("d"))
    assert rig.printed == b"sd"


def test_typed_text_interrupts_on_irq_4(rig: PlatformRig) -> None:
    rig.outb(0x3FC, 0x08)
    rig.outb(0x3F9, 0x01)
    rig.platform.serial.feed(b"x")
    assert rig.lines[4]


@pytest.mark.parametrize("port_and_value", [(0xCF9, 0x06), (0x92, 0x01), (0x64, 0xFE)])
def test_every_way_to_reset(rig: PlatformRig, port_and_value: tuple[int, int]) -> None:
    rig.outb(*port_and_value)
    (event,) = rig.power.events
    assert event.startswith("reset")


def shape(rig: Rig) -> object:
    """What is mapped where, and which device answers where."""
    regions = [(region.gpa, region.size, region.read_only) for region in rig.memory.regions()]
    return regions, [(r.first, r.last, r.name) for r in rig.ports.ranges() + rig.mmio.ranges()]


def test_reset_puts_everything_back(rig: PlatformRig) -> None:
    before = shape(rig)
    for bridge in (0, 31 << 11, 1 << 11, 1 << 11 | 3 << 8):
        for register in range(0x40, 0x100, 4):
            rig.out(0xCF8, 4, 1 << 31 | bridge | register)
            rig.out(0xCFC, 4, 0x6F6F_6FF1)
    rig.store(layout.FOUR_GIB - len(CODE) - len(VARIABLES), 1, 0x90)
    assert shape(rig) != before
    rig.platform.reset()
    assert shape(rig) == before


CPUS = *range(0xCD8, 0xCE8), *range(0xAF00, 0xAF10)
PORTS = st.sampled_from(
    [*range(0x60, 0x100), *range(0x3F0, 0x410), *CPUS, 0xCF8, 0xCF9, 0xCFC, 0xCFD, 0x600, 0x604, 0xAFE0]
)
ADDRESSES = st.one_of(
    st.integers(0xC0000, 0xFFFFF),
    st.integers(layout.FOUR_GIB - len(CODE) - len(VARIABLES) - 8, layout.FOUR_GIB - 8),
    st.integers(0xB000_0000, 0xB000_FFFF),
    st.integers(0xFED0_0000, 0xFED0_03FF),
)
VALUES = st.one_of(
    st.sampled_from([0, 1, 0x10, 0x20, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0x98, 0xD0, 0xE8, 0xFF]),
    st.integers(0, (1 << 64) - 1),
)
PCI_WRITES = st.tuples(
    st.just("pci"), st.sampled_from([0, 31 << 11, 1 << 11, 1 << 11 | 3 << 8]), st.integers(0, 63), VALUES
)
PORT_ACCESSES = st.tuples(st.sampled_from(["in", "out"]), PORTS, st.sampled_from([1, 2, 4]), VALUES)
STRINGS = st.tuples(st.sampled_from(["ins", "outs"]), PORTS, st.sampled_from([1, 2, 4]), st.binary(max_size=64))
MMIO = st.tuples(st.sampled_from(["load", "store"]), ADDRESSES, st.integers(1, 8), VALUES)


Action = tuple[str, int, int, int | bytes]
ACTIONS = st.lists(st.one_of(PCI_WRITES, PORT_ACCESSES, STRINGS, MMIO), max_size=60)


def perform(rig: Rig, action: Action) -> object:
    """One access; what a read gave."""
    kind, address, size, value = action
    if kind == "pci" and isinstance(value, int):
        rig.out(0xCF8, 4, 1 << 31 | address | size << 2)
        rig.out(0xCFC, 4, value & 0xFFFF_FFFF)
    elif isinstance(value, bytes):
        count = len(value) // size
        if kind == "outs":
            rig.outs(address, size, value[: count * size])
        else:
            data = rig.ins(address, size, count)
            assert len(data) == count * size
            return data
    elif kind == "in":
        return rig.inp(address, size)
    elif kind == "out":
        rig.out(address, size, value & ((1 << 8 * size) - 1))
    elif kind == "load":
        return rig.load(address, size)
    else:
        rig.store(address, size, value & ((1 << 8 * size) - 1))
    return None


@pytest.mark.parametrize("board", BOARDS)
@settings(max_examples=150)
@given(actions=ACTIONS)
def test_no_sequence_of_accesses_makes_a_device_fail(board: MachineType, actions: list[Action]) -> None:
    rig = PlatformRig(board)
    try:
        for action in actions:
            perform(rig, action)
        assert [repr(failure) for failure in rig.failures] == []
        rig.platform.reset()
        assert [repr(failure) for failure in rig.failures] == []
    finally:
        rig.platform.close()


def is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(its) for key, its in value.items())
    return value is None or type(value) in {bool, int, str, bytes}


def copy_of(image: mmap.mmap) -> mmap.mmap:
    copy = mmap.mmap(-1, len(image))
    copy[:] = image[:]
    return copy


@pytest.mark.parametrize("board", BOARDS)
@settings(max_examples=100)
@given(before=ACTIONS, after=ACTIONS)
def test_a_restored_board_goes_on_like_the_first_one(
    board: MachineType, before: list[Action], after: list[Action]
) -> None:
    first = PlatformRig(board)
    first.clock.stand(12_345_678_901_234)
    first.platform.serial.feed(b"typed" * 9)
    for action in before:
        perform(first, action)
    first.plug()
    with first.lock:
        state = first.platform.state()
    assert is_plain(state)
    images = {name: copy_of(image) for name, image in first.platform.images.items()}
    second = PlatformRig(board, images=images)
    second.clock.stand(12_345_678_901_234)
    second.memory.ram[:] = first.memory.ram
    with second.lock:
        second.platform.place(state)
        second.platform.restore(state)
        assert second.platform.state() == state
    assert shape(second) == shape(first)
    assert {gsi for gsi, level in second.lines.items() if level} == {gsi for gsi, level in first.lines.items() if level}
    first.printed.clear()
    assert [perform(first, action) for action in after] == [perform(second, action) for action in after]
    for rig in (first, second):
        rig.platform.flush()
        rig.platform.close()
        assert rig.failures == []
    assert first.printed == second.printed
