"""When #DB comes in the software CPU, and for how many reasons at once: behind STI, MOV SS and HLT (SDM 3, 6.8.3)."""

import pytest
from softcpu_rig import NOT_HERE, values_of

from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
]

STEP, WATCHED = 0x4000, 1
"""Bits of DR6."""

HANDLERS = """
    .set ss_value, 0x9000                   # DR0 watches it
    .macro handler name, vector
    \\name:                                  # which vector; where, from `start` on; why
        report $\\vector
        mov (%rsp), %rbx
        lea start(%rip), %rcx
        sub %rcx, %rbx
        report %ebx
        mov %dr6, %rbx
        and $0x400f, %ebx
        report %ebx
        xor %eax, %eax
        mov %rax, %dr6
        iretq
    .endm
    handler debug, 1
    handler breakpoint, 3
    tick:
        report $0x40
        push %rax
        mov $0xfee00000, %rax
        movl $0, 0xb0(%rax)
        pop %rax
        iretq
    main:
        gate 1, debug
        gate 3, breakpoint
        gate 0x40, tick
        movl $0x20, ss_value
        mov $ss_value, %edi
        mov %rdi, %dr0
        mov $0xf0002, %eax                  # 4 bytes, read or written
        mov %rax, %dr7
        mov $0x20, %r9d
        pushfq
        pop %r8
        or $0x100, %r8                      # with TF
        pushfq
        pop %r10                            # and without
"""


def traps_of(code: str) -> list[int]:
    """What the handlers report of ``code`` until it is done."""
    return values_of(HANDLERS + code + "\ndone\n")


def test_sti_delays_no_single_step() -> None:
    code = """
        push %r8
        popfq
    start:
        sti
        cli
        push %r10
        popfq
    """
    assert traps_of(code) == [1, 1, STEP, 1, 2, STEP, 1, 4, STEP, 1, 5, STEP]


def test_mov_ss_delays_a_single_step() -> None:
    code = """
        push %r8
        popfq
    start:
        mov %r9d, %ss                       # 3 bytes
        nop
        push %r10
        popfq
    """
    assert traps_of(code) == [1, 4, STEP, 1, 6, STEP, 1, 7, STEP]


def test_hlt_under_a_single_step_behind_sti_waits_for_nothing() -> None:
    # No interrupt ever comes: only #DB ends HLT.
    code = """
        push %r8
        popfq
    start:
        sti
        hlt
        push %r10
        popfq
    """
    assert traps_of(code) == [1, 1, STEP, 1, 2, STEP, 1, 4, STEP, 1, 5, STEP]


@pytest.mark.usefixtures("both_kinds_of_chips")
def test_an_interrupt_comes_behind_the_single_step() -> None:
    # It waits already; #DB comes first, and leaves nothing of what STI delays.
    code = """
        mov $0xfee00000, %rbx
        movl $0x1ff, 0xf0(%rbx)
        movl $0x44040, 0x300(%rbx)          # to itself
        push %r8
        popfq
    start:
        sti
        nop
        cli
        push %r10
        popfq
    """
    assert traps_of(code) == [1, 1, STEP, 0x40, 1, 2, STEP, 1, 3, STEP, 1, 5, STEP, 1, 6, STEP]


def test_a_data_breakpoint_waits_behind_a_load_of_ss() -> None:
    code = """
    start:
        mov (%rdi), %ss                     # 2 bytes
        nop
        nop
    """
    assert traps_of(code) == [1, 3, WATCHED]


def test_one_debug_exception_for_all_that_waits() -> None:
    code = """
        push %r8
        popfq
    start:
        mov (%rdi), %ss                     # 2 bytes
        nop
        push %r10
        popfq
    """
    assert traps_of(code) == [1, 3, WATCHED | STEP, 1, 5, STEP, 1, 6, STEP]


def test_int1_is_one_with_what_waits() -> None:
    code = """
    start:
        mov (%rdi), %ss
        .byte 0xf1
        nop
    """
    assert traps_of(code) == [1, 3, WATCHED]


def test_what_waits_comes_in_the_handler_of_a_software_interrupt() -> None:
    code = """
    start:
        mov (%rdi), %ss
        int3
    """
    values = traps_of(code)
    assert values[0] == 1
    assert values[2:] == [WATCHED, 3, 3, 0], "at the handler's first instruction, which then runs"
    assert values[1] >= 1 << 31, "in front of the code"


def test_hlt_does_not_wait_with_a_debug_exception_that_is_due() -> None:
    code = """
    start:
        mov (%rdi), %ss
        hlt                                 # with interrupts off
    """
    assert traps_of(code) == [1, 3, WATCHED]
