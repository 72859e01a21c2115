"""CPUID of each vCPU, with the topology, address bits and features asked for.

Sources: "SDM" is Intel's Software Developer's Manual (volume and section), "APM" AMD's Architecture Programmer's Manual
volume 3, appendix E (CPUID leaves).
"""

from __future__ import annotations

import struct

from vmm._native import lib
from vmm.config.topology import Topology
from vmm.errors import ConfigError
from vmm.kvm.structs import CpuidEntry
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vmm.config.cpu_model import CpuModel
    from vmm.config.machine import MachineConfig
    from vmm.kvm import Kvm

_AMD = b"AuthenticAMD"
_INTEL = b"GenuineIntel"

# CPUID leaf 1 (SDM volume 2, CPUID)
_ECX_TSC_DEADLINE = 1 << 24
_FEATURE_CONTROL_LOCKED = 1 << 0
_FEATURE_CONTROL_VMX = 1 << 2
_ECX_VMX = 1 << 5
_ECX_X2APIC = 1 << 21
_ECX_OSXSAVE = 1 << 27
_ECX_HYPERVISOR = 1 << 31
_EDX_HTT = 1 << 28
_EBX_TSC_ADJUST = 1 << 1
# Leaf 7
_EDX_ARCH_CAPABILITIES = 1 << 29
# Leaf 8000_0001
_ECX_CMP_LEGACY = 1 << 1
_ECX_TOPOEXT = 1 << 22

_HYPERVISOR = 0x40000000
_KVM = struct.unpack("<3I", b"KVMKVMKVM".ljust(12, b"\0"))
_KVM_MSI_EXT_DEST_ID = 1 << 15
"""Documentation/virt/kvm/x86/cpuid.rst of Linux; the leaf behind it says which of its services there are."""

_ADDRESS_SIZES = 0x80000008
_MADE = (0xB, 0x1F)
"""Leaves that are made anew."""

_SMT_LEVEL, _CORE_LEVEL, _DIE_LEVEL = 1 << 8, 2 << 8, 5 << 8
"""ECX of leaves 0xb and 0x1f (SDM volume 2, CPUID)."""

SOFTWARE_CPU_ADDRESS_BITS = 40
"""What the engine's page walks take (TCG_PHYS_ADDR_BITS in Unicorn's target/i386/cpu.h)."""


class Guest(NamedTuple):
    """What all CPUs of a guest have in common.

    Attributes:
        topology: how they are arranged.
        model: what is different from the host's processor.
        software_cpu: a software CPU runs the guest's instructions: offer what that has, whatever the host's CPU is.
        own_chips: interrupts are delivered by native/chips, which reach every APIC id, and not by KVM.
    """

    topology: Topology = Topology()
    model: CpuModel | None = None
    software_cpu: bool = False
    own_chips: bool = False


def check_count(kvm: Kvm, topology: Topology) -> None:
    """Can KVM make a guest with CPUs arranged like this here?

    Raises:
        ConfigError: no; says how many it can.
    """
    limit, highest = kvm.max_vcpus, topology.apic_id(topology.cpus - 1)
    if topology.cpus > limit:
        raise ConfigError(f"-smp {topology.cpus}: a guest has 1 to {limit} CPUs on this host; ask for one of these")
    most = kvm.max_vcpu_id
    if highest >= most:
        raise ConfigError(
            f"-smp: APIC ids of this topology go up to {highest}, and KVM here has {most} of them; "
            "numbers of dies, cores and threads that are powers of two leave no holes"
        )


class Addresses(NamedTuple):
    """What a guest's CPU says about physical addresses: whether it is AMD's, and how many bits they have."""

    amd: bool
    bits: int


