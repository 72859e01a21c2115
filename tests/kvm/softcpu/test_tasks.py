"""Tasks of 32 and 16 bits, and what a CPU has in TR."""

import pytest
from softcpu_rig import NOT_HERE, values_of

from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
]


def test_a_task_begins_in_a_conforming_code_segment() -> None:
    """Ring 3 in code of ring 0's, as after a call (AMD64 Architecture Programmer's Manual volume 2, 12.2.2)."""
    source = """
    .set task, 0x9100
    main:
        movabs $0x00cf9f000000ffff, %rax
        mov %rax, gdt + 0x50(%rip)
        movabs $0x0000890091000067, %rax    # the other task, where nothing may interrupt it
        mov %rax, gdt + 0x58(%rip)
        leave_long_mode
        movl $0x9000 << 16 | 0x67, gdt + 0x40
        movl $0x8900, gdt + 0x44
        mov $0x40, %eax
        ltr %ax
        movl $user, task + 0x20
        movl $0x3002, task + 0x24           # IOPL 3
        movl $0x7000, task + 0x38
        movl $0x53, task + 0x4c             # CS
        movl $0x33, task + 0x50             # SS
        movl $0x33, task + 0x54             # DS
        ljmp $0x58, $0
    user:
        mov %cs, %eax
        out %eax, $0xf4
        out %eax, $0xf8
    1:  jmp 1b
    """
    assert values_of(source) == [0x53]


def test_a_task_of_16_bits_and_back() -> None:
    source = """
    .set task, 0x9100
    main:
        movabs $0x000081009100002b, %rax
        mov %rax, gdt + 0x58(%rip)
        leave_long_mode
        movl $0x9000 << 16 | 0x67, gdt + 0x40
        movl $0x8900, gdt + 0x44
        mov $0x40, %eax
        ltr %ax
        movw $short, task + 0x0e
        movw $0x2, task + 0x10
        movw $0x7654, task + 0x1a           # SP
        movw $0x20, task + 0x22             # ES, CS, SS, DS
        movw $0x08, task + 0x24
        movw $0x10, task + 0x26
        movw $0x20, task + 0x28
        mov $0x12345678, %ebx
        ljmp $0x58, $0
        mov %ebx, %eax
        out %eax, $0xf4
        mov %ds, %eax
        out %eax, $0xf4
        movzwl task + 0x28, %eax            # DS of the other one, saved
        out %eax, $0xf4
        out %eax, $0xf8
    1:  jmp 1b
    short:
        mov %ds, %eax
        out %eax, $0xf4
        mov %esp, %eax
        out %eax, $0xf4
        mov $0x10, %eax
        mov %eax, %ds
        ljmp $0x40, $0
    """
    assert values_of(source) == [0x20, 0x7654, 0x12345678, 0x10, 0x10]


def test_the_stack_of_another_ring_in_the_task_that_a_cpu_begins_with() -> None:
    """TR after a reset: a TSS of 32 bits at 0, in use."""
    source = """
    main:
        leave_long_mode
        lea gate_80, %eax
        mov %ax, idt + 0x80 * 8
        movw $0x08, idt + 0x80 * 8 + 2
        movw $0xee00, idt + 0x80 * 8 + 4
        movw $0, idt + 0x80 * 8 + 6
        movl $0x6000, 4                     # ESP0, SS0
        movl $0x10, 8
        pushl $0x33
        pushl $0x6f00
        pushl $0x2
        pushl $0x2b
        pushl $user
        iret
    user:
        int $0x80
    gate_80:
        mov %esp, %eax
        out %eax, $0xf4
        out %eax, $0xf8
    1:  jmp 1b
    """
    assert values_of(source) == [0x6000 - 20]
