"""A virtual machine: memory, interrupt controllers, timers, clock."""

import errno
import fcntl
import gc
import mmap
import os
import time
from collections.abc import Callable

import pytest
from tiny_guest import CODE, SIZE, TinyGuest, start
from vmm._native import ffi, lib

from vmm.errors import KvmError
from vmm.kvm import IrqchipRoute, Kvm, MsiRoute, Vcpu, Vm, pc_routes
from vmm.kvm.exits import Hlt, Io, Mmio

pytestmark = [pytest.mark.needs_kvm, pytest.mark.hw]

PAGE = 4096
MSI_TO_CPU_0 = 0xFEE00000


@pytest.fixture
def page() -> mmap.mmap:
    # Not closed: KVM keeps a view of it until the machine goes.
    return mmap.mmap(-1, PAGE)


def refused(error: int, call: Callable[[], object], text: str | None = None) -> None:
    with pytest.raises(KvmError, match=text) as info:
        call()
    assert info.value.errno == error
    assert "\n" not in str(info.value)


# -- lifetime ---------------------------------------------------------------------------------------------------------


def test_child_keeps_its_parents_alive() -> None:
    vcpu = Kvm().create_vm().create_vcpu(0)
    gc.collect()
    assert vcpu.vm.kvm.api_version() == 12
    assert vcpu.get_regs().rip == 0xFFF0
    vcpu.close()
    vcpu.vm.close()
    vcpu.vm.kvm.close()


