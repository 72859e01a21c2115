"""What a vCPU was doing where it stands: the code at RIP, who called, what the page tables say, loops that never end.

For the evidence below a failure's one line: everything here is read from a guest that may be broken, and what cannot be
read is left out.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from vmm.cpu.paging import Walk, walk
from vmm.kvm.structs import MpState
from vmm.run.evidence import GuestException, Instruction, Place, VcpuEvidence

if TYPE_CHECKING:
    from vmm.cpu.registers import Registers

Read = Callable[[int, int], bytes]
"""Gives bytes from a guest physical address; raises ValueError where no memory is."""

Where = Callable[[int], Place | None]
"""What a linear address is in; None where it is in no known image."""

_INSTRUCTIONS = 6
_LONGEST_INSTRUCTION = 15
_LOOP_BYTES = 32
"""How far back from its end a dead loop may begin: a load, a test and a jump have 10 to 20 bytes."""
_STACK_WORDS = 96
_CALLERS = 8
_MOST_ASKED = 24
"""Words for which an image is looked for, which may take long where none is."""
_CALL_BYTES = 7
_FRAME_WORDS = 1024
"""Of the stack, in which an exception's frame is looked for: edk2's handler prints registers with 300 below it."""
_FRAME_BYTES = 1 << 20
_EXCEPTION_VECTORS = 32
_MOST_ERROR_CODE = 0xFFFF
_ALWAYS_ONE = 2
_FLAGS = 0x3F7FD5
"""RFLAGS: the bit that is always 1, and those that may be (Intel SDM volume 1, 3.4.3)."""
_PAGING = 1 << 31
_INTERRUPTS = 1 << 9
_LOOKS_ONLY = {"mov", "movzx", "cmp", "test", "nop", "pause"}
"""With no store among them, a loop of these alone never ends by itself."""


def evidence(
    index: int, registers: "Registers", read: Read, where: Where, exceptions: Iterable[GuestException] = ()
) -> VcpuEvidence:
    """What one vCPU was doing: what it executes, its callers, and the walk of an address that is not mapped.

    Args:
        index: which one.
        registers: its own.
        read: guest memory.
        where: knows the guest's images.
        exceptions: the last ones, if that is known, else what their handlers have left of them; what they are in is
            found out here.
    """
    memory = _Linear(registers, read)
    rip = registers.linear_rip
    exceptions = list(exceptions) or list(_frames(registers, memory))
    return VcpuEvidence(
        index,
        started=True,
        halted=registers.mp_state is MpState.HALTED,
        mode=registers.mode,
        ring=registers.cpl,
        rip=rip,
        place=where(rip),
        registers=registers.values,
        code=tuple(_code(registers, memory)),
        verdict=dead_loop(registers, memory.read),
        stack=tuple(_callers(registers, memory, where)),
        walks=tuple(_walks(registers, read)),
        exceptions=tuple(each if each.rip is None else each._replace(place=where(each.rip)) for each in exceptions),
    )


def dead_loop(registers: "Registers", read: Read) -> str:
    """Why the code at RIP never gets anywhere by itself, in a sentence; "" where it may.

    edk2's CpuDeadLoop, with which ASSERT ends, reads a variable on its own stack until somebody changes it.
    """
    if _is_halt(registers, read):
        return "HLT with interrupts off: only an NMI, an INIT or a reset ends it"
    for start in range(registers.linear_rip, registers.linear_rip - _LOOP_BYTES, -1):
        try:
            loop = _loop(start, read(start, _LOOP_BYTES), registers)
        except ValueError:
            return ""
        if loop:
            return f"a loop of {loop} bytes that only looks at memory, as edk2's CpuDeadLoop, with which ASSERT ends"
    return ""


class _Linear:
    """Memory as the vCPU sees it."""

    def __init__(self, registers: "Registers", read: Read) -> None:
        self._registers = registers
        self._read = read

    def read(self, linear: int, size: int) -> bytes:
        """All of ``size`` bytes.

        Raises:
            ValueError: not all of it is mapped memory.
        """
        gpa = walk(linear, self._registers.values, self._read).gpa
        first = min(size, 4096 - linear % 4096)
        if gpa is None or gpa >> 52:
            raise ValueError(f"no memory at {linear:#x}")
        data = self._read(gpa, first)
        return data if first == size else data + self.read(linear + first, size - first)


def _disassembled(code: bytes, at: int, bits: int) -> Iterator[Any]:
    # Loading capstone takes longer than starting a small guest, and few runs fail.
    import capstone

    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    yield from capstone.Cs(capstone.CS_ARCH_X86, mode).disasm(code, at)


def _code(registers: "Registers", memory: _Linear) -> Iterator[Instruction]:
    rip = registers.linear_rip
    for size in (_INSTRUCTIONS * _LONGEST_INSTRUCTION, _LONGEST_INSTRUCTION, 1):
        try:
            code = memory.read(rip, size)
        except ValueError:
            continue
        for number, instruction in enumerate(_disassembled(code, rip, registers.bits)):
            if number == _INSTRUCTIONS:
                return
            text = f"{instruction.mnemonic} {instruction.op_str}".strip()
            yield Instruction(instruction.address, instruction.bytes.hex(" "), text)
        return


def _is_halt(registers: "Registers", read: Read) -> bool:
    """Whether HLT is the instruction at RIP, or the one that was executed last, with interrupts off."""
    if registers.values["rflags"] & _INTERRUPTS:
        return False
    try:
        before, here = read(registers.linear_rip - 1, 2)
    except ValueError:
        return False
    return here == 0xF4 or (before == 0xF4 and registers.mp_state.name == "HALTED")


def _loop(start: int, code: bytes, registers: "Registers") -> int:
    """The bytes of a dead loop that begins at ``start`` and holds RIP; 0: there is none."""
    reached = False
    for instruction in _disassembled(code, start, registers.bits):
        reached = reached or instruction.address == registers.linear_rip
        name, operands = instruction.mnemonic, instruction.op_str
        if name.startswith("j"):
            if operands == f"{start:#x}" and reached:
                return int(instruction.address + instruction.size - start)
            # The way out: GCC makes of CpuDeadLoop a load, a test, a jump out of it, and one back.
            target = int(operands, 16) if operands.startswith("0x") else 0
            if name == "jmp" or (target != start and target <= instruction.address):
                return 0
            continue
        # The first operand is what is written; a comparison writes none.
        if name not in _LOOKS_ONLY or ("[" in operands.partition(",")[0] and name not in {"cmp", "test", "nop"}):
            return 0
    return 0


def _callers(registers: "Registers", memory: _Linear, where: Where) -> Iterator[Place]:
    """Return addresses on the stack: words that point behind a CALL, into an image that is known."""
    word = 8 if registers.bits == 64 else 4
    if registers.bits == 16:
        return
    asked = found = 0
    for number in range(_STACK_WORDS):
        try:
            value = int.from_bytes(memory.read(registers.values["rsp"] + word * number, word), "little")
            code = memory.read(value - _CALL_BYTES, _CALL_BYTES) if value > _CALL_BYTES else b""
        except ValueError:
            continue
        # E8 rel32, or FF /2 with a register or memory operand (SDM volume 2, CALL).
        is_call = code[2:3] == b"\xe8" or any(
            code[at] == 0xFF and code[at + 1] >> 3 & 7 == 2 for at in range(len(code) - 1)
        )
        if not is_call:
            continue
        place = where(value)
        asked += 1
        if place is not None:
            yield place
            found += 1
        if found == _CALLERS or asked == _MOST_ASKED:
            return


def _frames(registers: "Registers", memory: _Linear) -> Iterator[GuestException]:
    """Exceptions whose handlers the vCPU is in, the last one last: from what they have on the stack.

    edk2's push the vector below the error code, which is 0 where an exception has none (CpuExceptionHandlerLib); above
    are RIP, CS and RFLAGS, and in 64-bit code RSP and SS.
    """
    size = 8 if registers.bits == 64 else 4
    if registers.bits == 16:
        return
    top = registers.values["rsp"]
    words: list[int] = []
    while len(words) < _FRAME_WORDS:
        try:
            data = memory.read(top + size * len(words), 64)
        except ValueError:
            break
        words += (int.from_bytes(data[at : at + size], "little") for at in range(0, 64, size))
    found = []
    for at in range(len(words) - 6):
        vector, error_code, rip, selector, flags, stack, stack_selector = words[at : at + 7]
        if vector < _EXCEPTION_VECTORS and selector == registers.values["cs"] and flags & ~_FLAGS == _ALWAYS_ONE:
            own = size == 4 or (stack_selector == registers.values["ss"] and 0 <= stack - top < _FRAME_BYTES)
            if own and error_code <= _MOST_ERROR_CODE:
                found.append(GuestException.of(vector, error_code, rip, registers.values["cr2"]))
    # What is farther up the stack came before.
    yield from reversed(found)


def _walks(registers: "Registers", read: Read) -> Iterator[tuple[str, Walk]]:
    if not registers.values["cr0"] & _PAGING:
        return
    for name, linear in (("RIP", registers.linear_rip), ("CR2", registers.values["cr2"])):
        steps = walk(linear, registers.values, read)
        if steps.gpa is None:
            yield name, steps
