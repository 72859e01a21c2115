"""What debug registers and TF make the software CPU raise: #DB, and when."""

import pytest
from softcpu_rig import NOT_HERE, values_of

from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
]

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