def addresses(kvm: Kvm, config: MachineConfig, *, software_cpu: bool) -> Addresses:
    """What the CPUs of a machine will say.

    Raises:
        ConfigError: the guest is to have what the host has not.
    """
    entries = cpuid_entries(kvm, 0, Guest(config.cpu_topology, config.cpu, software_cpu))
    # SDM volume 2, CPUID: 36 where leaf 8000_0008 is not there.
    bits = next((entry.eax & 0xFF for entry in entries if entry.function == _ADDRESS_SIZES), 36)
    return Addresses(_vendor(entries) == _AMD, bits)


def cpuid_entries(kvm: Kvm, index: int, guest: Guest) -> list[CpuidEntry]:
    """CPUID of CPU ``index``, for `Vcpu.set_cpuid2`.

    Args:
        kvm: says what this host can offer.
        index: the CPU.
        guest: what all have in common.

    Raises:
        ConfigError: the guest is to have what the host has not.
    """
    topology = guest.topology
    if guest.software_cpu:
        entries = _software_cpu(topology, own_chips=guest.own_chips)
    else:
        deadline_timer = kvm.check_extension(lib.KVM_CAP_TSC_DEADLINE_TIMER) > 0
        entries = [_of_a_guest(entry, deadline_timer=deadline_timer) for entry in kvm.supported_cpuid()]
    vendor = _vendor(entries)
    basic_max = max((entry.eax for entry in entries if entry.function == 0), default=0)
    if topology.dies > 1:
        basic_max = max(basic_max, 0x1F)
    elif topology.threads > 1 or topology.has_wide_ids:
        basic_max = max(basic_max, 0xB)
    kept = (entry for entry in entries if entry.function not in _MADE)
    # Linux takes nodes of what is older than Zen for those of its MSR C001_100C, and divides its cores by them.
    zen = not guest.software_cpu
    result = [_with_topology(entry, vendor, index, topology, basic_max, dies_are_nodes=zen) for entry in kept]
    for function in _MADE:
        if function <= basic_max:
            result += _extended_topology(function, index, topology)
    return result if guest.model is None else [_with_model(entry, guest.model, entries) for entry in result]


def offers_x2apic(entries: list[CpuidEntry]) -> bool:
    """Whether a CPU with these leaves has x2APIC mode."""
    return any(entry.function == 1 and entry.ecx & _ECX_X2APIC for entry in entries)


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


def _of_a_guest(entry: CpuidEntry, *, deadline_timer: bool) -> CpuidEntry:
    """What KVM leaves to us."""
    if entry.function != 1:
        return entry
    ecx = entry.ecx & ~_ECX_OSXSAVE | _ECX_HYPERVISOR | (_ECX_TSC_DEADLINE if deadline_timer else 0)
    return entry._replace(ecx=ecx)


