"""`REP MOVS` and `REP STOS` in the software CPU, which move runs of elements at once: held against each by itself.

The same guest does the same with instructions that have no prefix, in a loop.
"""

import random
import struct
from typing import NamedTuple

import pytest
from softcpu_rig import SoftcpuRig
from string_window import (
    CODE,
    ENTRY,
    MAP_WINDOW,
    MMIO,
    MMIO_GPA,
    PAGE,
    PAGES,
    READ_ONLY,
    TABLE,
    WATCHED,
    WINDOW,
    Stores,
)

from vmm.softcpu import engine

pytestmark = [
    pytest.mark.skipif(not engine.is_built(), reason="the software CPU is not built"),
    pytest.mark.usefixtures("without_kvm"),
]

SIZES = {1: "b", 2: "w", 4: "l", 8: "q"}
OPERATIONS = [(name, size, bits) for name in ("movs", "stos") for bits in (64, 32) for size in SIZES]
"""Name, bytes of an element, and bits of an address; the order of the guest's `operations`."""


class Case(NamedTuple):
    """One instruction: an index into `OPERATIONS`, registers, direction, and the value of DR7."""

    operation: int
    rcx: int
    rsi: int
    rdi: int
    down: bool
    dr7: int

    def packed(self, *, singly: bool) -> bytes:
        number = 2 * self.operation + singly
        return struct.pack("<6Q", number, *self[1:]).ljust(ENTRY, b"\0")


class Result(NamedTuple):
    """What one did: RCX, RSI, RDI, a page fault's error code and address, how many #DB and DR6 added up over them."""

    registers: tuple[int, ...]
    memory: bytes
    stores: list[tuple[int, int, int]]


def operation(name: str, size: int, bits: int) -> str:
    prefix = "addr32 " if bits == 32 else ""
    skip = "jecxz" if bits == 32 else "jrcxz"
    count = "%ecx" if bits == 32 else "%rcx"
    element = f"{prefix}{name}{SIZES[size]}"
    return f"""
        .balign 32
        rep {element}
        ret
        .balign 32
    1:  {skip} 2f
        {element}
        lea -1(%rcx), {count}
        jmp 1b
    2:  ret
    """


GUEST = f"""
    {MAP_WINDOW}
    main:
        gate 14, page_fault
        gate 1, debug
        map_window
        mov %cr0, %rax
        or $0x10000, %rax                   # WP
        mov %rax, %cr0
        mov ${TABLE}, %r12d
        mov %rsp, %r15
    next:
        action 0
        mov $window + {CODE} * 0x1000, %eax
        call *%rax
        mov (%r12), %r13d
        shl $5, %r13d
        lea operations(%rip), %rax
        add %rax, %r13
        mov 8(%r12), %rcx
        mov 16(%r12), %rsi
        mov 24(%r12), %rdi
        mov 40(%r12), %rax
        mov %rax, %dr7
        mov $0x8877665544332211, %rax
        testb $1, 32(%r12)
        jz 1f
        std
    1:  call *%r13
    after:
        cld
        mov %rcx, 48(%r12)
        mov %rsi, 56(%r12)
        mov %rdi, 64(%r12)
        xor %eax, %eax
        mov %rax, %dr7
        action 1
        add ${ENTRY}, %r12
        cmpq $-1, (%r12)
        jne next
        done
    page_fault:
        pop 72(%r12)
        mov %cr2, %rax
        mov %rax, 80(%r12)
        lea after(%rip), %rax
        mov %rax, (%rsp)
        mov %r15, 24(%rsp)
        iretq
    debug:
        push %rax
        incq 88(%r12)
        mov %dr6, %rax
        and $0xf, %eax
        add %rax, 96(%r12)
        xor %eax, %eax
        mov %rax, %dr6
        pop %rax
        iretq
    .balign 32
    operations:
    {"".join(operation(*each) for each in OPERATIONS)}
"""


def case(
    name: str,
    size: int,
    source: int,
    destination: int,
    count: int,
    *,
    bits: int = 64,
    down: bool = False,
    dr7: int = 0,
    above: int = 0,
) -> Case:
    """`count` elements of ``size`` bytes between offsets in the window; ``above``: in the registers' high halves."""
    high = above << 32
    which = OPERATIONS.index((name, size, bits))
    return Case(which, high | count, high | WINDOW + source, high | WINDOW + destination, down, dr7)


