"""Operands at the ends of their range, which the engine's own arithmetic could not take."""

from typing import Any

import pytest
from softcpu_rig import NOT_HERE, values_of

from vmm.cpu import cpuid
from vmm.kvm.structs import CpuidEntry
from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
]


@pytest.mark.parametrize("ring", [0, 3])
def test_the_most_negative_number_divided_by_minus_one(ring: int) -> None:
    """The host's own division would trap, too."""
    enter = "call load_tss\nto_ring3 tries, 0x3202" if ring == 3 else ""
    source = f"""
    .macro divide number, high, low, by, instruction:vararg
        lea \\number\\()f(%rip), %r15
        mov $\\high, %rdx
        mov $\\low, %rax
        mov $\\by, %rcx
        \\instruction
        report $0xbad
    \\number:
    .endm
    main:
        gate 0, overflow
        xor %ebx, %ebx
        {enter}
    tries:
        divide 100, 0, 0x8000, -1, idivb %cl
        divide 101, 0x8000, 0, -1, idivw %cx
        divide 102, 0x80000000, 0, -1, idivl %ecx
        divide 103, 0x8000000000000000, 0, -1, idivq %rcx
        divide 104, 0, 0x80000000, 0, idivl %ecx
        report %ebx
        mov $-1, %edx
        mov $-0x7fffffff, %eax
        mov $-1, %ecx
        idivl %ecx
        report %eax
        report %edx
        done
    overflow:
        inc %ebx
        mov %r15, (%rsp)
        iretq
    """
    assert values_of(source) == [5, 0x7FFFFFFF, 0]


# RDX, RAX, immediate; RCX as PCMPESTRI has it, and of the flags, CF.
EXPLICIT_LENGTHS = [
    ("0x80000000", "0x80000000", 0x08, 0, 1),
    ("0x80000000", "0x80000000", 0x00, 0, 1),
    ("0x80000000", "-3", 0x01, 0, 1),
    ("0x7fffffff", "0", 0x00, 16, 0),
    ("0", "0x80000000", 0x04, 16, 0),
    ("-16", "17", 0x18, 16, 0),
]


@pytest.fixture
def sse4_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that offers it: machines' own does not, though the engine has it."""
    plain = cpuid.cpuid_entries

    def entries(*arguments: Any) -> list[CpuidEntry]:
        offered = plain(*arguments)
        return [entry._replace(ecx=entry.ecx | 1 << 20) if entry.function == 1 else entry for entry in offered]

    monkeypatch.setattr(cpuid, "cpuid_entries", entries)


@pytest.mark.usefixtures("sse4_2")
def test_lengths_of_strings_beyond_a_register() -> None:
    """Their absolute value counts, and no more than a register holds; the most negative number has none."""
    tries = "\n".join(
        f"""
        mov ${length_2}, %rdx
        mov ${length_1}, %rax
        {"rex.w " * wide}pcmpestri ${immediate}, %xmm1, %xmm1
        setc %bl
        report %ecx
        report %ebx
        """
        for length_2, length_1, immediate, _, _ in EXPLICIT_LENGTHS
        for wide in (0, 1)
    )
    source = f"""
    .align 16
    text: .ascii "0123456789abcdef"
    main:
        xor %ebx, %ebx
        movdqa text(%rip), %xmm1
        {tries}
        done
    """
    expected = [value for *_, index, carry in EXPLICIT_LENGTHS for _ in (0, 1) for value in (index, carry)]
    assert values_of(source) == expected


@pytest.mark.usefixtures("sse4_2")
def test_a_length_of_64_bits_counts_with_all_of_them() -> None:
    """Beside a string of nothing, where each element of two that are over is equal."""
    source = """
    .align 16
    text: .ascii "0123456789abcdef"
    main:
        movdqa text(%rip), %xmm1
        xor %edx, %edx
        mov $0x100000000, %rax
        rex.w pcmpestri $0x08, %xmm1, %xmm1
        report %ecx
        mov $0x100000000, %rax
        pcmpestri $0x08, %xmm1, %xmm1
        report %ecx
        done
    """
    assert values_of(source) == [16, 0]


@pytest.mark.usefixtures("sse4_2")
def test_a_substring_that_begins_at_the_end_of_a_full_register() -> None:
    source = """
    .align 16
    text: .ascii "0123456789abcdef"
    part: .ascii "efg-------------"
    main:
        movdqa part(%rip), %xmm1
        mov $3, %eax
        mov $16, %edx
        pcmpestri $0x0c, text(%rip), %xmm1
        report %ecx
        mov $15, %edx                           # of a string that is over there, nothing
        pcmpestri $0x0c, text(%rip), %xmm1
        report %ecx
        done
    """
    assert values_of(source) == [14, 16]
