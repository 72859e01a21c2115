"""`REP INS` in the software CPU, which moves runs of elements at once: held against each element by itself.

Where time is virtual every element is an access of its own, and so the same guest runs both ways.
"""

import random
import struct
from typing import NamedTuple

import pytest
from softcpu_rig import SoftcpuRig
from string_source import PORT, Source
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

UNTOUCHED = 0xCC
LONGEST_RUN = 1024
"""Bytes."""

OPERATIONS = [(size, bits) for bits in (64, 32) for size in (1, 2, 4)]
"""Bytes of an element, and of an address; the order of the guest's `operations`."""


class Case(NamedTuple):
    """One instruction: an index into `OPERATIONS`, registers, direction, and the value of DR7."""

    operation: int
    rcx: int
    rdi: int
    down: bool
    dr7: int

    def packed(self) -> bytes:
        return struct.pack("<5Q", self.operation, self.rcx, self.rdi, self.down, self.dr7).ljust(ENTRY, b"\0")


class Result(NamedTuple):
    """What one did."""

    registers: tuple[int, ...]
    """RCX, RDI, a page fault's error code, address and place, how many #DB, and RCX and DR6 added up over them."""
    given: int
    memory: bytes
    stores: list[tuple[int, int, int]]
    instructions: int


GUEST = f"""
    {MAP_WINDOW}
    main:
        gate 14, page_fault
        gate 1, debug
        map_window
        mov %cr4, %rax
        or $8, %eax                         # DE
        mov %rax, %cr4
        mov ${PORT}, %eax
        mov %rax, %dr1
        mov ${TABLE}, %r12d
        mov %rsp, %r15
    next:
        action 0
        mov $window + {CODE} * 0x1000, %eax
        call *%rax
        mov (%r12), %r13d
        shl $4, %r13d
        lea operations(%rip), %rax
        add %rax, %r13
        mov 8(%r12), %rcx
        mov 16(%r12), %rdi
        mov 32(%r12), %rax
        mov %rax, %dr7
        mov ${PORT}, %edx
        testb $1, 24(%r12)
        jz 1f
        std
    1:  call *%r13
    after:
        cld
        mov %rcx, 40(%r12)
        mov %rdi, 48(%r12)
        xor %eax, %eax
        mov %rax, %dr7
        action 1
        add ${ENTRY}, %r12
        cmpq $-1, (%r12)
        jne next
        done
    page_fault:
        pop 56(%r12)
        mov %cr2, %rax
        mov %rax, 64(%r12)
        mov (%rsp), %rax
        sub %r13, %rax
        mov %rax, 72(%r12)
        lea after(%rip), %rax
        mov %rax, (%rsp)
        mov %r15, 24(%rsp)
        iretq
    debug:
        push %rax
        incq 80(%r12)
        add %rcx, 88(%r12)
        mov %dr6, %rax
        and $0xf, %eax
        add %rax, 96(%r12)
        xor %eax, %eax
        mov %rax, %dr6
        pop %rax
        iretq
    .macro operation instruction:vararg
        .balign 16
        \\instruction
        ret
    .endm
    .balign 16
    operations:
        operation rep insb
        operation rep insw
        operation rep insl
        operation addr32 rep insb
        operation addr32 rep insw
        operation addr32 rep insl
"""


def case(
    size: int, page: int, offset: int, count: int, *, bits: int = 64, down: bool = False, dr7: int = 0, above: int = 0
) -> Case:
    """`count` elements of ``size`` bytes from that place on; ``above``: in the registers' high halves."""
    high = above << 32
    rdi = WINDOW + page * PAGE + offset
    return Case(OPERATIONS.index((size, bits)), high | count, high | rdi, down, dr7)


def chosen_cases() -> list[Case]:
    on_store, on_port = 0x1 | 1 << 16, 0x4 | 2 << 20
    return [
        case(1, 0, 0, 0),
        case(1, 0, 0, 1),
        case(4, 0, 0, 1024),
        case(1, 0, 4095, 2),
        case(2, 0, 4095, 5),
        case(4, 0, 4093, 1025),
        case(1, 0, 0, 4096, down=True),
        case(1, 1, 4000, 200),  # into the page that is not there
        case(2, 1, 4001, 200),  # an element half in it
        case(1, 2, 0, 8),
        case(4, 2, 4094, 8),  # to the page that is read only
        case(1, READ_ONLY, 4095, 4),
        case(1, CODE, 16, 3000),
        case(1, 5, 4090, 32),  # from RAM to a device's memory, and out of it
        case(4, MMIO, 4090, 32),
        case(1, WATCHED, 0, 0x400, dr7=on_store),
        case(4, WATCHED, 0x200, 40, dr7=on_store),
        case(1, 10, 0, 40, dr7=on_store),  # RAM that is not watched while something is
        case(1, 10, 0, 40, dr7=on_port),
        case(1, 10, 0, 5, bits=32, above=0xABCD),
        case(2, 10, 4094, 0, bits=32, above=1),
    ]


