"""The software CPU: MSRs and the TSC, which it shares with KVM."""

import pytest
from softcpu_rig import NOT_HERE, SoftcpuRig, values_of
from vmm._native import lib

from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
    pytest.mark.usefixtures("both_kinds_of_chips"),
]


def test_wrmsr_reaches_what_code_depends_on_and_what_kvm_keeps() -> None:
    source = """
    main:
        .macro write_msr index, high, low
            mov $\\index, %ecx
            mov $\\high, %edx
            mov $\\low, %eax
            wrmsr
        .endm
        .macro read_msr index
            mov $\\index, %ecx
            rdmsr
            mov %edx, %r8d
            report %eax
            report %r8d
        .endm
        write_msr 0xc0000082, 0xffff8000, 0x12345678    # LSTAR
        read_msr 0xc0000082
        movl $0xfeed, 0x9004
        write_msr 0xc0000100, 0, 0x9000                 # FS base
        mov %fs:4, %ebx
        report %ebx
        write_msr 0xc0000101, 0, 0x1111                 # GS base
        write_msr 0xc0000102, 0, 0x2222                 # its swap
        swapgs
        read_msr 0xc0000101
        write_msr 0x2ff, 0, 0xc06                       # MTRR default type: KVM's
        read_msr 0x2ff
        write_msr 0x277, 0x00070406, 0x00070406         # PAT
        read_msr 0x277
        read_msr 0x1b                                   # APIC base
        done
    """
    assert values_of(source) == [
        0x12345678, 0xFFFF8000,
        0xFEED,
        0x2222, 0,
        0xC06, 0,
        0x00070406, 0x00070406,
        0xFEE00900, 0,
    ]  # fmt: skip


ADDRESS = 0xFFFF_8123_4567_89AB
ENGINE_MSRS = {
    "STAR": (0xC0000081, 0x0123_4567_89AB_CDEF),
    "LSTAR": (0xC0000082, ADDRESS),
    "CSTAR": (0xC0000083, ADDRESS + 1),
    "FMASK": (0xC0000084, 0x47700),
    "FS_BASE": (0xC0000100, ADDRESS + 2),
    "GS_BASE": (0xC0000101, ADDRESS + 3),
    "KERNEL_GS_BASE": (0xC0000102, ADDRESS + 4),
    "TSC_AUX": (0xC0000103, 0x89AB_CDEF),
    "SYSENTER_CS": (0x174, 0x89AB_CDEF),
    "SYSENTER_ESP": (0x175, ADDRESS + 5),
    "SYSENTER_EIP": (0x176, ADDRESS + 6),
    "PAT": (0x277, 0x0007_0406_0107_0405),
}


@pytest.mark.parametrize("name", ENGINE_MSRS)
def test_an_msr_of_the_engine_is_the_guests_and_then_kvms(name: str) -> None:
    index, value = ENGINE_MSRS[name]
    source = f"""
    handler:
        movl $13, 0x9000
        addq $8, %rsp                       # error code
        addq $2, (%rsp)                     # behind WRMSR
        iretq
    main:
        gate 13, handler
        mov ${index}, %ecx
        mov ${value >> 32}, %edx
        mov ${value & 0xFFFFFFFF}, %eax
        wrmsr
        rdmsr
        mov %edx, %r8d
        report %eax
        report %r8d
        mov $0x00800000, %edx               # neither canonical nor types of memory
        mov $0x08080808, %eax
        movl $0, 0x9000
        wrmsr
        report 0x9000
        mov ${value >> 32}, %edx
        mov ${value & 0xFFFFFFFF}, %eax
        wrmsr
        done
    """
    takes_anything = name in {"STAR", "FMASK", "TSC_AUX", "SYSENTER_CS"}
    with SoftcpuRig(source) as rig:
        assert rig.run() == [lib.VCPU_STOPPED]
        assert rig.values == [value & 0xFFFFFFFF, value >> 32, 0 if takes_anything else 13]
        assert rig.vcpus[0].get_msrs([index]) == {index: value}


def test_an_msr_that_kvm_refuses_is_a_general_protection_fault() -> None:
    source = """
    handler:
        pop %rbx                            # error code
        report %ebx
        addq $2, (%rsp)                     # behind RDMSR, WRMSR
        iretq
    main:
        gate 13, handler
        mov $0x12345, %ecx
        rdmsr
        wrmsr
        mov $0x4b564d01, %ecx               # kvmclock: KVM has it, CPUID does not offer it
        wrmsr
        mov $0xc0000082, %ecx               # LSTAR takes canonical addresses only
        mov $0x00800000, %edx
        wrmsr
        mov $0x48, %ecx                     # SPEC_CTRL, PRED_CMD: likewise
        rdmsr
        mov $0x49, %ecx
        xor %eax, %eax
        xor %edx, %edx
        wrmsr
        mov $0x401, %ecx                    # the status of a machine check can be cleared alone
        wrmsr
        mov $1, %eax
        wrmsr
        report $77
        done
    """
    assert values_of(source) == [0] * 7 + [77]


