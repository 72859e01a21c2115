"""The software CPU where this host's KVM cannot go: paging outside long mode, and stacks with a base.

KVM without hardware virtualization drops CR0.PG outside long mode and ignores the base of SS when it delivers an
interrupt, so no access to a chip and no interrupt may depend on its knowing either.
"""

import pytest
from softcpu_rig import NOT_HERE, SoftcpuRig, values_of

from vmm.cpu.registers import Registers
from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
]

TABLES = 0x40000
IDT_32 = 0x48000
PAGING = 0x80000000

LEAVE_LONG_MODE = """
    main:
        leave_long_mode
"""

TIMER_32 = f"""
    .set idt32, {IDT_32:#x}
    .macro gate32 vector, handler
        movl $\\handler, %eax
        mov %ax, idt32 + 8 * \\vector
        movw $8, idt32 + 8 * \\vector + 2
        movw $0x8e00, idt32 + 8 * \\vector + 4
        shr $16, %eax
        mov %ax, idt32 + 8 * \\vector + 6
    .endm
    .macro start_timer32                    # vector 0x40 each millisecond
        movl $0x1ff, 0xfee000f0
        movl $0xb, 0xfee003e0
        movl $(1 << 17 | 0x40), 0xfee00320
        movl $1000000, 0xfee00380
    .endm
"""


def interrupted(high: int) -> str:
    """Reach each kind of chip, then take twenty interrupts spinning and twenty halted; report what became of ESP."""
    return f"""
        in $0x61, %al
        mov $0xa5, %al
        out %al, $0x21                      # the 8259's mask
        xor %eax, %eax
        in $0x21, %al
        report %eax
        mov 0xfee00030, %eax                # the LAPIC's version
        and $0xff, %eax
        report %eax
        gate32 0x40, timer + {high:#x}
        lidtl idt32_pointer
        start_timer32
        mov %esp, %ebp
        sti
    1:  cmpl $20, ticks + {high:#x}
        jb 1b
        mov %esp, %ebx
        sub %ebp, %ebx
        report %ebx
    2:  hlt
        cmpl $40, ticks + {high:#x}
        jb 2b
        cli
        mov %esp, %ebx
        sub %ebp, %ebx
        report %ebx
        done
    timer:
        push %eax
        incl ticks + {high:#x}
        movl $0, 0xfee000b0
        pop %eax
        iret
    .align 64
    ticks: .long 0
    idt32_pointer:
        .word 0x7ff
        .long idt32
    """


def store(entries: dict[int, int]) -> str:
    return "\n".join(f"movl ${value:#x}, {address:#x}" for address, value in entries.items())


def page_tables(kind: str, high: int) -> str:
    """Map the first 2 MiB at 0 and at ``high``, and the LAPIC where it is."""
    if kind == "PAE":
        directory = {high >> 30: TABLES + 0x1000 * (1 + (high >> 30)), 0: TABLES + 0x1000, 3: TABLES + 0x4000}
        entries = {TABLES + 8 * index: table | 1 for index, table in directory.items()}
        entries |= {TABLES + 0x1000: 0x83, directory[high >> 30] + 8 * (high >> 21 & 511): 0x83}
        return store(entries | {TABLES + 0x4000 + 8 * 503: 0xFEE00093})
    if kind == "4 MiB":
        return store({TABLES + 4 * (high >> 22): 0x83, TABLES: 0x83, TABLES + 4 * 0x3FB: 0xFEC00093})
    entries = {TABLES + 4 * (high >> 22): TABLES + 0x1003, TABLES: TABLES + 0x1003, TABLES + 4 * 0x3FB: TABLES + 0x2003}
    fill = f"""
        mov ${TABLES + 0x1000:#x}, %edi
        mov $3, %eax
    9:  stosl
        add $0x1000, %eax
        cmp $0x400003, %eax
        jne 9b
    """
    return fill + store(entries | {TABLES + 0x2000 + 4 * 0x200: 0xFEE00013})


