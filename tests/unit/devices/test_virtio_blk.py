"""Requests of a virtio disk, as a driver makes them, good ones and bad ones."""

import mmap
import os
import resource
import struct
import tracemalloc
from pathlib import Path

import pytest
from virtio_rig import (
    BUFFERS,
    CONFIG,
    CONFIG_WCE,
    DISCARD,
    DRIVER_OK,
    F_DISCARD,
    F_EVENT_INDEX,
    F_INDIRECT,
    F_WRITE_ZEROES,
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    ISR,
    NEEDS_RESET,
    OK,
    OUT,
    RO,
    SECTORS,
    STATUS,
    TABLE,
    UNSUPP,
    WRITE_ZEROES,
    Segment,
    VirtioRig,
)

from vmm.disks.drives import Cache, Drive


def test_the_configuration_says_what_the_disk_is(disk: VirtioRig) -> None:
    assert disk.load(CONFIG, 8) == SECTORS
    assert disk.load(CONFIG + 12, 4) == 254, "seg_max: the size of the queue without header and status"
    assert disk.load(CONFIG + 20, 4) == 512
    assert not disk.offered() >> RO & 1
    assert not disk.offered() >> F_DISCARD & 1, "which would do nothing without discard=unmap"


def test_reads(disk: VirtioRig) -> None:
    assert disk.read_sectors(0) == bytes(512)
    assert disk.read_sectors(5, 3) == b"".join(bytes((sector,)) * 512 for sector in (5, 6, 7))
    assert disk.read_sectors(SECTORS - 1) == bytes((SECTORS - 1,)) * 512
    assert disk.used()[-1] == (0, 513)


def test_any_framing_will_do(disk: VirtioRig) -> None:
    """Virtio 1.2, 2.7.4.1: the device makes no assumption on how buffers are cut."""
    header = struct.pack("<IIQ", IN, 0, 7)
    rooms = (1, 510, 514)
    parts = disk.submit([Segment(header[:3]), Segment(header[3:]), *(Segment(room=room) for room in rooms)])
    assert b"".join(parts) == b"\7" * 512 + b"\10" * 512 + b"\0"
    data = os.urandom(512)
    assert disk.submit([Segment(struct.pack("<IIQ", OUT, 0, 9) + data[:100]), Segment(data[100:]), Segment(room=1)])
    assert disk.read_sectors(9) == data


@pytest.mark.parametrize("cache", list(Cache))
def test_writes_reach_the_file(image: Path, cache: Cache) -> None:
    data = os.urandom(5 * 512)
    with VirtioRig(Drive(image, cache=cache)) as disk:
        disk.start()
        assert disk.request(OUT, 11, data) == (OK, b"")
        assert disk.request(FLUSH) == (OK, b"")
        assert disk.read_sectors(11, 5) == data
        assert disk.load(CONFIG + 32, 1) == cache.write_back
        counters = disk.disk.counters()
    whole = image.read_bytes()
    assert whole[11 * 512 : 16 * 512] == data
    assert whole[: 11 * 512] + whole[16 * 512 :] == b"".join(
        bytes((sector,)) * 512 for sector in range(SECTORS) if not 11 <= sector < 16
    )
    assert (counters["writes"], counters["bytes_written"], counters["flushes"]) == (1, 5 * 512, 1)


def test_a_request_longer_than_a_thread_s_buffer(tmp_path: Path) -> None:
    path = tmp_path / "large.img"
    path.write_bytes(os.urandom(3 << 20))
    with VirtioRig(path) as disk:
        disk.start()
        assert disk.read_sectors(1, 6000) == path.read_bytes()[512 : 6001 * 512]
        data = os.urandom(2 << 20)
        assert disk.request(OUT, 3, data) == (OK, b"")
    assert path.read_bytes()[3 * 512 : 3 * 512 + len(data)] == data


@pytest.mark.parametrize(
    ("sector", "length"),
    [(SECTORS, 512), (SECTORS - 1, 1024), (0, 511), (1 << 63, 512), (2**64 - 1, 512), (2**55, 512)],
)
def test_nothing_outside_the_disk_is_read_or_written(disk: VirtioRig, image: Path, sector: int, length: int) -> None:
    before = image.read_bytes()
    assert disk.request(OUT, sector, b"x" * length)[0] == IOERR
    assert disk.request(IN, sector, room=length)[0] == IOERR
    assert disk.status & DRIVER_OK
    assert not disk.status & NEEDS_RESET
    assert image.read_bytes() == before


