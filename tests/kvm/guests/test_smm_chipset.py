"""A guest that opens, closes and moves SMRAM, TSEG, PAM and ECAM at random, and looks there from inside an SMI."""

import subprocess
from pathlib import Path

import pytest
from moments import run_in_moments

from vmm.machine import Machine
from vmm.pytest_plugin.plugin import MachineFactory
from vmm.run.outcome import Outcome, Reason

pytestmark = [pytest.mark.needs_kvm, pytest.mark.hw]

SOURCE = """
.code16
.macro random                               # xorshift32 in %ebp
    mov %ebp, %eax
    shl $13, %eax
    xor %eax, %ebp
    mov %ebp, %eax
    shr $17, %eax
    xor %eax, %ebp
    mov %ebp, %eax
    shl $5, %eax
    xor %eax, %ebp
.endm
.macro select register
    mov $0xcf8, %dx
    mov $0x80000000 | (\\register & ~3), %eax
    outl %eax, %dx
    mov $0xcfc | (\\register & 3), %dx
.endm
.macro random_to register, out, mask        # half of the time
    random
    bt $9, %ebp
    jc 9f
    select \\register
    mov %ebp, %eax
    and $\\mask, %eax
    \\out
9:
.endm
.org 0xf000
start:
    xor %ax, %ax
    mov %ax, %es
    mov %ax, %ss
    mov $0x3800, %ax
    mov %ax, %es
    mov $handler, %si                       # of this segment, whose base is that of the reset
    xor %di, %di
    mov $handler_end - handler, %cx
1:  mov %cs:(%si), %al
    mov %al, %es:(%di)
    inc %si
    inc %di
    loop 1b
    mov $0x2545f491, %ebp
    select 0xf840                           # ICH9's ACPI ports, with GBL_SMI_EN and APMC_EN
    mov $0x601, %eax
    outl %eax, %dx
    select 0xf844
    mov $0x80, %al
    outb %al, %dx
    mov $0x630, %dx
    mov $0x21, %eax
    outl %eax, %dx
2:  random_to 0x9e, "outb %al, %dx", 0xff
    random_to 0x9d, "outb %al, %dx", 0xef   # never locked
    random_to 0x50, "outw %ax, %dx", 0xffff
    random_to 0x60, "outl %eax, %dx", 0xfe000007
    random_to 0x90, "outl %eax, %dx", 0xffffffff
    random_to 0x94, "outw %ax, %dx", 0xffff
    mov %ebp, %eax
    out %al, $0xb2
    mov $0x402, %dx
    mov $0x2e, %al
    outb %al, %dx
    jmp 2b
handler:
    mov $16, %ecx
3:  random
    mov %ebp, %ebx
    and $0xffffc, %ebx
    mov %ebp, %eax
    shr $28, %eax
    and $3, %eax
    jz 4f
    add $0x03000000, %ebx                   # TSEG of 64 MiB's end
    dec %eax
    jz 4f
    add $0xfbd00000, %ebx                   # 0xfed00000: HPET, SMRAM's high place
4:  cmp $0x30000, %ebx                      # neither this code nor its saved state
    jb 5f
    cmp $0x40000, %ebx
    jb 6f
5:  bt $10, %ebp
    mov (%ebx), %eax
    jc 6f
    mov %ebp, (%ebx)
6:  dec %ecx
    jnz 3b
    rsm
handler_end:
.org 0xfff0
    .byte 0xe9
    .word start - . - 2
.org 0x10000
"""


def rom(folder: Path) -> str:
    source, built, image = (folder / f"chipset.{suffix}" for suffix in ("s", "o", "fd"))
    source.write_text(SOURCE, encoding="ascii")
    subprocess.run(["as", "--32", "-o", built, source], check=True)
    subprocess.run(
        ["ld", "-m", "elf_i386", "-Ttext", "0", "-e", "0", "--oformat", "binary", "-o", image, built], check=True
    )
    return str(image)


def run_until_it_says_more(machine: Machine, seen: int) -> Outcome:
    return run_in_moments(machine, lambda _: machine.debugcon.total > seen)


def test_a_chipset_that_changes_all_the_time(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    with vmm_machine(rom(tmp_path), machine="q35", memory="64M", smm="on", cpus=2) as machine:
        seen = 0
        for turn in range(4):
            outcome = run_until_it_says_more(machine, seen)
            assert outcome.reason is Reason.TIMEOUT, outcome.message
            assert machine.debugcon.total > seen, outcome.details
            seen = machine.debugcon.total
            if turn % 2:
                machine.reset()
        snapshot = machine.snapshot()
    with snapshot, Machine.restore(snapshot) as machine:
        assert run_until_it_says_more(machine, seen).reason is Reason.TIMEOUT
        assert machine.debugcon.total > seen
