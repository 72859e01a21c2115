"""What a guest's CPU claims to be, how it starts, and how it is shown."""

import mmap
import re
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from vmm._native import ffi, lib

from vmm.config.cpu_model import CpuModel
from vmm.config.topology import Topology
from vmm.cpu import cpuid, reset
from vmm.cpu.cpuid import Guest, check_count
from vmm.cpu.cpuid import cpuid_entries as entries_of
from vmm.cpu.registers import Registers
from vmm.cpu.reset import reset_vcpu
from vmm.errors import ConfigError, ExitStatus
from vmm.kvm import CpuidEntry, Kvm, MpState, Vcpu, Vm
from vmm.kvm.exits import Io

pytestmark = [pytest.mark.needs_kvm, pytest.mark.hw, pytest.mark.usefixtures("kvm_device")]

COUNTS = [1, 2, 3, 4, 8, 64, 255]
AMD = b"AuthenticAMD"


@pytest.fixture(scope="module")
def kvm() -> Iterator[Kvm]:
    with Kvm() as opened:
        yield opened


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[Vm]:
    with kvm.create_vm() as created:
        created.create_irqchip()
        yield created


def leaves(entries: list[CpuidEntry]) -> dict[tuple[int, int], CpuidEntry]:
    found = {(entry.function, entry.subleaf): entry for entry in entries}
    assert len(found) == len(entries), "each leaf once"
    return found


def host_vendor(kvm: Kvm) -> bytes:
    zero = leaves(kvm.supported_cpuid())[0, 0]
    return struct.pack("<3I", zero.ebx, zero.edx, zero.ecx)


class FakeHost:
    """A Kvm whose answers are those of another maker's host: what no machine at hand gives."""

    def __init__(self, entries: list[CpuidEntry]) -> None:
        self._entries = entries

    def supported_cpuid(self) -> list[CpuidEntry]:
        return self._entries

    def check_extension(self, capability: int) -> int:
        return int(capability == lib.KVM_CAP_TSC_DEADLINE_TIMER)


def intel_host() -> FakeHost:
    """The leaves that matter here, in the form that SDM volume 2 gives them."""
    ebx, edx, ecx = struct.unpack("<3I", b"GenuineIntel")
    return FakeHost(
        [
            CpuidEntry(0, 0, 0x1F, ebx, ecx, edx),
            CpuidEntry(1, 0, 0x000806F8, 0x00400800, 1 << 27 | 1 << 13, 1),
            CpuidEntry(4, 0, 0x1C004121, 0x02C0003F, 0x3F, 0, indexed=True),  # L1 data, shared by 2
            CpuidEntry(4, 1, 0x1C004122, 0x01C0003F, 0x3F, 0, indexed=True),  # L1 code
            CpuidEntry(4, 2, 0x1C004143, 0x03C0003F, 0x7FF, 0, indexed=True),  # L2
            CpuidEntry(4, 3, 0x1C1FC163, 0x04C0003F, 0x7FFF, 4, indexed=True),  # L3, shared by 128
            CpuidEntry(4, 4, 0, 0, 0, 0, indexed=True),
            CpuidEntry(7, 0, 0, 0, 0, 1 << 29, indexed=True),
            CpuidEntry(0xB, 0, 1, 2, 0x100, 5, indexed=True),
            CpuidEntry(0x1F, 0, 1, 2, 0x100, 5, indexed=True),
            CpuidEntry(0x80000000, 0, 0x80000008, 0, 0, 0),
            CpuidEntry(0x80000008, 0, 0x302E, 0, 0, 0),
        ]
    )


def cpuid_entries(kvm: Kvm | FakeHost, index: int, count: int, *, software_cpu: bool = False) -> list[CpuidEntry]:
    """What CPU ``index`` of one socket with ``count`` cores says."""
    return entries_of(kvm, index, Guest(Topology(cores=count), software_cpu=software_cpu))  # type: ignore[arg-type]


