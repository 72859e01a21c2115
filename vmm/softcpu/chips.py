"""A machine without KVM, with the names of `vmm.kvm`: interrupt controllers, timers and CPUs' state in this process.

Each class has the methods of the one that it takes the place of; what would be an ioctl is a call of native/chips,
which answers the same requests with the same numbers, structs and errors. Who executes the guest is the software CPU.
"""

from __future__ import annotations

import errno

from vmm._native import ffi, lib
from vmm.kvm import Kvm, Vcpu, Vm
from vmm.kvm.descriptor import Descriptor, kvm_error
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from vmm.devices.clock import GuestClock
    from vmm.kvm import CpuidEntry


class _Handle(Descriptor):
    """What is open or closed without a file descriptor."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, name)
        self._open = True

    @property
    def closed(self) -> bool:
        """Has `close` been called?"""
        return not self._open

    def close(self) -> None:
        """Answer no further request; calling this again does nothing."""
        self._open = False

    def _answer(self, number: int, argument: Any) -> int:
        raise NotImplementedError

    def _request(self, number: int, argument: Any) -> int:
        return -errno.EBADF if self.closed else self._answer(number, argument)

    def _request_value(self, number: int, value: int) -> int:
        return self._request(number, ffi.cast("void *", value))


class ChipsSystem(Kvm, _Handle):
    """What takes the place of ``/dev/kvm``.

    Args:
        why: nobody asked for KVM, or it cannot be used; for people.
        clock: what the time of machines goes by; None: it goes on with the host's.
    """

    def __init__(self, why: str, clock: GuestClock | None = None) -> None:
        _Handle.__init__(self, -1, "the software CPU's chips")
        self.stands_in = why
        self.clock = clock

    def _answer(self, number: int, argument: Any) -> int:
        return int(lib.chips_system_request(number, argument))

    def supported_cpuid(self) -> list[CpuidEntry]:
        """Nothing: the software CPU knows by itself what it offers."""
        return []

    def create_vm(self) -> ChipsVm:
        """A machine without CPUs and memory.

        Raises:
            KvmError: ENOMEM.
        """
        return ChipsVm(self)


class ChipsVm(Vm, _Handle):
    """A machine's chips."""

    def __init__(self, system: ChipsSystem) -> None:
        handle = lib.chips_new()
        if handle == ffi.NULL:
            raise kvm_error(errno.ENOMEM, "KVM_CREATE_VM", "a machine without KVM")
        if system.clock is not None:
            lib.chips_go_by(handle, system.clock.core)
        super().__init__(system, -1)
        self._handle = handle
        self._core: Any = None

    def close(self) -> None:
        """Free them. No vCPU runs; a device that still interrupts is not heard, nor is it on a thread of its own."""
        if not self.closed:
            super().close()
            if self._core is not None:
                lib.chips_detach(self._core)
            lib.chips_free(self._handle)

    def attach(self, core: Any) -> None:
        """Be what the C core's ``struct vmm_vm`` asks from now on."""
        lib.chips_attach(self._handle, core)
        self._core = core

    def _answer(self, number: int, argument: Any) -> int:
        return int(lib.chips_vm_request(self._handle, number, argument))

    def create_vcpu(self, vcpu_id: int, index: int | None = None) -> ChipsVcpu:
        """Add a CPU.

        Args:
            vcpu_id: its APIC id.
            index: which of the machine's vCPUs it is, for people; ``vcpu_id``.

        Raises:
            KvmError: EEXIST if it exists, or there is no room for it; EBADF if the machine is closed.
        """
        handle = ffi.NULL if self.closed else lib.chips_add(self._handle, vcpu_id)
        if handle == ffi.NULL:
            raise kvm_error(errno.EBADF if self.closed else errno.EEXIST, "KVM_CREATE_VCPU", f"vCPU {vcpu_id}")
        return ChipsVcpu(self, handle, vcpu_id, vcpu_id if index is None else index)


class ChipsVcpu(Vcpu, _Handle):
    """A CPU's local APIC, and its state between two runs; freed with its machine."""

    def __init__(self, vm: ChipsVm, handle: Any, vcpu_id: int, index: int) -> None:
        self._handle = handle
        super().__init__(vm, -1, vcpu_id, index)  # -1: a page of its own, shared with nobody

    @property
    def closed(self) -> bool:
        """Has `close` been called, its own or its machine's?"""
        return not self._open or self.vm.closed

    def attach(self, core_vcpu: Any) -> None:
        """Be what a ``struct vmm_vcpu`` asks from now on."""
        lib.chips_attach_vcpu(self._handle, core_vcpu)

    def _answer(self, number: int, argument: Any) -> int:
        return int(lib.chips_vcpu_request(self._handle, number, argument))
