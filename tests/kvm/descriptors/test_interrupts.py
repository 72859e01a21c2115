"""Virtual machines: interrupt controllers, routing, eventfds and the PIT."""

import errno
import os

import pytest
from lapic import MSI_TO_CPU_0, enable_lapic, requested, soon
from tiny_guest import TinyGuest, refused, start
from vmm._native import ffi, lib

from vmm.kvm import IrqchipRoute, Kvm, MsiRoute, Vm, pc_routes
from vmm.kvm.exits import Hlt, Io

pytestmark = [pytest.mark.needs_kvm, pytest.mark.hw, pytest.mark.usefixtures("kvm_device")]


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


def test_coalesced_writes_wait_in_the_ring() -> None:
    # mov al, 7 ; out 0x10, al ; mov ax, 0x0908 ; out 0x10, ax ; mov [0xf000], al ; hlt
    with TinyGuest("b0 07  e6 10  b8 08 09  e7 10  a2 00 f0  f4") as guest:
        guest.vm.delete_memory_region(0)
        guest.vm.set_user_memory_region(0, 0, 0xF000, memoryview(guest.memory)[:0xF000])
        guest.vm.coalesce_writes(0x10, 1, port=True)
        guest.vm.coalesce_writes(0xF000, 4)
        wide = guest.vcpu.run_once()
        assert isinstance(wide, Io), "it reaches beyond the range"
        assert bytes(wide.data) == b"\x08\x09"
        assert isinstance(guest.vcpu.run_once(), Hlt)
        ring = guest.vcpu.coalesced_ring
        kept = [ring.coalesced_mmio[at] for at in range(ring.first, ring.last)]
        assert [(each.phys_addr, each.len, each.pio, each.data[0]) for each in kept] == [
            (0x10, 1, 1, 7),
            (0xF000, 1, 0, 8),
        ]
        guest.vm.stop_coalescing(0x10, 1, port=True)
        start(guest.vcpu)
        assert isinstance(guest.vcpu.run_once(), Io)
    refused(errno.EBADF, lambda: guest.vcpu.coalesced_ring)


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