def random_cases(count: int) -> list[Case]:
    choice = random.Random(21)
    cases = []
    for _ in range(count):
        size, bits = choice.choice(OPERATIONS)
        cases.append(
            case(
                size,
                choice.randrange(12),
                choice.choice([0, 1, 2, 4092, 4093, 4094, 4095, choice.randrange(PAGE)]),
                choice.choice([2, 3, 16, 1023 // size, 1024 // size, 1025 // size, choice.randrange(1500)]),
                bits=bits,
                down=choice.random() < 0.2,
                above=choice.randrange(3) if bits == 32 else 0,
            )
        )
    return cases


def results_of(cases: list[Case], *, virtual: bool) -> tuple[list[Result], list[list[int]]]:
    """What each case did; and the runs, in bytes, that the device was asked for."""
    results: list[Result] = []
    runs: list[list[int]] = []
    with SoftcpuRig(GUEST, virtual=virtual) as rig:
        source, sink = Source(), Stores(0)
        rig.ports.add(PORT, PORT + 3, source, "source")
        rig.mmio.add(MMIO_GPA, MMIO_GPA + PAGE - 1, sink, "sink")
        rig.memory.write(TABLE, b"".join(each.packed() for each in cases) + b"\xff" * 8)
        began = 0

        def begin() -> None:
            nonlocal began
            rig.memory.write(WINDOW, bytes([UNTOUCHED]) * PAGE * PAGES)
            rig.memory.write(WINDOW + CODE * PAGE, b"\xc3")  # ret
            source.given = 0
            source.runs = []
            sink.stores = []
            assert rig.softcpu is not None
            began = rig.softcpu.counters().instructions

        def end() -> None:
            assert rig.softcpu is not None
            entry = rig.memory.read(TABLE + ENTRY * len(results), ENTRY)
            results.append(
                Result(
                    struct.unpack_from("<8Q", entry, 40),
                    source.given,
                    rig.memory.read(WINDOW, PAGE * PAGES),
                    sink.stores,
                    rig.softcpu.counters().instructions - began,
                )
            )
            runs.append(source.runs)

        rig.actions[0] = begin
        rig.actions[1] = end
        rig.run()
        assert rig.done.is_set()
    return results, runs


def test_what_it_does_is_what_each_element_does() -> None:
    """Page faults in the middle, pages that end, code, devices, watched data, either direction, the registers' ends."""
    cases = chosen_cases() + random_cases(150)
    results, runs = results_of(cases, virtual=False)
    expected, singles = results_of(cases, virtual=True)
    for number, each in enumerate(cases):
        assert results[number] == expected[number], f"case {number}: {each}"
    assert not any(singles), "virtual time has seen a run as one access"
    assert len(results) == len(cases)
    assert max(max(each, default=0) for each in runs) == LONGEST_RUN


def test_which_elements_are_moved_together() -> None:
    """From a page's start to its end, where it is RAM, and upwards; the first of a page brings it into the TLB."""
    # Each a second time, when its pages are in the TLB.
    asked = [
        case(1, 0, 0, 2),
        case(1, 0, 0, 5000),
        case(4, 0, 2, 1500),
        case(1, 1, 4095, 10),
        case(1, 0, 100, 100, down=True),
        case(1, 0, 0, 100, dr7=0x4 | 2 << 20),
        case(1, CODE, 100, 100),
        case(1, MMIO, 100, 100),
    ]
    runs = results_of([each for each in asked for _ in range(2)], virtual=False)[1][1::2]
    assert runs == [
        [2],
        [1024, 1024, 1024, 1024, 904],
        [1024, 1024, 1024, 1020, 1024, 880],
        [],
        [],
        [],
        [],
        [],
    ]
