"""Loops that never end, callers and page walks, from registers and memory written by hand."""

import pytest

from vmm.cpu.registers import Registers
from vmm.debug.why import dead_loop, evidence
from vmm.kvm.structs import MpState
from vmm.run.console import Stream
from vmm.run.failure import assertion

BASE = 0x10000
BITS = {16: (0, 0, 0), 32: (1, 0xC09B, 0), 64: (1 | 1 << 31, 0xA09B, 1 << 10)}


def registers(rip: int, *, bits: int = 64, halted: bool = False, interrupts: bool = False, **others: int) -> Registers:
    cr0, attributes, efer = BITS[bits]
    values = dict.fromkeys(("cs_base", "cr2", "cr3", "cr4", "rsp", "ss_attributes"), 0)
    values |= {"rip": rip, "cr0": cr0, "cs_attributes": attributes, "efer": efer, "rflags": 2 | interrupts << 9}
    return Registers(values | others, MpState.HALTED if halted else MpState.RUNNABLE)


class Memory:
    """64 KiB from `BASE` on."""

    def __init__(self, code: str, at: int = 0x100) -> None:
        self.bytes = bytearray(b"\xcc" * 0x10000)
        self.put(BASE + at, bytes.fromhex(code))

    def put(self, address: int, data: bytes) -> None:
        self.bytes[address - BASE : address - BASE + len(data)] = data

    def read(self, address: int, size: int) -> bytes:
        if not BASE <= address <= address + size <= BASE + len(self.bytes):
            raise ValueError
        return bytes(self.bytes[address - BASE : address - BASE + size])


@pytest.mark.parametrize(
    ("bits", "code", "offsets", "is_dead"),
    [
        pytest.param(32, "eb fe", [0], True, id="jmp to itself"),
        pytest.param(64, "48 8b 44 24 08 48 85 c0 74 f6", [0, 5, 8], True, id="CpuDeadLoop of GCC, x64"),
        pytest.param(32, "8b 45 fc 85 c0 74 f9", [0, 3, 5], True, id="CpuDeadLoop of GCC, IA32"),
        pytest.param(64, "48 83 7d f8 00 74 f9", [0, 5], True, id="CMP with memory"),
        pytest.param(64, "f3 90 48 8b 44 24 08 48 85 c0 74 f4", [2, 7, 10], True, id="with PAUSE"),
        pytest.param(32, "49 75 fd", [0, 1], False, id="counts down"),
        pytest.param(32, "89 03 85 c0 74 fa", [0, 2, 4], False, id="stores"),
        pytest.param(32, "8b 45 fc 85 c0 74 09", [0, 3, 5], False, id="jumps forward"),
        pytest.param(32, "eb fe", [2], False, id="RIP is behind it"),
        pytest.param(64, "e4 60 a8 01 74 fa", [0, 2, 4], False, id="asks a port"),
    ],
)
def test_dead_loops(bits: int, code: str, offsets: list[int], is_dead: bool) -> None:
    memory = Memory(code)
    for offset in offsets:
        said = dead_loop(registers(BASE + 0x100 + offset, bits=bits), memory.read)
        assert ("CpuDeadLoop" in said) == is_dead, said


@pytest.mark.parametrize(
    ("rip", "halted", "interrupts", "ends"),
    [(0x100, False, False, True), (0x101, True, False, True), (0x101, False, False, False), (0x101, True, True, False)],
)
def test_halts(rip: int, halted: bool, interrupts: bool, ends: bool) -> None:
    said = dead_loop(registers(BASE + rip, bits=32, halted=halted, interrupts=interrupts), Memory("f4").read)
    assert ("HLT with interrupts off" in said) == ends


def test_where_nothing_can_be_read_nothing_is_said() -> None:
    memory = Memory("")
    for rip in (0, BASE - 1, BASE, BASE + 0xFFFF, 0xFFFFFFFF):
        assert isinstance(dead_loop(registers(rip, bits=32), memory.read), str)
        assert isinstance(evidence(registers(rip, bits=32), memory.read, lambda _: "image"), str)
    assert evidence(registers(0x5000, bits=32), memory.read, str) == "no memory at RIP: 0x5000"


def test_the_evidence_of_a_fault_in_protected_mode() -> None:
    memory = Memory("0f 0b 90")
    memory.put(BASE + 0x200, bytes.fromhex("e8 11 22 33 44"))  # call
    memory.put(BASE + 0x300, bytes.fromhex("ff 50 08"))  # call [eax + 8]
    stack = [0, BASE + 0x205, BASE + 0x204, 0xFFFFFFFF, BASE + 0x303]
    memory.put(BASE + 0x1000, b"".join(word.to_bytes(4, "little") for word in stack))
    state = registers(BASE + 0x100, bits=32, rsp=BASE + 0x1000)
    lines = evidence(state, memory.read, lambda address: f"image+{address - BASE:#x}").splitlines()
    assert lines[0].split() == ["=>", "10100:", "0f", "0b", "ud2"]
    assert lines[1].split() == ["10102:", "90", "nop"]
    assert lines[-1] == "on the stack: image+0x205, image+0x303"


def test_the_evidence_of_a_page_fault_has_the_walk() -> None:
    memory = Memory("90")
    state = registers(BASE + 0x100, cr0=1 | 1 << 31, cr2=0x12345000, cr3=BASE + 0x2000, cr4=1 << 5)
    text = evidence(state, memory.read, str)
    assert "no memory at RIP: 0x10100" in text
    assert "CR2 0x12345000: not present\n  PML4E at 0x12000: 0xcccccccccccccccc" in text


def test_the_last_assertion_that_was_printed() -> None:
    debugcon, serial = Stream("debugcon"), Stream("serial")
    assert assertion(debugcon, serial) == ""
    serial.write(
        b"ASSERT is a word\r\nASSERT [A] /a.c(1): x\r\n\x1b[0mASSERT_EFI_ERROR (Status = Not Found)\r\nmore\r\n"
    )
    assert assertion(debugcon, serial) == "ASSERT_EFI_ERROR (Status = Not Found)"
    debugcon.write(b"ASSERT [DxeCore] /edk2/DxeMain.c(5): !\x07\n")
    assert assertion(debugcon, serial) == "ASSERT [DxeCore] /edk2/DxeMain.c(5): !\\x07"