def test_the_tsc_runs_and_is_kvms() -> None:
    source = """
    main:
        rdtsc
        shl $32, %rdx
        or %rax, %rdx
        mov %rdx, %r8
        mov $0x10, %ecx
        rdmsr                               # from KVM
        shl $32, %rdx
        or %rax, %rdx
        mov %rdx, %r9
        rdtsc
        shl $32, %rdx
        or %rax, %rdx
        xor %ebx, %ebx
        cmp %r8, %r9
        setae %bl
        report %ebx
        cmp %r9, %rdx
        setae %bl
        report %ebx
        done
    """
    assert values_of(source) == [1, 1]


def test_a_written_tsc_is_what_kvm_makes_of_it() -> None:
    """KVM's timer goes by KVM's TSC: a deadline of the engine's must be one of KVM's, even where that cannot be set."""
    source = """
    .macro report_tscs
        rdtsc
        report %edx
        mov $0x10, %ecx
        rdmsr                               # from KVM
        report %edx
    .endm
    main:
        mov $0x10, %ecx
        xor %eax, %eax
        mov $0x1000, %edx
        wrmsr
        report_tscs
        mov $0x3b, %ecx                     # TSC_ADJUST
        rdmsr
        add $0x2000, %edx
        wrmsr
        report_tscs
        mov $0x10, %ecx
        xor %eax, %eax
        xor %edx, %edx
        wrmsr                               # 0 is what a VMM gives new vCPUs
        report_tscs
        done
    """
    values = values_of(source)
    for engine, kvm in zip(values[::2], values[1::2], strict=True):
        assert 0 <= kvm - engine <= 0x10  # units of 2^32 ticks: some seconds may pass


@pytest.mark.usefixtures("both_kinds_of_chips")
def test_tsc_adjust_says_by_how_much_the_tsc_was_moved() -> None:
    source = """
    .macro tsc register
        rdtsc
        shl $32, %rdx
        lea (%rdx, %rax), \\register
    .endm
    .macro msr number, register
        mov $\\number, %ecx
        rdmsr
        shl $32, %rdx
        lea (%rdx, %rax), \\register
    .endm
    .macro report_high register             # in units of 2^32
        shr $32, \\register
        report %r8d
    .endm
    main:
        mov $7, %eax
        xor %ecx, %ecx
        cpuid
        and $2, %ebx
        report %ebx
        msr 0x3b, %r8
        report %r8d
        tsc %r9
        mov $0x10, %ecx
        mov %r9d, %eax
        mov %r9, %rdx
        shr $32, %rdx
        add $0x10000, %edx
        wrmsr                               # the TSC: 2^48 ahead
        msr 0x3b, %r10
        tsc %r8
        sub %r10, %r8
        sub %r9, %r8
        report_high %r8                     # what passed
        mov %r10, %r8
        report_high %r8
        mov $0x3b, %ecx
        mov $0x20000, %edx
        xor %eax, %eax
        wrmsr                               # 2^49 in all
        tsc %r8
        sub %r9, %r8
        report_high %r8
        msr 0x10, %r8
        sub %r9, %r8
        report_high %r8
        mov $0x3b, %ecx
        xor %edx, %edx
        xor %eax, %eax
        wrmsr
        tsc %r8
        sub %r9, %r8
        report_high %r8
        done
    """
    there, adjust, passed, moved, *tscs = values_of(source)
    some_seconds = range(0x1000)
    assert (there, adjust) == (2, 0)
    assert passed in some_seconds
    assert 0x10000 - moved in some_seconds, "from where the TSC was when it was written"
    assert [tsc - base in some_seconds for tsc, base in zip(tscs, (0x20000, 0x20000, 0), strict=True)] == [True] * 3


@pytest.mark.usefixtures("without_kvm")
def test_a_deadline_that_is_over_interrupts_right_behind_its_wrmsr() -> None:
    source = """
    timer:
        incl received
        movl $0, (%r8)                      # EOI
        iretq
    main:
        gate 0x40, timer
        mov $0xfee000b0, %r8d
        mov $0xfee00000, %rax
        movl $0x1ff, 0xf0(%rax)
        movl $0x40040, 0x320(%rax)          # TSC deadline
        sti
        mov $20, %ebp
    1:  mov $0x6e0, %ecx
        xor %edx, %edx
        mov $1, %eax
        wrmsr
        mov received, %ebx
        add %ebx, sum
        dec %ebp
        jnz 1b
        report sum
        done
    .align 64
    received: .long 0
    sum: .long 0
    """
    assert values_of(source) == [sum(range(1, 21))]
