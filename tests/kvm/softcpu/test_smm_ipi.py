"""SMIs that one CPU of the software CPU's sends another, by its LAPIC: who gets them, also while it halts."""

import pytest
from smm_guest import HALTED_SAYS, HANDLER, smi_to_who_halts
from softcpu_rig import NOT_HERE, values_of

from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
]


@pytest.mark.parametrize(
    ("high", "command", "who"),
    [
        (1 << 24, 0x4200, [1]),
        (0xFF << 24, 0x4200, [0, 1, 2]),
        (0, 0x44200, [0]),
        (0, 0x84200, [0, 1, 2]),
        (0, 0xC4200, [1, 2]),
        (0x06 << 24, 0x4A00, [1, 2]),
    ],
    ids=["to one", "broadcast", "self", "all", "others", "logical"],
)
def test_an_smi_by_interprocessor_interrupt(high: int, command: int, who: list[int]) -> None:
    """Also to CPUs that halt with interrupts off. None returns: their states have one place, as SMBASE is the same."""
    source = (
        HANDLER
        + f"""
    main:
        mov $0xfee00000, %rax
        mov 0x20(%rax), %ecx
        shr $24, %ecx
        mov $0x01000000, %edx
        shl %cl, %edx
        mov %edx, 0xd0(%rax)
        movl $0x1ff, 0xf0(%rax)
        cmp $0, %ebx
        jne other
        install
        start_others
        wait_for_cpus 3
    1:  pause
        cmpl $2, ready
        jb 1b
        mov $2000000, %ecx                  # until they halt
    2:  loop 2b
        mov $0xfee00000, %rax
        movl ${high:#x}, 0x310(%rax)
        movl ${command:#x}, 0x300(%rax)
    3:  pause
        jmp 3b
    other:
        lock incl ready
    5:  cli
        hlt
        report $0xbad
        jmp 5b
    .code16
    handler:
        mov $0xfee00020, %ebx
        mov (%ebx), %eax
        shr $24, %eax
        out %eax, $0xf4
        mov $1, %eax
        mov $entries, %ebx
        lock xadd %eax, (%ebx)
        cmp ${len(who) - 1}, %eax
        jb 6f
        mov $2000000, %ecx                  # would another one come?
    7:  loopl 7b
        out %eax, $0xf8
    6:  pause
        jmp 6b
    handler_end:
    .code64
    .align 8
    ready: .long 0
    entries: .long 0
    """
    )
    assert sorted(values_of(source, cpus=3)) == who


def test_who_halts_goes_on_behind_hlt_after_an_smi() -> None:
    send = """
        mov $0xfee00000, %rax
        movl $0x01000000, 0x310(%rax)
        movl $0x4200, 0x300(%rax)
    """
    assert values_of(smi_to_who_halts(send), cpus=2) == HALTED_SAYS
