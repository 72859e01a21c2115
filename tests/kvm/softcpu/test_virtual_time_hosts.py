"""Virtual time on other hosts: what a guest does goes by no feature of the host's CPU, nor by how it approximates."""

import itertools
import math
import struct

import pytest
from softcpu_rig import SoftcpuRig

from vmm.softcpu import engine

pytestmark = pytest.mark.skipif(not engine.is_built(), reason="the software CPU is not built")

LONGEST = 32
"""Instructions of a block (TCG_MAX_INSNS)."""

RDTSC_NS = 1000

HEAVY = [
    "btr %ecx, %eax",
    "lock cmpxchg16b 0x300020",
    "lock btrl %ecx, 0x300000",
    "shrd %cl, %ax, 0x300008",
    "rclq %cl, 0x300008",
    "pshufd $27, %xmm1, %xmm2",
    "movdqu %xmm0, 0x300ff8",
    "fnstenv 0x300000",
    "fxch %st(3)",
    "mov %cr0, %rax",
]
"""Of which the translator keeps most temporaries, or makes most operations or code of the host."""

HEAVY_32 = ["pushal", "popal", "pushaw", "bound %eax, 0x300000", "lock cmpxchg8b %fs:0x10(%esi, %edi)"]


def lengths(instruction: str, count: int, begin: str) -> list[int]:
    """Of four stretches of code, each of RDTSC, MOV and so often this instruction: what each is seen to count.

    A block counts when it begins, in full: RDTSC as the first instruction of one shows all of it.
    """
    stretches = "\n".join(
        f"""
        rdtsc
        mov %eax, 0x310000 + 4 * {number}
        .rept {count}
        {instruction}
        .endr
        """
        for number in range(4)
    )
    source = f"""
    main:
        {begin}
        mov $0x200000, %esp
        mov $0x208000, %ebp
        mov $5, %ecx
        xor %esi, %esi
        xor %edi, %edi
        movl $0x7fffffff, 0x300004          # BOUND's upper bound; its lower one is 0
        xor %eax, %eax
        jmp 1f
    1:  {stretches}
        mov $0x200000, %esp
        .set number, 0
        .rept 4
        report 0x310000 + 4 * number
        .set number, number + 1
        .endr
        done
    """
    with SoftcpuRig(source, virtual=True) as rig:
        rig.run()
        assert rig.done.is_set()
        return [(after - before) % 2**32 - RDTSC_NS for before, after in itertools.pairwise(rig.values)]


@pytest.mark.parametrize(
    ("instruction", "begin"),
    [*((instruction, "") for instruction in HEAVY), *((instruction, "leave_long_mode") for instruction in HEAVY_32)],
)
def test_a_block_ends_by_its_number_of_instructions_alone(instruction: str, begin: str) -> None:
    # The last one's block has the end of the guest in it, and is not asked for.
    assert lengths(instruction, LONGEST - 2, begin) == [LONGEST] * 3


@pytest.mark.parametrize("begin", ["", "leave_long_mode"])
def test_enter_ends_a_block(begin: str) -> None:
    """Up to 62 accesses of memory: 32 of these would be too much code for one block."""
    assert lengths("enter $0, $31", 1, begin) == [3] * 3


def single(number: float) -> int:
    """The bits of a single, rounded."""
    return int(struct.unpack("<I", struct.pack("<f", number))[0])


def rounded(number: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", number))[0])


QUIET, SIGNALLING, INFINITY, SIGN, DENORMAL = 0x7FC00001, 0x7F800001, 0x7F800000, 1 << 31, 1


def test_reciprocals_are_rounded_and_not_the_hosts_approximations() -> None:
    three, root = single(3), single(1 / rounded(math.sqrt(3)))
    sources = [three, SIGN, DENORMAL, SIGNALLING, three, SIGN | three, SIGN, INFINITY]
    source = f"""
    main:
        .irp at, 0, 16
        .irp name, rcpps, rsqrtps
        movaps numbers + \\at, %xmm0
        \\name %xmm0, %xmm1
        movaps %xmm1, 0x300000
        report 0x300000
        report 0x300004
        report 0x300008
        report 0x30000c
        .endr
        .endr
        movaps numbers, %xmm1
        rcpss %xmm0, %xmm1
        movaps %xmm1, 0x300000
        report 0x300000
        report 0x300004
        stmxcsr 0x300000
        report 0x300000
        done
        .balign 16
    numbers:
        .long {", ".join(map(str, sources))}
    """
    third, nan = single(1 / 3), 0xFFC00000
    with SoftcpuRig(source, virtual=True) as rig:
        rig.run()
        assert rig.done.is_set()
    assert rig.values == [
        *(third, SIGN | INFINITY, INFINITY, QUIET),
        *(root, SIGN | INFINITY, INFINITY, QUIET),
        *(third, SIGN | third, SIGN | INFINITY, 0),
        *(root, nan, SIGN | INFINITY, 0),
        *(third, SIGN),
        0x1F80,  # nothing raised
    ]
