"""Accesses of the software CPU's guests to the chips inside KVM, of each kind and size."""

import pytest
from softcpu_rig import NOT_HERE, SoftcpuRig, values_of

from vmm import layout
from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
    pytest.mark.usefixtures("both_kinds_of_chips"),
]


def test_registers_of_the_lapic_and_the_ioapic() -> None:
    source = """
    main:
        mov $0xfee00000, %rdi
        movl $0x1ff, 0xf0(%rdi)
        orl $0x10000, 0x350(%rdi)           # one instruction, a load and a store
        movl $0x42, %eax
        xchg %eax, 0x380(%rdi)
        report 0x350(%rdi)
        report 0x380(%rdi)
        movzwl 0xf0(%rdi), %ebx
        report %ebx
        movzbl 0xf1(%rdi), %ebx
        report %ebx
        mov 0xf0(%rdi), %rbx                # what is behind a register reads as it pleases the chip
        report %ebx
        mov $0xfec00000, %rdi
        movl $0x10, (%rdi)
        movl $0x00010077, 0x10(%rdi)
        movl $1, (%rdi)
        movl $0x10, (%rdi)
        report 0x10(%rdi)
        done
    """
    assert values_of(source) == [0x10700, 0x42, 0x1FF, 0x01, 0x1FF, 0x10077]


def test_ports_of_each_size_and_beyond_a_chip() -> None:
    source = """
    main:
        mov $0xabcd, %eax
        out %al, $0x21
        xor %eax, %eax
        in $0x21, %al
        report %eax
        mov $0x21, %edx
        lea bytes(%rip), %rsi
        mov $3, %ecx
        cld
        rep outsb
        in $0x21, %al
        movzbl %al, %ebx
        report %ebx
        mov $-1, %eax
        mov $0x4d1, %edx
        in %dx, %ax                         # half of it is nobody's
        report %eax
        report $0x900d
        done
    bytes: .byte 1, 2, 3
    """
    # KVM asks the machine for both halves, which has nothing there; ISA has a cycle for each.
    both = 0xFFFFFF00 if SoftcpuRig.alone else 0xFFFFFFFF
    assert values_of(source) == [0xCD, 3, both, 0x900D]


@pytest.mark.parametrize("base", [0xFED80000, layout.SOFTWARE_CPU_STUBS, 0x500000, 0x100000000])
def test_the_lapic_can_be_moved(base: int) -> None:
    """Also over the page with the stubs, over RAM, and to where 32 bits do not reach."""
    source = f"""
    timer:
        push %rax
        incl ticks
        movl $0, 0xb0(%rdi)
        pop %rax
        iretq
    main:
        movl $0x24007, 0x21020              # the fifth GiB: its first 2 MiB
        movl $0x93, 0x24000
        movl $1, 0x24004
        gate 0x40, timer
        mov $0x1b, %ecx
        rdmsr
        and $0xfff, %eax
        or ${base & 0xFFFFF000:#x}, %eax
        mov ${base >> 32}, %edx
        wrmsr
        rdmsr
        and $~0xfff, %eax
        report %eax
        report %edx
        mov ${base:#x}, %rdi
        movl $0x1ff, 0xf0(%rdi)
        movl $0xb, 0x3e0(%rdi)
        movl $0x20040, 0x320(%rdi)          # periodic
        movl $1000000, 0x380(%rdi)
        sti
    1:  cmpl $5, ticks
        jb 1b
    2:  hlt
        cmpl $10, ticks
        jb 2b
        report 0xf0(%rdi)
        done
    .align 64
    ticks: .long 0
    """
    with SoftcpuRig(source) as rig:
        rig.run()
        assert rig.values == [base & 0xFFFFFFFF, base >> 32, 0x1FF]
        assert rig.vcpus[0].get_sregs().apic_base & ~0xFFF == base


def test_cpuid_shows_whether_the_lapic_is_enabled() -> None:
    source = """
    main:
        mov $1, %eax
        cpuid
        shr $9, %edx
        and $1, %edx
        report %edx
        mov $0x1b, %ecx
        rdmsr
        and $~0x800, %eax
        wrmsr
        mov $1, %eax
        cpuid
        shr $9, %edx
        and $1, %edx
        report %edx
        mov $0xfee00030, %edi
        mov (%rdi), %eax                    # nobody's now
        report %eax
        done
    """
    assert values_of(source) == [1, 0, 0xFFFFFFFF]


