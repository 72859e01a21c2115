"""Exceptions that a real CPU raises, in the software CPU: misaligned SSE, #XM, #MF, debug registers, RF in frames."""

import pytest
from softcpu_rig import NOT_HERE, values_of

from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
]

HANDLERS = """
    .set scratch, 0x9000
    .macro handler vector, code=0
    vector_\\vector:
        .if \\code
        add $8, %rsp
        .endif
        report $\\vector
        mov (%rsp), %rbx
        sub %r13, %rbx                      # RIP, from where the test put it
        report %ebx
        mov 16(%rsp), %rbx
        shr $16, %ebx
        and $1, %ebx
        report %ebx                         # RF
        mov %r14, (%rsp)                    # go on where the test says
        iretq
    .endm
    handler 1
    handler 6
    handler 13, 1
    handler 14, 1
    handler 16
    handler 19
    .macro gates
        .irp vector, 1, 6, 13, 14, 16, 19
        gate \\vector, vector_\\vector
        .endr
    .endm
    .macro raises instruction:vararg        # what comes, where it is, RF; or -1
        lea 71f(%rip), %r13
        lea 72f(%rip), %r14
    71: \\instruction
        report $-1
    72:
    .endm
"""


def frames_of(body: str) -> list[list[int]]:
    """Vector, RIP and RF of each `raises`, in their order."""
    values = values_of(HANDLERS + "main:\ngates\n" + body + "\ndone\n")
    return [values[i : i + 3] for i in range(0, len(values), 3)]


def test_operands_of_16_bytes_are_aligned() -> None:
    # Each would read or write what is mapped; only those that say so may be misaligned.
    source = """
        mov $0x9108, %edi
        raises movaps (%rdi), %xmm0
        raises movapd %xmm0, (%rdi)
        raises movdqa (%rdi), %xmm9
        raises movntdq %xmm0, (%rdi)
        raises addps (%rdi), %xmm0
        raises pxor 16(%rdi), %xmm0
        raises pshufd $0, (%rdi), %xmm0
        raises movshdup (%rdi), %xmm0
        mov $0x40000008, %edi               # not mapped either: #GP comes first
        raises movaps (%rdi), %xmm0
        mov $0x9107, %edi
        movups (%rdi), %xmm0
        movdqu %xmm0, (%rdi)
        movupd (%rdi), %xmm0
        lddqu (%rdi), %xmm0
        addss (%rdi), %xmm0
        cvtps2pd (%rdi), %xmm0
        cvtdq2pd (%rdi), %xmm0
        movhps (%rdi), %xmm0
        movq (%rdi), %mm0
        emms
        mov $0x9110, %edi
        movaps (%rdi), %xmm0
        paddb (%rdi), %xmm0
    """
    assert frames_of(source) == [[13, 0, 1]] * 9


def test_simd_exceptions() -> None:
    source = """
        movl $0x3f800000, scratch
        movss scratch, %xmm1
        xorps %xmm2, %xmm2
        movaps %xmm1, %xmm0
        divss %xmm2, %xmm0                  # masked: infinity and a flag
        stmxcsr scratch
        report scratch
        movd %xmm0, %ebx
        report %ebx
        report $0
        movl $0x1d80, scratch               # division by zero unmasked
        ldmxcsr scratch
        movaps %xmm1, %xmm0
        raises divss %xmm2, %xmm0
        stmxcsr scratch
        report scratch
        movd %xmm0, %ebx                    # as it was
        report %ebx
        report $0
        mov %cr4, %rax
        btr $10, %rax
        mov %rax, %cr4                      # OSXMMEXCPT off
        raises divss %xmm2, %xmm0
        movl $0x11f80, scratch
        raises ldmxcsr scratch
    """
    assert frames_of(source) == [
        [0x1F84, 0x7F800000, 0],
        [19, 0, 1],
        [0x1D84, 0x3F800000, 0],
        [6, 0, 1],
        [13, 0, 1],
    ]


def test_x87_exceptions_come_at_the_next_instruction() -> None:
    source = """
        .macro invalid                      # 0 / 0, unmasked
            fninit
            movw $0x37e, scratch
            fldcw scratch
            fldz
            fldz
            fdivrp
        .endm
        invalid
        fnstsw %ax
        movzwl %ax, %ebx
        report %ebx                         # IE, summary, busy; nothing popped
        fnstcw scratch
        report $0
        report $0
        raises fwait
        raises fld1
        raises fldcw scratch
        raises movdq2q %xmm0, %mm0
        raises emms
        fnclex
        fwait
        invalid
        fnstenv scratch                     # masks all exceptions
        fwait
        fldcw scratch                       # IE is still set, and unmasked again
        raises fwait
        fninit
    """
    assert frames_of(source) == [[0xB081, 0, 0]] + [[16, 0, 1]] * 6


