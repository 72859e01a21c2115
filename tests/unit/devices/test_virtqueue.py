"""Queues of a virtio device, as drivers use them, good ones and bad ones."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from virtio_rig import (
    BUFFERS,
    F_EVENT_INDEX,
    F_INDIRECT,
    IN,
    INDIRECT,
    ISR,
    NEEDS_RESET,
    NEXT,
    OK,
    SECTORS,
    SIZE,
    STATUS,
    TABLE,
    USED,
    WRITE,
    Segment,
    VirtioRig,
)


def test_indirect_descriptors(disk: VirtioRig) -> None:
    disk.start(F_INDIRECT)
    assert disk.request(IN, 3, room=512, indirect=True) == (OK, b"\3" * 512)


def test_the_rings_go_round(disk: VirtioRig) -> None:
    for round_ in range(3 * SIZE + 1):
        assert disk.read_sectors(round_ % SECTORS) == bytes((round_ % SECTORS,)) * 512
    assert int.from_bytes(disk.memory.read(USED + 2, 2), "little") == 3 * SIZE + 1


def test_many_requests_at_once(disk: VirtioRig) -> None:
    for i in range(SIZE // 4):
        header, buffer = 0x30000 + 0x1000 * i, 0x40000 + 0x1000 * i
        disk.memory.write(header, struct.pack("<IIQ", IN, 0, i))
        disk.descriptor(3 * i, header, 16, NEXT, 3 * i + 1)
        disk.descriptor(3 * i + 1, buffer, 512, NEXT | WRITE, 3 * i + 2)
        disk.descriptor(3 * i + 2, header + 16, 1, WRITE)
        disk.offer(3 * i, notify=i == SIZE // 4 - 1)
    disk.disk.settle()
    assert sorted(disk.used()) == [(3 * i, 513) for i in range(SIZE // 4)]
    for i in range(SIZE // 4):
        assert disk.memory.read(0x40000 + 0x1000 * i, 512) == bytes((i,)) * 512


def loop(disk: VirtioRig) -> None:
    disk.descriptor(0, BUFFERS, 16, NEXT, 1)
    disk.descriptor(1, BUFFERS, 16, NEXT, 0)


def nowhere(disk: VirtioRig) -> None:
    disk.descriptor(0, 1 << 40, 16)


def wrapping(disk: VirtioRig) -> None:
    disk.descriptor(0, 2**64 - 8, 16)


def beyond_the_table(disk: VirtioRig) -> None:
    disk.descriptor(0, BUFFERS, 16, NEXT, SIZE)


def readable_after_writable(disk: VirtioRig) -> None:
    disk.descriptor(0, BUFFERS, 16, NEXT | WRITE, 1)
    disk.descriptor(1, BUFFERS, 16)


def no_status(disk: VirtioRig) -> None:
    disk.descriptor(0, BUFFERS, 16)


def short_header(disk: VirtioRig) -> None:
    disk.descriptor(0, BUFFERS, 15, NEXT, 1)
    disk.descriptor(1, BUFFERS, 1, WRITE)


def indirect_that_was_not_negotiated(disk: VirtioRig) -> None:
    disk.chain([Segment(bytes(16)), Segment(room=1)], indirect=True)


@pytest.mark.parametrize(
    "make",
    [
        loop,
        nowhere,
        wrapping,
        beyond_the_table,
        readable_after_writable,
        no_status,
        short_header,
        indirect_that_was_not_negotiated,
    ],
    ids=lambda make: make.__name__,
)
def test_a_chain_that_makes_no_sense_breaks_the_device_alone(
    disk: VirtioRig, make: Callable[[VirtioRig], None]
) -> None:
    make(disk)
    disk.offer()
    disk.disk.settle()
    assert disk.status & NEEDS_RESET
    assert disk.used() == []
    assert disk.load(ISR, 1) == 2, "an interrupt for the configuration tells the driver"
    disk.offer()
    disk.disk.settle()
    assert disk.used() == []
    disk.start()
    assert not disk.status & NEEDS_RESET
    assert disk.read_sectors(2) == b"\2" * 512


@pytest.mark.parametrize(
    ("address", "length", "flags"),
    [
        (TABLE, 16, INDIRECT),
        (0x18000, 15, INDIRECT),
        (0x18000, 0, INDIRECT),
        (0x18000, 32, INDIRECT | NEXT),
        (1 << 50, 16, INDIRECT),
    ],
)
def test_indirect_tables_that_make_no_sense(disk: VirtioRig, address: int, length: int, flags: int) -> None:
    disk.start(F_INDIRECT)
    disk.descriptor(0, address, length, flags)
    disk.offer()
    disk.disk.settle()
    assert disk.status & NEEDS_RESET


def test_an_index_that_runs_ahead_breaks_the_device(disk: VirtioRig) -> None:
    disk.made = SIZE + 1
    disk.offer()
    disk.disk.settle()
    assert disk.status & NEEDS_RESET


@pytest.mark.parametrize(
    ("register", "value"), [(0x18, 3), (0x18, 512), (0x18, 0), (0x20, 8), (0x28, 1), (0x30, 2), (0x34, 1)]
)
def test_a_queue_that_cannot_be(image: Path, register: int, value: int) -> None:
    with VirtioRig(image) as disk:
        disk.start()
        disk.store(STATUS, 1, 0)
        disk.store(STATUS, 1, 3)
        disk.store(0xE000_0000 + register, 2, value)
        disk.store(0xE000_0000 + 0x1C, 2, 1)
        assert disk.load(0xE000_0000 + 0x1C, 2) == 0
        assert disk.status & NEEDS_RESET


def test_features_that_were_not_offered_are_refused(disk: VirtioRig) -> None:
    disk.store(STATUS, 1, 0)
    disk.store(STATUS, 1, 3)
    for select, value in ((0, 1 << 31), (1, 1)):
        disk.store(0xE000_0008, 4, select)
        disk.store(0xE000_000C, 4, value)
    disk.store(STATUS, 1, 0xB)
    assert disk.load(STATUS, 1) == 3
    disk.store(0xE000_0008, 4, 0)
    disk.store(0xE000_000C, 4, 0)
    disk.store(STATUS, 1, 0xB)
    assert disk.load(STATUS, 1) == 0xB
    disk.store(0xE000_000C, 4, 0xFFFF_FFFF)
    disk.store(STATUS, 1, 0xF)
    assert disk.load(0xE000_000C, 4) == 0, "too late to choose"


def test_nothing_is_served_before_the_driver_is_ready_or_without_bus_mastering(image: Path) -> None:
    with VirtioRig(image) as disk:
        disk.start(command=0x2)
        disk.chain([Segment(struct.pack("<IIQ", IN, 0, 1)), Segment(room=512), Segment(room=1)])
        disk.offer()
        disk.disk.settle()
        assert disk.used() == []
        disk.config_write(4, 2, 0x6)
        disk.disk.settle()
        assert disk.used() == [(0, 513)]


def test_the_event_index_saves_interrupts(disk: VirtioRig) -> None:
    disk.start(F_EVENT_INDEX)
    event = 0x11000 + 4 + 2 * SIZE
    disk.memory.write(event, (2).to_bytes(2, "little"))
    counts = []
    for _ in range(4):
        disk.edges.clear()
        assert disk.read_sectors(1)
        counts.append(len(disk.edges))
        disk.load(ISR, 1)
    assert counts == [0, 0, 1, 0], "the driver wanted to hear of the third"
    asked_for = int.from_bytes(disk.memory.read(USED + 4 + 8 * SIZE, 2), "little")
    assert asked_for == 4, "where the next chain will be"


def test_interrupts_that_the_driver_does_not_want(disk: VirtioRig) -> None:
    disk.memory.write(0x11000, (1).to_bytes(2, "little"))
    assert disk.read_sectors(1)
    assert disk.edges == []
