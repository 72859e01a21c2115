"""The software CPU between modes and rings: 16 to 64 bits and back, SYSCALL, SYSENTER, ports of ring 3."""

import pytest
from softcpu_rig import NOT_HERE, values_of

from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
]


def test_modes_from_16_to_64_bits_and_back() -> None:
    source = """
    main:
        mov $0x1111222233334444, %r8
        mov $0xffffffffffffffff, %rax
        mov $5, %eax                        # clears the upper half
        mov %rax, %rbx
        shr $32, %rbx
        report %ebx
        pushq $0x08
        lea compatibility(%rip), %rax
        push %rax
        lretq
    .code32
    compatibility:
        mov $0x10, %eax
        mov %eax, %ds
        mov %eax, %ss
        dec %eax                            # 48: a REX prefix in 64-bit mode
        out %eax, $0xf4
        ljmp $0x18, $again64
    .code64
    again64:
        mov %r8, %rax
        shr $32, %rax
        out %eax, $0xf4                     # R8 outlived compatibility mode
        pushq $0x08
        lea leave(%rip), %rax
        push %rax
        lretq
    .code32
    leave:
        mov %cr0, %eax
        and $0x7fffffff, %eax
        mov %eax, %cr0                      # out of long mode
        mov $0xc0000080, %ecx
        rdmsr
        out %eax, $0xf4                     # LMA is off, LME still on
        and $~0x100, %eax
        wrmsr
        ljmp $0x50, $protected16
    .code16
    protected16:
        mov $0x58, %ax
        mov %ax, %ds
        mov %ax, %ss
        lidtl real_idt_pointer
        mov %cr0, %eax
        and $~1, %al
        mov %eax, %cr0
        ljmp $0, $real
    real:
        mov $0x100, %ax
        mov %ax, %ds
        mov %ax, %ss
        mov $0x7000, %sp
        movl $0xcafe, 0x8000                # linear 0x9000
        xor %ax, %ax
        mov %ax, %ds
        mov 0x9000, %eax
        out %eax, $0xf4
        movw $real_handler, 4 * 0x41
        movw $0, 4 * 0x41 + 2
        int $0x41
        mov $0x12345678, %eax
        out %eax, $0xf4
        out %eax, $0xf8
    1:  jmp 1b
    real_handler:
        mov $0x41, %eax
        out %eax, $0xf4
        iret
    """
    assert values_of(source) == [0, 0xF, 0x11112222, 0x101, 0xCAFE, 0x41, 0x12345678]


def test_syscall_and_sysret() -> None:
    source = """
    kernel:
        mov %rcx, %r8
        mov %cs, %ebx
        report %ebx
        mov %ss, %ebx
        report %ebx
        pushfq
        pop %rbx
        report %ebx                         # masked: no IF, no CF
        report %r11d                        # the caller's
        mov %r8, %rcx
        sysretq
    main:
        call load_tss
        gate 3, finish, 0xee
        mov $0xc0000081, %ecx               # STAR: kernel 18/20, user 28 (+16 is 38, +8 is 30)
        xor %eax, %eax
        mov $0x00280018, %edx
        wrmsr
        mov $0xc0000082, %ecx
        lea kernel(%rip), %rax
        xor %edx, %edx
        wrmsr
        mov $0xc0000084, %ecx               # FMASK
        mov $0x201, %eax
        wrmsr
        mov $0x7e00, %rsp
        to_ring3 user
    user:
        stc
        syscall
    back:
        mov %cs, %r12d
        mov %ss, %r13d
        pushfq
        pop %r14
        lea back(%rip), %rbx
        sub %rbx, %r8                       # RCX named the instruction behind SYSCALL
        int3
    finish:
        report %r8d
        report %r12d
        report %r13d
        and $0x201, %r14d
        report %r14d
        done
    """
    values = values_of(source)
    assert values[:2] == [0x18, 0x20]
    assert values[2] & 0x201 == 0
    assert values[3] & 0x201 == 0x201
    assert values[4:] == [0, 0x3B, 0x33, 0x201]


def test_syscall_from_compatibility_mode() -> None:
    source = """
    long_entry:
        report $0x64
        done
    compatible_entry:
        mov %cs, %ebx
        report %ebx
        lea behind(%rip), %rbx
        sub %rcx, %rbx
        report %ebx
        done
    main:
        mov $0xc0000081, %ecx
        xor %eax, %eax
        mov $0x00280018, %edx
        wrmsr
        mov $0xc0000082, %ecx               # LSTAR
        lea long_entry(%rip), %rax
        xor %edx, %edx
        wrmsr
        inc %ecx                            # CSTAR
        lea compatible_entry(%rip), %rax
        wrmsr
        pushq $0x33
        pushq $0x6f00
        pushq $0x202
        pushq $0x2b
        lea user(%rip), %rax
        push %rax
        mov $0x7e00, %ebx
        iretq
    .code32
    user:
        syscall
    behind:
        ud2
    .code64
    """
    assert values_of(source) == [0x18, 0]


