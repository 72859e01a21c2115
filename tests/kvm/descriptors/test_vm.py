"""A virtual machine: its lifetime, addresses, clock, and CPUs."""

import errno
import fcntl
import gc
import os
from collections.abc import Callable

import pytest
from tiny_guest import CODE, TinyGuest, refused
from vmm._native import ffi, lib

from vmm.kvm import Kvm, Vm
from vmm.kvm.exits import Hlt

pytestmark = [pytest.mark.needs_kvm, pytest.mark.hw, pytest.mark.usefixtures("kvm_device")]

PAGE = 4096
MSI_TO_CPU_0 = 0xFEE00000


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


# -- addresses --------------------------------------------------------------------------------------------------------


def test_set_identity_map_address(vm: Vm) -> None:
    vm.set_identity_map_address(0xFEFFC000)
    vm.create_vcpu(0)
    refused(errno.EINVAL, lambda: vm.set_identity_map_address(0xFEFFC000), "GPA 0xfeffc000")


def test_set_tss_address(vm: Vm) -> None:
    vm.set_tss_address(0xFEFFD000)
    refused(errno.EINVAL, lambda: vm.set_tss_address(0xFFFFF000), "KVM_SET_TSS_ADDR failed for GPA 0xfffff000")


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


def test_keep_pit_ticks_without_one(vm: Vm) -> None:
    vm.create_irqchip()
    refused(errno.ENXIO, lambda: vm.keep_pit_ticks(keep=False))


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
    "use_x2apic_ids": lambda vm: vm.use_x2apic_ids(),
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
    "coalesce_writes": lambda vm: vm.coalesce_writes(0, 1),
    "stop_coalescing": lambda vm: vm.stop_coalescing(0, 1),
    "create_pit2": lambda vm: vm.create_pit2(),
    "get_pit2": lambda vm: vm.get_pit2(),
    "set_pit2": lambda vm: vm.set_pit2(ffi.new("struct kvm_pit_state2 *")),
    "keep_pit_ticks": lambda vm: vm.keep_pit_ticks(keep=True),
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
    assert {name for name in vars(Vm) if not name.startswith("_")} - {"close", "attach"} == CALLS.keys()


def test_code_starts_where_the_tests_think() -> None:
    with TinyGuest("f4") as guest:
        assert isinstance(guest.vcpu.run_once(), Hlt)
        assert guest.vcpu.get_regs().rip == CODE + 1
