"""Loops that never end, callers and page walks, from registers and memory written by hand."""

from typing import Any

import pytest

from vmm.cpu.registers import Registers
from vmm.debug.why import dead_loop, evidence
from vmm.kvm.structs import MpState
from vmm.run.console import Stream
from vmm.run.evidence import Access, Evidence, GuestException, Place, VcpuEvidence
from vmm.run.failure import confession

BASE = 0x10000
BITS = {16: (0, 0, 0), 32: (1, 0xC09B, 0), 64: (1 | 1 << 31, 0xA09B, 1 << 10)}


def registers(rip: int, *, bits: int = 64, halted: bool = False, interrupts: bool = False, **others: int) -> Registers:
    cr0, attributes, efer = BITS[bits]
    values = dict.fromkeys(("cs", "cs_base", "cr2", "cr3", "cr4", "rsp", "ss", "ss_attributes"), 0)
    values |= {"rip": rip, "cr0": cr0, "cs_attributes": attributes, "efer": efer, "rflags": 2 | interrupts << 9}
    return Registers(values | others, MpState.HALTED if halted else MpState.RUNNABLE)


def nowhere(address: int) -> None:
    del address


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
        pytest.param(64, "48 8b 44 24 08 48 85 c0 75 04 f3 90 eb f2", [0, 5, 8, 10, 12], True, id="with a way out"),
        pytest.param(64, "48 8b 44 24 08 48 85 c0 75 f6 eb f4", [0, 10], True, id="two ways back"),
        pytest.param(64, "89 03 85 c0 75 02 eb f8", [0, 4, 6], False, id="stores, with a way out"),
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
        assert evidence(0, registers(rip, bits=32), memory.read, lambda at: Place(at, "image", 0)).text
    assert evidence(0, registers(0x5000, bits=32), memory.read, nowhere).text == "no memory at RIP: 0x5000"


def test_the_evidence_of_a_fault_in_protected_mode() -> None:
    memory = Memory("0f 0b 90")
    memory.put(BASE + 0x200, bytes.fromhex("e8 11 22 33 44"))  # call
    memory.put(BASE + 0x300, bytes.fromhex("ff 50 08"))  # call [eax + 8]
    stack = [0, BASE + 0x205, BASE + 0x204, 0xFFFFFFFF, BASE + 0x303]
    memory.put(BASE + 0x1000, b"".join(word.to_bytes(4, "little") for word in stack))
    state = registers(BASE + 0x100, bits=32, rsp=BASE + 0x1000)
    seen = evidence(3, state, memory.read, lambda address: Place(address, "image", address - BASE, "main", 2))
    lines = seen.text.splitlines()
    assert lines[0].split() == ["=>", "10100:", "0f", "0b", "ud2"]
    assert lines[1].split() == ["10102:", "90", "nop"]
    assert lines[-1] == "on the stack: image+0x205, main+0x2, image+0x303, main+0x2"
    assert (seen.vcpu, seen.place, seen.rip) == (3, Place(BASE + 0x100, "image", 0x100, "main", 2), BASE + 0x100)
    assert seen.where == "at RIP 0x10100 (image+0x100, main+0x2), 32-bit code in protected mode, ring 0"


def test_the_evidence_of_a_page_fault_has_the_walk() -> None:
    memory = Memory("90")
    state = registers(BASE + 0x100, cr0=1 | 1 << 31, cr2=0x12345000, cr3=BASE + 0x2000, cr4=1 << 5)
    text = evidence(0, state, memory.read, nowhere).text
    assert "no memory at RIP: 0x10100" in text
    assert "CR2 0x12345000: not present\n  PML4E at 0x12000: 0xcccccccccccccccc" in text


def test_the_last_that_was_said_of_a_failure() -> None:
    debugcon, serial = Stream("debugcon"), Stream("serial")
    assert confession(debugcon, serial) == ""
    serial.write(
        b"ASSERT is a word\r\nASSERT [A] /a.c(1): x\r\n\x1b[0mASSERT_EFI_ERROR (Status = Not Found)\r\nmore\r\n"
    )
    assert confession(debugcon, serial) == "ASSERT_EFI_ERROR (Status = Not Found)"
    debugcon.write(b"ASSERT [DxeCore] /edk2/DxeMain.c(5): !\x07\n")
    assert confession(debugcon, serial) == "ASSERT [DxeCore] /edk2/DxeMain.c(5): !\\x07"
    serial.write(b"!!!! X64 Exception Type - 0E(#PF - Page-Fault)  CPU Apic ID - 00000001 !!!!\r\n")
    assert confession(serial) == "!!!! X64 Exception Type - 0E(#PF - Page-Fault) CPU Apic ID - 00000001 !!!!"
    serial.write(b"ExceptionData - 0000000000000002  I:0 R:0 U:0 W:1 P:0\r\nRIP  - 0\r\n")
    assert confession(serial).endswith(" !!!! ExceptionData - 0000000000000002 I:0 R:0 U:0 W:1 P:0")
    serial.write(b"[    0.5] Kernel panic - not syncing: VFS: no root\r\n")
    assert confession(serial) == "Kernel panic - not syncing: VFS: no root"