@pytest.mark.parametrize("high", [0, 0xC0000000])
@pytest.mark.parametrize("kind", ["4 KiB", "4 MiB", "PAE"])
def test_paged_32_bit_code_reaches_chips_and_takes_interrupts(kind: str, high: int) -> None:
    source = (
        TIMER_32
        + LEAVE_LONG_MODE
        + page_tables(kind, high)
        + f"""
        mov ${0x620 if kind == "PAE" else 0x610:#x}, %eax
        mov %eax, %cr4
        mov ${TABLES:#x}, %eax
        mov %eax, %cr3
        mov %cr0, %eax
        or $0x80010000, %eax
        mov %eax, %cr0
        mov $paged + {high:#x}, %eax
        jmp *%eax
    paged:
        add ${high:#x}, %esp
    """
        + interrupted(high)
    )
    with SoftcpuRig(source) as rig:
        rig.run()
        mask, version, *moved = rig.values
        assert (mask, moved) == (0xA5, [0, 0])
        assert 0x10 <= version < 0x20
        registers = Registers.of(rig.vcpus[0])
        assert registers.values["cr0"] & PAGING
        assert (registers.bits, registers.values["cr3"]) == (32, TABLES)


def test_paging_outlives_a_stop_between_two_runs() -> None:
    source = (
        LEAVE_LONG_MODE
        + page_tables("4 MiB", 0xC0000000)
        + f"""
        mov $0x610, %eax
        mov %eax, %cr4
        mov ${TABLES:#x}, %eax
        mov %eax, %cr3
        mov %cr0, %eax
        or $0x80000000, %eax
        mov %eax, %cr0
        mov $1f + 0xc0000000, %eax
        jmp *%eax
    1:  cmp $0x99, %ecx
        jne 1b
        report $0x900d
        done
    """
    )
    with SoftcpuRig(source) as rig:
        rig.run(seconds=0.1)
        regs, sregs = rig.vcpus[0].get_regs(), rig.vcpus[0].get_sregs()
        assert sregs.cr0 & PAGING
        regs.rcx = 0x99
        rig.vcpus[0].set_regs(regs)
        rig.run()
        assert rig.values == [0x900D]
        sregs = rig.vcpus[0].get_sregs()
        sregs.cr2 = 0x1234
        rig.vcpus[0].set_sregs(sregs)
        assert rig.vcpus[0].get_sregs().cr2 == 0x1234, "what was set since counts, not what the guest had"


@pytest.mark.parametrize("kind", ["4 MiB", "PAE"])
def test_interrupts_come_after_a_stop_between_two_runs(kind: str) -> None:
    source = (
        TIMER_32
        + LEAVE_LONG_MODE
        + page_tables(kind, 0)
        + f"""
        mov ${0x620 if kind == "PAE" else 0x610:#x}, %eax
        mov %eax, %cr4
        mov ${TABLES:#x}, %eax
        mov %eax, %cr3
        mov $0xc0000080, %ecx               # EFER.NXE
        rdmsr
        or $0x800, %eax
        wrmsr
        mov %cr0, %eax
        or $0x80010000, %eax
        mov %eax, %cr0
        xor %ecx, %ecx
    1:  cmp $0x99, %ecx
        jne 1b
    """
        + interrupted(0)
    )
    with SoftcpuRig(source) as rig:
        for _ in range(3):
            rig.run(seconds=0.1)
        regs = rig.vcpus[0].get_regs()
        regs.rcx = 0x99
        rig.vcpus[0].set_regs(regs)
        rig.run()
        assert (rig.values[0], rig.values[2:]) == (0xA5, [0, 0])


def test_interrupts_go_to_a_stack_with_a_base() -> None:
    source = (
        TIMER_32
        + LEAVE_LONG_MODE
        + """
        lgdtl based_pointer
        mov $0x10, %eax
        mov %eax, %ss
        mov $0x5000, %esp                   # linear 0x9000
    """
        + interrupted(0)
        + """
    .align 8
    based:
        .quad 0
        .quad 0x00cf9b000000ffff
        .quad 0x00cf93004000ffff            # data, base 0x4000
    based_pointer:
        .word 3 * 8 - 1
        .long based
    """
    )
    values = values_of(source)
    assert (values[0], values[2:]) == (0xA5, [0, 0])
