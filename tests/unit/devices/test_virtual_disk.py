"""A disk that goes by virtual time: when its requests are served, and what a stop leaves of them."""

import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from virtio_rig import BUFFERS, IN, NEXT, OUT, WRITE, VirtioRig

from vmm.devices.virtio.block import REQUEST_NS

LARGE = 8 << 20
"""Bytes of a request that is read in pieces."""


@pytest.fixture
def disk(image: Path) -> Iterator[VirtioRig]:
    with VirtioRig(image, virtual=True) as rig:
        rig.start()
        # The device was notified as it became a bus master.
        rig.timers.advance(REQUEST_NS)
        yield rig


def lay_out(rig: VirtioRig, number: int, kind: int, sector: int, length: int = 512) -> int:
    """A request in descriptors of its own; return where its data is, in front of its status."""
    at = BUFFERS + number * 0x1000
    rig.memory.write(at, struct.pack("<IIQ", kind, 0, sector))
    rig.memory.write(at + 0x100 + length, b"\xff")
    data = 0 if kind == OUT else WRITE
    rig.descriptor(3 * number, at, 16, NEXT, 3 * number + 1)
    rig.descriptor(3 * number + 1, at + 0x100, length, NEXT | data, 3 * number + 2)
    rig.descriptor(3 * number + 2, at + 0x100 + length, 1, WRITE)
    return at + 0x100


def test_requests_are_served_at_their_deadline_in_their_order(disk: VirtioRig) -> None:
    places = [lay_out(disk, number, IN, 7 - number) for number in range(4)]
    disk.offer(0)
    disk.timers.advance(REQUEST_NS // 2)
    for number in (2, 1, 3):
        disk.offer(3 * number)
    disk.timers.advance(REQUEST_NS // 2 - 1)
    disk.disk.settle()
    assert disk.used() == []
    disk.timers.advance(1)
    assert [head for head, _ in disk.used()] == [0, 6, 3, 9]
    for number, at in enumerate(places):
        assert disk.memory.read(at, 513) == bytes([7 - number]) * 512 + b"\0"
    assert disk.timers.next_deadline() == 2**64 - 1


def test_a_write_is_there_for_the_next_request(disk: VirtioRig) -> None:
    data = lay_out(disk, 0, OUT, 5)
    disk.memory.write(data, b"new" + bytes(509))
    at = lay_out(disk, 1, IN, 5)
    disk.offer(0)
    disk.offer(3)
    disk.timers.advance(REQUEST_NS)
    assert disk.memory.read(at, 3) == b"new"


def test_a_reset_forgets_what_waits(disk: VirtioRig) -> None:
    at = lay_out(disk, 0, IN, 5)
    disk.offer(0)
    disk.start()
    disk.timers.advance(2 * REQUEST_NS)
    assert disk.memory.read(at + 512, 1) == b"\xff"
    assert disk.disk.counters()["reads"] == 0


def test_what_waits_at_a_stop_is_served_once_the_machine_goes_on(disk: VirtioRig) -> None:
    at = lay_out(disk, 0, IN, 5)
    disk.offer(0)
    disk.core.stop = 1
    disk.timers.now += REQUEST_NS
    assert disk.timers.run_due() == 1
    assert disk.disk.counters()["reads"] == 0
    disk.core.stop = 0
    disk.timers.advance(1)
    assert disk.memory.read(at, 513) == bytes([5]) * 512 + b"\0"
    assert disk.used() == [(0, 513)]


def test_a_stop_in_the_middle_of_a_request_cuts_it_and_it_begins_again(tmp_path: Path) -> None:
    """At whatever moment it comes, the driver sees one request that is served once."""
    path = tmp_path / "large"
    contents = b"\1".ljust(512, b"x") * (LARGE // 512)
    path.write_bytes(contents)
    cut = 0
    with VirtioRig(path, virtual=True) as rig:
        for _ in range(30):
            rig.start()
            at = lay_out(rig, 0, IN, 0, LARGE)
            rig.memory.write(at, bytes(LARGE))
            rig.offer(0)
            stopper = threading.Thread(target=stop_once_it_reads, args=(rig, at))
            stopper.start()
            rig.timers.now += REQUEST_NS
            rig.timers.run_due()
            cut += not rig.used()
            stopper.join()
            rig.core.stop = 0
            rig.timers.advance(1)
            assert rig.used() == [(0, LARGE + 1)]
            assert rig.memory.read(at, LARGE) == contents
            if cut == 3:
                break


def stop_once_it_reads(rig: VirtioRig, at: int) -> None:
    while rig.memory.read(at, 1) == b"\0":
        pass
    rig.core.stop = 1
