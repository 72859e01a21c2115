"""The PCI side of a virtio device: BARs that move, MSI-X and INTx, the window in configuration space."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from virtio_rig import CONFIG, ISR, MESSAGES, NOTIFY, REGISTERS, SLOT, STATUS, VirtioRig

from vmm.devices.chipset import IsaBridge
from vmm.devices.pirq import BHYVE, PC, Q35
from vmm.errors import ConfigError

GSI = 16 + Q35.pirq(SLOT)
MSIX_CONTROL = 0x9A
ENABLE, MASK_ALL = 0x8000, 0x4000
WINDOW = 0x84
INTX_DISABLE = 0x400


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[VirtioRig]:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(64 << 10))
    with VirtioRig(path) as rig:
        yield rig


def at(disk: VirtioRig) -> dict[str, int]:
    return {row.name: row.first for row in disk.mmio.ranges()}


def test_bars_say_their_sizes(disk: VirtioRig) -> None:
    assert [disk.config_read(0x10 + 4 * bar) for bar in range(6)] == [0, 0, 0, 0, 0xC, 0]
    for bar in range(6):
        disk.config_write(0x10 + 4 * bar, 4, 0xFFFF_FFFF)
    sizes = [disk.config_read(0x10 + 4 * bar) for bar in range(6)]
    assert sizes == [0, 0xFFFF_F000, 0, 0, 0xFFFF_C00C, 0xFFFF_FFFF]
    assert at(disk) == {}


def test_bars_follow_their_registers_and_memory_enable(disk: VirtioRig) -> None:
    disk.place()
    assert at(disk) == {"virtio-blk 3": REGISTERS, "virtio-blk 3 MSI-X": MESSAGES}
    disk.config_write(0x24, 4, 8)
    assert at(disk) == {"virtio-blk 3": 8 << 32 | REGISTERS, "virtio-blk 3 MSI-X": MESSAGES}
    assert disk.load((8 << 32) + CONFIG, 8) == 128
    disk.config_write(4, 2, 0)
    assert at(disk) == {}
    assert disk.load(CONFIG, 4) == 0xFFFF_FFFF
    disk.config_write(4, 2, 2)
    assert disk.load((8 << 32) + CONFIG, 8) == 128
    disk.config_write(0x20, 4, 0)
    disk.config_write(0x24, 4, 0)
    assert at(disk) == {"virtio-blk 3 MSI-X": MESSAGES}, "0 is no address"


def test_a_bar_over_another_range_waits_until_that_is_gone(disk: VirtioRig) -> None:
    disk.place()
    disk.config_write(0x14, 4, REGISTERS)
    assert at(disk) == {"virtio-blk 3": REGISTERS}
    disk.config_write(0x20, 4, REGISTERS + 0x10_0000)
    assert at(disk) == {"virtio-blk 3": REGISTERS + 0x10_0000, "virtio-blk 3 MSI-X": REGISTERS}


@pytest.mark.parametrize("last", [0xFFFF_FFFF, 0x7FFF_FFFF])
def test_a_bar_at_the_end_of_the_address_space(disk: VirtioRig, last: int) -> None:
    disk.place()
    disk.config_write(0x20, 4, 0xFFFF_C000)
    disk.config_write(0x24, 4, last)
    assert disk.load((last << 32 | 0xFFFF_C000) + 0x2000, 8) == 128


def test_a_slot_is_given_once(disk: VirtioRig) -> None:
    with pytest.raises(ConfigError, match=r"PCI slot 3\.0 is taken"):
        disk.pci.add(SLOT, 0, disk.disk.function)
    assert disk.pci.free_slot() == 0


def vector(disk: VirtioRig, number: int, address: int, data: int, control: int = 0) -> None:
    for offset, value in ((0, address & 0xFFFF_FFFF), (4, address >> 32), (8, data), (12, control)):
        disk.store(MESSAGES + 16 * number + offset, 4, value)


def with_messages(disk: VirtioRig) -> None:
    disk.start()
    disk.config_write(MSIX_CONTROL, 2, ENABLE)
    vector(disk, 0, 0xFEE0_1000, 0x40)
    vector(disk, 1, 0xFEE0_2000, 0x41)
    disk.store(REGISTERS + 0x10, 2, 0)
    disk.store(REGISTERS + 0x1A, 2, 1)


def test_messages(disk: VirtioRig) -> None:
    with_messages(disk)
    disk.read_sectors(0)
    assert disk.messages == [(0xFEE0_2000, 0x41)]
    assert disk.edges == []
    disk.made += 100
    disk.offer()
    disk.disk.settle()
    assert disk.messages == [(0xFEE0_2000, 0x41), (0xFEE0_1000, 0x40)], "the device is broken, by the other vector"


@pytest.mark.parametrize("whole", [False, True])
def test_masked_messages_wait(disk: VirtioRig, whole: bool) -> None:
    with_messages(disk)
    if whole:
        disk.config_write(MSIX_CONTROL, 2, ENABLE | MASK_ALL)
    else:
        disk.store(MESSAGES + 16 + 12, 4, 1)
    disk.read_sectors(0)
    disk.read_sectors(0)
    assert disk.messages == []
    assert disk.load(MESSAGES + 0x800, 8) == 2
    if whole:
        disk.config_write(MSIX_CONTROL, 2, ENABLE)
    else:
        disk.store(MESSAGES + 16 + 12, 4, 0)
    assert disk.messages == [(0xFEE0_2000, 0x41)]
    assert disk.load(MESSAGES + 0x800, 8) == 0


def test_vectors_that_are_none(disk: VirtioRig) -> None:
    with_messages(disk)
    for register in (0x10, 0x1A):
        disk.store(REGISTERS + register, 2, 2)
        assert disk.load(REGISTERS + register, 2) == 0xFFFF
    disk.read_sectors(0)
    assert disk.messages == []


def test_the_table_takes_what_it_has_bits_for(disk: VirtioRig) -> None:
    disk.place()
    for offset in range(0, 0x1000, 8):
        disk.store(MESSAGES + offset, 8, 2**64 - 1)
    assert [disk.load(MESSAGES + 4 * word, 4) for word in range(9)] == [
        *(0xFFFF_FFFC, 0xFFFF_FFFF, 0xFFFF_FFFF, 1) * 2,
        0,
    ]
    assert disk.load(MESSAGES + 0x800, 8) == 0
    assert disk.config_read(0x98) == 1 << 16 | 0x8411


def test_the_interrupt_line_follows_isr(disk: VirtioRig) -> None:
    disk.start()
    disk.read_sectors(0)
    assert disk.lines == {GSI: True}
    assert disk.load(ISR, 1) == 1
    assert disk.lines == {GSI: False}
    assert disk.load(ISR, 1) == 0
    disk.config_write(4, 2, 6 | INTX_DISABLE)
    disk.read_sectors(0)
    assert disk.lines == {GSI: False}
    disk.config_write(4, 2, 6)
    assert disk.lines == {GSI: True}
    disk.store(STATUS, 1, 0)
    assert disk.lines == {GSI: False}


@pytest.mark.parametrize(
    ("wiring", "device", "pin", "pirq"),
    [(Q35, 3, 0, 3), (Q35, 4, 0, 0), (Q35, 31, 3, 2), (PC, 1, 0, 0), (PC, 2, 1, 2), (BHYVE, 0, 0, 5), (BHYVE, 3, 0, 0)],
)
def test_wiring(wiring: tuple[int, int], device: int, pin: int, pirq: int) -> None:
    assert type(Q35)(*wiring).pirq(device, pin) == pirq


def test_routing_registers_lead_to_isa_interrupts(disk: VirtioRig) -> None:
    bridge = IsaBridge(0x2918, disk.pirqs)
    register = 0x60 + Q35.pirq(SLOT)
    disk.start()
    disk.read_sectors(0)
    bridge.write_config(register, 1, 10)
    assert disk.lines == {GSI: True, 10: True}
    bridge.write_config(register, 1, 11)
    assert disk.lines == {GSI: True, 10: False, 11: True}
    bridge.write_config(0x60, 1, 11)
    disk.load(ISR, 1)
    assert disk.lines == {GSI: False, 10: False, 11: False}
    for unroutable in (0, 1, 2, 8, 13, 0x8B):
        bridge.write_config(register, 1, unroutable)
        disk.edges.clear()
        disk.read_sectors(0)
        assert disk.edges == [(GSI, True)], unroutable
        disk.load(ISR, 1)


def test_two_pins_share_a_line(disk: VirtioRig) -> None:
    from vmm._native import lib

    disk.start()
    disk.read_sectors(0)
    lib.pci_pirq_set(disk.pirqs.core, Q35.pirq(SLOT), 7, True)
    disk.load(ISR, 1)
    assert disk.lines == {GSI: True}
    lib.pci_pirq_set(disk.pirqs.core, Q35.pirq(SLOT), 7, False)
    assert disk.lines == {GSI: False}


def window(disk: VirtioRig, offset: int, length: int, bar: int = 4) -> None:
    disk.config_write(WINDOW + 4, 1, bar)
    disk.config_write(WINDOW + 8, 4, offset)
    disk.config_write(WINDOW + 12, 4, length)


def test_the_window_reaches_the_registers_without_the_bar(disk: VirtioRig) -> None:
    window(disk, 0x2000, 4)
    assert disk.config_read(WINDOW + 16) == 128
    window(disk, 0x14, 1)
    disk.config_write(WINDOW + 16, 1, 3)
    assert disk.config_read(WINDOW + 16, 1) == 3
    window(disk, 0x14, 1)
    disk.config_write(WINDOW + 16, 1, 0)
    assert disk.config_read(WINDOW + 16, 1) == 0


@pytest.mark.parametrize(
    ("offset", "length", "bar"),
    [
        (0x4000, 4, 4),
        (0xFFFF_FFFC, 4, 4),
        (0x2000, 8, 4),
        (0x2000, 3, 4),
        (0x2002, 4, 4),
        (0x2000, 4, 1),
        (0x2000, 0, 4),
    ],
)
def test_a_window_to_nowhere(disk: VirtioRig, offset: int, length: int, bar: int) -> None:
    window(disk, offset, length, bar)
    disk.config_write(WINDOW + 16, 4, 0x1234_5678)
    assert disk.config_read(WINDOW + 16) == 0x1234_5678


def test_accesses_of_every_width_and_place_are_answered(disk: VirtioRig) -> None:
    disk.place()
    for size in (1, 2, 4, 8):
        for base in (
            REGISTERS,
            REGISTERS + 0x38,
            ISR,
            CONFIG,
            CONFIG + 60,
            NOTIFY,
            REGISTERS + 0x3FF8,
            MESSAGES,
            MESSAGES + 0x7FC,
        ):
            for offset in range(8):
                disk.load(base + offset, size)
                if base != REGISTERS:
                    disk.store(base + offset, size, 2 ** (8 * size) - 1)
    assert disk.load(CONFIG, 8) == 128
    disk.store(REGISTERS + 0x13, 8, 2**64 - 1)
    assert disk.load(REGISTERS + 0x12, 2) == 1, "the number of queues"


def test_widths_of_the_common_registers(disk: VirtioRig) -> None:
    """Virtio 1.2, 4.1.3.1 asks drivers for each register's width; what crosses registers must do no harm."""
    disk.place()
    disk.store(REGISTERS + 0x20, 8, 0x1_2345_6789_0000)
    assert disk.load(REGISTERS + 0x20, 4) == 0x6789_0000
    assert disk.load(REGISTERS + 0x24, 4) == 0x1_2345
    disk.store(REGISTERS + 0x21, 1, 0x42)
    assert disk.load(REGISTERS + 0x20, 8) == 0x1_2345_6789_4200
    disk.store(REGISTERS + 0x16, 2, 1)
    assert disk.load(REGISTERS + 0x18, 8) == 0, "there is no second queue"