def test_read_only(image: Path) -> None:
    before = image.read_bytes()
    with VirtioRig(Drive(image, read_only=True, unmap=True)) as disk:
        disk.start()
        assert disk.offered() >> RO & 1
        assert not disk.offered() >> F_WRITE_ZEROES & 1
        assert disk.request(OUT, 0, b"x" * 512)[0] == IOERR
        assert disk.request(WRITE_ZEROES, data=struct.pack("<QII", 0, 1, 0))[0] == UNSUPP
        assert disk.read_sectors(1) == b"\1" * 512
    assert image.read_bytes() == before


def test_snapshot_leaves_the_image_alone(image: Path) -> None:
    before = image.read_bytes()
    image.chmod(0o444)
    with VirtioRig(Drive(image, snapshot=True)) as disk:
        disk.start(F_WRITE_ZEROES)
        assert disk.request(OUT, 3, b"x" * 1024)[0] == OK
        assert disk.request(WRITE_ZEROES, data=struct.pack("<QII", 7, 2, 0))[0] == OK
        assert disk.request(FLUSH)[0] == OK
        expected = before[: 3 * 512] + b"x" * 1024 + before[5 * 512 : 7 * 512] + bytes(1024) + before[9 * 512 :]
        assert disk.read_sectors(0, SECTORS) == expected
    assert image.read_bytes() == before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_the_overlay_of_a_huge_image_costs_what_is_written(tmp_path: Path) -> None:
    huge = tmp_path / "huge.img"
    huge.touch()
    os.truncate(huge, 8 << 40)
    before = resident()
    with VirtioRig(Drive(huge, snapshot=True)) as disk:
        disk.start()
        tracemalloc.start()
        assert not disk.disk.is_written
        for sector in (0, 1 << 33, (8 << 40) // 512 - 1):
            assert disk.request(OUT, sector, data=b"x" * 512)[0] == OK
            assert disk.read_sectors(sector) == b"x" * 512
        assert disk.disk.is_written
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()
        assert resident() - before < 64 << 20, "one bit for each sector is 2 GiB"
    assert huge.stat().st_blocks == 0


def test_identification(image: Path) -> None:
    with VirtioRig(Drive(image, serial="0123456789abcdefghij")) as disk:
        disk.start()
        assert disk.request(GET_ID, room=20) == (OK, b"0123456789abcdefghij")
        assert disk.request(GET_ID, room=5) == (OK, b"01234")


def test_an_unknown_request(disk: VirtioRig) -> None:
    assert disk.request(99)[0] == UNSUPP
    assert disk.request(DISCARD, data=struct.pack("<QII", 0, 1, 0))[0] == UNSUPP, "it was not negotiated"


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_discard_gives_room_back(tmp_path: Path) -> None:
    path = tmp_path / "large.img"
    path.write_bytes(b"x" * (1 << 20))
    os.sync()
    before = allocated(path)
    with VirtioRig(Drive(path, unmap=True)) as disk:
        disk.start(F_DISCARD, F_WRITE_ZEROES)
        assert disk.request(DISCARD, data=struct.pack("<QII", 0, 1024, 0))[0] == OK
        assert allocated(path) <= before - (512 << 10)
        assert disk.request(WRITE_ZEROES, data=struct.pack("<QII", 1024, 512, 1))[0] == OK
        assert allocated(path) <= before - (768 << 10)
        assert disk.request(WRITE_ZEROES, data=struct.pack("<QII", 1536, 8, 0))[0] == OK
    assert path.read_bytes() == bytes(1544 * 512) + b"x" * ((2048 - 1544) * 512)


@pytest.mark.parametrize(
    ("kind", "ranges", "status"),
    [
        (DISCARD, struct.pack("<QII", SECTORS - 1, 2, 0), IOERR),
        (DISCARD, struct.pack("<QII", 0, 1, 1), UNSUPP),
        (DISCARD, struct.pack("<QII", 0, 1, 0) * 2, IOERR),
        (WRITE_ZEROES, struct.pack("<QII", 0, 0xFFFF_FFFF, 0), IOERR),
        (WRITE_ZEROES, struct.pack("<QII", 2**64 - 1, 1, 0), IOERR),
        (WRITE_ZEROES, struct.pack("<QII", 0, 1, 2), UNSUPP),
        (WRITE_ZEROES, b"short", IOERR),
    ],
)
def test_ranges_that_cannot_be_given_back(image: Path, kind: int, ranges: bytes, status: int) -> None:
    before = image.read_bytes()
    with VirtioRig(Drive(image, unmap=True)) as disk:
        disk.start(F_DISCARD, F_WRITE_ZEROES)
        assert disk.request(kind, data=ranges)[0] == status
    assert image.read_bytes() == before


def test_an_image_that_became_shorter_is_an_error_of_the_disk(disk: VirtioRig, image: Path) -> None:
    os.truncate(image, 10 * 512)
    assert disk.request(IN, 9, room=512)[0] == OK
    assert disk.request(IN, 10, room=512)[0] == IOERR
    assert disk.disk.counters()["errors"] == 1


def test_a_full_disk_is_an_error_of_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "sparse.img"
    path.touch()
    os.truncate(path, 1 << 20)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with VirtioRig(path) as disk:
        disk.start()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
            assert disk.request(OUT, 16, b"x" * 512)[0] == IOERR
            assert disk.request(OUT, 7, b"x" * 512)[0] == OK
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert disk.request(OUT, 16, b"y" * 512)[0] == OK, "the guest may try again"
        assert disk.disk.counters()["errors"] == 1


def test_a_driver_may_turn_the_write_cache_off(disk: VirtioRig) -> None:
    disk.store(CONFIG + 32, 1, 0)
    assert disk.load(CONFIG + 32, 1) == 1, "it was not negotiated"
    disk.start(CONFIG_WCE)
    disk.store(CONFIG + 32, 1, 0)
    assert disk.load(CONFIG + 32, 1) == 0
    assert disk.request(OUT, 0, b"x" * 512)[0] == OK
    disk.store(CONFIG, 8, 1 << 40)
    assert disk.load(CONFIG, 8) == SECTORS
    disk.start()
    assert disk.load(CONFIG + 32, 1) == 1


def test_reset_of_the_machine(disk: VirtioRig) -> None:
    disk.chain([Segment(struct.pack("<IIQ", IN, 0, 1)), Segment(room=512), Segment(room=1)])
    disk.offer()
    disk.disk.reset()
    disk.pci.reset()
    disk.disk.settle()
    assert disk.config_read(4, 2) == 0
    assert disk.load(STATUS, 1) == 0xFF, "the BAR is gone"
    assert not any(disk.lines.values())
    disk.start()
    assert disk.read_sectors(3) == b"\3" * 512


def test_state_moves_to_another_device(image: Path) -> None:
    with VirtioRig(image) as one:
        one.start(F_EVENT_INDEX, F_INDIRECT)
        one.read_sectors(1)
        one.chain([Segment(struct.pack("<IIQ", IN, 0, 2)), Segment(room=512), Segment(room=1)])
        with one.lock:  # as long as that is held, nothing is given back
            one.offer()
            config, state = one.pci.state(), one.disk.state()
            memory, buffers = one.memory.read(TABLE, 0x3000), one.memory.read(BUFFERS, 0x1000)
        one.disk.settle()
        assert len(one.used()) == 2
        assert set(one.lines.values()) == {True}
    with VirtioRig(image) as other:
        other.memory.write(TABLE, memory)
        other.memory.write(BUFFERS, buffers)
        with other.lock:
            other.pci.restore(config)
            other.disk.restore(state)
            assert (other.pci.state(), other.disk.state()) == (config, state)
            assert other.lines == {19: True}
        other.disk.settle()
        assert len(other.used()) == 2
        assert other.memory.read(BUFFERS + 16, 512) == b"\2" * 512
        assert other.load(ISR, 1) == 1
        other.made = 2
        assert other.read_sectors(3) == b"\3" * 512


def test_a_request_that_was_being_served_is_served_again(image: Path) -> None:
    with VirtioRig(image) as disk:
        disk.start()
        config, state = disk.pci.state(), disk.disk.state()
        assert state["begun"] == []
        state["queues"][0]["next_available"] = 1
        state["begun"] = [0]
        with disk.lock:  # without it, a thread that was woken by the start may serve what is offered now
            disk.chain([Segment(struct.pack("<IIQ", IN, 0, 2)), Segment(room=512), Segment(room=1)])
            disk.offer(notify=False)
            disk.disk.reset()
            disk.pci.restore(config)
            disk.disk.restore(state)
        disk.disk.settle()
        assert disk.used() == [(0, 513)]
        assert disk.memory.read(BUFFERS + 16, 512) == b"\2" * 512