def chosen_cases() -> list[Case]:
    on_store, on_access = 0x1 | 1 << 16, 0x1 | 3 << 16
    watched = WATCHED * PAGE + 0x234
    cases = [
        case("stos", 1, 0, 0, 0),
        case("stos", 1, 0, 0, 1),
        case("stos", 8, 0, 0, 512),
        case("stos", 4, 0, 3, 1400),
        case("stos", 1, 0, PAGE, 3 * PAGE),  # into the page that is not there
        case("stos", 8, 0, 2 * PAGE - 4, 2),  # an element half in it
        case("stos", 2, 0, READ_ONLY * PAGE, 8),
        case("stos", 1, 0, CODE * PAGE + 16, 3000),
        case("stos", 4, 0, MMIO * PAGE - 16, 8),
        case("stos", 1, 0, watched - 20, 40, dr7=on_store),
        case("stos", 1, 0, 10 * PAGE, 40, dr7=on_store),  # RAM that is not watched while something is
        case("movs", 1, 7 * PAGE, 0, 2 * PAGE),
        case("movs", 8, 7 * PAGE + 3, 5, 700),
        case("movs", 1, PAGE, 7 * PAGE, 2 * PAGE),  # out of the page that is not there
        case("movs", 4, READ_ONLY * PAGE + 5, 12 * PAGE, 900),
        case("movs", 1, 12 * PAGE, READ_ONLY * PAGE, 900),
        case("movs", 1, CODE * PAGE, 12 * PAGE, 900),
        case("movs", 1, 12 * PAGE, CODE * PAGE, 900),
        case("movs", 2, MMIO * PAGE - 16, 12 * PAGE, 32),
        case("movs", 2, 12 * PAGE, MMIO * PAGE - 16, 32),
        case("movs", 1, watched - 20, 0, 40, dr7=on_access),
        case("movs", 1, 12 * PAGE, 0, 200, down=True),
        case("movs", 1, 0, 0, 100),
        case("movs", 4, 10 * PAGE, 12 * PAGE, 5, bits=32, above=0xABCD),
        case("stos", 2, 0, 10 * PAGE + 4094, 0, bits=32, above=1),
    ]
    # Over itself, from nothing of an element apart to more than a page.
    cases += [
        case("movs", size, 10 * PAGE + 100, 10 * PAGE + 100 + apart, 600)
        for size in SIZES
        for apart in (-9, -8, -4, -3, -1, 1, 2, 3, 5, 8, 9, 16, 100, 600, 1200, 5000)
    ]
    return cases


def random_cases(count: int) -> list[Case]:
    choice = random.Random(22)
    cases = []
    for _ in range(count):
        name, size, bits = choice.choice(OPERATIONS)
        source, destination = (
            choice.randrange(12) * PAGE + choice.choice([0, 1, 4, 4089, 4092, 4095, choice.randrange(PAGE)])
            for _ in range(2)
        )
        many = choice.choice([2, 3, 16, 512, choice.randrange(1500)])
        high = choice.randrange(3) if bits == 32 else 0
        cases.append(case(name, size, source, destination, many, bits=bits, down=choice.random() < 0.2, above=high))
    return cases


def results_of(cases: list[Case], *, singly: bool) -> list[Result]:
    contents = random.Random(23).randbytes(PAGE * PAGES)
    results: list[Result] = []
    with SoftcpuRig(GUEST) as rig:
        ones = Stores(0xFF)
        rig.mmio.add(MMIO_GPA, MMIO_GPA + PAGE - 1, ones, "ones")
        rig.memory.write(TABLE, b"".join(each.packed(singly=singly) for each in cases) + b"\xff" * 8)

        def begin() -> None:
            rig.memory.write(WINDOW, contents)
            rig.memory.write(WINDOW + CODE * PAGE, b"\xc3")  # ret
            ones.stores = []

        def end() -> None:
            entry = rig.memory.read(TABLE + ENTRY * len(results), ENTRY)
            results.append(
                Result(struct.unpack_from("<7Q", entry, 48), rig.memory.read(WINDOW, PAGE * PAGES), ones.stores)
            )

        rig.actions[0] = begin
        rig.actions[1] = end
        rig.run()
        assert rig.done.is_set()
    return results


