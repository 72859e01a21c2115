"""A LAPIC of KVM, looked at from outside."""

import time
from collections.abc import Callable

from vmm._native import ffi

from vmm.kvm import Vcpu

MSI_TO_CPU_0 = 0xFEE00000


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