def test_sysenter_and_sysexit_in_32_bits() -> None:
    source = """
    main:
        leave_long_mode                     # where AMD has no SYSENTER
        xor %edx, %edx
        mov $0x174, %ecx
        mov $0x08, %eax                     # kernel 08/10; SYSEXIT goes to 18/20 with RPL 3
        wrmsr
        inc %ecx
        mov $0x7d00, %eax
        wrmsr
        inc %ecx
        mov $kernel, %eax
        wrmsr
        mov $user, %edx
        mov $0x6e00, %ecx
        xor %edi, %edi
        sysexit
    user:
        mov %cs, %ebx
        mov %ss, %ebp
        mov %esp, %esi
        sysenter
    kernel:
        mov %cs, %eax
        out %eax, $0xf4
        mov %ss, %eax
        out %eax, $0xf4
        mov %esp, %eax
        out %eax, $0xf4
        mov %ebx, %eax
        out %eax, $0xf4
        mov %ebp, %eax
        out %eax, $0xf4
        mov %esi, %eax
        out %eax, $0xf4
        out %eax, $0xf8
    1:  jmp 1b
    """
    assert values_of(source) == [0x08, 0x10, 0x7D00, 0x1B, 0x23, 0x6E00]


def test_ports_are_closed_to_ring_3() -> None:
    source = """
    fault:
        add $8, %rsp
        report $0xdead
        done
    main:
        call load_tss
        movw $104, tss + 102(%rip)          # no I/O bitmap
        gate 13, fault
        mov $0x7e00, %rsp
        to_ring3 user
    user:
        mov $0xbad, %eax
        out %eax, $0xf4
        ud2
    """
    assert values_of(source) == [0xDEAD]


def test_ring_3_with_iopl_reaches_chips_inside_kvm() -> None:
    source = """
    finish:
        report %r12d
        mov 8(%rsp), %ebx                   # still ring 3 where it came from
        report %ebx
        done
    main:
        call load_tss
        gate 3, finish, 0xee
        mov $0x7e00, %rsp
        to_ring3 user, 0x3202
    user:
        mov $0xa5, %al
        out %al, $0x21                      # the 8259's mask
        in $0x21, %al
        movzbl %al, %r12d
        int3
    """
    assert values_of(source) == [0xA5, 0x3B]


@pytest.mark.parametrize("way", ["iretq", "lretq"])
def test_a_return_to_ring_3_keeps_the_bases_of_segments_that_it_empties(way: str) -> None:
    source = f"""
    finish:
        mov %fs, %ebx
        report %ebx
        mov %gs, %ebx
        report %ebx
        report %fs:0
        report %gs:4
        report %r12d
        done
    main:
        call load_tss
        gate 3, finish, 0xee
        lea data(%rip), %rax
        mov %rax, %rdx
        shr $32, %rdx
        mov $0xc0000100, %ecx               # FS.base; its selector is that of a segment of ring 0
        wrmsr
        inc %ecx                            # GS.base
        wrmsr
        mov $0x7e00, %rsp
        pushq $0x33
        pushq $0x6f00
        .ifc {way}, iretq
        pushq $2
        .endif
        pushq $0x3b
        lea user(%rip), %rax
        push %rax
        {way}
    user:
        mov %gs:0, %r12d
        int3
    data: .long 0x1111, 0x2222
    """
    assert values_of(source) == [0, 0, 0x1111, 0x2222, 0x1111]


def test_smsw_to_32_bits_outside_of_64_bit_mode() -> None:
    """AMD64 Architecture Programmer's Manual volume 3, SMSW: to memory and to 16 bits, less."""
    source = """
    main:
        leave_long_mode
        mov %cr0, %ebx
        or $0x40000000, %ebx                # CD
        mov %ebx, %cr0
        smsw %eax
        xor %ebx, %eax
        out %eax, $0xf4
        mov $0xffffffff, %eax
        smsw %ax
        shr $16, %eax
        out %eax, $0xf4
        movl $0xffffffff, 0x9000
        smsw 0x9000
        mov 0x9000, %eax
        shr $16, %eax
        out %eax, $0xf4
        out %eax, $0xf8
    """
    assert values_of(source) == [0, 0xFFFF, 0xFFFF]
