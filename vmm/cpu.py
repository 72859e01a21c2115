"""What a vCPU is to its guest: CPUID with the topology asked for, the state at power-on, and its registers as text.

The topology is one socket of N cores with one thread each; a CPU's index is its APIC id.

Sources: "SDM" is Intel's Software Developer's Manual (volume and section), "APM" AMD's Architecture Programmer's Manual
volume 3, appendix E (CPUID leaves).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from vmm._native import ffi, lib
from vmm.errors import ConfigError, HostError
from vmm.kvm.structs import CpuidEntry, MpState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.kvm import Kvm, Vcpu

_AMD = b"AuthenticAMD"
_INTEL = b"GenuineIntel"

# CPUID leaf 1 (SDM volume 2, CPUID)
_ECX_TSC_DEADLINE = 1 << 24
_FEATURE_CONTROL_LOCKED = 1 << 0
_FEATURE_CONTROL_VMX = 1 << 2
_ECX_VMX = 1 << 5
_ECX_OSXSAVE = 1 << 27
_ECX_HYPERVISOR = 1 << 31
_EDX_HTT = 1 << 28
# Leaf 7
_EDX_ARCH_CAPABILITIES = 1 << 29
# Leaf 8000_0001
_ECX_CMP_LEGACY = 1 << 1


_XAPIC_IDS = 255
"""APIC ids of xAPIC mode, which CPUs are in at reset; 255 itself means all (SDM volume 3, 11.6.2.1)."""


def check_count(kvm: Kvm, count: int) -> None:
    """Can KVM make a guest with ``count`` CPUs here?

    Raises:
        ConfigError: no; says how many it can.
    """
    limit = min(kvm.max_vcpus, _XAPIC_IDS)
    if not 1 <= count <= limit:
        raise ConfigError(f"-smp {count}: a guest has 1 to {limit} CPUs on this host; ask for one of these")


# -- CPUID ----------------------------------------------------------------------------------------------------------


def cpuid_entries(kvm: Kvm, index: int, count: int, *, software_cpu: bool = False) -> list[CpuidEntry]:
    """CPUID of CPU ``index`` among ``count``, for `Vcpu.set_cpuid2`.

    Args:
        kvm: says what this host can offer.
        index: the CPU, which is its APIC id.
        count: CPUs of the guest.
        software_cpu: a software CPU runs the guest's instructions: offer what that has, whatever the host's CPU is.
    """
    if software_cpu:
        return _software_cpu(index, count)
    entries = kvm.supported_cpuid()
    vendor = _vendor(entries)
    deadline_timer = kvm.check_extension(lib.KVM_CAP_TSC_DEADLINE_TIMER) > 0
    leaves = (_with_topology(entry, vendor, index, count, deadline_timer=deadline_timer) for entry in entries)
    basic_max = max((entry.eax for entry in entries if entry.function == 0), default=0)
    result = [leaf for leaf in leaves if leaf is not None]
    for function in (0xB, 0x1F):
        if function <= basic_max:
            result += _extended_topology(function, index, count)
    return result


def feature_control(entries: list[CpuidEntry]) -> int | None:
    """What firmware shall write into IA32_FEATURE_CONTROL: VMX allowed outside SMX, and the lock; None without VMX.

    Source: SDM volume 3, 24.7; the same as QEMU's etc/msr_feature_control.
    """
    has_vmx = any(entry.function == 1 and entry.ecx & _ECX_VMX for entry in entries)
    return _FEATURE_CONTROL_LOCKED | _FEATURE_CONTROL_VMX if has_vmx else None


def _vendor(entries: list[CpuidEntry]) -> bytes:
    for entry in entries:
        if entry.function == 0:
            return struct.pack("<3I", entry.ebx, entry.edx, entry.ecx)
    return b""


def _with_topology(
    entry: CpuidEntry, vendor: bytes, index: int, count: int, *, deadline_timer: bool
) -> CpuidEntry | None:
    """``entry`` as CPU ``index`` of ``count`` sees it; None drops a leaf that is made anew."""
    id_bits = (count - 1).bit_length()
    match entry.function:
        case 0x1:
            ebx = entry.ebx & 0xFFFF | min(count, 255) << 16 | (index & 0xFF) << 24
            ecx = entry.ecx & ~_ECX_OSXSAVE | _ECX_HYPERVISOR | (_ECX_TSC_DEADLINE if deadline_timer else 0)
            edx = entry.edx & ~_EDX_HTT | (_EDX_HTT if count > 1 else 0)
            return entry._replace(ebx=ebx, ecx=ecx, edx=edx)
        case 0x4 if entry.eax & 0x1F:
            # Bits 31:26 ids of cores in the package - 1, 25:14 ids that share this cache - 1 (SDM volume 2, CPUID).
            sharing = (1 << id_bits) - 1 if entry.eax >> 5 & 7 >= 3 else 0
            cores = min((1 << id_bits) - 1, 0x3F)
            return entry._replace(eax=entry.eax & 0x3FFF | min(sharing, 0xFFF) << 14 | cores << 26)
        case 0x7 if entry.subleaf == 0 and vendor != _INTEL:
            # KVM emulates MSR 0x10a everywhere, but no CPU of another vendor has it, and some guests are surprised.
            return entry._replace(edx=entry.edx & ~_EDX_ARCH_CAPABILITIES)
        case 0xB | 0x1F:
            return None
        case 0x80000001 if vendor == _AMD:
            return entry._replace(ecx=entry.ecx & ~_ECX_CMP_LEGACY | (_ECX_CMP_LEGACY if count > 1 else 0))
        case 0x80000008 if vendor == _AMD:
            # APM: ECX 7:0 cores - 1, 15:12 bits of the APIC id that name the core.
            return entry._replace(ecx=entry.ecx & ~0xF0FF | min(count - 1, 0xFF) | id_bits << 12)
        case 0x8000001D if entry.eax & 0x1F:
            sharing = count - 1 if entry.eax >> 5 & 7 >= 3 else 0
            return entry._replace(eax=entry.eax & 0x3FFF | min(sharing, 0xFFF) << 14)
        case 0x8000001E if vendor == _AMD:
            # APM: EAX APIC id, EBX 7:0 core, 15:8 threads of a core - 1, ECX node 0 of one.
            return entry._replace(eax=index, ebx=index & 0xFF, ecx=0, edx=0)
    return entry


def _extended_topology(function: int, index: int, count: int) -> list[CpuidEntry]:
    """Leaf 0xb or 0x1f (SDM volume 2, CPUID): a level of threads, a level of cores, the end."""
    id_bits = (count - 1).bit_length()
    return [
        CpuidEntry(function, 0, 0, 1, 1 << 8, index, indexed=True),
        CpuidEntry(function, 1, id_bits, count, 2 << 8 | 1, index, indexed=True),
        CpuidEntry(function, 2, 0, 0, 2, index, indexed=True),
    ]


def _software_cpu(index: int, count: int) -> list[CpuidEntry]:
    """An early 64-bit AMD CPU, of which the software CPU has every instruction.

    AMD's family 15 makes guests expect none of the MSRs of later ones, and XSAVE, AVX, PCID, SMEP, SMAP, x2APIC,
    RDTSCP and 1 GiB pages are what the engine, or the way KVM and it share a CPU, does not have. The TSC is the host's,
    so it is invariant; TSC_DEADLINE is how an idle guest's next timer is known without asking KVM.
    """
    signature = 0x00060FB1  # family 15, model 0x6b, stepping 1 (APM: Fn0000_0001_EAX)
    # FPU DE PSE TSC MSR PAE MCE CX8 APIC, SEP MTRR PGE MCA CMOV PAT PSE36, CLFSH, MMX FXSR SSE SSE2
    features = 0b0000_0111_1000_1011_1111_1011_1111_1101
    sse3_cmpxchg16b = 1 << 0 | 1 << 13
    shared_features = features & 0x0183F3FF & ~(1 << 11)
    syscall_nx_long_mode = 1 << 11 | 1 << 20 | 1 << 29
    several = count > 1
    vendor = struct.unpack("<3I", _AMD)
    brand = struct.unpack("<12I", b"vmm software CPU".ljust(48, b"\0"))
    leaves: list[tuple[int, int, int, int, int]] = [
        (0x0, 0x6, vendor[0], vendor[2], vendor[1]),
        (
            0x1,
            signature,
            8 << 8 | min(count, 255) << 16 | (index & 0xFF) << 24,  # CLFLUSH: 8 quadwords
            sse3_cmpxchg16b | _ECX_TSC_DEADLINE | _ECX_HYPERVISOR,
            features | (_EDX_HTT if several else 0),
        ),
        (0x6, 1 << 2, 0, 0, 0),  # ARAT: the LAPIC timer never stops
        (0x80000000, 0x80000008, vendor[0], vendor[2], vendor[1]),
        (0x80000001, signature, 0, 1 | (_ECX_CMP_LEGACY if several else 0), shared_features | syscall_nx_long_mode),
        *((0x80000002 + i, *brand[4 * i : 4 * i + 4]) for i in range(3)),
        (0x80000007, 0, 0, 0, 1 << 8),  # invariant TSC
        (0x80000008, 48 << 8 | 40, 0, min(count - 1, 0xFF) | (count - 1).bit_length() << 12, 0),
    ]
    return [CpuidEntry(function, 0, eax, ebx, ecx, edx) for function, eax, ebx, ecx, edx in leaves]


# -- reset ----------------------------------------------------------------------------------------------------------

_CR0_ET_NW_CD = 0x60000010
_APIC_BASE = 0xFEE00000
_APIC_BASE_ENABLE = 1 << 11
_APIC_BASE_BSP = 1 << 8

_MSR_MISC_ENABLE = 0x1A0
_MSR_PAT = 0x277
_MSR_MTRR_DEF_TYPE = 0x2FF

_RESET_MSRS: dict[int, int] = {
    # SDM volume 3, 12.11: MTRRs are off (all memory uncached) until firmware turns them on.
    _MSR_MTRR_DEF_TYPE: 0,
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

_NEEDED_MSRS = frozenset((_MSR_MTRR_DEF_TYPE, _MSR_PAT))
"""Without these at their reset values, no firmware finds what it expects."""

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


def reset_vcpu(vcpu: Vcpu, index: int) -> None:
    """Bring ``vcpu`` to the state after power-on (SDM volume 3, table 9-1); the BSP is the one with index 0.

    The BSP will fetch its first instruction at 0xfffffff0; the others wait for INIT and SIPI. CPUID must be set
    before, and the machine must have an in-kernel interrupt controller. The TSC runs on.

    Two things are as a PC's firmware leaves them rather than as the CPU powers on, because guests that come without
    firmware count on it (QEMU does the first too): the BSP's LINT0 passes the PIC's interrupts on, and its LINT1 is
    NMI. The FPU is as after FNINIT.

    All segment limits are 64 KiB: on an Intel host without "unrestricted guest", real mode is virtual-8086 mode, which
    VMX enters with no others (SDM volume 3, 27.3.1.2); KVM interprets until CS is reloaded with a base of 16 times its
    selector.

    Raises:
        KvmError: KVM refuses a part of that state.
        HostError: KVM refuses MSRs that every firmware needs.
    """
    bootstrap = index == 0
    vcpu.set_sregs(_reset_sregs(bootstrap=bootstrap))
    vcpu.set_regs(ffi.new("struct kvm_regs *", {"rip": 0xFFF0, "rflags": 2, "rdx": _signature(vcpu)}))
    vcpu.set_xcrs({0: 1})
    vcpu.set_xsave(_reset_xsave(len(vcpu.get_xsave())))
    vcpu.set_debugregs(ffi.new("struct kvm_debugregs *", {"dr6": 0xFFFF0FF0, "dr7": 0x400}))
    _reset_msrs(vcpu)
    vcpu.set_lapic(_reset_lapic(vcpu, index, bootstrap=bootstrap))
    valid = lib.KVM_VCPUEVENT_VALID_NMI_PENDING | lib.KVM_VCPUEVENT_VALID_SIPI_VECTOR | lib.KVM_VCPUEVENT_VALID_SHADOW
    vcpu.set_vcpu_events(ffi.new("struct kvm_vcpu_events *", {"flags": valid}))
    vcpu.set_mp_state(MpState.RUNNABLE if bootstrap else MpState.UNINITIALIZED)


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
            "apic_base": _APIC_BASE | _APIC_BASE_ENABLE | (_APIC_BASE_BSP if bootstrap else 0),
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


def _reset_msrs(vcpu: Vcpu) -> None:
    pending = dict(_RESET_MSRS)
    while pending:
        accepted = vcpu.set_msrs(pending)
        if accepted < len(pending) and (refused := list(pending)[accepted]) in _NEEDED_MSRS:
            raise HostError(f"KVM refuses to reset MSR {refused:#x} of vCPU {vcpu.index}; run a newer kernel")
        # What else KVM refuses, a guest with this CPUID does not have: go on behind it.
        pending = dict(list(pending.items())[accepted + 1 :])


def _reset_lapic(vcpu: Vcpu, index: int, *, bootstrap: bool) -> Any:
    lapic = vcpu.get_lapic()
    page = ffi.buffer(lapic)
    (version,) = struct.unpack_from("<I", page, _LAPIC_VERSION)
    ffi.memmove(lapic, bytes(len(page)), len(page))
    registers = {0x20: (index & 0xFF) << 24, _LAPIC_VERSION: version, **_LAPIC_RESET}
    if bootstrap:
        registers |= {_LAPIC_LINT0: _DELIVERY_EXTINT, _LAPIC_LINT1: _DELIVERY_NMI}
    for offset, value in registers.items():
        struct.pack_into("<I", page, offset, value)
    return lapic


# -- snapshots ------------------------------------------------------------------------------------------------------

_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")


class Registers:
    """The registers of a vCPU that does not run now.

    Attributes:
        values: by name: ``rax`` … ``r15``, ``rip``, ``rflags``, ``cr0`` …, ``efer``, ``apic_base``, ``dr6``, ``dr7``,
            for each segment ``cs`` (selector), ``cs_base``, ``cs_limit``, ``cs_attributes`` (as in a descriptor's
            bytes 5 and 6: type, S, DPL, P, AVL, L, D/B, G); ``gdt_base``, ``gdt_limit``, ``idt_base``, ``idt_limit``.
        mp_state: RUNNABLE, HALTED …
    """

    def __init__(self, values: Mapping[str, int], mp_state: MpState = MpState.RUNNABLE) -> None:
        self.values = dict(values)
        self.mp_state = mp_state

    @classmethod
    def of(cls, vcpu: Vcpu) -> Registers:
        """Read them from KVM.

        Raises:
            KvmError: the vCPU is closed.
        """
        regs, sregs, debug = vcpu.get_regs(), vcpu.get_sregs(), vcpu.get_debugregs()
        values: dict[str, int] = {name: getattr(regs, name) for name in (*_GENERAL, "rip", "rflags")}
        values |= {name: getattr(sregs, name) for name in _CONTROL}
        values |= {"dr6": debug.dr6, "dr7": debug.dr7}
        for name in _SEGMENTS:
            values |= _segment_values(name, getattr(sregs, name))
        for name in ("gdt", "idt"):
            table = getattr(sregs, name)
            values |= {f"{name}_base": table.base, f"{name}_limit": table.limit}
        return cls(values, vcpu.get_mp_state())

    @property
    def bits(self) -> int:
        """16, 32 or 64: how the CPU decodes instructions at RIP."""
        attributes = self.values["cs_attributes"]
        if self.values["efer"] >> 10 & 1 and attributes >> 13 & 1:
            return 64
        return 32 if self.values["cr0"] & 1 and attributes >> 14 & 1 else 16

    @property
    def cpl(self) -> int:
        """Current privilege level: SS's DPL (SDM volume 3, 5.5), 0 in real mode."""
        return self.values["ss_attributes"] >> 5 & 3 if self.values["cr0"] & 1 else 0

    @property
    def linear_rip(self) -> int:
        """Linear address of the next instruction: CS base + RIP, in 64-bit mode RIP."""
        if self.bits == 64:
            return self.values["rip"]
        return (self.values["cs_base"] + self.values["rip"]) & 0xFFFFFFFF

    @property
    def text(self) -> str:
        """Several lines, for people: the mode, general registers, segments, tables, control registers."""
        values = self.values
        mode = "protected" if values["cr0"] & 1 else "real"
        mode = "long" if values["efer"] >> 10 & 1 else mode
        lines = [
            f"{self.bits}-bit code in {mode} mode, CPL {self.cpl}, {self.mp_state.name}",
            f"RIP {values['rip']:016x}  RFLAGS {values['rflags']:08x}",
        ]
        rows = (_GENERAL[start : start + 4] for start in range(0, len(_GENERAL), 4))
        lines += ["  ".join(f"{name.upper():3} {values[name]:016x}" for name in row) for row in rows]
        lines += [
            f"{name.upper():3} {values[name]:04x}  base {values[f'{name}_base']:016x}"
            f"  limit {values[f'{name}_limit']:08x}  attributes {values[f'{name}_attributes']:04x}"
            for name in _SEGMENTS
        ]
        lines += [
            f"{name.upper()}       base {values[f'{name}_base']:016x}  limit {values[f'{name}_limit']:04x}"
            for name in ("gdt", "idt")
        ]
        lines.append("  ".join(f"{name.upper()} {values[name]:x}" for name in (*_CONTROL, "dr6", "dr7")))
        return "\n".join(lines)


def _segment_values(name: str, segment: Any) -> dict[str, int]:
    attributes = (
        segment.type
        | segment.s << 4
        | segment.dpl << 5
        | segment.present << 7
        | segment.avl << 12
        | segment.l << 13
        | segment.db << 14
        | segment.g << 15
    )
    return {
        name: segment.selector,
        f"{name}_base": segment.base,
        f"{name}_limit": segment.limit,
        f"{name}_attributes": attributes,
    }
