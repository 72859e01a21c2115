"""Virtual machines: memory slots, by their calls and by what a guest sees."""

import errno
import mmap

import pytest
from tiny_guest import SIZE, TinyGuest, refused
from vmm._native import ffi

from vmm.kvm import Kvm, Vm
from vmm.kvm.exits import Hlt, Io, Mmio

pytestmark = [pytest.mark.needs_kvm, pytest.mark.hw, pytest.mark.usefixtures("kvm_device")]

PAGE = 4096


@pytest.fixture
def page() -> mmap.mmap:
    # Not closed: KVM keeps a view of it until the machine goes.
    return mmap.mmap(-1, PAGE)


def test_set_user_memory_region_by_address(vm: Vm, page: mmap.mmap) -> None:
    vm.set_user_memory_region(0, 0x1000, PAGE, int(ffi.cast("uintptr_t", ffi.from_buffer(page))))


def test_set_user_memory_region_overlap(vm: Vm, page: mmap.mmap) -> None:
    vm.set_user_memory_region(0, 0x1000, PAGE, page)
    refused(
        errno.EEXIST,
        lambda: vm.set_user_memory_region(1, 0x1000, PAGE, page),
        r"failed for slot 1, 0x1000 bytes at GPA 0x1000: File exists \(EEXIST\); .* overlaps",
    )


def test_set_user_memory_region_misaligned(vm: Vm, page: mmap.mmap) -> None:
    refused(errno.EINVAL, lambda: vm.set_user_memory_region(0, 0x1001, PAGE, page), "GPA 0x1001: Invalid argument")
    refused(errno.EINVAL, lambda: vm.set_user_memory_region(0, 0x1000, PAGE - 1, page))


def test_set_user_memory_region_slot_beyond_the_limit(kvm: Kvm, vm: Vm, page: mmap.mmap) -> None:
    refused(errno.EINVAL, lambda: vm.set_user_memory_region(kvm.max_memory_slots, 0x1000, PAGE, page))


def test_set_user_memory_region_needs_a_writable_buffer(vm: Vm) -> None:
    with pytest.raises(BufferError):
        vm.set_user_memory_region(0, 0, PAGE, bytes(PAGE))


def test_delete_memory_region(vm: Vm, page: mmap.mmap) -> None:
    vm.set_user_memory_region(0, 0x1000, PAGE, page)
    vm.delete_memory_region(0)
    vm.set_user_memory_region(1, 0x1000, PAGE, page)
    refused(errno.EINVAL, lambda: vm.delete_memory_region(0))


def test_memory_is_pinned_while_a_slot_has_it(vm: Vm, page: mmap.mmap) -> None:
    vm.set_user_memory_region(0, 0x1000, PAGE, page)
    with pytest.raises(BufferError):
        page.close()
    vm.delete_memory_region(0)
    page.close()


def test_read_only_region(page: mmap.mmap) -> None:
    page[:2] = b"\x12\x34"
    # mov al, [0xf000] ; mov [0xf001], al ; hlt
    with TinyGuest("a0 00 f0  a2 01 f0  f4") as guest:
        guest.vm.delete_memory_region(0)
        guest.vm.set_user_memory_region(0, 0, 0xF000, guest.memory)
        guest.vm.set_user_memory_region(1, 0xF000, PAGE, page, read_only=True)
        store = guest.vcpu.run_once()
        assert isinstance(store, Mmio)
        assert (store.gpa, store.is_write, bytes(store.data)) == (0xF001, True, b"\x12")
        assert isinstance(guest.vcpu.run_once(), Hlt)
        assert page[:2] == b"\x12\x34"


def test_deleted_region_is_mmio() -> None:
    # mov al, [0xf000] ; out 0x10, al
    with TinyGuest("a0 00 f0  e6 10") as guest:
        guest.vm.delete_memory_region(0)
        guest.vm.set_user_memory_region(0, 0, 0xF000, guest.memory)
        load = guest.vcpu.run_once()
        assert isinstance(load, Mmio)
        assert (load.gpa, load.is_write, len(load.data)) == (0xF000, False, 1)
        load.data[:] = b"\x5a"
        out = guest.vcpu.run_once()
        assert isinstance(out, Io)
        assert bytes(out.data) == b"\x5a"


def test_dirty_log() -> None:
    # mov [0x3000], al ; mov [0xf000], al ; hlt
    with TinyGuest("a2 00 30  a2 00 f0  f4") as guest:
        guest.vm.delete_memory_region(0)
        guest.vm.set_user_memory_region(0, 0, SIZE, guest.memory, log_dirty_pages=True)
        assert isinstance(guest.vcpu.run_once(), Hlt)
        dirty = int.from_bytes(guest.vm.dirty_log(0, SIZE), "little")
        # Some hosts also report pages that were only executed.
        assert dirty & (1 << 0x3 | 1 << 0xF) == 1 << 0x3 | 1 << 0xF
        assert not dirty & 1 << 0x5
        assert int.from_bytes(guest.vm.dirty_log(0, SIZE), "little") == 0


def test_dirty_log_of_a_slot_without_one(vm: Vm, page: mmap.mmap) -> None:
    vm.set_user_memory_region(0, 0x1000, PAGE, page)
    refused(errno.ENOENT, lambda: vm.dirty_log(0, PAGE))
