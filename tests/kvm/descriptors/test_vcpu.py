"""A virtual CPU: its state and its lifetime."""

import errno
import struct
from collections.abc import Callable, Iterator

import pytest
from tiny_guest import CODE, TinyGuest, refused, start
from vmm._native import ffi, lib

from vmm.kvm import CpuidEntry, Kvm, MpState, Vcpu, Vm, exits
from vmm.kvm.state import TSC
from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [pytest.mark.needs_kvm, pytest.mark.hw, pytest.mark.usefixtures("kvm_device")]

UNKNOWN_MSR = 0xDEAD0000
PAT = 0x277
SYSENTER_CS = 0x174


@pytest.fixture
def vcpu(vm: Vm) -> Iterator[Vcpu]:
    """The CPU of a machine without interrupt controllers."""
    with vm.create_vcpu(0) as created:
        yield created


@pytest.fixture
def vcpu_with_lapic(vm: Vm) -> Iterator[Vcpu]:
    vm.create_irqchip()
    with vm.create_vcpu(0) as created:
        yield created


# -- registers --------------------------------------------------------------------------------------------------------


def test_regs(vcpu: Vcpu) -> None:
    regs = vcpu.get_regs()
    assert (regs.rip, regs.rflags) == (0xFFF0, 2)
    regs.r15, regs.rsp = 0xFEDCBA9876543210, 0x7C00
    vcpu.set_regs(regs)
    assert (vcpu.get_regs().r15, vcpu.get_regs().rsp) == (0xFEDCBA9876543210, 0x7C00)


def test_sregs(vcpu: Vcpu) -> None:
    sregs = vcpu.get_sregs()
    assert (sregs.cs.base, sregs.cs.selector, sregs.cs.limit) == (0xFFFF0000, 0xF000, 0xFFFF)
    sregs.gdt.base, sregs.gdt.limit, sregs.cr3 = 0x12345000, 0x37, 0x5000
    vcpu.set_sregs(sregs)
    assert (vcpu.get_sregs().gdt.base, vcpu.get_sregs().gdt.limit, vcpu.get_sregs().cr3) == (0x12345000, 0x37, 0x5000)


def test_set_sregs_that_no_cpu_accepts(vcpu: Vcpu) -> None:
    sregs = vcpu.get_sregs()
    sregs.efer, sregs.cr0, sregs.cr4 = 1 << 8, 0x80000001, 0  # long mode without PAE
    refused(errno.EINVAL, lambda: vcpu.set_sregs(sregs), "KVM_SET_SREGS failed for vCPU 0")


def test_translate() -> None:
    with TinyGuest("f4") as guest:
        # Linux 6.12 wants to know of a CPU's features before it takes paging.
        guest.vcpu.set_cpuid2(guest.vm.kvm.supported_cpuid())
        assert guest.vcpu.translate(0x1234) == 0x1234, "no paging"
        # 4-level paging (SDM volume 3, 4.5): tables at 0x4000, 0x5000, 0x6000, 0x7000; linear 0x202000 is GPA 0x8000.
        for table, index, entry in ((0x4000, 0, 0x5003), (0x5000, 0, 0x6003), (0x6000, 1, 0x7003), (0x7000, 2, 0x8003)):
            struct.pack_into("<Q", guest.memory, table + 8 * index, entry)
        sregs = guest.vcpu.get_sregs()
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer, sregs.cs.l = 0x80000011, 0x4000, 1 << 5, 0x500, 1
        guest.vcpu.set_sregs(sregs)
        assert guest.vcpu.translate(0x202234) == 0x8234
        assert guest.vcpu.translate(0x203234) is None


def test_fpu(vcpu: Vcpu) -> None:
    fpu = vcpu.get_fpu()
    assert fpu.fcw == 0x37F
    fpu.fcw, fpu.xmm[3][5] = 0x27F, 0xA5
    vcpu.set_fpu(fpu)
    assert (vcpu.get_fpu().fcw, vcpu.get_fpu().xmm[3][5]) == (0x27F, 0xA5)