def test_exceptions_in_words() -> None:
    place = Place(0x1234, "Dxe", 0x34)
    fault = GuestException.of(14, 0x17, 0x1234, 0xFFFF0000, place)
    assert str(fault) == "#PF with error code 0x17 (ring 3, a fetch from 0xffff0000) at 0x1234 (Dxe+0x34)"
    assert "(not present, a write to 0x8)" in str(GuestException.of(14, 2, 1, 8))
    assert "(reserved bits, a read of 0x8)" in str(GuestException.of(14, 9, 1, 8))
    assert GuestException.of(6, 99, 5, 7) == GuestException(6, None, 5, None, None)
    assert str(GuestException.of(13, 0x32)) == "#GP with error code 0x32"
    assert str(GuestException.of(30, 0)) == "vector 30"


def test_of_exceptions_only_those_are_told_that_the_end_is_of() -> None:
    seen = tuple(GuestException.of(vector, 0, 0x10) for vector in (3, 6, 13, 8))
    assert "last exception: #UD at 0x10, then #GP" in VcpuEvidence(0, started=True, exceptions=seen).text
    assert "exception" not in VcpuEvidence(0, started=True, exceptions=seen[:2]).text
    assert "last exception: #UD at 0x10" in VcpuEvidence(0, started=True, verdict="a loop", exceptions=seen[:2]).text


def test_the_text_of_a_machine_has_each_place_once_and_the_last_accesses() -> None:
    where: Any = {"mode": "64-bit code", "rip": 0x10, "registers": {"rip": 0x10}}
    vcpus = [VcpuEvidence(n, started=n < 3, halted=n == 2, verdict=f"verdict {n}", **where) for n in range(5)]
    reads = [Access(0, "pm timer", "port", 0x608, 4, 1, is_write=False, value=n, times=n + 1) for n in range(9)]
    wrote = Access(None, "", "mmio", 0xFED00000, 8, 2, is_write=True, value=0xAB, times=1)
    lines = Evidence(tuple(vcpus), (*reads, wrote), "ASSERT").text().splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "vCPU 0, 1: at RIP 0x10, 64-bit code, ring 0",
        "vCPU 2: at RIP 0x10, 64-bit code, ring 0, halted",
        "vCPU 3, 4: not started",
        "last accesses to devices:",
        "the guest said: ASSERT",
    ]
    assert "  verdict 0" in lines
    assert "  verdict 2" not in lines
    accesses = lines[lines.index("last accesses to devices:") + 1 : -1]
    assert len(accesses) == 8
    assert accesses[0] == "  IN 0x608 -> 0x00000002, 3 times (pm timer)"
    assert accesses[-1] == "  store 0xfed00000 <- 0x00000000000000ab of 2 elements (nobody is there)"
    assert Evidence(tuple(vcpus), (), "").text(but=0).startswith("vCPU 1: at RIP")


@pytest.mark.parametrize("bits", [32, 64])
def test_an_exception_that_edk2_handles_is_found_on_the_stack(bits: int) -> None:
    memory = Memory("eb fe")
    top, size = BASE + 0x1000, bits // 8
    stack = [0xDEAD] * 300 + [14, 0x2, BASE + 0x4567, 0x38, 0x10246, top + 0x3000, 0x30]
    memory.put(top, b"".join(word.to_bytes(size, "little") for word in stack))
    state = registers(BASE + 0x100, bits=bits, rsp=top, cs=0x38, ss=0x30, cr2=0x1230, cr3=BASE + 0x8000)
    if bits == 64:  # without paging, so that the walk is short
        state.values["cr0"] = 1
    seen = evidence(0, state, memory.read, lambda address: Place(address, "Dxe", address - BASE))
    place = Place(BASE + 0x4567, "Dxe", 0x4567)
    assert seen.exceptions == (GuestException(14, 2, BASE + 0x4567, 0x1230, place),)
    assert (
        "last exception: #PF with error code 0x2 (not present, a write to 0x1230) at 0x14567 (Dxe+0x4567)" in seen.text
    )
    known = GuestException.of(6, 0, 1)
    assert [each.vector for each in evidence(0, state, memory.read, nowhere, [known]).exceptions] == [6]
    for wrong in ((300, 32), (301, 0x10000), (303, 0x10), (304, 0x10244)):
        other = [*stack[: wrong[0]], wrong[1], *stack[wrong[0] + 1 :]]
        memory.put(top, b"".join(word.to_bytes(size, "little") for word in other))
        assert evidence(0, state, memory.read, nowhere).exceptions == ()