# -- topology ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("software_cpu", [False, True])
def test_apic_id_and_count(kvm: Kvm, count: int, software_cpu: bool) -> None:
    for index in {0, count // 2, count - 1}:
        one = leaves(cpuid_entries(kvm, index, count, software_cpu=software_cpu))[1, 0]
        assert one.ebx >> 24 == index
        assert one.ebx >> 16 & 0xFF == count
        assert one.edx >> 28 & 1 == (count > 1)


def test_host_bits_of_leaf_1(kvm: Kvm) -> None:
    one = leaves(cpuid_entries(kvm, 0, 1))[1, 0]
    supported = leaves(kvm.supported_cpuid())[1, 0]
    assert one.eax == supported.eax
    assert one.ecx >> 31 == 1, "a hypervisor"
    assert not one.ecx >> 27 & 1, "OSXSAVE is CR4's business"
    assert one.ecx >> 24 & 1 == kvm.check_extension(lib.KVM_CAP_TSC_DEADLINE_TIMER)
    changed = 1 << 31 | 1 << 27 | 1 << 24
    assert one.ecx & ~changed == supported.ecx & ~changed


def test_kvm_leaves_are_kept(kvm: Kvm) -> None:
    found = leaves(cpuid_entries(kvm, 0, 1))
    assert struct.pack("<3I", *found[0x40000000, 0][3:6]) == b"KVMKVMKVM\0\0\0"
    assert found[0x40000001, 0].eax == leaves(kvm.supported_cpuid())[0x40000001, 0].eax


@pytest.mark.parametrize(("count", "bits"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (64, 6), (255, 8)])
def test_extended_topology(count: int, bits: int) -> None:
    host = intel_host()
    found = leaves(cpuid_entries(host, count - 1, count))
    for function in (0xB, 0x1F):
        threads, cores, end = (found[function, subleaf] for subleaf in range(3))
        assert threads[2:] == (0, 1, 0x100, count - 1, True)
        assert cores[2:] == (bits, count, 0x201, count - 1, True)
        assert end[2:5] == (0, 0, 2)


def test_extended_topology_of_this_host(kvm: Kvm) -> None:
    highest = leaves(kvm.supported_cpuid())[0, 0].eax
    found = leaves(cpuid_entries(kvm, 2, 3))
    assert ((0xB, 1) in found) == (highest >= 0xB)
    assert ((0x1F, 1) in found) == (highest >= 0x1F)


def test_intel_cache_sharing() -> None:
    found = leaves(cpuid_entries(intel_host(), 0, 6))
    for cache in range(3):
        assert found[4, cache].eax >> 14 & 0xFFF == 0, "one core's own"
        assert found[4, cache].eax >> 26 == 7, "eight core ids"
    assert found[4, 3].eax >> 14 & 0xFFF == 7
    assert found[4, 3].eax & 0x3FFF == 0x163
    assert found[4, 4].eax == 0


def test_arch_capabilities_are_intel_s(kvm: Kvm) -> None:
    assert leaves(cpuid_entries(intel_host(), 0, 1))[7, 0].edx >> 29 & 1
    offered = leaves(kvm.supported_cpuid())[7, 0].edx >> 29 & 1 and host_vendor(kvm) == b"GenuineIntel"
    assert leaves(cpuid_entries(kvm, 0, 1))[7, 0].edx >> 29 & 1 == offered


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("software_cpu", [False, True])
def test_amd_topology(kvm: Kvm, count: int, software_cpu: bool) -> None:
    if not software_cpu and host_vendor(kvm) != AMD:
        pytest.skip("this host's CPU is not AMD's")
    found = leaves(cpuid_entries(kvm, count - 1, count, software_cpu=software_cpu))
    size = found[0x80000008, 0].ecx
    assert size & 0xFF == count - 1
    assert 1 << (size >> 12 & 0xF) >= count
    assert found[0x80000001, 0].ecx >> 1 & 1 == (count > 1), "CmpLegacy"
    if (0x8000001E, 0) in found:
        assert found[0x8000001E, 0][2:6] == (count - 1, count - 1, 0, 0)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("software_cpu", [False, True])
def test_kvm_takes_it(kvm: Kvm, vm: Vm, count: int, software_cpu: bool) -> None:
    for index in range(count):
        entries = cpuid_entries(kvm, index, count, software_cpu=software_cpu)
        with vm.create_vcpu(index) as vcpu:
            vcpu.set_cpuid2(entries)
            # KVM may add leaves of its own.
            assert {entry[:2] for entry in vcpu.get_cpuid2()} >= {entry[:2] for entry in entries}


def test_software_cpu_is_an_early_amd(kvm: Kvm) -> None:
    found = leaves(cpuid_entries(kvm, 0, 2, software_cpu=True))
    assert struct.pack("<3I", found[0, 0].ebx, found[0, 0].edx, found[0, 0].ecx) == AMD
    assert found[1, 0].eax >> 8 & 0xF == 15, "family"
    assert found[1, 0].eax >> 20 & 0xFF == 0, "no extended family"
    absent = 1 << 17 | 1 << 21 | 1 << 26 | 1 << 28  # PCID, x2APIC, XSAVE, AVX
    assert not found[1, 0].ecx & absent
    assert found[1, 0].ecx & 0x81002001 == 0x81002001, "SSE3, CMPXCHG16B, TSC_DEADLINE, hypervisor"
    # FPU PSE TSC MSR PAE CX8 APIC MTRR PGE CMOV PAT CLFSH MMX FXSR SSE SSE2
    for bit in (0, 3, 4, 5, 6, 8, 9, 12, 13, 15, 16, 19, 23, 24, 25, 26):
        assert found[1, 0].edx >> bit & 1
    assert found[7, 0][2:6] == (0, 1 << 1, 0, 0), "TSC_ADJUST; no SMEP, no SMAP"
    extended = found[0x80000001, 0]
    assert not extended.edx & (1 << 26 | 1 << 27), "1 GiB pages, RDTSCP"
    assert extended.edx & 0x20100800 == 0x20100800, "long mode, NX, SYSCALL"
    assert found[0x80000007, 0].edx == 1 << 8, "invariant TSC"
    assert not any(0x40000000 <= function < 0x50000000 for function, _ in found)
    brand = b"".join(struct.pack("<4I", *found[0x80000002 + part, 0][2:6]) for part in range(3))
    assert brand.rstrip(b"\0") == b"vmm software CPU"


def test_check_count(kvm: Kvm) -> None:
    with pytest.raises(ConfigError, match=r"^-smp 100000: a guest has 1 to \d+ CPUs on this host") as info:
        check_count(kvm, Topology(cores=100_000))
    assert info.value.exit_status is ExitStatus.USAGE


def test_check_count_within_the_limit(kvm: Kvm) -> None:
    check_count(kvm, Topology())
    check_count(kvm, Topology(cores=kvm.max_vcpus))


# -- reset ------------------------------------------------------------------------------------------------------------


def prepared(kvm: Kvm, vm: Vm, index: int, *, software_cpu: bool = False) -> Vcpu:
    vcpu = vm.create_vcpu(index)
    vcpu.set_cpuid2(cpuid_entries(kvm, index, 2, software_cpu=software_cpu))
    return vcpu


def lapic_register(vcpu: Vcpu, offset: int) -> int:
    return int(struct.unpack_from("<I", ffi.buffer(vcpu.get_lapic()), offset)[0])


@pytest.mark.parametrize("software_cpu", [False, True])
def test_reset_of_the_bsp(kvm: Kvm, vm: Vm, software_cpu: bool) -> None:
    with prepared(kvm, vm, 0, software_cpu=software_cpu) as vcpu:
        reset_vcpu(vcpu)
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
        assert (regs.rip, regs.rflags, regs.rax, regs.rsp) == (0xFFF0, 2, 0, 0)
        assert regs.rdx == leaves(vcpu.get_cpuid2())[1, 0].eax
        assert (sregs.cs.selector, sregs.cs.base, sregs.cs.limit) == (0xF000, 0xFFFF0000, 0xFFFF)
        assert (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) == (0x60000010, 0, 0, 0)
        assert (sregs.gdt.limit, sregs.idt.limit, sregs.ss.limit, sregs.tr.type) == (0xFFFF, 0xFFFF, 0xFFFF, 11)
        assert sregs.apic_base == 0xFEE00900
        assert vcpu.get_mp_state() is MpState.RUNNABLE
        assert vcpu.get_msrs([0x2FF, 0x277, 0x1A0]) == {0x2FF: 0, 0x277: 0x0007040600070406, 0x1A0: 1}
        assert lapic_register(vcpu, 0xF0) == 0xFF
        assert lapic_register(vcpu, 0x350) == 0x700, "LINT0: ExtINT, not masked"
        assert lapic_register(vcpu, 0x360) == 0x400, "LINT1: NMI, not masked"
        assert lapic_register(vcpu, 0x320) == 1 << 16
        assert vcpu.get_fpu().fcw == 0x37F
        assert struct.unpack_from("<I", vcpu.get_xsave(), 24) == (0x1F80,)


def test_reset_of_an_ap(kvm: Kvm, vm: Vm) -> None:
    with prepared(kvm, vm, 1) as vcpu:
        reset_vcpu(vcpu)
        assert vcpu.get_mp_state() is MpState.UNINITIALIZED
        assert vcpu.get_sregs().apic_base == 0xFEE00800
        assert lapic_register(vcpu, 0x20) == 1 << 24
        assert lapic_register(vcpu, 0x350) == 1 << 16
        # An AP whose LAPIC nobody has set is not found by its id.
        assert vm.signal_msi(0xFEE01000, 0x500)


def test_reset_undoes_what_a_guest_did(kvm: Kvm, vm: Vm) -> None:
    with prepared(kvm, vm, 0) as vcpu:
        reset_vcpu(vcpu)
        fresh, fresh_lapic = Registers.of(vcpu), bytes(ffi.buffer(vcpu.get_lapic()))
        sregs = vcpu.get_sregs()
        sregs.cr3, sregs.gdt.base, sregs.ds.base, sregs.cr8 = 0x1000, 0x2000, 0x3000, 7
        vcpu.set_sregs(sregs)
        regs = vcpu.get_regs()
        regs.rax, regs.r9, regs.rip = 1, 2, 3
        vcpu.set_regs(regs)
        vcpu.set_msrs({0x2FF: 0xC00, 0x200: 0x6, 0xC0000082: 0x1234000})
        lapic = vcpu.get_lapic()
        ffi.buffer(lapic)[0xF0:0xF2] = b"\xff\x01"
        vcpu.set_lapic(lapic)
        vm.signal_msi(0xFEE00000, 0x77)
        vcpu.nmi()
        debug = vcpu.get_debugregs()
        debug.db[0] = 0x9999
        vcpu.set_debugregs(debug)
        fpu = vcpu.get_fpu()
        fpu.xmm[0][0], fpu.fcw = 1, 0x27F
        vcpu.set_fpu(fpu)
        vcpu.set_mp_state(MpState.HALTED)

        reset_vcpu(vcpu)
        assert Registers.of(vcpu).values == fresh.values
        assert bytes(ffi.buffer(vcpu.get_lapic())) == fresh_lapic
        assert vcpu.get_msrs([0x2FF, 0x200, 0xC0000082]) == {0x2FF: 0, 0x200: 0, 0xC0000082: 0}
        assert vcpu.get_vcpu_events().nmi.pending == 0
        assert (vcpu.get_debugregs().db[0], vcpu.get_fpu().xmm[0][0], vcpu.get_fpu().fcw) == (0, 0, 0x37F)
        assert vcpu.get_mp_state() is MpState.RUNNABLE


def test_the_first_instruction_is_16_bytes_below_4_gib(kvm: Kvm) -> None:
    rom = bytearray(b"\xf4" * 0x1000)
    rom[0xFF0:0xFF3] = bytes.fromhex("e6 42 f4")  # out 0x42, al ; hlt
    page = mmap.mmap(-1, 0x1000)
    page[:] = bytes(rom)
    with kvm.create_vm() as vm:
        vm.create_irqchip()
        vm.set_user_memory_region(0, 0xFFFFF000, 0x1000, page, read_only=True)
        with prepared(kvm, vm, 0) as vcpu:
            reset_vcpu(vcpu)
            out = vcpu.run_once()
            assert isinstance(out, Io)
            assert out.port == 0x42
            assert Registers.of(vcpu).linear_rip in {0xFFFFFFF0, 0xFFFFFFF2}


# -- snapshots --------------------------------------------------------------------------------------------------------


def test_registers_in_real_mode(kvm: Kvm, vm: Vm) -> None:
    with prepared(kvm, vm, 0) as vcpu:
        reset_vcpu(vcpu)
        registers = Registers.of(vcpu)
    assert (registers.bits, registers.cpl, registers.linear_rip) == (16, 0, 0xFFFFFFF0)
    assert registers.values["cs_attributes"] == 0x9B
    text = registers.text
    assert text.splitlines()[0] == "16-bit code in real mode, CPL 0, RUNNABLE"
    assert re.search(r"^CS +f000  base 00000000ffff0000  limit 0000ffff  attributes 009b$", text, re.MULTILINE)
    assert re.search(r"^RIP 000000000000fff0  RFLAGS 00000002$", text, re.MULTILINE)
    for name in registers.values:
        assert name.split("_")[0].upper() in text


def test_registers_in_long_mode(kvm: Kvm, vm: Vm) -> None:
    with prepared(kvm, vm, 0) as vcpu:
        reset_vcpu(vcpu)
        sregs = vcpu.get_sregs()
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = 0x80000011, 0x1000, 0x20, 0x500
        sregs.cs.l, sregs.cs.base, sregs.cs.selector, sregs.cs.dpl = 1, 0, 0x33, 3
        sregs.ss.dpl = 3
        vcpu.set_sregs(sregs)
        registers = Registers.of(vcpu)
    assert (registers.bits, registers.cpl, registers.linear_rip) == (64, 3, 0xFFF0)
    assert registers.text.startswith("64-bit code in long mode, CPL 3")


def test_registers_in_protected_mode() -> None:
    values = {
        "cr0": 1,
        "efer": 0,
        "cs_attributes": 0xC09B,
        "cs_base": 0xFFFF0000,
        "rip": 0x10020,
        "ss_attributes": 0x93,
    }
    registers = Registers(values)
    assert (registers.bits, registers.cpl, registers.linear_rip) == (32, 0, 0x10020 - 0x10000)


def test_reset_msrs_that_kvm_lacks_are_passed_over(kvm: Kvm, vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    with prepared(kvm, vm, 0) as vcpu:
        vcpu.set_msrs({0x174: 8})
        monkeypatch.setattr(reset, "_RESET_MSRS", {0xDEAD0000: 0, 0x2FF: 0, 0xDEAD0001: 0, 0x174: 0})
        reset_vcpu(vcpu)
        assert vcpu.get_msrs([0x174]) == {0x174: 0}


def test_feature_control_is_for_cpus_with_vmx() -> None:
    assert cpuid.feature_control([CpuidEntry(1, 0, 0, 0, 1 << 5, 0)]) == 0x5
    assert cpuid.feature_control([CpuidEntry(1, 0, 0, 0, ~(1 << 5) & 0xFFFFFFFF, 0)]) is None


# -- sockets, dies, threads; what -cpu changes ------------------------------------------------------------------------

DIES = Topology(sockets=2, dies=2, cores=3, threads=2)


def test_dies_and_threads_of_an_intel_host() -> None:
    found = leaves(entries_of(intel_host(), 23, Guest(DIES)))  # type: ignore[arg-type]
    apic_id = 1 << 4 | 1 << 3 | 2 << 1 | 1
    assert (found[1, 0].ebx >> 24, found[1, 0].ebx >> 16 & 0xFF) == (apic_id, 12)
    levels = [found[0x1F, level][2:6] for level in range(4)]
    assert levels == [(1, 2, 0x100, apic_id), (3, 6, 0x201, apic_id), (4, 12, 0x502, apic_id), (0, 0, 3, apic_id)]
    assert [found[0xB, level][2:4] for level in range(3)] == [(1, 2), (4, 12), (0, 0)]
    assert [found[4, cache].eax >> 14 & 0xFFF for cache in range(4)] == [1, 1, 1, 7], "a core's, a die's"
    assert found[4, 0].eax >> 26 == 7, "eight core ids in a package"


def test_dies_need_a_leaf_that_the_host_may_not_have() -> None:
    host = FakeHost(
        [entry._replace(eax=0xD) if entry.function == 0 else entry for entry in intel_host().supported_cpuid()]
    )
    assert leaves(entries_of(host, 0, Guest(DIES)))[0, 0].eax == 0x1F  # type: ignore[arg-type]
    assert leaves(entries_of(host, 0, Guest(Topology(cores=4))))[0, 0].eax == 0xD  # type: ignore[arg-type]


def test_the_software_cpu_says_threads_and_dies_in_amds_later_leaves(kvm: Kvm) -> None:
    found = leaves(entries_of(kvm, 7, Guest(Topology(sockets=2, cores=3, threads=2), software_cpu=True)))
    assert found[0x8000001E, 0][2:6] == (8 | 1, 1 << 8 | 0, 1, 0), "APIC id; threads, core; package"
    assert found[0x80000001, 0].ecx >> 22 & 1, "topology extensions"
    assert found[0x80000008, 0].ecx == 3 << 12 | 5
    assert (found[0, 0].eax, found[0xB, 1][2:4]) == (0xB, (3, 6))


def test_the_software_cpu_has_x2apic_where_ids_need_it(kvm: Kvm) -> None:
    for cores, has in ((255, 0), (256, 1), (1024, 1)):
        found = leaves(entries_of(kvm, cores - 1, Guest(Topology(cores=cores), software_cpu=True)))
        assert found[1, 0].ecx >> 21 & 1 == has
        assert not has or found[0xB, 0].edx == cores - 1


@pytest.mark.parametrize(("own_chips", "services"), [(True, 1 << 15), (False, 0)])
def test_long_destinations_are_offered_where_there_are_some(kvm: Kvm, own_chips: bool, services: int) -> None:
    for cores, offered in ((4, None), (300, services)):
        guest = Guest(Topology(cores=cores), software_cpu=True, own_chips=own_chips)
        found = leaves(entries_of(kvm, 0, guest)).get((0x40000001, 0))
        assert (None if found is None else found.eax) == offered


@pytest.mark.parametrize(("text", "details"), [("host", (1, 8, 0, 0x19B)), ("host,svm=off", (0, 0, 0, 0))])
def test_without_svm_there_is_nothing_about_it(text: str, details: tuple[int, ...]) -> None:
    host: Any = FakeHost([CpuidEntry(0x80000001, 0, 0, 0, 1 << 2, 0), CpuidEntry(0x8000000A, 0, 1, 8, 0, 0x19B)])
    found = leaves(entries_of(host, 0, Guest(Topology(), CpuModel.parse(text))))
    assert found[0x8000000A, 0][2:6] == details


@pytest.mark.parametrize("software_cpu", [False, True])
def test_what_cpu_takes_away_is_gone(kvm: Kvm, software_cpu: bool) -> None:
    model = CpuModel.parse("host,phys-bits=37,-nx,-svm,tsc-deadline=off")
    found = leaves(entries_of(kvm, 0, Guest(Topology(), model, software_cpu)))
    assert found[0x80000008, 0].eax & 0xFF00FF == 37
    assert not found[0x80000001, 0].edx >> 20 & 1
    assert not found[0x80000001, 0].ecx >> 2 & 1
    assert not found[1, 0].ecx >> 24 & 1
    before = leaves(entries_of(kvm, 0, Guest(software_cpu=software_cpu)))
    assert before[0x80000001, 0].edx >> 20 & 1
    assert found[1, 0].edx == before[1, 0].edx


@pytest.mark.parametrize(
    ("text", "words"),
    [("host,phys-bits=41", "-cpu phys-bits=41: this CPU has 40"), ("host,+la57", r"-cpu \+la57: .* does not have it")],
)
def test_what_the_cpu_has_not_is_refused(kvm: Kvm, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        entries_of(kvm, 0, Guest(Topology(), CpuModel.parse(text), software_cpu=True))
