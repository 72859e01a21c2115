"""The software CPU as one guest sees it: faults, MSRs, control registers, FPU. Each test is a trap once fallen into."""

import pytest
from softcpu_rig import NOT_HERE, SoftcpuRig, values_of
from vmm._native import lib

from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
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
        report $77
        done
    """
    assert values_of(source) == [0, 0, 0, 0, 77]


def test_faults_are_delivered_with_the_right_address_and_code() -> None:
    source = """
    .macro fault_handler name, skip
    \\name:
        mov (%rsp), %ebx
        report %ebx
        mov %cr2, %rbx
        report %ebx
        mov 8(%rsp), %rbx
        sub %r15, %rbx                      # RIP, from where the test put it
        report %ebx
        add $8, %rsp
        addq $\\skip, (%rsp)
        iretq
    .endm
    fault_handler page_fault, 2
    undefined:
        mov (%rsp), %rbx
        sub %r15, %rbx
        report %ebx
        addq $2, (%rsp)
        iretq
    divide:
        report $0xd1
        addq $2, (%rsp)
        iretq
    main:
        gate 14, page_fault
        gate 6, undefined
        gate 0, divide
        mov $0x40001234, %rdi               # not mapped
        lea 1f(%rip), %r15
        nop
    1:  mov (%rdi), %eax                    # 2 bytes
    1:  lea 1f(%rip), %r15
    1:  mov %eax, (%rdi)
        lea 1f(%rip), %r15
        nop
    1:  ud2
        xor %ecx, %ecx
        div %ecx                            # 2 bytes
        movq $0, 0x22000 + 8 * 7            # 14 MiB: unmap, flush, fault; map again, no fault
        invlpg 0xe00000
        mov $0xe00000, %rdi
        lea 1f(%rip), %r15
    1:  mov (%rdi), %eax
        movq $0xe00087, 0x22000 + 8 * 7
        mov (%rdi), %eax
        andq $~2, 0x22000 + 8 * 7           # read-only: WP counts in ring 0
        invlpg (%rdi)
        lea 1f(%rip), %r15
    1:  mov %eax, (%rdi)
        report $77
        done
    """
    assert values_of(source) == [
        0, 0x40001234, 0,
        2, 0x40001234, 0,
        0,
        0xD1,
        0, 0xE00000, 0,
        3, 0xE00000, 0,
        77,
    ]  # fmt: skip


def test_int_through_a_kernel_gate_from_ring_3_faults_at_the_int() -> None:
    source = """
    fault:
        mov (%rsp), %ebx                    # error code: vector * 8 + 2 (IDT)
        report %ebx
        mov 8(%rsp), %rbx
        lea offender(%rip), %rcx
        sub %rcx, %rbx
        report %ebx
        mov 16(%rsp), %ebx
        report %ebx
        done
    main:
        call load_tss
        gate 13, fault
        gate 0x40, fault                    # DPL 0
        mov $0x7e00, %rsp
        to_ring3 offender
    offender:
        int $0x40
        ud2
    """
    assert values_of(source) == [0x40 * 8 + 2, 0, 0x3B]


def test_fpu_and_sse_state() -> None:
    source = """
    main:
        fninit
        fldpi
        fld1
        faddp                               # pi + 1
        fistpl 0x9000
        mov 0x9000, %ebx
        report %ebx
        fld1
        fld1
        fxsave 0x9200                       # two on the stack: TOP is 6
        movzwl 0x9202, %ebx
        report %ebx
        movzbl 0x9204, %ebx                 # the abridged tag word: registers 6 and 7
        report %ebx
        movl $0x7f80, 0x9000                # MXCSR: flush to zero off, round down (01)
        movl $0x3f80, 0x9000
        ldmxcsr 0x9000
        mov $7, %eax
        cvtsi2sd %eax, %xmm0
        mov $2, %eax
        cvtsi2sd %eax, %xmm1
        divsd %xmm1, %xmm0
        cvtsd2si %xmm0, %ebx                # 3.5 rounded down
        report %ebx
        movl $0x1f80, 0x9000
        ldmxcsr 0x9000
        cvtsd2si %xmm0, %ebx                # to nearest even: 4
        report %ebx
        movq $0x0102030405060708, %rax
        movq %rax, %xmm8
        pshufd $0x11, %xmm8, %xmm15
        movd %xmm15, %ebx
        report %ebx
        fninit
        fxrstor 0x9200
        fnstsw %ax
        movzwl %ax, %ebx
        report %ebx
        done
    """
    assert values_of(source) == [4, 6 << 11, 0xC0, 3, 4, 0x01020304, 6 << 11]


def test_each_cr3_has_its_own_pages() -> None:
    source = """
    .macro map table, frame                 # virtual 1 GiB + 4 KiB -> frame, the rest as in the first tables
        movl $\\table + 0x1007, \\table
        movl $0x22007, \\table + 0x1000
        movl $\\table + 0x2007, \\table + 0x1008
        movl $\\table + 0x3007, \\table + 0x2000
        movl $\\frame + 7, \\table + 0x3008
    .endm
    main:
        map 0x40000, 0x50000
        map 0x48000, 0x51000
        movl $1000, 0x50000
        movl $2000, 0x51000
        mov $0x40001000, %rdi
        mov $500, %ecx
    1:  mov $0x40000, %eax
        mov %rax, %cr3
        incl (%rdi)
        mov $0x48000, %eax
        mov %rax, %cr3
        addl $2, (%rdi)
        loop 1b
        report (%rdi)
        mov $0x40000, %eax
        mov %rax, %cr3
        report (%rdi)
        movl $0x51007, 0x43008              # the other frame, after INVLPG
        invlpg (%rdi)
        report (%rdi)
        done
    """
    assert values_of(source) == [3000, 1500, 3000]


def test_cpuid_says_what_the_engine_has() -> None:
    source = """
    main:
        mov $1, %eax
        cpuid
        mov %edx, %r8d
        report %ecx
        report %r8d
        mov $0x80000001, %eax
        cpuid
        report %edx
        done
    """
    leaf1_ecx, leaf1_edx, extended_edx = values_of(source)
    xsave_avx_x2apic = 1 << 26 | 1 << 27 | 1 << 28 | 1 << 21
    assert leaf1_ecx & xsave_avx_x2apic == 0
    assert leaf1_ecx & 1 << 24, "TSC_DEADLINE"
    assert leaf1_edx & (1 << 26 | 1 << 25 | 1 << 9) == 1 << 26 | 1 << 25 | 1 << 9, "SSE2, SSE, APIC"
    assert extended_edx & (1 << 29 | 1 << 11) == 1 << 29 | 1 << 11, "long mode, SYSCALL"


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


def test_control_registers_refuse_what_the_architecture_refuses() -> None:
    source = """
    fault:
        add $8, %rsp
        inc %r12d
        addq $3, (%rsp)
        iretq
    main:
        gate 13, fault
        xor %r12d, %r12d
        mov %cr0, %rbx
        mov %rbx, %rax
        btr $31, %rax
        mov %rax, %cr0                      # paging off in 64-bit mode
        mov %rbx, %rax
        bts $29, %rax
        mov %rax, %cr0                      # NW without CD
        mov %cr4, %rax
        btr $5, %rax
        mov %rax, %cr4                      # PAE off in long mode
        mov %cr4, %rax
        bts $18, %rax
        mov %rax, %cr4                      # OSXSAVE, which CPUID does not offer
        mov %cr3, %rax
        bts $50, %rax
        mov %rax, %cr3                      # beyond the physical address width
        report %r12d
        mov $5, %eax
        mov %rax, %cr8                      # 4 bytes: none faults
        mov %cr8, %rbx
        report %ebx
        mov $0xfee00000, %rdi
        mov 0x80(%rdi), %ebx                # the LAPIC's TPR is the same register
        report %ebx
        movl $0x70, 0x80(%rdi)
        mov %cr8, %rbx
        report %ebx
        done
    """
    assert values_of(source) == [5, 5, 0x50, 7]


def test_debug_exceptions() -> None:
    source = """
    debug:
        mov (%rsp), %rbx
        lea base(%rip), %rcx
        sub %rcx, %rbx
        report %ebx
        mov %dr6, %rbx
        and $0x4001, %ebx
        report %ebx
        xor %eax, %eax
        mov %rax, %dr6
        mov %rax, %dr7
        andq $~0x100, 16(%rsp)              # TF off
        btsq $16, 16(%rsp)                  # RF: the breakpoint's instruction runs now
        iretq
    main:
        gate 1, debug
        call watched                        # translated before the breakpoint exists
        lea watched(%rip), %rax
        mov %rax, %dr0
        mov $1, %eax
        mov %rax, %dr7
        call watched
        report $77
        pushfq
        orq $0x100, (%rsp)
    base:
        popfq
        nop                                 # trapped behind this
        done
    watched:
        nop
        ret
    """
    place, status, behind, single_step, step_status = values_of(source)
    assert (status, behind, step_status) == (1, 77, 0x4000)
    assert place > 0
    assert single_step == 2
