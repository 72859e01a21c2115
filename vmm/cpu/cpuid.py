"""CPUID of each vCPU, with the topology asked for.

The topology is one socket of N cores with one thread each; a CPU's index is its APIC id.

Sources: "SDM" is Intel's Software Developer's Manual (volume and section), "APM" AMD's Architecture Programmer's Manual
volume 3, appendix E (CPUID leaves).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vmm._native import lib
from vmm.errors import ConfigError
from vmm.kvm.structs import CpuidEntry

if TYPE_CHECKING:
    from vmm.kvm import Kvm

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
    """What firmware should write into IA32_FEATURE_CONTROL: VMX allowed outside SMX, and the lock; None without VMX.

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