def _with_topology(
    entry: CpuidEntry, vendor: bytes, index: int, topology: Topology, basic_max: int, *, dies_are_nodes: bool
) -> CpuidEntry:
    """``entry`` as CPU ``index`` sees it."""
    count, apic_id = topology.cpus_per_socket, topology.apic_id(index)
    match entry.function:
        case 0x0:
            return entry._replace(eax=basic_max)
        case 0x1:
            ebx = entry.ebx & 0xFFFF | min(count, 255) << 16 | (apic_id & 0xFF) << 24
            return entry._replace(ebx=ebx, edx=entry.edx & ~_EDX_HTT | (_EDX_HTT if count > 1 else 0))
        case 0x4 if entry.eax & 0x1F:
            # Bits 31:26 ids of cores in the package - 1, 25:14 ids that share this cache - 1 (SDM volume 2, CPUID).
            last = entry.eax >> 5 & 7 >= 3
            sharing = (1 << (topology.die_offset if last else topology.core_offset)) - 1
            cores = (1 << topology.socket_offset - topology.core_offset) - 1
            return entry._replace(eax=entry.eax & 0x3FFF | min(sharing, 0xFFF) << 14 | min(cores, 0x3F) << 26)
        case 0x7 if entry.subleaf == 0 and vendor != _INTEL:
            # KVM emulates MSR 0x10a everywhere, but no CPU of another vendor has it, and some guests are surprised.
            return entry._replace(edx=entry.edx & ~_EDX_ARCH_CAPABILITIES)
        case 0x80000001 if vendor == _AMD:
            return entry._replace(ecx=entry.ecx & ~_ECX_CMP_LEGACY | (_ECX_CMP_LEGACY if count > 1 else 0))
        case 0x80000008 if vendor == _AMD:
            # APM: ECX 7:0 threads in the package - 1, 15:12 bits of the APIC id within it.
            return entry._replace(ecx=entry.ecx & ~0xF0FF | min(count - 1, 0xFF) | topology.socket_offset << 12)
        case 0x8000001D if entry.eax & 0x1F:
            # APM: EAX 25:14 threads that share this cache - 1.
            sharing = (topology.cores * topology.threads if entry.eax >> 5 & 7 >= 3 else topology.threads) - 1
            return entry._replace(eax=entry.eax & 0x3FFF | min(sharing, 0xFFF) << 14)
        case 0x8000001E if vendor == _AMD:
            # APM: EAX APIC id, EBX 7:0 core, 15:8 threads of a core - 1, ECX 7:0 node, 10:8 nodes of a package - 1.
            ebx = topology.threads - 1 << 8 | topology.place(index).core & 0xFF
            node = apic_id >> topology.die_offset if dies_are_nodes else topology.place(index).socket
            others = min(topology.dies - 1, 7) if dies_are_nodes else 0
            return entry._replace(eax=apic_id, ebx=ebx, ecx=others << 8 | node & 0xFF, edx=0)
    return entry


def _extended_topology(function: int, index: int, topology: Topology) -> list[CpuidEntry]:
    """Leaf 0xb or 0x1f (SDM volume 2, CPUID): levels of threads, cores and, in 0x1f of some, dies; the end.

    Each says at which bit of the APIC id the next level's number begins, and how many CPUs one of these has.
    """
    cores = topology.cores * topology.threads
    levels = [(topology.core_offset, topology.threads, _SMT_LEVEL)]
    if function == 0x1F and topology.dies > 1:
        levels += [(topology.die_offset, cores, _CORE_LEVEL)]
        levels += [(topology.socket_offset, topology.cpus_per_socket, _DIE_LEVEL)]
    else:
        levels += [(topology.socket_offset, topology.cpus_per_socket, _CORE_LEVEL)]
    levels += [(0, 0, 0)]
    apic_id = topology.apic_id(index)
    return [
        CpuidEntry(function, number, bits, count, level | number, apic_id, indexed=True)
        for number, (bits, count, level) in enumerate(levels)
    ]


def _with_model(entry: CpuidEntry, model: CpuModel, offered: list[CpuidEntry]) -> CpuidEntry:
    """``entry`` with the features and the address bits that ``-cpu`` asks for."""
    from vmm.config.cpu_model import DETAILS, FEATURES

    if entry.function == _ADDRESS_SIZES and model.phys_bits is not None:
        there = entry.eax & 0xFF
        if model.phys_bits > there:
            raise ConfigError(f"-cpu phys-bits={model.phys_bits}: this CPU has {there}; ask for no more")
        entry = entry._replace(eax=entry.eax & ~0xFF00FF | model.phys_bits)
    for name, wanted in model.features:
        place = FEATURES[name]
        there = any(
            getattr(each, place.register) >> place.bit & 1
            for each in offered
            if each[:2] == (place.function, place.subleaf)
        )
        if wanted and not there:
            raise ConfigError(f"-cpu +{name}: this host's CPU, or KVM, does not have it for guests; leave it out")
        if not wanted and entry[:2] == (place.function, place.subleaf):
            entry = entry._replace(**{place.register: getattr(entry, place.register) & ~(1 << place.bit)})
        if not wanted and entry.function == DETAILS.get(name):
            entry = entry._replace(eax=0, ebx=0, ecx=0, edx=0)
    return entry


