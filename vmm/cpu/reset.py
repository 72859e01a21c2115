"""The state of a vCPU after power-on.

"SDM" is Intel's Software Developer's Manual (volume and section).
"""

from __future__ import annotations

import struct

from vmm._native import ffi, lib
from vmm.errors import HostError
from vmm.kvm.structs import MpState
from vmm.layout import LAPIC_BASE
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from vmm.kvm import Vcpu

_CR0_ET_NW_CD = 0x60000010
_APIC_BASE_ENABLE = 1 << 11
APIC_BASE_X2APIC = 1 << 10
_APIC_BASE_BSP = 1 << 8

_MSR_TSC = 0x10
_MSR_APIC_BASE = 0x1B
_MSR_MISC_ENABLE = 0x1A0
_MSR_PAT = 0x277
MSR_MTRR_DEF_TYPE = 0x2FF

_RESET_MSRS: dict[int, int] = {
    # SDM volume 3, 12.11: MTRRs are off (all memory uncached) until firmware turns them on.
    MSR_MTRR_DEF_TYPE: 0,
    _MSR_PAT: 0x0007040600070406,  # SDM volume 3, 12.12.4
    **dict.fromkeys(range(0x200, 0x210), 0),  # variable MTRRs, 8 pairs
    **dict.fromkeys((0x250, 0x258, 0x259, *range(0x268, 0x270)), 0),  # fixed MTRRs
    **dict.fromkeys((0x174, 0x175, 0x176), 0),  # SYSENTER
    _MSR_MISC_ENABLE: 1,  # SDM volume 4: fast strings
    0x6E0: 0,  # TSC_DEADLINE
    **dict.fromkeys((0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084), 0),  # STAR, LSTAR, CSTAR, FMASK
    **dict.fromkeys((0xC0000102, 0xC0000103), 0),  # KERNEL_GS_BASE, TSC_AUX
    **dict.fromkeys(range(0x4B564D00, 0x4B564D05), 0),  # KVM's paravirtual ones: kvmclock, async PF, steal time, EOI
}

_NEEDED_MSRS = frozenset((MSR_MTRR_DEF_TYPE, _MSR_PAT))
"""Without these at their reset values, no firmware finds what it expects."""

_NOT_KEPT = frozenset((_MSR_TSC, _MSR_APIC_BASE, 0x40000002, 0x40000010, 0x40000020))
"""MSRs that differ from one new vCPU to another; the last three are Hyper-V's index, run time and clock of a vCPU."""

# LAPIC registers (SDM volume 3, table 11-1), and their values after reset (11.4.7.1).
_LAPIC_VERSION = 0x30
_LAPIC_RESET: dict[int, int] = {
    0xE0: 0xFFFFFFFF,  # destination format
    0xF0: 0xFF,  # spurious interrupt vector: software-disabled
    **dict.fromkeys((0x320, 0x330, 0x340, 0x350, 0x360, 0x370), 1 << 16),  # LVT: masked
}
_LAPIC_LINT0 = 0x350
_LAPIC_LINT1 = 0x360
_DELIVERY_NMI = 4 << 8
_DELIVERY_EXTINT = 7 << 8


def reset_vcpu(vcpu: Vcpu, power_on: PowerOn | None = None) -> None:
    """Bring ``vcpu`` to the state after power-on (SDM volume 3, table 9-1); the BSP is the one with index 0.

    The BSP will fetch its first instruction at 0xfffffff0; the others wait for INIT and SIPI. CPUID must be set
    before, and the machine must have an in-kernel interrupt controller. The TSC runs on.

    Two things are as a PC's firmware leaves them rather than as the CPU powers on, because guests that come without
    firmware count on it (QEMU does the first too): the BSP's LINT0 passes the PIC's interrupts on, and its LINT1 is
    NMI. The FPU is as after FNINIT.

    All segment limits are 64 KiB: on an Intel host without "unrestricted guest", real mode is virtual-8086 mode, which
    VMX enters with no others (SDM volume 3, 27.3.1.2); KVM interprets until CS is reloaded with a base of 16 times its
    selector.

    Args:
        vcpu: the vCPU.
        power_on: what a new vCPU has and this one, which was run before, may have lost.

    Raises:
        KvmError: KVM refuses a part of that state.
        HostError: KVM refuses MSRs that every firmware needs.
    """
    bootstrap = vcpu.index == 0
    if power_on is not None:
        vcpu.get_mp_state()  # which lets an INIT or SIPI that waits take effect now, not later
        vcpu.set_nested_state(power_on.nested)
    vcpu.set_sregs(_reset_sregs(bootstrap=bootstrap))
    vcpu.set_regs(ffi.new("struct kvm_regs *", {"rip": 0xFFF0, "rflags": 2, "rdx": _signature(vcpu)}))
    vcpu.set_xcrs({0: 1})
    vcpu.set_xsave(_reset_xsave(len(vcpu.get_xsave())))
    vcpu.set_debugregs(ffi.new("struct kvm_debugregs *", {"dr6": 0xFFFF0FF0, "dr7": 0x400}))
    _reset_msrs(vcpu, _RESET_MSRS if power_on is None else {**power_on.msrs, **_RESET_MSRS})
    vcpu.set_lapic(_reset_lapic(vcpu, bootstrap=bootstrap))
    valid = lib.KVM_VCPUEVENT_VALID_NMI_PENDING | lib.KVM_VCPUEVENT_VALID_SIPI_VECTOR | lib.KVM_VCPUEVENT_VALID_SHADOW
    if vcpu.vm.check_extension(lib.KVM_CAP_X86_SMM):
        valid |= lib.KVM_VCPUEVENT_VALID_SMM
    vcpu.set_vcpu_events(ffi.new("struct kvm_vcpu_events *", {"flags": valid}))
    vcpu.set_mp_state(MpState.RUNNABLE if bootstrap else MpState.UNINITIALIZED)


