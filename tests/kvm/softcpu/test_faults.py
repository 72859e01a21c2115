"""Which fault an access raises in the software CPU, with which error code, and where: #SS, reserved bits, IRET."""

import pytest
from softcpu_rig import NOT_HERE, values_of

from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
]

# On a stack of their own, for RSP may be what is wrong; RSP is R15 again behind the fault.
HANDLERS = """
    .set scratch, 0x9000
    .macro handler vector, code=1
    vector_\\vector:
        .if !\\code
        push $0
        .endif
        report $\\vector
        report (%rsp)
        mov 8(%rsp), %rbx
        sub %r13, %rbx                      # RIP, from where the test put it
        report %ebx
        mov %r14, 8(%rsp)
        mov %r15, 32(%rsp)
        add $8, %rsp
        iretq
    .endm
    handler 6, 0
    handler 12
    handler 13
    handler 14
    .macro raises instruction:vararg        # vector, error code, RIP; or -1, 0, 0
        lea 71f(%rip), %r13
        lea 72f(%rip), %r14
    71: \\instruction
        mov %r15, %rsp
        report $-1
        report $0
        report $0
    72:
    .endm
    .macro raises_without_stack instruction:vararg
        mov $0x800000001000, %rsp
        raises \\instruction
    .endm
    main:
        mov %rsp, %r15
        call load_tss
        movq $0x6f00, tss + 36(%rip)        # IST1
        .irp vector, 6, 12, 13, 14
        gate \\vector, vector_\\vector
        movb $1, idt + 16 * \\vector + 4
        .endr
        mov $scratch, %edi
        mov $0x800000001000, %rsi
        mov %rsi, %rbp
        xor %ecx, %ecx
"""


def faults_of(body: str) -> list[list[int]]:
    """Vector, error code and RIP of each `raises`, in their order."""
    values = values_of(HANDLERS + body + "\ndone\n")
    return [values[i : i + 3] for i in range(0, len(values), 3)]


def test_an_operand_in_the_stack_segment_that_is_not_canonical() -> None:
    source = """
        raises mov (%rbp), %al
        raises mov %al, (%rbp)
        raises mov 8(%rbp, %rcx, 2), %rax
        raises lock incl (%rbp)
        raises bts %ecx, (%rbp)
        raises fldl (%rbp)
        raises fnstenv (%rbp)
        raises movups (%rbp), %xmm0
        raises fxsave (%rbp)
        raises push (%rbp)
        raises pop (%rbp)
        raises .byte 0x3e, 0x8a, 0x45, 0    # mov %ds:(%rbp), %al
        raises mov -1(%rbp), %rax
        raises_without_stack mov (%rsp), %al
        raises_without_stack movsd %xmm0, 8(%rsp)
    """
    assert faults_of(source) == [[12, 0, 0]] * 15


def test_the_stack_itself_that_is_not_canonical() -> None:
    source = """
        gate 0x40, vector_6
        mov $scratch, %edi
        raises_without_stack push %rax
        raises_without_stack push (%rdi)
        raises_without_stack pop %rax
        raises_without_stack pop (%rdi)
        raises_without_stack pushfq
        raises_without_stack popfq
        raises_without_stack ret
        raises_without_stack lretq
        raises_without_stack iretq
        raises_without_stack call main
        raises_without_stack call *(%rdi)
        raises_without_stack enter $8, $0
        raises leave
        raises_without_stack int $0x40      # its frame
        movw $0x18, scratch + 8
        raises_without_stack rex.w lcall *(%rdi)
    """
    assert faults_of(source) == [[12, 0, 0]] * 15


def test_other_operands_that_are_not_canonical() -> None:
    source = """
        raises mov (%rsi), %al
        raises mov %al, (%rcx, %rbp)        # RBP is no base here
        raises mov %fs:(%rbp), %al
        raises mov %gs:(%rbp), %al
        raises push (%rsi)
        raises pop (%rsi)
        raises call *(%rsi)
        raises lodsb
        raises_without_stack mov (%rsi), %al
        raises jmp *%rsi
    """
    assert faults_of(source) == [[13, 0, 0]] * 10


def test_tables_at_addresses_that_are_not_canonical() -> None:
    """AMD64 Architecture Programmer's Manual volume 3, LGDT, LIDT, LLDT, LTR."""
    source = """
        movw $0x7f, scratch
        mov %rsi, scratch + 2
        raises lgdt scratch
        raises lidt scratch
        sgdt scratch
        lea gdt(%rip), %rax
        sub scratch + 2, %rax
        report %eax                         # is where it was
        movl $0x8000, gdt + 0x48(%rip)      # of the TSS's base, what is above 4 GiB
        movb $0x89, gdt + 0x45(%rip)        # it is not busy
        mov $0x40, %eax
        raises ltr %ax
        movb $0x82, gdt + 0x45(%rip)        # an LDT
        mov $0x40, %eax
        raises lldt %ax
        sldt %eax
        report %eax
        movl $0xffff8000, gdt + 0x48(%rip)
        mov $0x40, %eax
        raises lldt %ax
        sldt %eax
        report %eax
        done
    """
    assert values_of(HANDLERS + source) == [
        *(13, 0, 0),
        *(13, 0, 0),
        0,
        *(13, 0x40, 0),
        *(13, 0x40, 0),
        0,
        *(-1 & 0xFFFFFFFF, 0, 0),
        0x40,
    ]


