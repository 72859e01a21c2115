"""Ranges, overlaps and failing devices, through the table that the guest's accesses go through."""

import signal
import threading
import time
from pathlib import Path

import pytest
from device_rig import Rig
from vmm._native import ffi, lib

from vmm.bus import Device, IoLock
from vmm.devices.clock import GuestClock
from vmm.errors import ConfigError

FUTEX = "202"
"""As the system calls of x86-64 are numbered."""


class Recorder(Device):
    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.log.append(("read", offset, size))
        return 0x1122_3344_5566_7788

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append(("write", offset, size, value))


class Broken(Device):
    def read(self, offset: int, size: int) -> int:
        raise RuntimeError("broken read")

    def write(self, offset: int, size: int, value: int) -> None:
        raise RuntimeError("broken write")


def test_device_sees_offsets_and_gives_as_many_bytes_as_asked() -> None:
    rig, device = Rig(), Recorder()
    rig.ports.add(0x100, 0x107, device, "recorder")
    assert rig.inp(0x102, 2) == 0x7788
    rig.out(0x104, 4, 0xDEADBEEF)
    assert device.log == [("read", 2, 2), ("write", 4, 4, 0xDEADBEEF)]


def test_negative_values_read_as_all_ones() -> None:
    class Ones(Device):
        def read(self, offset: int, size: int) -> int:
            return -1

    rig = Rig()
    rig.mmio.add(0xC000_0000, 0xC000_00FF, Ones(), "ones")
    assert rig.load(0xC000_0000, 8) == (1 << 64) - 1


def test_string_instructions_reach_one_port_element_by_element() -> None:
    rig, device = Rig(), Recorder()
    rig.ports.add(0x100, 0x100, device, "recorder")
    rig.outs(0x100, 1, b"abc")
    assert rig.ins(0x100, 1, 2) == b"\x88\x88"
    assert device.log == [("write", 0, 1, 97), ("write", 0, 1, 98), ("write", 0, 1, 99)] + [("read", 0, 1)] * 2


def test_string_writes_of_wide_elements_keep_their_byte_order() -> None:
    rig, device = Rig(), Recorder()
    rig.ports.add(0x100, 0x103, device, "recorder")
    rig.outs(0x100, 2, bytes.fromhex("34127856"))
    assert device.log == [("write", 0, 2, 0x1234), ("write", 0, 2, 0x5678)]


def test_overlap_is_refused_and_names_both() -> None:
    rig = Rig()
    rig.ports.add(0x3F8, 0x3FF, Recorder(), "COM1")
    with pytest.raises(ConfigError, match=r"port 0x3f0-0x3f8 \(floppy\) overlaps 0x3f8-0x3ff \(COM1\)"):
        rig.ports.add(0x3F0, 0x3F8, Recorder(), "floppy")
    assert [r.name for r in rig.ports.ranges()] == ["COM1"]


def test_native_and_python_devices_share_the_table() -> None:
    rig = Rig()
    timer = ffi.new("struct pm_timer *")
    clock = GuestClock()
    lib.pm_timer_init(timer, clock.core, 24)
    rig.ports.add_native(0x608, 0x60B, ffi.addressof(lib, "pm_timer_access"), timer, "PM timer")
    with pytest.raises(ConfigError, match="PM timer"):
        rig.ports.add(0x600, 0x608, Recorder(), "PM1a")
    assert rig.inp(0x608, 4) < 1 << 24


def test_empty_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="empty"):
        Rig().ports.add(5, 4, Recorder(), "nothing")


def test_a_full_table_is_refused() -> None:
    rig = Rig()
    for i in range(lib.IO_TABLE_MAX_RANGES):
        rig.ports.add(i, i, Recorder(), f"port {i}")
    with pytest.raises(ConfigError, match="no room"):
        rig.ports.add(0x1000, 0x1000, Recorder(), "one too many")


def test_range_removed_reads_all_ones_and_its_counters_stay() -> None:
    rig, device = Rig(), Recorder()
    rig.ports.add(0x100, 0x103, device, "mobile")
    rig.inp(0x100, 1)
    rig.ports.remove(0x100)
    assert rig.inp(0x100, 4) == 0xFFFF_FFFF
    rig.ports.add(0x200, 0x203, device, "mobile")
    rig.out(0x200, 1, 0)
    (row,) = rig.ports.ranges()
    assert (row.first, row.last, row.reads, row.writes) == (0x200, 0x203, 1, 1)


def test_removing_what_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        Rig().ports.remove(0x100)


def test_device_may_remove_itself_while_it_is_called() -> None:
    rig = Rig()

    class Once(Device):
        def read(self, offset: int, size: int) -> int:
            rig.ports.remove(0x100)
            return 0x42

    rig.ports.add(0x100, 0x100, Once(), "once")
    assert rig.inb(0x100) == 0x42
    assert rig.inb(0x100) == 0xFF


def test_access_across_two_ranges_is_split_into_bytes() -> None:
    rig, first, second = Rig(), Recorder(), Recorder()
    rig.ports.add(0x100, 0x101, first, "first")
    rig.ports.add(0x102, 0x103, second, "second")
    rig.out(0x101, 2, 0xBBAA)
    assert first.log == [("write", 1, 1, 0xAA)]
    assert second.log == [("write", 0, 1, 0xBB)]


def test_failing_device_gives_all_ones_and_is_reported_once() -> None:
    rig = Rig()
    rig.ports.add(0x100, 0x103, Broken(), "broken")
    assert rig.inp(0x100, 4) == 0xFFFF_FFFF
    assert rig.ins(0x100, 2, 3) == b"\xff" * 6
    rig.out(0x100, 1, 0)
    assert [str(error) for error in rig.failures] == ["broken read"]
    assert rig.ports.failure is rig.failures[0]
    assert rig.failures[0].__notes__ == ["in port device broken, offset 0x0"]


def test_lock_is_recursive_and_keeps_other_threads_out() -> None:
    rig = Rig()
    entered = threading.Event()

    def other() -> None:
        with rig.lock:
            entered.set()

    with rig.lock, rig.lock:
        thread = threading.Thread(target=other)
        thread.start()
        assert not entered.wait(0.05)
    assert entered.wait(60)
    thread.join()


def test_ctrl_c_while_a_thread_waits_for_io_lock_leaves_it_free() -> None:
    core = ffi.gc(lib.vmm_vm_new(-1), lib.vmm_vm_free)
    first = int(ffi.cast("uintptr_t", core))
    waiter, task = threading.get_ident(), Path(f"/proc/self/task/{threading.get_native_id()}/syscall")
    taken = threading.Event()

    def waits() -> bool:
        number, *operands = task.read_text("ascii").split()
        return number == FUTEX and first <= int(operands[0], 16) < first + ffi.sizeof("struct vmm_vm")

    def hold() -> None:
        with IoLock(core):
            taken.set()
            while not waits():
                time.sleep(0.001)
            signal.pthread_kill(waiter, signal.SIGUSR1)

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    holder = threading.Thread(target=hold)
    try:
        holder.start()
        taken.wait()
        with pytest.raises(KeyboardInterrupt), IoLock(core):
            pytest.fail("the signal did not come")
    finally:
        signal.signal(signal.SIGUSR1, before)
        holder.join()
    later = threading.Thread(target=lambda: IoLock(core).__enter__().__exit__(None, None, None), daemon=True)
    later.start()
    later.join(60)
    assert not later.is_alive()