def test_the_guest_sees_nothing_of_the_stubs() -> None:
    stubs = layout.SOFTWARE_CPU_STUBS
    source = f"""
    main:
        mov ${stubs:#x}, %edi
        mov $4096 / 8, %ecx
        mov $-1, %rbx
    1:  and (%rdi), %rbx
        movq $0, (%rdi)
        add $8, %rdi
        dec %ecx
        jnz 1b
        report %ebx
        in $0x21, %al                       # and they still work
        report $0x900d
        done
    """
    with SoftcpuRig(source) as rig:
        rig.run()
        assert rig.values == [0xFFFFFFFF, 0x900D]
        assert not any(region.gpa <= stubs < region.gpa + region.size for region in rig.memory.regions())
        with pytest.raises(ValueError, match="no memory"):
            rig.memory.read(stubs, 1)
        with pytest.raises(ValueError, match="no writable memory"):
            rig.memory.write(stubs, b"\0")


def test_an_nmi_that_waits_for_iret_comes_right_behind_it() -> None:
    source = """
    nmi:
        push %rax
        incl received
        cmpl $1, received
        jne 1f
        movl $0x400, 0x300(%rdi)            # the next one, to itself: while this one lasts, it waits
        mov $100000, %ecx
    2:  loop 2b
        mov received, %eax
        mov %eax, during
    1:  pop %rax
        iretq
    main:
        gate 2, nmi
        mov $0xfee00000, %rdi
        movl $0x1ff, 0xf0(%rdi)
        xor %ebx, %ebx
        movl $0x400, 0x300(%rdi)
    1:  cmpl $1, received
        jb 1b
    2:  inc %ebx
        cmpl $2, received
        jb 2b
        report during
        report received
        report %ebx
        done
    .align 64
    received: .long 0
    during: .long 0
    """
    during, received, waited = values_of(source)
    assert (during, received) == (1, 2)
    assert waited <= 2, "instructions of the interrupted program ran before the second NMI"


def test_an_nmi_waits_for_the_instruction_behind_sti() -> None:
    """Else it would come between STI and HLT, whose interrupt its handler would take."""
    source = """
    nmi:
        push %rax
        mov 8(%rsp), %rax
        sub $main, %rax
        mov %eax, where
        pop %rax
        iretq
    main:
        gate 2, nmi
        mov $0xfee00000, %rdi
        movl $0x1ff, 0xf0(%rdi)
        movl $0x400, 0x300(%rdi)            # to itself; what follows is in one block with it
        sti
    shadow:
        nop
    1:  cmpl $0, where
        je 1b
        cli
        lea shadow - main, %eax
        sub %eax, where
        report where
        done
    .align 64
    where: .long 0
    """
    (where,) = values_of(source)
    assert where != 0


def test_the_local_apic_is_at_an_address_that_the_cpu_has() -> None:
    source = """
    refused:
        incl faults
        addq $8, %rsp
        addq $2, (%rsp)                     # behind WRMSR
        iretq
    main:
        gate 13, refused
        mov $0x80000008, %eax
        cpuid
        mov %eax, %ecx
        sub $32, %ecx
        mov $1, %ebx
        shl %cl, %ebx                       # the first bit that no address has
        mov $0x1b, %ecx
        rdmsr
        or %ebx, %edx
        wrmsr
        report faults
        rdmsr
        report %edx
        done
    .align 64
    faults: .long 0
    """
    assert values_of(source) == [1, 0]


def test_loads_of_less_than_32_bits_are_extended_with_zeros_or_the_sign() -> None:
    source = """
    main:
        mov $0xfee000f0, %edi
        movl $0x1ff, (%rdi)
        mov $-1, %rbx
        movzbl (%rdi), %ebx
        report %ebx
        movsbl (%rdi), %ebx
        report %ebx
        mov $0x3f000000, %edi               # nobody's
        movzbl (%rdi), %ebx
        report %ebx
        movzwl (%rdi), %ebx
        report %ebx
        mov (%rdi), %ebx
        report %ebx
        done
    """
    assert values_of(source) == [0xFF, 0xFFFFFFFF, 0xFF, 0xFFFF, 0xFFFFFFFF]