class PowerOn(NamedTuple):
    """What KVM gives a new vCPU, beyond what `reset_vcpu` knows by itself.

    Attributes:
        msrs: values by index.
        nested: as `Vcpu.get_nested_state` gives it.
    """

    msrs: Mapping[int, int]
    nested: bytes

    @classmethod
    def of(cls, vcpu: Vcpu) -> PowerOn:
        """Ask a vCPU that was reset and never ran.

        Raises:
            KvmError: it is closed.
        """
        msrs: dict[int, int] = {}
        pending = [index for index in vcpu.vm.kvm.msr_index_list() if index not in _NOT_KEPT]
        while pending:
            got = vcpu.get_msrs(pending)
            msrs |= got
            # KVM stops at the first one that a guest with this CPUID does not have: go on behind it.
            pending = pending[len(got) + 1 :]
        # What is written here as 0 becomes, on each vCPU, the TSC that all of them started with (kvm_synchronize_tsc in
        # the kernel's arch/x86/kvm/x86.c), whatever the guest has written.
        return cls({_MSR_TSC: 0, **msrs}, vcpu.get_nested_state())


def _signature(vcpu: Vcpu) -> int:
    """Family, model and stepping, which RDX holds after reset."""
    return next((entry.eax for entry in vcpu.get_cpuid2() if entry.function == 1), 0x600)


def _reset_sregs(*, bootstrap: bool) -> Any:
    data = {"limit": 0xFFFF, "type": 3, "present": 1, "s": 1}
    return ffi.new(
        "struct kvm_sregs *",
        {
            "cs": {"base": 0xFFFF0000, "limit": 0xFFFF, "selector": 0xF000, "type": 11, "present": 1, "s": 1},
            **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data),
            "tr": {"limit": 0xFFFF, "type": 11, "present": 1},
            "ldt": {"limit": 0xFFFF, "type": 2, "present": 1},
            "gdt": {"limit": 0xFFFF},
            "idt": {"limit": 0xFFFF},
            "cr0": _CR0_ET_NW_CD,
            "apic_base": LAPIC_BASE | _APIC_BASE_ENABLE | (_APIC_BASE_BSP if bootstrap else 0),
        },
    )


def _reset_xsave(size: int) -> bytearray:
    """x87 as after FNINIT, MXCSR with exceptions masked, all other features initial (not in XSTATE_BV)."""
    area = bytearray(size)
    struct.pack_into("<H", area, 0, 0x37F)
    struct.pack_into("<I", area, 24, 0x1F80)
    # MXCSR counts only with the SSE bit: else KVM keeps what it had, which is 0 on a new vCPU.
    struct.pack_into("<Q", area, 512, 0b11)
    return area


def _reset_msrs(vcpu: Vcpu, values: Mapping[int, int]) -> None:
    pending = dict(values)
    while pending:
        accepted = vcpu.set_msrs(pending)
        if accepted < len(pending) and (refused := list(pending)[accepted]) in _NEEDED_MSRS:
            raise HostError(f"KVM refuses to reset MSR {refused:#x} of vCPU {vcpu.index}; run a newer kernel")
        # What else KVM refuses, a guest with this CPUID does not have: go on behind it.
        pending = dict(list(pending.items())[accepted + 1 :])


def _reset_lapic(vcpu: Vcpu, *, bootstrap: bool) -> Any:
    lapic = vcpu.get_lapic()
    page = ffi.buffer(lapic)
    (version,) = struct.unpack_from("<I", page, _LAPIC_VERSION)
    ffi.memmove(lapic, bytes(len(page)), len(page))
    registers = {0x20: (vcpu.vcpu_id & 0xFF) << 24, _LAPIC_VERSION: version, **_LAPIC_RESET}
    if bootstrap:
        registers |= {_LAPIC_LINT0: _DELIVERY_EXTINT, _LAPIC_LINT1: _DELIVERY_NMI}
    for offset, value in registers.items():
        struct.pack_into("<I", page, offset, value)
    return lapic
