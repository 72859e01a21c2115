"""A guest that makes a list of accesses to its local APIC, and reports what it read and which interrupts it got."""

import struct
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LOAD, STORE, TAKE, RDMSR, WRMSR = range(1, 6)
"""What a step does: `TAKE` lets interrupts in for a moment."""

REFUSED = 0x47500000
"""In the place of what RDMSR or WRMSR would report: #GP."""
TAKEN = 0x54000000
"""And the vector of an interrupt."""
WRITTEN = 0x57000000
"""A WRMSR that was taken."""

SIZE = 0x80000
"""Of an image, in bytes."""

MOST_STEPS = 30000
"""In one."""

_CODE = 0x10000
_STEP = struct.Struct("<BxHII")

_SOURCE = f"""
.set lapic, 0xfee00000
.set idt, 0x10000
.set back, 0x9000
.set results, 0x100000
.code32
.globl _start
_start:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $0x8000, %esp
    mov $0xff, %al                      # the 8259s are silent
    out %al, $0x21
    out %al, $0xa1
    mov $idt, %edi                      # interrupt gates to stubs of 16 bytes
    mov $stubs, %eax
1:  mov %eax, %ebx
    mov %bx, (%edi)
    movw $8, 2(%edi)
    movw $0x8e00, 4(%edi)
    shr $16, %ebx
    mov %bx, 6(%edi)
    add $8, %edi
    add $16, %eax
    cmp $idt + 256 * 8, %edi
    jne 1b
    lidt idt_pointer
    mov $steps, %esi
    mov $results, %ebp
    cld
next:
    movzbl (%esi), %eax
    movzwl 2(%esi), %edi
    mov 4(%esi), %ebx
    mov 8(%esi), %edx
    add $12, %esi
    jmp *actions(, %eax, 4)
load:
    mov lapic(%edi), %eax
    call report
    jmp next
store:
    mov %ebx, lapic(%edi)
    jmp next
take:
    mov $24, %ecx
1:  sti                                 # each comes back without
    nop
    loop 1b
    cli
    jmp next
read_msr:
    mov %edi, %ecx
    xor %eax, %eax
    xor %edx, %edx
    rdmsr
    call report
    mov %edx, %eax
    call report
    jmp next
write_msr:
    mov %edi, %ecx
    mov %ebx, %eax
    wrmsr
    mov ${WRITTEN:#x}, %eax
    call report
    jmp next
finish:
    mov $results, %esi
    mov %ebp, %ecx
    sub %esi, %ecx
    mov $0x402, %edx
    rep outsb
    mov $0xcf9, %edx
    mov $6, %al
    out %al, %dx
1:  pause
    jmp 1b

report:
    mov %eax, (%ebp)
    add $4, %ebp
    ret

interrupt:                              # no IRET: KVM's emulator has none in protected mode
    push %eax
    mov 4(%esp), %eax
    cmp $13, %eax
    je refused
    or ${TAKEN:#x}, %eax
    call report
    pop %eax
    add $4, %esp
    popl back
    add $8, %esp
    jmp *back
refused:                                # by RDMSR or WRMSR, at the top of the stack
    mov ${REFUSED:#x}, %eax
    call report
    mov $0x8000, %esp
    jmp next

.align 16
stubs:
.set vector, 0
.rept 256
.align 16
    push $vector
    jmp interrupt
.set vector, vector + 1
.endr

.align 4
actions: .long finish, load, store, take, read_msr, write_msr
idt_pointer: .word 256 * 8 - 1; .long idt
.align 8
gdt: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_pointer: .word 23; .long gdt

.code16
real:
    cli
    lgdtl %cs:(gdt_pointer - _start)
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $8, $_start

.org 0xfff0
    jmp real
.org 0x10000
"""


@dataclass(frozen=True)
class Step:
    """One access.

    Attributes:
        kind: `LOAD` ...
        where: a register's offset, or an MSR's number.
        low: what is written.
        high: the upper half of it, for an MSR.
    """

    kind: int
    where: int = 0
    low: int = 0
    high: int = 0

    def __str__(self) -> str:
        name = ("", "load", "store", "take", "rdmsr", "wrmsr")[self.kind]
        return f"{name} {self.where:#x} {self.high << 32 | self.low:#x}"


@cache
def _code() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        text, program, image = (Path(directory) / name for name in ("guest.s", "guest.o", "guest.bin"))
        source = f".set steps, {(1 << 32) - SIZE:#x}\n{_SOURCE}"
        text.write_text(source, encoding="ascii")
        subprocess.run(["as", "--32", "-o", program, text], check=True)
        link: list[str | Path] = [
            "ld",
            "-m",
            "elf_i386",
            "-Ttext",
            "0xffff0000",
            "--oformat",
            "binary",
            "-o",
            image,
            program,
        ]
        subprocess.run(link, check=True)
        return image.read_bytes()


def image(steps: Iterable[Step]) -> bytes:
    """A ROM of `SIZE` bytes, for any PC; prints 32-bit values on the debug port, and resets the machine."""
    listed = b"".join(_STEP.pack(step.kind, step.where, step.low, step.high) for step in steps) + bytes(_STEP.size)
    code = _code()
    assert len(code) == _CODE
    assert len(listed) <= (MOST_STEPS + 1) * _STEP.size <= SIZE - _CODE
    return listed.ljust(SIZE - _CODE, b"\0") + code


def values(report: bytes) -> list[int]:
    """Decode what the guest printed."""
    return [value for (value,) in struct.iter_unpack("<I", report)]


def reports(steps: Iterable[Step], printed: list[int]) -> list[tuple[int, ...]]:
    """What each step reported."""
    found, at = [], 0
    for step in steps:
        begin = at
        match step.kind:
            case 1 | 5:  # LOAD, WRMSR
                at += 1
            case 3:  # TAKE
                while at < len(printed) and printed[at] & ~0xFF == TAKEN:
                    at += 1
            case 4:  # RDMSR
                at += 1 if at < len(printed) and printed[at] == REFUSED else 2
        found.append(tuple(printed[begin:at]))
    assert at == len(printed), "the guest reported more than it was asked for"
    return found
