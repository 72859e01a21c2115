"""Interrupts of devices that other processes serve: KVM sends them (irqfd), but for those that the guest holds back."""

import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from device_rig import Rig
from lapic import MSI_TO_CPU_0, enable_lapic, requested, soon
from virtio_rig import MESSAGES, REGISTERS, SLOT, STATUS, VirtioRig
from vmm._native import ffi

from vmm.devices.pci import COMMAND, PciBus, PciConfigPorts
from vmm.devices.pirq import Q35, PirqRouter
from vmm.devices.reset import ResetControl
from vmm.devices.virtio.transport import Backplane
from vmm.devices.virtio.vhost_user import SharedMemory, VhostUser
from vmm.kvm import Kvm, Vm
from vmm.kvm.message_routes import MessageRoutes
from vmm.vhost import protocol
from vmm.vhost.backend import Backend, VhostDevice
from vmm.vhost.protocol import Region

pytestmark = [pytest.mark.needs_kvm, pytest.mark.usefixtures("kvm_device")]

MSIX_CONTROL, ENABLE, MASK_ALL = 0x9A, 0x8000, 0x4000
CONTROL, PENDING = MESSAGES + 16 + 12, MESSAGES + 0x800
BEFORE, AFTER = 0x51, 0x61


class SignallingBackend:
    """Does nothing but what it is told, and interrupts when the test wants it."""

    def __init__(self) -> None:
        here, self._there = socket.socketpair()
        self.call = -1
        threading.Thread(target=self._serve, daemon=True).start()
        self.backend = Backend(VhostDevice("device", Path(), 4), here)

    def interrupt(self) -> None:
        os.eventfd_write(self.call, 1)

    def _serve(self) -> None:
        while header := self._there.recv(12, socket.MSG_PEEK):
            data, files, _, _ = socket.recv_fds(self._there, 12, 8)
            assert data == header
            request, _, size = struct.unpack("<III", data)
            payload = self._there.recv(size, socket.MSG_WAITALL) if size else b""
            if request == protocol.SET_VRING_CALL:
                self._keep(files.pop())
            for fd in files:
                os.close(fd)
            if request == protocol.GET_FEATURES:
                self._answer(request, struct.pack("<Q", 1 << 32))
            elif request == protocol.GET_VRING_BASE:
                self._answer(request, payload[:4] + bytes(4))
        self._keep(-1)
        self._there.close()

    def _keep(self, call: int) -> None:
        if self.call >= 0:
            os.close(self.call)
        self.call = call

    def _answer(self, request: int, payload: bytes) -> None:
        self._there.sendall(struct.pack("<III", request, 5, len(payload)) + payload)


class VhostRig(VirtioRig):
    """The device on PCI, its messages KVM's; what a thread of ours sends is in `messages` instead."""

    def __init__(self, vm: Vm) -> None:
        Rig.__init__(self)
        vm.create_irqchip()
        self.vcpu = vm.create_vcpu(0)
        enable_lapic(self.vcpu)
        self.core.fd = vm.fd
        self.pci = PciBus(self.mmio)
        self.pirqs = PirqRouter(Q35, self.sink)
        self.ram = os.memfd_create("ram")
        os.truncate(self.ram, 16 << 20)
        self.peer = SignallingBackend()
        self.routes = MessageRoutes(vm)
        backplane = Backplane(self.core, self.lock, self.pirqs, messages=self.routes)
        memory = SharedMemory(self.ram, [Region(0, 16 << 20, 0)])
        self.device = VhostUser(self.peer.backend, backplane, SLOT, memory, self.failures.append)
        self.pci.add(SLOT, 0, self.device.function)
        self.ports.add(0xCF8, 0xCFF, PciConfigPorts(self.pci, ResetControl(self.power)), "PCI configuration")

    def __exit__(self, *_: object) -> None:
        self.device.close()
        self.peer.backend.close()
        os.close(self.ram)
        assert not self.failures

    def send_to(self, data: int, address: int = MSI_TO_CPU_0) -> None:
        """What the queue's vector has as its message."""
        for offset, value in ((0, address & 0xFFFF_FFFF), (4, address >> 32), (8, data)):
            self.store(MESSAGES + 16 + offset, 4, value)

    def start_with_messages(self) -> None:
        """Get it going as Linux does; KVM has the queue's signals then."""
        self.place()
        self.store(STATUS, 1, 0)
        assert soon(lambda: self.status == 0), "the backend has stopped"
        self.start()
        self.config_write(MSIX_CONTROL, 2, ENABLE)
        self.send_to(BEFORE)
        self.store(REGISTERS + 0x1A, 2, 1)
        self.store(CONTROL, 4, 0)
        assert soon(lambda: self.device.connected == [0] and self.peer.call >= 0)

    def take(self, vector: int) -> bool:
        """Whether the LAPIC gets this interrupt, which it forgets then."""
        came = soon(lambda: requested(self.vcpu, vector))
        self.vcpu.set_lapic(ffi.new("struct kvm_lapic_state *"))
        enable_lapic(self.vcpu)
        return came

    def is_pending(self) -> bool:
        with self.lock:
            return bool(self.load(PENDING, 4) & 2)


