"""`REP INS` in the software CPU, which moves runs of elements at once: what comes in between, and where one ends."""

import pytest
from softcpu_rig import SoftcpuRig
from string_source import PORT, Source

from vmm.softcpu import engine

pytestmark = [
    pytest.mark.skipif(not engine.is_built(), reason="the software CPU is not built"),
    pytest.mark.usefixtures("without_kvm"),
]


def both_ways(source: str) -> tuple[list[int], bytes, list[int]]:
    """What a guest reports and its first 128 KiB, the same with and without runs; and the runs."""
    seen = []
    for virtual in (False, True):
        with SoftcpuRig(source, virtual=virtual) as rig:
            device = Source()
            rig.ports.add(PORT, PORT + 3, device, "source")
            rig.run()
            assert rig.done.is_set(), rig.why()
            seen.append((rig.values, rig.memory.read(0, 0x20000), device.runs))
    assert seen[0][:2] == seen[1][:2]
    assert seen[1][2] == []
    return seen[0]


def test_addresses_that_wrap() -> None:
    """At 64 KiB and 4 GiB, a page's end or not: no run goes past it. What a register has above its 16 bits stays."""
    source = f"""
    .macro moves address, operation, rcx, rdi
        mov ${PORT}, %edx
        mov $\\rcx, %ecx
        mov $\\rdi, %edi
        \\address rep \\operation
        report %ecx
        report %edi
    .endm
    main:
        movw $0x808, gdt + 0x5a(%rip)       # its base
        leave_long_mode
        moves addr16, insb, 0x56780020, 0x1234fc00
        moves addr16, insb, 0x56780420, 0x1234fc10
        moves addr16, insw, 0x56780120, 0x1234ff11
        moves addr16, insl, 0x00000000, 0xfff0
        moves , insb, 0x20, 0xfffffff0
        moves , insw, 0x120, 0x9e01
        mov $0x58, %eax
        mov %eax, %es
        moves addr16, insb, 0x700, 0xfe00
        moves , insl, 0x100, 0xfffffe00
        done
    """
    values, _, runs = both_ways(source)
    assert values == [
        *(0x56780000, 0x1234FC20, 0x56780000, 0x12340030, 0x56780000, 0x12340151, 0, 0xFFF0),
        *(0, 0x10, 0, 0xA041, 0, 0x500, 0, 0x200),
    ]
    assert sum(runs) > 0x400


def test_code_that_is_read_from_a_port() -> None:
    """Once over the end of a function, once over all of its page, and over a page that has been code before."""
    source = """
    .set page, 0x9000
    main:
        mov $300, %ebp
    1:  action 0                            # the device goes on with the code of this round
        mov $page, %edi
        mov $0x900, %ecx
        mov $0x500, %edx
        rep insb
        mov $page + 0x10, %eax
        call *%rax
        report %ebx
        mov $page + 0x800, %eax
        call *%rax
        report %ebx
        dec %ebp
        jnz 1b
        done
    """

    class Code(Source):
        """Functions of 16 bytes, which give the number of the round."""

        def read(self, offset: int, size: int) -> int:
            self.given += 1
            return (b"\xbb" + rounds.to_bytes(4, "little") + b"\xc3").ljust(16, b"\x90")[(self.given - 1) % 16]

    rounds = 0
    with SoftcpuRig(source) as rig:
        device = Code()
        rig.ports.add(PORT, PORT, device, "code")

        def begin() -> None:
            nonlocal rounds
            rounds += 1
            device.given = 0

        rig.actions[0] = begin
        rig.run()
        assert rig.values == [number for number in range(1, 301) for _ in range(2)]
        assert device.runs, "nothing of it was a run"


def test_a_device_that_rewrites_code_in_the_middle_of_a_run() -> None:
    source = """
    .set function, 0x9000
    main:
        mov $200, %ebp
        mov $0xa000, %esi
        movb $0, (%rsi)                     # in the TLB
    1:  mov $function, %eax
        call *%rax
        mov $0x100, %ecx
        mov $0xa000, %edi
        mov $0x500, %edx
        rep insb
        mov $function, %eax
        call *%rax
        report %ebx
        dec %ebp
        jnz 1b
        done
    """

    class Rewriting(Source):
        def read_string(self, offset: int, size: int, count: int) -> bytes:
            data = super().read_string(offset, size, count)
            rig.memory.write(0x9000, b"\xbb" + len(self.runs).to_bytes(4, "little") + b"\xc3")  # mov $n, %ebx; ret
            return data

    with SoftcpuRig(source) as rig:
        rig.memory.write(0x9000, b"\xc3")
        device = Rewriting()
        rig.ports.add(PORT, PORT, device, "rewriting")
        rig.run()
        assert rig.values == list(range(1, 201))
        assert device.runs == [0x100] * 200


def test_an_interrupt_comes_between_two_runs() -> None:
    """Its handler finds the registers of what has been moved, and the rest follows."""
    source = f"""
    main:
        gate 0x40, handler
        mov $0xfee00000, %rdi
        movl $0x1ff, 0xf0(%rdi)
        mov $0xff, %al
        out %al, $0x21
        mov $0xfec00000, %rdi               # GSI 4: an edge, vector 40h, to the first CPU
        movl $0x19, (%rdi)
        movl $0, 0x10(%rdi)
        movl $0x18, (%rdi)
        movl $0x40, 0x10(%rdi)
        mov $0x100000, %edi
        movb $0, (%rdi)
        mov $0x6000, %ecx
        mov ${PORT}, %edx
        sti
        nop
        rep insb
        cli
        report %ecx
        report %edi
        done
    handler:
        report %ecx
        report %edi
        mov $0xfee00000, %rax
        movl $0, 0xb0(%rax)
        iretq
    """

    class Raising(Source):
        def read_string(self, offset: int, size: int, count: int) -> bytes:
            data = super().read_string(offset, size, count)
            if len(self.runs) == 7:
                rig.vm.irq_line(4, True)
                rig.vm.irq_line(4, False)
                self.given_then = self.given
            return data

    with SoftcpuRig(source) as rig:
        device = Raising()
        rig.ports.add(PORT, PORT, device, "raising")
        rig.run()
        assert rig.values == [0x6000 - device.given_then, 0x100000 + device.given_then, 0, 0x106000]
        expected = b"".join((0x01030507 * at & 0xFF).to_bytes() for at in range(1, 0x6001))
        assert rig.memory.read(0x100000, 0x6000) == expected


def test_a_program_without_the_privilege_reads_nothing() -> None:
    """Also where its page is known to be RAM: #GP before anything is read or stored."""
    source = f"""
    main:
        gate 13, handler
        call load_tss
        to_ring3 program, 0x2
    program:
        mov $0xa000, %edi
        movl $0xcccccccc, (%rdi)            # in the TLB
        mov $0x100, %ecx
        mov ${PORT}, %edx
        lea 1f(%rip), %rbx
    1:  rep insb
        done
    handler:
        report (%rsp)
        mov 8(%rsp), %rax
        sub %rbx, %rax
        report %eax
        report %ecx
        report %edi
        report 0xa000
        done
    """
    with SoftcpuRig(source) as rig:
        device = Source()
        rig.ports.add(PORT, PORT, device, "source")
        rig.run()
        assert rig.values == [0, 0, 0x100, 0xA000, 0xCCCCCCCC]
        assert device.given == 0
