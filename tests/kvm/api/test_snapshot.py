"""Snapshots: a machine goes on in another as if nothing had been, wherever it was stopped."""

import ctypes
import gc
import mmap
import os
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from accelerators import PLAIN
from waiting_guest import DONE, GENEROUS, READY, answers_as, write_waiting_guest

from vmm import Machine, MachineConfig, Reason, Snapshot
from vmm.bus import Device
from vmm.errors import ConfigError, VmmError
from vmm.pytest_plugin.plugin import MachineFactory
from vmm.tables.files import VMGENID_ADDRESS_FILE

pytestmark = pytest.mark.needs_kvm

ACCELERATORS = [pytest.param("kvm", marks=pytest.mark.hw), "auto", "softcpu"]
"""Plain KVM, and what this host uses for firmware."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    """A guest that waits, with two CPUs and an item of fw_cfg; plain KVM."""
    image = write_waiting_guest(tmp_path_factory.mktemp("waits"))
    with Machine(image, cpus=2, memory="64M", accel=PLAIN, fw_cfg={"opt/org.example/b": b"first"}) as machine:
        machine.expect(READY, deadline=GENEROUS)
        with machine.snapshot() as snapshot:
            yield snapshot


def test_machines_of_one_snapshot_run_side_by_side_and_see_nothing_of_each_other(stopped: Snapshot) -> None:
    with Machine.restore(stopped) as first, Machine.restore(stopped) as second:
        first.memory.write(0x1000, b"first")
        assert second.memory.read(0x1000, 5) != b"first"
        texts: list[str] = []
        threads = [
            threading.Thread(target=lambda machine=machine: texts.append(answers_as(machine)))
            for machine in (first, second)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert texts == [f"{READY}\n{DONE}\n"] * 2
    with Machine.restore(stopped) as third:
        assert third.memory.read(0x1000, 5) != b"first"


def test_a_console_goes_on_where_it_was_read(stopped: Snapshot) -> None:
    with Machine.restore(stopped) as machine:
        assert machine.debugcon.text() == f"{READY}\n"
        machine.send("x")
        assert machine.expect([READY, DONE], deadline=GENEROUS).which == 1


def test_what_is_typed_and_not_read_yet_is_kept(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    machine = vmm_machine(write_waiting_guest(tmp_path), accel=PLAIN)
    machine.send("xyz")
    with machine.snapshot() as snapshot, Machine.restore(snapshot) as restored:
        for _ in range(3):
            restored.expect(DONE, deadline=GENEROUS)


def test_a_restored_machine_can_be_taken_again(stopped: Snapshot) -> None:
    with Machine.restore(stopped) as machine:
        machine.memory.write(0x20_0000, b"written later")
        answers_as(machine)
        again = machine.snapshot()
    with again, Machine.restore(again) as machine:
        assert machine.memory.read(0x20_0000, 13) == b"written later"
        assert answers_as(machine) == f"{READY}\n{DONE}\n{DONE}\n"


@pytest.mark.parametrize("accel", ["kvm", "auto", "softcpu"])
def test_a_restored_machine_can_be_reset(vmm_machine: MachineFactory, tmp_path: Path, accel: str) -> None:
    machine = vmm_machine(write_waiting_guest(tmp_path), cpus=2, accel=accel)
    machine.expect(READY, deadline=GENEROUS)
    with machine.snapshot() as snapshot, Machine.restore(snapshot) as restored:
        restored.reset()
        restored.expect(READY, deadline=GENEROUS)
        with restored.snapshot() as again, Machine.restore(again) as third:
            assert answers_as(third) == f"{READY}\n{READY}\n{DONE}\n"


@pytest.mark.hw
def test_items_below_opt_may_be_others() -> None:
    with Machine("probe", accel=PLAIN, fw_cfg={"opt/org.example/b": b"first"}) as machine:
        snapshot = machine.snapshot()
    items = {"opt/org.example/a": b"new", "opt/org.example/b": b"second"}
    with snapshot, Machine.restore(snapshot, fw_cfg=items) as other, Machine.restore(snapshot) as same:
        assert other.fw_cfg is not None
        assert same.fw_cfg is not None
        assert other.fw_cfg.contents("opt/org.example/b") == b"second"
        assert other.fw_cfg.key_of("opt/org.example/b") == same.fw_cfg.key_of("opt/org.example/b")
        known = [item.key for item in same.fw_cfg.items() if item.key < 0x4000]
        assert other.fw_cfg.key_of("opt/org.example/a") == max(known) + 1
        assert other.run(deadline=GENEROUS).reason is Reason.POWER_OFF
        assert "item: opt/org.example/a " in other.debugcon.text()
        with pytest.raises(ConfigError, match="below opt/"):
            Machine.restore(snapshot, fw_cfg={"etc/e820": b""})


def read_tsc(machine: Machine) -> int:
    before = machine.debugcon.total
    machine.send("x")
    while machine.debugcon.total < before + 8:
        assert machine.run(deadline=0.02).reason is Reason.TIMEOUT
    return int.from_bytes(machine.debugcon.since(before), "little")


@pytest.mark.hw
def test_time_goes_on_from_where_it_stopped_or_jumps_to_now(tmp_path: Path) -> None:
    with Machine(write_waiting_guest(tmp_path, tsc=True), memory="16M") as machine:
        machine.expect(READY, deadline=GENEROUS)
        khz = machine.vcpus[0].get_tsc_khz()
        began = time.monotonic_ns()
        first = read_tsc(machine)
        taken_at = machine._clock()
        snapshot = machine.snapshot()
        taking = time.monotonic_ns() - began
    asleep = 1_000_000_000
    time.sleep(asleep / 1e9)
    for when, least in (("stopped", 0), ("now", asleep)):
        began = time.monotonic_ns()
        with Machine.restore(snapshot, time=when) as machine:
            guest_ns = machine._clock() - taken_at
            tsc_ns = (read_tsc(machine) - first) * 1_000_000 // khz
            lived = time.monotonic_ns() - began
            # The wall clock, which "now" goes by, may be slewed.
            most = taking + lived if when == "stopped" else 600 * asleep
            assert least * 0.99 <= guest_ns <= most
            assert least * 0.99 <= tsc_ns <= most
    snapshot.close()


def test_a_new_generation_is_in_the_guests_memory_and_raises_its_event() -> None:
    device = "vmgenid,guid=324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"
    config = MachineConfig.create("probe", accel=PLAIN, devices=device, memory="64M")
    address = 0x20_0028
    with Machine(config) as machine:
        assert machine.fw_cfg is not None
        # What firmware does: a copy of the file in RAM, and its address in the other one.
        machine.memory.write(address, config.vmgenid or b"")
        state = machine.fw_cfg.state()
        state["contents"][VMGENID_ADDRESS_FILE] = address.to_bytes(8, "little")
        machine.fw_cfg.restore(state)
        snapshot = machine.snapshot()
    wanted = "00112233-4455-6677-8899-aabbccddeeff"
    with snapshot, Machine.restore(snapshot) as same, Machine.restore(snapshot, generation=wanted) as other:
        assert same.memory.read(address, 16) == config.vmgenid
        assert same.platform.pm.gpe0.read(0, 1) == 0
        assert other.memory.read(address, 16) == bytes.fromhex("33221100554477668899aabbccddeeff")
        assert other.platform.pm.gpe0.read(0, 1) == 1 << 5
        assert other.config.vmgenid == other.memory.read(address, 16)


def test_what_cannot_be_taken_is_refused(vmm_machine: MachineFactory, stopped: Snapshot) -> None:
    machine = vmm_machine("probe", accel=PLAIN)
    refused: list[str] = []

    def while_it_runs(running: Machine) -> None:
        with pytest.raises(RuntimeError) as raised:
            running.snapshot()
        refused.append(str(raised.value))

    with Machine.restore(stopped) as waiting:
        waiting.run(deadline=0.05, on_poll=while_it_runs)
    assert refused
    assert all("is running" in text for text in refused)
    machine.run(deadline=GENEROUS)
    with pytest.raises(VmmError, match="has ended: the guest powered"):
        machine.snapshot()
    machine.close()
    with pytest.raises(ValueError, match="closed"):
        machine.snapshot()
    other = vmm_machine("probe", accel=PLAIN)
    other.ports.add(0x580, 0x583, Device(), "counter")
    with pytest.raises(ConfigError, match="counter was added by hand"):
        other.snapshot()
    with pytest.raises(ConfigError, match="no VM generation id"):
        Machine.restore(stopped, generation="auto")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


class MallocInfo(ctypes.Structure):
    """<malloc.h>: struct mallinfo2."""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    )


def allocated() -> int:
    """Bytes that malloc has given and not got back.

    The process's RSS says less: what is free stays in the arenas of threads that have ended, some 2 MiB more or less of
    it from one restore to the next.
    """
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = MallocInfo
    info = mallinfo()
    return int(info.uordblks) + int(info.hblkhd)


def resident() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(text.split("Anonymous:")[1].split()[0])


def grown(values: Sequence[int]) -> list[int]:
    return [after - before for before, after in pairwise(values)]


@pytest.mark.parametrize("accel", ACCELERATORS)
def test_restored_machines_leave_nothing_behind(accel: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    quarter = request.config.getoption("--restores") // 4
    with Machine(write_waiting_guest(tmp_path), cpus=2, memory="64M", accel=accel) as machine:
        machine.expect(READY, deadline=GENEROUS)
        snapshot = machine.snapshot()
    counted = []
    with snapshot:
        for _ in range(4):
            for _ in range(quarter):
                with Machine.restore(snapshot) as restored:
                    answers_as(restored)
                del restored
            gc.collect()
            counted.append((open_files(), threading.active_count(), mappings(), allocated(), resident()))
    files, threads, maps, bytes_allocated, bytes_resident = zip(*counted, strict=True)
    assert len(set(files)) == 1
    assert len(set(threads)) == 1
    assert max(maps[1:]) <= maps[0] + 8, "the allocator may split its own"
    # What leaks grows in each quarter; a table of Python's that is doubled, or another of malloc's arenas, in one.
    assert min(grown(bytes_allocated)) < (16 << 10) + quarter * 512
    assert min(grown(bytes_resident)) < 256 << 10


def test_cost_of_memory_is_what_was_touched() -> None:
    far = 0x1_0000_0000 + (100 << 20)
    with Machine("probe", memory="4G", accel=PLAIN) as machine:
        machine.memory.write(far, b"above 4 GiB")
        with machine.snapshot() as snapshot:
            assert sum(size for _, size in snapshot.memory.extents()) < 8 << 20
            with Machine.restore(snapshot) as restored, restored.snapshot() as again:
                assert sum(size for _, size in again.memory.extents()) < 8 << 20
                with Machine.restore(again) as third:
                    assert third.memory.read(far, 11) == b"above 4 GiB"


def test_a_snapshot_cannot_be_changed(stopped: Snapshot) -> None:
    with pytest.raises(OSError, match="not permitted"):
        mmap.mmap(stopped.memory.fd, mmap.PAGESIZE)


def test_disks_that_stay_as_they_are(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    image, disk = write_waiting_guest(tmp_path), tmp_path / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    for option in ("readonly=on", "snapshot=on"):
        machine = vmm_machine(image, accel=PLAIN, drives=f"file={disk},format=raw,if=virtio,{option}")
        machine.expect(READY, deadline=GENEROUS)
        with machine.snapshot() as snapshot:
            with Machine.restore(snapshot) as restored, Machine.restore(snapshot) as beside:
                assert answers_as(restored) == answers_as(beside)
            before = disk.stat()
            disk.write_bytes(bytes(1 << 20))
            os.utime(disk, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
            with pytest.raises(ConfigError, match="the image was changed"):
                Machine.restore(snapshot)
        machine.close()
    writable = vmm_machine(image, accel=PLAIN, drives=f"file={disk},format=raw,if=virtio")
    with pytest.raises(ConfigError, match="what the guest wrote there"):
        writable.snapshot()