def test_empty_registers_of_the_x87_stack() -> None:
    source = """
        fninit
        fadd %st(1), %st                    # nothing there: IE and SF, the indefinite number
        fnstsw %ax
        movzwl %ax, %ebx
        report %ebx
        fstpt scratch
        movzwl scratch + 8, %ebx
        report %ebx
        .rept 9
        fld1                                # one too many: C1, too
        .endr
        fnstsw %ax
        movzwl %ax, %ebx
        report %ebx
        done
    """
    assert values_of("main:\n" + ".set scratch, 0x9000\n" + source) == [0x41, 0xFFFF, 0x241]


def test_comparisons_clear_the_other_flags() -> None:
    source = """
        fninit
        fld1
        fldz
        movb $0x7f, %al
        addb $0x7f, %al                     # OF, SF, AF
        fcomi %st(1), %st
        pushfq
        pop %rbx
        and $0x8d5, %ebx
        report %ebx
        done
    """
    assert values_of("main:\n" + source) == [1]


def test_min_and_max_give_the_second_operand() -> None:
    source = """
        .set scratch, 0x9000
        .macro minimum first, second, mxcsr=0x1f80
            movl $\\mxcsr, scratch
            ldmxcsr scratch
            movl $\\first, scratch
            movss scratch, %xmm0
            movl $\\second, scratch
            minss scratch, %xmm0
            movd %xmm0, %ebx
            report %ebx
            stmxcsr scratch
            report scratch
        .endm
        minimum 0x7fc00001, 0x3f800000      # quiet NaN: the second, and IE
        minimum 0x3f800000, 0x7fa00001      # signalling NaN, as it is
        minimum 0x80000000, 0x00000000
        minimum 0x00000001, 0x00000002      # denormals: DE
        minimum 0x00000001, 0x80000002, 0x1fc0  # DAZ: both are zeros; the second, as a zero
        done
    """
    assert values_of("main:\n" + source) == [
        *(0x3F800000, 0x1F81),
        *(0x7FA00001, 0x1F81),
        *(0, 0x1F80),
        *(1, 0x1F82),
        *(0x80000000, 0x1FC0),
    ]


def test_frames_of_faults_have_rf() -> None:
    source = """
        raises ud2
        mov $0x40000000, %edi
        raises movb $0, (%rdi)
    """
    values = values_of(
        HANDLERS
        + """
    software:
        mov 16(%rsp), %rbx
        shr $16, %ebx
        and $1, %ebx
        report %ebx
        iretq
    main:
        gates
        gate 0x40, software
        """
        + source
        + """
        nop                                 # which ends what IRET set
        int $0x40
        done
        """
    )
    assert values == [6, 0, 1, 14, 0, 1, 0]


DATA_BREAKPOINTS = """
    .set watched, 0x9208
    debug:
        mov (%rsp), %rbx
        sub %r13, %rbx                      # RIP behind the instruction is 0
        report %ebx
        mov %dr6, %rbx
        and $0x600f, %ebx
        report %ebx
        xor %eax, %eax
        mov %rax, %dr6
        iretq
    .macro watch dr7
        mov $watched, %eax
        mov %rax, %dr0
        mov $\\dr7, %eax
        mov %rax, %dr7
    .endm
    .macro touch instruction:vararg
        lea 71f(%rip), %r13
        \\instruction
    71: nop
    .endm
    main:
        gate 1, debug
        mov $watched, %edi
"""


def test_data_breakpoints() -> None:
    source = """
        movl $0, (%rdi)                     # in the TLB before anything is watched
        watch 0xd0002                       # DR0: 4 bytes written
        touch movl $1, (%rdi)
        touch mov (%rdi), %eax              # read: no
        touch movb $1, 3(%rdi)
        touch movb $1, 4(%rdi)              # behind: no
        touch movq $1, -4(%rdi)             # overlaps
        touch lock incl (%rdi)
        touch xchg %eax, (%rdi)
        touch fstpl (%rdi)
        touch movups %xmm0, -12(%rdi)
        report $0x100
        watch 0xf0002                       # read or written
        touch mov (%rdi), %eax
        touch cmpb $0, 2(%rdi)
        touch movups (%rdi), %xmm0
        report $0x200
        mov $watched - 8, %eax
        mov %rax, %dr3
        mov $0x500f00c2, %eax               # DR3 as well: 2 bytes written
        mov %rax, %dr7
        mov $watched - 8, %edi
        mov $watched, %esi
        touch movsw                         # reads one, writes the other
        report $0x300
        xor %eax, %eax
        mov %rax, %dr7
        touch movl $1, (%rdi)
        done
    """
    hit = [0, 1]
    assert values_of(DATA_BREAKPOINTS + source) == [*hit * 7, 0x100, *hit * 3, 0x200, 0, 9, 0x300]