def test_jumps_to_addresses_that_are_not_canonical() -> None:
    """Each is refused where it is made (AMD64 Architecture Programmer's Manual volume 3, JMP, CALL, RET, IRET)."""
    source = """
        mov %rsi, scratch
        movw $0x18, scratch + 8
        mov %r15, %rax
        and $~0xf, %rax
        raises jmp *%rsi
        raises jmp *scratch
        raises call *%rsi
        raises rex.w ljmp *scratch
        raises rex.w lcall *scratch
        push %rsi
        raises ret                          # RSP is 8 below R15 in its frame, as of the next
        push %rsi
        raises ret $8
        pushq $0x18
        push %rsi
        raises lretq
        pushq $0x20
        push %rax
        pushfq
        pushq $0x18
        push %rsi
        raises iretq
        mov %r15, %rsp
        mov %ss, %eax
        report %eax
        done
    """
    assert values_of(HANDLERS + source) == [13, 0, 0] * 9 + [0x20]


def test_null_in_the_stack_segment_of_another_ring() -> None:
    source = """
        xor %eax, %eax
        raises mov %eax, %ss
        inc %eax
        raises mov %eax, %ss
        mov %ss, %eax
        report %eax
        done
    """
    assert values_of(HANDLERS + source) == [0xFFFFFFFF, 0, 0, 13, 0, 0, 0]


def test_a_null_selector_is_no_task() -> None:
    body = """
        xor %eax, %eax
        raises ltr %ax
        mov $3, %eax
        raises ltr %ax
    """
    assert faults_of(body) == [[13, 0, 0], [13, 0, 0]]


def test_prefixes_of_segments_that_64_bit_code_does_not_have() -> None:
    source = """
        movb $0x10, gdt + 0x58 + 3(%rip)    # a base of 0x1000
        mov $0x58, %eax
        mov %eax, %ds
        mov %eax, %fs
        movl $1, 0x9000
        movl $2, 0xa000
        .byte 0x3e
        mov (%rdi), %ebx
        report %ebx
        report %fs:(%rdi)
        done
    """
    assert values_of(HANDLERS + source) == [1, 2]


def test_a_page_of_1_gib_that_cpuid_does_not_offer() -> None:
    source = """
        movl $0x87, 0x21040                 # the ninth GiB
        mov $0x200000000, %rdx
        raises mov (%rdx), %al
        raises mov %al, (%rdx)
        raises pushq (%rdx)
        report 0x21040                      # not accessed
        report $0
        report $0
    """
    assert faults_of(source) == [[14, 9, 0], [14, 0xB, 0], [14, 9, 0], [0x87, 0, 0]]


def test_where_iret_faults() -> None:
    source = """
        .irp operand, l, q
        mov $0x40000000, %esp               # not mapped
        raises iret\\operand
        .endr
        pushq $0x20
        push %r15
        pushfq
        pushq $0x50 + 8                     # CS: data
        pushq $0
        raises iretq
    """
    assert faults_of(source) == [[14, 0, 0]] * 2 + [[13, 0x58, 0]]


def test_debug_registers_that_are_not_there() -> None:
    source = """
        mov %cr4, %rax
        or $8, %eax                         # DE
        mov %rax, %cr4
        raises mov %dr4, %rax
        raises mov %rax, %dr5
        mov $0x2400, %eax
        mov %rax, %dr7                      # general detection: #UD comes first
        raises mov %rax, %dr4
    """
    assert faults_of(source) == [[6, 0, 0]] * 3


@pytest.mark.parametrize("last", [0, 1, 4])
def test_a_fetch_that_faults_behind_instructions_that_did_not(last: int) -> None:
    """A page that is absent, and code that runs into it; the last instruction has so many bytes in front of it."""
    source = f"""
    .set scratch, 0x9000
    .set absent, 0x201000
    .set tables, 0x40000                        # of 0x200000 to 0x3fffff
    fault:
        pop %rax
        report %eax
        mov (%rsp), %rax
        report %eax
        mov %cr2, %rax
        report %eax
        report scratch
        movq $0x201003, tables + 8              # there is the page, and nothing happens twice
        iretq
    code:
        incl scratch
        xor %ecx, %ecx
    1:  inc %ecx
        nop
        mov $0x12345678, %edx                   # 5 bytes
    2:  report %edx
        report scratch
        done
    code_end:
    main:
        gate 14, fault
        movl $0, scratch
        xor %ecx, %ecx
    1:  mov %ecx, %eax
        shl $12, %eax
        add $0x200003, %eax
        mov %rax, tables(, %rcx, 8)
        inc %ecx
        cmp $512, %ecx
        jne 1b
        movq $tables + 3, 0x22008
        mov %cr3, %rax
        mov %rax, %cr3
        lea code(%rip), %rsi
        mov $absent - (2b - code - 5) - {last}, %edi
        mov %edi, %ebp
        mov $code_end - code, %ecx
        rep movsb
        movq $0, tables + 8
        mov %cr3, %rax
        mov %rax, %cr3
        jmp *%rbp
    """
    start = 0x201000 - last
    assert values_of(source) == [0, start, 0x201000, 1, 0x12345678, 1]


def test_an_instruction_that_ends_where_there_is_no_memory() -> None:
    """Its last bytes read as ones, as any of nobody's; so does what is behind, which is no instruction."""
    source = """
    .set end, 0x1000000                         # of RAM
    invalid:
        report %ecx
        mov (%rsp), %rax
        report %eax
        done
    main:
        gate 6, invalid
        movl $0xb9909090, end - 4               # mov to ECX
        mov $end - 4, %eax
        jmp *%rax
    """
    assert values_of(source) == [0xFFFFFFFF, 0x1000004]