def test_close_twice(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    vm.close()
    vm.close()
    assert vm.closed


def test_dropping_the_last_reference_closes(kvm: Kvm) -> None:
    fd = kvm.create_vm().fd
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_vm_outlives_its_system_descriptor(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        kvm.close()
        vm.create_irqchip()


# -- memory -----------------------------------------------------------------------------------------------------------


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


def test_set_identity_map_address(vm: Vm) -> None:
    vm.set_identity_map_address(0xFEFFC000)
    vm.create_vcpu(0)
    refused(errno.EINVAL, lambda: vm.set_identity_map_address(0xFEFFC000), "GPA 0xfeffc000")


def test_set_tss_address(vm: Vm) -> None:
    vm.set_tss_address(0xFEFFD000)
    refused(errno.EINVAL, lambda: vm.set_tss_address(0xFFFFF000), "KVM_SET_TSS_ADDR failed for GPA 0xfffff000")


# -- interrupts -------------------------------------------------------------------------------------------------------


def enable_lapic(vcpu: Vcpu) -> None:
    lapic = vcpu.get_lapic()
    ffi.buffer(lapic)[0xF0:0xF2] = b"\xff\x01"
    vcpu.set_lapic(lapic)


def requested(vcpu: Vcpu, vector: int) -> bool:
    """Does the LAPIC's interrupt request register show ``vector``?"""
    page = bytes(ffi.buffer(vcpu.get_lapic()))
    return bool(page[0x200 + vector // 32 * 16 + vector % 32 // 8] >> vector % 8 & 1)


def soon(condition: Callable[[], bool]) -> bool:
    """Wait for what the kernel does in a work queue."""
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def test_create_irqchip_twice(vm: Vm) -> None:
    vm.create_irqchip()
    refused(errno.EEXIST, vm.create_irqchip)


def test_create_irqchip_after_a_vcpu(vm: Vm) -> None:
    vm.create_vcpu(0)
    refused(errno.EINVAL, vm.create_irqchip)


def test_irq_line_reaches_both_chips(vm: Vm) -> None:
    vm.create_irqchip()
    vm.irq_line(3, True)
    assert vm.get_irqchip(lib.KVM_IRQCHIP_PIC_MASTER).chip.pic.irr == 1 << 3
    assert vm.get_irqchip(lib.KVM_IRQCHIP_IOAPIC).chip.ioapic.irr == 1 << 3
    vm.irq_line(12, True)
    assert vm.get_irqchip(lib.KVM_IRQCHIP_PIC_SLAVE).chip.pic.irr == 1 << 4


def test_irq_line_without_irqchip(vm: Vm) -> None:
    refused(errno.ENXIO, lambda: vm.irq_line(3, True), "GSI 3: .*create the in-kernel interrupt controller first")


def test_get_and_set_irqchip(vm: Vm) -> None:
    vm.create_irqchip()
    master = vm.get_irqchip(lib.KVM_IRQCHIP_PIC_MASTER)
    master.chip.pic.imr, master.chip.pic.irq_base = 0xA5, 0x20
    vm.set_irqchip(master)
    ioapic = vm.get_irqchip(lib.KVM_IRQCHIP_IOAPIC)
    assert ioapic.chip.ioapic.base_address == 0xFEC00000
    ioapic.chip.ioapic.redirtbl[4].bits = 0x10034
    vm.set_irqchip(ioapic)
    assert vm.get_irqchip(lib.KVM_IRQCHIP_PIC_MASTER).chip.pic.imr == 0xA5
    assert vm.get_irqchip(lib.KVM_IRQCHIP_PIC_SLAVE).chip.pic.imr == 0
    assert vm.get_irqchip(lib.KVM_IRQCHIP_IOAPIC).chip.ioapic.redirtbl[4].bits == 0x10034


def test_irqchip_state_of_an_unknown_chip(vm: Vm) -> None:
    refused(errno.ENXIO, lambda: vm.get_irqchip(lib.KVM_IRQCHIP_IOAPIC))
    vm.create_irqchip()
    refused(errno.EINVAL, lambda: vm.get_irqchip(9), "chip 9")
    state = vm.get_irqchip(lib.KVM_IRQCHIP_IOAPIC)
    state.chip_id = 9
    refused(errno.EINVAL, lambda: vm.set_irqchip(state), "chip 9")


def test_set_gsi_routing_replaces_the_wiring(vm: Vm) -> None:
    vm.create_irqchip()
    vm.set_gsi_routing([IrqchipRoute(5, lib.KVM_IRQCHIP_PIC_MASTER, 3)])
    vm.irq_line(5, True)
    assert vm.get_irqchip(lib.KVM_IRQCHIP_PIC_MASTER).chip.pic.irr == 1 << 3
    assert vm.get_irqchip(lib.KVM_IRQCHIP_IOAPIC).chip.ioapic.irr == 0


def test_pc_routes_put_the_timer_on_pin_2(vm: Vm) -> None:
    vm.create_irqchip()
    vm.set_gsi_routing(pc_routes())
    for gsi in (0, 9, 23):
        vm.irq_line(gsi, True)
    assert vm.get_irqchip(lib.KVM_IRQCHIP_IOAPIC).chip.ioapic.irr == 1 << 2 | 1 << 9 | 1 << 23
    assert vm.get_irqchip(lib.KVM_IRQCHIP_PIC_MASTER).chip.pic.irr & 1


def test_set_gsi_routing_to_no_chip(vm: Vm) -> None:
    vm.create_irqchip()
    refused(errno.EINVAL, lambda: vm.set_gsi_routing([IrqchipRoute(0, 7, 0)]), "1 routes")


def test_signal_msi(vm: Vm) -> None:
    vm.create_irqchip()
    vcpu = vm.create_vcpu(0)
    assert not vm.signal_msi(MSI_TO_CPU_0, 0x41), "the LAPIC is off at first"
    enable_lapic(vcpu)
    assert vm.signal_msi(MSI_TO_CPU_0, 0x41)
    assert requested(vcpu, 0x41)


def test_signal_msi_without_irqchip(vm: Vm) -> None:
    refused(errno.EINVAL, lambda: vm.signal_msi(MSI_TO_CPU_0, 0x41), "0x41 to 0xfee00000")


def test_irqfd_sends_an_msi(vm: Vm) -> None:
    vm.create_irqchip()
    vcpu = vm.create_vcpu(0)
    enable_lapic(vcpu)
    vm.set_gsi_routing([MsiRoute(30, MSI_TO_CPU_0, 0x51)])
    event = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        vm.irqfd(event, 30)
        refused(errno.EBUSY, lambda: vm.irqfd(event, 30))
        os.eventfd_write(event, 1)
        assert soon(lambda: requested(vcpu, 0x51))
        vm.irqfd(event, 30, deassign=True)
        vcpu.set_lapic(ffi.new("struct kvm_lapic_state *"))
        enable_lapic(vcpu)
        os.eventfd_write(event, 1)
        assert not requested(vcpu, 0x51)
    finally:
        os.close(event)


def test_irqfd_with_resampling(vm: Vm) -> None:
    vm.create_irqchip()
    event, resample = os.eventfd(0, os.EFD_CLOEXEC), os.eventfd(0, os.EFD_CLOEXEC)
    try:
        vm.irqfd(event, 9, resample_fd=resample)
        os.eventfd_write(event, 1)
        assert soon(lambda: vm.get_irqchip(lib.KVM_IRQCHIP_IOAPIC).chip.ioapic.irr == 1 << 9)
    finally:
        os.close(event)
        os.close(resample)


def test_irqfd_of_what_is_no_eventfd(kvm: Kvm, vm: Vm) -> None:
    vm.create_irqchip()
    refused(errno.EINVAL, lambda: vm.irqfd(kvm.fd, 3))
    refused(errno.EBADF, lambda: vm.irqfd(10_000, 3), "eventfd 10000, GSI 3")


def test_ioeventfd_at_a_port() -> None:
    # mov al, 7 ; out 0x10, al ; mov al, 8 ; out 0x10, al ; hlt
    with TinyGuest("b0 07  e6 10  b0 08  e6 10  f4") as guest:
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            guest.vm.ioeventfd(event, 0x10, 1, port=True, value=7)
            refused(errno.EEXIST, lambda: guest.vm.ioeventfd(event, 0x10, 1, port=True, value=7), "port 0x10")
            other = guest.vcpu.run_once()
            assert isinstance(other, Io), "only the value 7 is taken"
            assert bytes(other.data) == b"\x08"
            assert os.eventfd_read(event) == 1
            guest.vm.ioeventfd(event, 0x10, 1, port=True, value=7, deassign=True)
            refused(errno.ENOENT, lambda: guest.vm.ioeventfd(event, 0x10, 1, port=True, value=7, deassign=True))
            start(guest.vcpu)
            taken = guest.vcpu.run_once()
            assert isinstance(taken, Io)
            assert bytes(taken.data) == b"\x07"
        finally:
            os.close(event)


def test_ioeventfd_in_memory() -> None:
    # mov [0xf000], ax ; hlt
    with TinyGuest("a3 00 f0  f4") as guest:
        guest.vm.delete_memory_region(0)
        guest.vm.set_user_memory_region(0, 0, 0xF000, guest.memory)
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            guest.vm.ioeventfd(event, 0xF000, 2)
            assert isinstance(guest.vcpu.run_once(), Hlt)
            assert os.eventfd_read(event) == 1
        finally:
            os.close(event)


def test_ioeventfd_of_what_is_no_eventfd(kvm: Kvm, vm: Vm) -> None:
    refused(errno.EINVAL, lambda: vm.ioeventfd(kvm.fd, 0x10, 1, port=True))
    refused(errno.EINVAL, lambda: vm.ioeventfd(kvm.fd, 0x10, 3, port=True))


# -- timers -----------------------------------------------------------------------------------------------------------


def test_create_pit2_needs_an_irqchip(vm: Vm) -> None:
    refused(errno.ENXIO, vm.create_pit2, "create the in-kernel interrupt controller first")
    vm.create_irqchip()
    vm.create_pit2()
    refused(errno.EEXIST, vm.create_pit2)


def test_get_and_set_pit2(vm: Vm) -> None:
    vm.create_irqchip()
    refused(errno.ENXIO, vm.get_pit2)
    vm.create_pit2()
    state = vm.get_pit2()
    assert [channel.gate for channel in state.channels] == [1, 1, 0]
    state.channels[2].mode, state.channels[2].gate = 3, 1
    vm.set_pit2(state)
    assert (vm.get_pit2().channels[2].mode, vm.get_pit2().channels[2].gate) == (3, 1)


def test_set_pit2_without_one(vm: Vm) -> None:
    vm.create_irqchip()
    refused(errno.ENXIO, lambda: vm.set_pit2(ffi.new("struct kvm_pit_state2 *")))


def test_clock(vm: Vm) -> None:
    vm.set_clock(3_600_000_000_000)
    first = vm.get_clock()
    assert 3_600_000_000_000 <= first < 7_200_000_000_000
    assert vm.get_clock() >= first


# -- CPUs -------------------------------------------------------------------------------------------------------------


def test_check_extension(vm: Vm) -> None:
    assert vm.check_extension(lib.KVM_CAP_XSAVE2) in {0, *range(4096, 1 << 20)}
    assert vm.check_extension(0x7FFF) == 0


def test_enable_capability_split_irqchip(vm: Vm) -> None:
    vm.enable_capability(lib.KVM_CAP_SPLIT_IRQCHIP, 24)
    refused(errno.EEXIST, vm.create_irqchip)


def test_enable_capability_that_cannot_be(vm: Vm) -> None:
    refused(errno.EINVAL, lambda: vm.enable_capability(lib.KVM_CAP_NR_VCPUS), "capability 9")


def test_set_boot_cpu_id(vm: Vm) -> None:
    vm.create_irqchip()
    vm.set_boot_cpu_id(1)
    boots = [vm.create_vcpu(index).get_sregs().apic_base >> 8 & 1 for index in (0, 1)]
    assert boots == [0, 1]
    refused(errno.EBUSY, lambda: vm.set_boot_cpu_id(0), "vCPU 0")


def test_create_vcpu(vm: Vm) -> None:
    with vm.create_vcpu(0) as vcpu:
        assert fcntl.fcntl(vcpu.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert vcpu.get_regs().rip == 0xFFF0
        refused(errno.EEXIST, lambda: vm.create_vcpu(0), "KVM_CREATE_VCPU failed for vCPU 0: File exists")


def test_create_vcpu_beyond_the_limit(kvm: Kvm, vm: Vm) -> None:
    limit = kvm.check_extension(lib.KVM_CAP_MAX_VCPU_ID)
    refused(errno.EINVAL, lambda: vm.create_vcpu(limit), f"vCPU {limit}: Invalid argument")


CALLS: dict[str, Callable[[Vm], object]] = {
    "check_extension": lambda vm: vm.check_extension(0),
    "enable_capability": lambda vm: vm.enable_capability(0),
    "set_user_memory_region": lambda vm: vm.set_user_memory_region(0, 0, PAGE, bytearray(PAGE)),
    "delete_memory_region": lambda vm: vm.delete_memory_region(0),
    "dirty_log": lambda vm: vm.dirty_log(0, PAGE),
    "set_identity_map_address": lambda vm: vm.set_identity_map_address(0),
    "set_tss_address": lambda vm: vm.set_tss_address(0),
    "create_irqchip": lambda vm: vm.create_irqchip(),
    "get_irqchip": lambda vm: vm.get_irqchip(0),
    "set_irqchip": lambda vm: vm.set_irqchip(ffi.new("struct kvm_irqchip *")),
    "irq_line": lambda vm: vm.irq_line(0, True),
    "set_gsi_routing": lambda vm: vm.set_gsi_routing([]),
    "signal_msi": lambda vm: vm.signal_msi(MSI_TO_CPU_0, 0),
    "irqfd": lambda vm: vm.irqfd(0, 0),
    "ioeventfd": lambda vm: vm.ioeventfd(0, 0, 1),
    "create_pit2": lambda vm: vm.create_pit2(),
    "get_pit2": lambda vm: vm.get_pit2(),
    "set_pit2": lambda vm: vm.set_pit2(ffi.new("struct kvm_pit_state2 *")),
    "get_clock": lambda vm: vm.get_clock(),
    "set_clock": lambda vm: vm.set_clock(0),
    "set_boot_cpu_id": lambda vm: vm.set_boot_cpu_id(0),
    "create_vcpu": lambda vm: vm.create_vcpu(0),
}


@pytest.mark.parametrize("name", CALLS)
def test_closed(vm: Vm, name: str) -> None:
    vm.close()
    refused(errno.EBADF, lambda: CALLS[name](vm), r"Bad file descriptor \(EBADF\); it is closed already")


def test_closed_covers_every_call() -> None:
    assert {name for name in vars(Vm) if not name.startswith("_")} - {"close"} == CALLS.keys()


def test_code_starts_where_the_tests_think() -> None:
    with TinyGuest("f4") as guest:
        assert isinstance(guest.vcpu.run_once(), Hlt)
        assert guest.vcpu.get_regs().rip == CODE + 1