def test_xsave(vcpu: Vcpu) -> None:
    area = vcpu.get_xsave()
    assert len(area) >= 4096
    struct.pack_into("<H", area, 0, 0x27F)  # FCW
    struct.pack_into("<I", area, 24, 0x1F00)  # MXCSR
    area[160 + 16] = 0x77  # XMM1
    struct.pack_into("<Q", area, 512, 0b11)  # XSTATE_BV: x87 and SSE
    vcpu.set_xsave(area)
    after = vcpu.get_xsave()
    assert struct.unpack_from("<H", after, 0) == (0x27F,)
    assert struct.unpack_from("<I", after, 24) == (0x1F00,)
    assert after[160 + 16] == 0x77


def test_set_xsave_of_a_wrong_size(vcpu: Vcpu) -> None:
    with pytest.raises(ValueError, match=r"has \d+ bytes here, not 512"):
        vcpu.set_xsave(bytes(512))


def test_set_xsave_with_an_unknown_feature(vcpu: Vcpu) -> None:
    area = vcpu.get_xsave()
    struct.pack_into("<Q", area, 512, 1 << 62)
    refused(errno.EINVAL, lambda: vcpu.set_xsave(area))


def test_xcrs(kvm: Kvm, vcpu: Vcpu) -> None:
    vcpu.set_cpuid2(kvm.supported_cpuid())
    assert vcpu.get_xcrs() == {0: 1}
    vcpu.set_xcrs({0: 0b11})
    assert vcpu.get_xcrs() == {0: 0b11}
    # The x87 bit cannot be clear (SDM volume 1, 13.3).
    refused(errno.EINVAL, lambda: vcpu.set_xcrs({0: 0b10}), "1 registers")


def test_debugregs(vcpu: Vcpu) -> None:
    debug = vcpu.get_debugregs()
    assert (debug.dr6, debug.dr7) == (0xFFFF0FF0, 0x400)
    debug.db[2] = 0xCAFE000
    vcpu.set_debugregs(debug)
    assert vcpu.get_debugregs().db[2] == 0xCAFE000
    debug.dr7 = 1 << 40
    refused(errno.EINVAL, lambda: vcpu.set_debugregs(debug))


def test_get_msrs_stops_at_the_first_unknown(vcpu: Vcpu) -> None:
    assert vcpu.get_msrs([PAT, UNKNOWN_MSR, SYSENTER_CS]) == {PAT: 0x0007040600070406}


def test_set_msrs_says_how_many_were_accepted(vcpu: Vcpu) -> None:
    assert vcpu.set_msrs({SYSENTER_CS: 8, PAT: 0x0606060606060606, UNKNOWN_MSR: 1, 0x175: 0x1234}) == 2
    assert vcpu.get_msrs([SYSENTER_CS, PAT, 0x175]) == {SYSENTER_CS: 8, PAT: 0x0606060606060606, 0x175: 0}


def test_msrs_in_batches(vcpu: Vcpu) -> None:
    assert vcpu.get_msrs([PAT] * 600) == {PAT: 0x0007040600070406}
    assert vcpu.get_msrs([PAT] * 300 + [UNKNOWN_MSR, SYSENTER_CS]) == {PAT: 0x0007040600070406}
    assert vcpu.set_msrs({}) == 0


def test_every_listed_msr_can_be_read(kvm: Kvm, vcpu: Vcpu) -> None:
    vcpu.set_cpuid2(kvm.supported_cpuid())
    listed = kvm.msr_index_list()
    assert vcpu.get_msrs(listed).keys() == set(listed)


# -- CPUID, interrupts, events ----------------------------------------------------------------------------------------


def test_cpuid2(kvm: Kvm, vcpu: Vcpu) -> None:
    assert vcpu.get_cpuid2() == []
    entries = kvm.supported_cpuid()
    vcpu.set_cpuid2(entries)
    after = vcpu.get_cpuid2()
    assert [entry[:2] for entry in after] == [entry[:2] for entry in entries]
    assert after[0] == entries[0]


def test_set_cpuid2_of_too_many_leaves(vcpu: Vcpu) -> None:
    leaves = [CpuidEntry(function, 0, 0, 0, 0, 0) for function in range(300)]
    refused(errno.E2BIG, lambda: vcpu.set_cpuid2(leaves), "vCPU 0, 300 leaves: .* ask for fewer")