def test_a_fault_comes_instead_of_a_data_breakpoint() -> None:
    source = """
    fault:
        report $14
        add $8, %rsp
        mov %r14, (%rsp)
        iretq
    """
    body = """
        gate 14, fault
        watch 0xf0002
        lea 1f(%rip), %r14
        mov $watched, %esi
        mov $0x40000000, %edi
        movsl                               # reads what is watched, and cannot write
    1:  report $0x100
        mov $watched, %edi
        pushfq
        orq $0x100, (%rsp)                  # TF, too: one #DB for both
        popfq
        lea 2f(%rip), %r13
        movl $1, (%rdi)
    2:  pushfq
        done
    """
    main = DATA_BREAKPOINTS.replace("    debug:", source + "    debug:")
    values = values_of(main + body)
    assert values[:2] == [14, 0x100]
    assert values[4:6] == [0, 0x4001]


def test_general_detect() -> None:
    source = """
    debug:
        mov %dr6, %rbx
        and $0x600f, %ebx
        report %ebx
        mov %dr7, %rbx                      # GD is off in the handler
        report %ebx
        movq $1f, (%rsp)
        iretq
    main:
        gate 1, debug
        mov $0x2400, %eax
        mov %rax, %dr7
        mov %rax, %dr0
        report $-1
    1:  done
    """
    assert values_of(source) == [0x2000, 0x400]


EOI = "movl $0, 0xb0(%rbp)"
TILL_IT_CAME = "1: pause; cmpl $0, 0x9300; je 1b"


@pytest.mark.usefixtures("both_kinds_of_chips")
@pytest.mark.parametrize(
    ("vector", "cause", "before_iret"),
    [
        pytest.param(0x40, "int $0x40", "", id="INT"),
        pytest.param(6, "ud2", "addq $2, (%rsp)", id="UD"),
        pytest.param(13, "mov $0x1234567, %ecx; rdmsr", "pop %rax; addq $2, (%rsp)", id="GP"),
        pytest.param(14, "mov $0x7fffffff000, %rcx; movb (%rcx), %al", "pop %rax; addq $2, (%rsp)", id="PF"),
        pytest.param(0x41, f"sti; movl $0x44041, 0x300(%rbp); {TILL_IT_CAME}; cli", EOI, id="interrupt"),
        pytest.param(0x41, "movl $0x44041, 0x300(%rbp); sti; hlt; cli", EOI, id="interrupt in HLT"),
        pytest.param(2, f"movl $0x44400, 0x300(%rbp); {TILL_IT_CAME}", "", id="NMI"),
    ],
)
def test_data_breakpoint_at_a_frame(vector: int, cause: str, before_iret: str) -> None:
    """Pushed by a delivery: #DB is what its handler begins with."""
    source = f"""
    handler:
        incl 0x9300
        report $0x40
        {before_iret}
        iretq
    """
    body = f"""
        gate {vector}, handler
        mov $0xfee00000, %rbp
        movl $0x1ff, 0xf0(%rbp)             # the LAPIC is enabled
        mov %rsp, %rax
        and $-16, %rax
        sub $8, %rax
        mov %rax, %dr0
        mov $0x90002, %eax                  # 8 bytes written
        mov %rax, %dr7
        lea handler(%rip), %r13
        {cause}
        done
    """
    main = DATA_BREAKPOINTS.replace("    debug:", source + "    debug:")
    assert values_of(main + body) == [0, 1, 0x40]


def test_int1_is_a_trap() -> None:
    source = """
        lea 1f(%rip), %r13
        lea 1f(%rip), %r14
        .byte 0xf1
    1:  mov %dr6, %rbx
        report %ebx
        report $0
        report $0
    """
    assert frames_of(source) == [[1, 0, 0], [0xFFFF0FF0, 0, 0]]


def test_single_step_over_hlt() -> None:
    # It does not wait: #DB is what it ends with.
    source = """
    debug:
        mov (%rsp), %rbx
        lea 1f(%rip), %rcx
        sub %rcx, %rbx
        report %ebx
        mov %dr6, %rbx
        report %ebx
        andq $~0x100, 16(%rsp)
        iretq
    main:
        gate 1, debug
        pushfq
        orq $0x100, (%rsp)
        popfq
        hlt                                 # with interrupts off
    1:  done
    """
    assert values_of(source) == [0, 0xFFFF4FF0]
