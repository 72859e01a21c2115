"""A ROM image of 64 KiB whose CPUs, all of them, print what CPUID says to the debug port, in binary.

For QEMU's pc and q35 with TCG, without firmware: CMOS 0x5f has the number of CPUs behind the first.
"""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCE = """
.code16
.text
.globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ss
    movw %ax, %ds
    movw $0x6000, %sp
    movl $0, 0x500                      # lock
    movl $0, 0x504                      # CPUs that have printed
    movl $0, 0x508                      # bytes of stacks that are taken
    movb $0x5f, %al
    outb %al, $0x70
    inb $0x71, %al
    movzbl %al, %ebp
    lgdtl %cs:register
    movl %cr0, %eax                     # protected mode for as long as FS takes 4 GiB
    orb $1, %al
    movl %eax, %cr0
    movw $8, %bx
    movw %bx, %fs
    andb $0xfe, %al
    movl %eax, %cr0
    movl $0xfee000f0, %ebx
    movl $0x1ff, %fs:(%ebx)
    movl $0xfee00300, %ebx
    movl $0xc4500, %fs:(%ebx)           # INIT to all others
    movl $0xc46ff, %fs:(%ebx)           # SIPI: page 0xff
    call print
1:  pause
    cmpl %ebp, 0x504
    jbe 1b
    movw $0xcf9, %dx
    movb $6, %al
    outb %al, %dx
2:  hlt
    jmp 2b

print:
    movl $1, %eax
    xchgl %eax, 0x500
    testl %eax, %eax
    pause
    jnz print
    movw $leaves, %si
3:  movl %cs:(%si), %eax
    movl %cs:4(%si), %ecx
    cpuid
    pushl %edx
    pushl %ecx
    pushl %ebx
    pushl %eax
    pushw %si
    movw %sp, %si
    addw $2, %si
    movw $0x402, %dx
    movw $16, %cx
    cld
    rep outsb
    popw %si
    addw $16, %sp
    addw $8, %si
    cmpw $leaves_end, %si
    jb 3b
    incl 0x504
    movl $0, 0x500
    ret

other:
    xorw %ax, %ax
    movw %ax, %ss
    movw %ax, %ds
4:  movl 0x508, %eax                    # a stack for each
    leal 64(%eax), %ebx
    lock cmpxchgl %ebx, 0x508
    jnz 4b
    leal 0x6040(%eax), %esp
    call print
5:  hlt
    jmp 5b

gdt: .quad 0, 0x00cf93000000ffff
register: .word 15
    .long 0xf0000 + gdt
leaves:
    {leaves}
leaves_end:
    .org 0xf000
    cli
    ljmpw $0xf000, $other
    .org 0xfff0
    ljmpw $0xf000, $_start
    .org 0x10000
"""


def image(leaves: Sequence[tuple[int, int]]) -> bytes:
    """The image; each CPU prints EAX, EBX, ECX and EDX of each leaf and subleaf, 16 bytes, before the next does."""
    words = "\n".join(f".long {leaf:#x}, {subleaf:#x}" for leaf, subleaf in leaves)
    with tempfile.TemporaryDirectory() as directory:
        text, program, rom = (Path(directory) / name for name in ("rom.s", "rom.o", "rom.bin"))
        text.write_text(SOURCE.format(leaves=words), encoding="ascii")
        subprocess.run(["as", "--32", "-o", program, text], check=True)
        subprocess.run(["ld", "-m", "elf_i386", "-Ttext", "0", "--oformat", "binary", "-o", rom, program], check=True)
        return rom.read_bytes()