def test_what_it_does_is_what_each_element_does() -> None:
    """Page faults in the middle, pages that end, code, devices, watched data, operands over one another."""
    cases = chosen_cases() + random_cases(150)
    results = results_of(cases, singly=False)
    expected = results_of(cases, singly=True)
    for number, each in enumerate(cases):
        assert results[number] == expected[number], f"case {number}: {OPERATIONS[each.operation]} {each}"
    assert len(results) == len(cases)
    assert len({result.registers[3] for result in results}) > 2, "no page fault of either kind"
    assert any(result.registers[5] for result in results), "no #DB"


@pytest.mark.parametrize("instruction", ["stosb", "movsl"])
def test_an_interrupt_finds_each_element_in_virtual_time(instruction: str) -> None:
    """A nanosecond later, it comes an element later; the counter of instructions has them all."""
    source = f"""
    main:
        gate 0x40, handler
        mov $0xfee00000, %r8
        movl $0x1ff, 0xf0(%r8)
        movl $0x0b, 0x3e0(%r8)              # by 1
        movl $0x40, 0x320(%r8)              # one-shot
        mov $2900, %ebx
    next:
        mov $0x500000, %esi
        mov $0x510000, %edi
        mov $4000, %ecx
        movl %ebx, 0x380(%r8)
        sti
        nop                                 # the instruction behind STI takes none
        rep {instruction}
        cli
        add $1, %ebx
        cmp $3000, %ebx
        jne next
        done
    handler:
        report %ecx
        movl $0, 0xb0(%r8)
        iretq
    """
    with SoftcpuRig(source, virtual=True) as rig:
        rig.run()
        assert rig.done.is_set()
        left = rig.values
    assert len(left) == 100
    assert 0 < left[-1] < left[0] < 4000
    assert left == list(range(left[0], left[0] - 100, -1))


def test_addresses_of_16_bits_go_around() -> None:
    """At 64 KiB, within one instruction; the registers' upper halves stay, and of the counter they do not count."""
    source = """
    .macro case edi, ecx, instruction:vararg
        mov $0x55555555, %eax
        mov $\\edi, %edi
        mov $0x4321fffa, %esi
        mov $\\ecx, %ecx
        \\instruction
        mov %ecx, %eax
        out %eax, $0xf4
        mov %esi, %eax
        out %eax, $0xf4
        mov %edi, %eax
        out %eax, $0xf4
    .endm
    main:
        leave_long_mode
        movl $0x0000ffff, gdt + 0x58            # data at 0x800000
        movl $0x004f9380, gdt + 0x5c
        mov $0x58, %eax
        mov %eax, %es
        mov %eax, %ds
        case 0x1234fff8, 0xabcd0010, addr16 rep stosb
        case 0x1234fff8, 0xabcd0006, addr16 rep stosl
        case 0x12340100, 0xabcd000c, addr16 rep movsb
        case 0x12340200, 0xabcd0000, addr16 rep movsb
        mov $0x10, %eax
        mov %eax, %ds
        out %eax, $0xf8
    1:  jmp 1b
    """
    with SoftcpuRig(source) as rig:
        rig.run()
        assert [rig.values[i : i + 3] for i in range(0, 12, 3)] == [
            [0xABCD0000, 0x4321FFFA, 0x12340008],
            [0xABCD0000, 0x4321FFFA, 0x12340010],
            [0xABCD0000, 0x43210006, 0x1234010C],
            [0xABCD0000, 0x4321FFFA, 0x12340200],
        ]
        base = 0x800000
        written = {
            0x0: b"\x55" * 16,
            0x10: bytes(16),
            0x100: b"\x55" * 12 + bytes(4),
            0x200: bytes(16),
            0xFFF0: bytes(8) + b"\x55" * 8,
            0x10000: bytes(16),
        }
        assert {offset: bytes(rig.memory.read(base + offset, 16)) for offset in written} == written
