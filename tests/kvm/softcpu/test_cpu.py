"""The software CPU as one guest sees it: faults, control registers, FPU. Each test is a trap once fallen into."""

import time

import pytest
from softcpu_rig import NOT_HERE, SoftcpuRig, values_of

from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
]


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
    precision = 0x20  # of the sum, which is not exact
    top = 6 << 11
    assert values_of(source) == [4, top | precision, 0xC0, 3, 4, 0x01020304, top | precision]


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


@pytest.mark.usefixtures("kvm_device")
def test_rdtsc_waits_for_a_late_tick_of_kvms_pit() -> None:
    # KVM is made late: what the guest set to 1 ms takes 54, of which KVM alone knows. It waits for 200 ms at the most.
    source = """
    tick:
        push %rax
        incl ticks(%rip)
        mov $0x20, %al
        out %al, $0x20
        pop %rax
        iretq
    ticks: .long 0
    main:
        gate 0x20, tick
        .irp pair, 0x1120, 0x2021, 0x0421, 0x0121, 0xfe21, 0x3443, 0xa940, 0x0440
        mov $(\\pair >> 8), %al
        out %al, $(\\pair & 0xff)
        .endr
        sti
        action 0
        rdtsc
        cli
        action 1
        report ticks(%rip)
        done
    """
    times: list[float] = []

    def be_late(rig: SoftcpuRig) -> None:
        state = rig.vm.get_pit2()
        state.channels[0].count = 65536
        rig.vm.set_pit2(state)
        times.append(time.monotonic())
        time.sleep(0.02)

    def note(_: SoftcpuRig) -> None:
        times.append(time.monotonic())

    (ticks,) = values_of(source, actions={0: be_late, 1: note})
    assert ticks > 0 or times[1] - times[0] > 0.2
