"""Exceptions that a real CPU raises, in the software CPU: misaligned SSE, #XM, #MF, INT1, RF in frames."""

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