def test_lapic(vcpu_with_lapic: Vcpu) -> None:
    lapic = vcpu_with_lapic.get_lapic()
    registers = ffi.buffer(lapic)
    assert struct.unpack_from("<I", registers, 0xF0) == (0xFF,)
    struct.pack_into("<I", registers, 0x80, 0x50)  # TPR
    vcpu_with_lapic.set_lapic(lapic)
    assert struct.unpack_from("<I", ffi.buffer(vcpu_with_lapic.get_lapic()), 0x80) == (0x50,)
    assert vcpu_with_lapic.get_sregs().cr8 == 5


def test_lapic_without_irqchip(vcpu: Vcpu) -> None:
    refused(errno.EINVAL, vcpu.get_lapic)
    refused(errno.EINVAL, lambda: vcpu.set_lapic(ffi.new("struct kvm_lapic_state *")))


def test_mp_state(vcpu_with_lapic: Vcpu) -> None:
    assert vcpu_with_lapic.get_mp_state() is MpState.RUNNABLE
    assert vcpu_with_lapic.vm.create_vcpu(1).get_mp_state() is MpState.UNINITIALIZED
    vcpu_with_lapic.set_mp_state(MpState.HALTED)
    assert vcpu_with_lapic.get_mp_state() is MpState.HALTED


def test_set_mp_state_without_irqchip(vcpu: Vcpu) -> None:
    refused(errno.EINVAL, lambda: vcpu.set_mp_state(MpState.INIT_RECEIVED), "INIT_RECEIVED")


def test_vcpu_events(vcpu: Vcpu) -> None:
    vcpu.nmi()
    assert vcpu.get_vcpu_events().nmi.pending == 1
    events = vcpu.get_vcpu_events()
    events.nmi.pending = 0
    events.interrupt.shadow = 1
    vcpu.set_vcpu_events(events)
    assert vcpu.get_vcpu_events().nmi.pending == 0
    events.exception.injected, events.exception.nr = 1, 77
    refused(errno.EINVAL, lambda: vcpu.set_vcpu_events(events))


def test_nmi_reaches_the_guest() -> None:
    with TinyGuest("90 90 90 90 f4") as guest:
        guest.memory[8:12] = struct.pack("<HH", 0x2000, 0)  # vector 2 of the real-mode interrupt table
        guest.load("e6 77", at=0x2000)  # out 0x77, al
        guest.vcpu.nmi()
        out = guest.vcpu.run_once()
        assert isinstance(out, exits.Io)
        assert out.port == 0x77