@pytest.fixture
def device() -> Iterator[VhostRig]:
    with Kvm() as kvm, kvm.create_vm() as vm, VhostRig(vm) as rig:
        yield rig


@pytest.mark.hw
def test_kvm_sends_what_a_backend_signals(device: VhostRig) -> None:
    device.start_with_messages()
    with device.lock:  # no thread of ours can
        device.peer.interrupt()
        assert device.take(BEFORE)
    assert device.messages == []


@pytest.mark.parametrize("whole", [pytest.param(False, marks=pytest.mark.hw), True])
def test_masked_it_is_pending_and_unmasked_sent_once(device: VhostRig, whole: bool) -> None:
    device.start_with_messages()
    if whole:
        device.config_write(MSIX_CONTROL, 2, ENABLE | MASK_ALL)
    else:
        device.store(CONTROL, 4, 1)
    assert device.device.connected == [], "at once: the guest goes on"
    device.peer.interrupt()
    assert soon(device.is_pending)
    assert not requested(device.vcpu, BEFORE)
    device.send_to(AFTER)
    if whole:
        device.config_write(MSIX_CONTROL, 2, ENABLE)
    else:
        device.store(CONTROL, 4, 0)
    assert device.messages == [(MSI_TO_CPU_0, AFTER)]
    assert not device.is_pending()
    assert soon(lambda: device.device.connected == [0])
    device.peer.interrupt()
    assert device.take(AFTER)
    assert not requested(device.vcpu, BEFORE)


def test_another_message_without_a_mask(device: VhostRig) -> None:
    device.start_with_messages()
    device.send_to(AFTER)
    assert soon(lambda: device.device.connected == [0])
    device.peer.interrupt()
    assert device.take(AFTER)
    assert not requested(device.vcpu, BEFORE)


def test_a_queue_without_a_vector_and_with_one_again(device: VhostRig) -> None:
    device.start_with_messages()
    device.store(REGISTERS + 0x1A, 2, 0xFFFF)
    assert device.device.connected == []
    device.store(REGISTERS + 0x1A, 2, 1)
    assert soon(lambda: device.device.connected == [0])


@pytest.mark.parametrize("how", ["driver", "machine", "no bus master"])
def test_a_reset_takes_it_away(device: VhostRig, how: str) -> None:
    device.start_with_messages()
    if how == "driver":
        device.store(STATUS, 1, 0)
    elif how == "machine":
        with device.lock:
            device.device.reset()
            device.device.function.reset()
    else:
        device.config_write(COMMAND, 2, 2)
    assert device.device.connected == []
    device.start_with_messages()
    device.peer.interrupt()
    assert device.take(BEFORE)


def test_a_pin_is_a_thread_s(device: VhostRig) -> None:
    device.start()
    assert soon(lambda: device.peer.call >= 0)
    device.peer.interrupt()
    assert soon(lambda: device.edges == [(16 + Q35.pirq(SLOT), True)])
    assert device.device.connected == []


def test_messages_that_kvm_refuses_are_a_thread_s(device: VhostRig) -> None:
    device.device._vhost.wires[0].gsi = 1 << 20  # more than KVM has
    device.start()
    device.config_write(MSIX_CONTROL, 2, ENABLE)
    device.send_to(BEFORE)
    device.store(REGISTERS + 0x1A, 2, 1)
    device.store(CONTROL, 4, 0)
    assert soon(lambda: device.peer.call >= 0)
    device.peer.interrupt()
    assert soon(lambda: device.messages == [(MSI_TO_CPU_0, BEFORE)])
    assert device.device.connected == []