def _software_cpu(topology: Topology, *, own_chips: bool) -> list[CpuidEntry]:
    """An early 64-bit AMD CPU, of which the software CPU has every instruction.

    AMD's family 15 makes guests expect none of the MSRs of later ones, and XSAVE, AVX, PCID, SMEP, SMAP, x2APIC,
    RDTSCP and 1 GiB pages are what the engine, or the way KVM and it share a CPU, does not have. The TSC is the host's,
    so it is invariant; TSC_ADJUST lets Linux see that nobody has moved one CPU's, and go by the TSC without holding it
    against slower clocks, which on a busy host are read too late (check_system_tsc_reliable in arch/x86/kernel/tsc.c).
    TSC_DEADLINE is how an idle guest's next timer is known without asking KVM. Where CPUs
    share cores or packages have dies, which that family could not say, it has AMD's later leaves for that, too. Where
    APIC ids need x2APIC, it has that, and says that it is KVM's: Linux takes x2APIC without remapping of interrupts
    only from a hypervisor that it knows (try_to_enable_x2apic in arch/x86/kernel/apic/apic.c). Of KVM's services it has
    none but destinations of 15 bits in interrupts of devices, without which Linux leaves out ids above 255 there. KVM's
    own I/O APIC has no such destinations.
    """
    signature = 0x00060FB1  # family 15, model 0x6b, stepping 1 (APM: Fn0000_0001_EAX)
    # FPU DE PSE TSC MSR PAE MCE CX8 APIC, SEP MTRR PGE MCA CMOV PAT PSE36, CLFSH, MMX FXSR SSE SSE2
    features = 0b0000_0111_1000_1011_1111_1011_1111_1101
    sse3_cmpxchg16b = 1 << 0 | 1 << 13
    shared_features = features & 0x0183F3FF & ~(1 << 11)
    syscall_nx_long_mode = 1 << 11 | 1 << 20 | 1 << 29
    wide = topology.has_wide_ids
    services = _KVM_MSI_EXT_DEST_ID if own_chips else 0
    extended = topology.threads > 1 or topology.dies > 1 or wide
    last = 0x8000001E if extended else _ADDRESS_SIZES
    vendor = struct.unpack("<3I", _AMD)
    brand = struct.unpack("<12I", b"vmm software CPU".ljust(48, b"\0"))
    leaves: list[tuple[int, int, int, int, int]] = [
        (0x0, 0x7, vendor[0], vendor[2], vendor[1]),
        (
            0x1,
            signature,
            8 << 8,  # CLFLUSH: 8 quadwords
            sse3_cmpxchg16b | _ECX_TSC_DEADLINE | _ECX_HYPERVISOR | (_ECX_X2APIC if wide else 0),
            features,
        ),
        (0x6, 1 << 2, 0, 0, 0),  # ARAT: the LAPIC timer never stops
        (0x80000000, last, vendor[0], vendor[2], vendor[1]),
        (0x80000001, signature, 0, 1 | (_ECX_TOPOEXT if extended else 0), shared_features | syscall_nx_long_mode),
        *((0x80000002 + i, *brand[4 * i : 4 * i + 4]) for i in range(3)),
        (0x80000007, 0, 0, 0, 1 << 8),  # invariant TSC
        (_ADDRESS_SIZES, 48 << 8 | SOFTWARE_CPU_ADDRESS_BITS, 0, 0, 0),
        *([(0x8000001E, 0, 0, 0, 0)] if extended else []),
        *([(_HYPERVISOR, _HYPERVISOR + 1, *_KVM), (_HYPERVISOR + 1, services, 0, 0, 0)] if wide else []),
    ]
    return [
        *(CpuidEntry(function, 0, eax, ebx, ecx, edx) for function, eax, ebx, ecx, edx in leaves),
        CpuidEntry(0x7, 0, 0, _EBX_TSC_ADJUST, 0, 0, indexed=True),
    ]