def test_tsc_khz(vcpu: Vcpu) -> None:
    khz = vcpu.get_tsc_khz()
    assert 100_000 < khz < 20_000_000
    vcpu.set_tsc_khz(khz)
    if not vcpu.vm.kvm.check_extension(lib.KVM_CAP_TSC_CONTROL):
        # Slower than the host needs scaling in hardware.
        refused(errno.EINVAL, lambda: vcpu.set_tsc_khz(khz // 2), f"vCPU 0, {khz // 2} kHz")


def test_tsc_offset(vcpu: Vcpu) -> None:
    ahead = 1 << 50
    vcpu.set_tsc_offset(ahead)
    # KVM that executes guests with the host's own TSC takes an offset, and leaves it at 0.
    assert vcpu.get_tsc_offset() == (ahead if has_hardware_virtualization() else 0)
    assert (vcpu.get_msrs([TSC])[TSC] >= ahead) == has_hardware_virtualization()


# -- lifetime ---------------------------------------------------------------------------------------------------------


def test_close_twice(vm: Vm) -> None:
    vcpu = vm.create_vcpu(0)
    vcpu.close()
    vcpu.close()
    assert repr(vcpu) == "<Vcpu vCPU 0, closed>"


def test_data_of_an_exit_outlives_its_vcpu() -> None:
    with TinyGuest("b0 2a  e6 10") as guest:  # mov al, 42 ; out 0x10, al
        out = guest.vcpu.run_once()
        assert isinstance(out, exits.Io)
    assert bytes(out.data) == b"\x2a"


CALLS: dict[str, Callable[[Vcpu], object]] = {
    "coalesced_ring": lambda vcpu: vcpu.coalesced_ring,
    "run": lambda vcpu: vcpu.run,
    "run_once": lambda vcpu: vcpu.run_once(),
    "set_immediate_exit": lambda vcpu: vcpu.set_immediate_exit(True),
    "get_regs": lambda vcpu: vcpu.get_regs(),
    "set_regs": lambda vcpu: vcpu.set_regs(ffi.new("struct kvm_regs *")),
    "get_sregs": lambda vcpu: vcpu.get_sregs(),
    "set_sregs": lambda vcpu: vcpu.set_sregs(ffi.new("struct kvm_sregs *")),
    "translate": lambda vcpu: vcpu.translate(0),
    "get_fpu": lambda vcpu: vcpu.get_fpu(),
    "set_fpu": lambda vcpu: vcpu.set_fpu(ffi.new("struct kvm_fpu *")),
    "get_xcrs": lambda vcpu: vcpu.get_xcrs(),
    "set_xcrs": lambda vcpu: vcpu.set_xcrs({0: 1}),
    "get_debugregs": lambda vcpu: vcpu.get_debugregs(),
    "set_debugregs": lambda vcpu: vcpu.set_debugregs(ffi.new("struct kvm_debugregs *")),
    "get_msrs": lambda vcpu: vcpu.get_msrs([PAT]),
    "set_msrs": lambda vcpu: vcpu.set_msrs({PAT: 0}),
    "get_cpuid2": lambda vcpu: vcpu.get_cpuid2(),
    "set_cpuid2": lambda vcpu: vcpu.set_cpuid2([]),
    "get_lapic": lambda vcpu: vcpu.get_lapic(),
    "set_lapic": lambda vcpu: vcpu.set_lapic(ffi.new("struct kvm_lapic_state *")),
    "get_mp_state": lambda vcpu: vcpu.get_mp_state(),
    "set_mp_state": lambda vcpu: vcpu.set_mp_state(MpState.RUNNABLE),
    "get_vcpu_events": lambda vcpu: vcpu.get_vcpu_events(),
    "set_vcpu_events": lambda vcpu: vcpu.set_vcpu_events(ffi.new("struct kvm_vcpu_events *")),
    "nmi": lambda vcpu: vcpu.nmi(),
    "smi": lambda vcpu: vcpu.smi(),
    "set_guest_debug": lambda vcpu: vcpu.set_guest_debug(0),
    "get_tsc_khz": lambda vcpu: vcpu.get_tsc_khz(),
    "set_tsc_khz": lambda vcpu: vcpu.set_tsc_khz(1),
    "set_nested_state": lambda vcpu: vcpu.set_nested_state(bytes(128)),
    "get_tsc_offset": lambda vcpu: vcpu.get_tsc_offset(),
    "set_tsc_offset": lambda vcpu: vcpu.set_tsc_offset(0),
    "sync_registers": lambda vcpu: vcpu.sync_registers(0),
    "mark_synced_dirty": lambda vcpu: vcpu.mark_synced_dirty(0),
    "get_xsave": lambda vcpu: vcpu.get_xsave(),
    "set_xsave": lambda vcpu: vcpu.set_xsave(bytes(4096)),
}


@pytest.mark.parametrize("name", CALLS)
def test_closed(vcpu: Vcpu, name: str) -> None:
    vcpu.close()
    refused(errno.EBADF, lambda: CALLS[name](vcpu), r"for vCPU 0.*Bad file descriptor \(EBADF\); it is closed already")


def test_closed_covers_every_call() -> None:
    # Nested state is asked for only where KVM offers nested guests.
    uncalled = {"close", "attach", "get_nested_state"}
    assert {name for name in vars(Vcpu) if not name.startswith("_")} - uncalled == CALLS.keys()


def test_start_helper_begins_at_the_code(vcpu: Vcpu) -> None:
    start(vcpu)
    assert (vcpu.get_regs().rip, vcpu.get_sregs().cs.base) == (CODE, 0)
