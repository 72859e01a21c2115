"""Why a vCPU ended, in words: for the one line that a user reads, and the evidence below it."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from vmm._native import ffi, lib
from vmm.cpu.registers import Registers
from vmm.errors import KvmError
from vmm.kvm.descriptor import kvm_error
from vmm.kvm.structs import MpState
from vmm.legible import legible
from vmm.run.outcome import Reason
from vmm.sandbox import call_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.cpu.processors import Processors
    from vmm.kvm import Vcpu
    from vmm.memory import GuestMemory
    from vmm.run.console import Stream

MAX_INSTRUCTION_SIZE = 15
"""Bytes of the longest x86 instruction (Intel SDM volume 2, section 2.3.11)."""

_LATE_BYTES = 1 << 16
"""Of a console: where an assertion is looked for."""

_MOST_EXPLAINED = 4
"""Places whose code is shown."""

_RESET_VECTOR = 0xFFFFFFF0
"""Linear RIP after INIT (SDM volume 3, 10.1.4). After SVM's SHUTDOWN intercept the VMCB is undefined (APM volume 2,
15.14.3), so that kvm-amd brings the vCPU there (shutdown_interception in arch/x86/kvm/svm/svm.c)."""

_USE_THE_SOFTWARE_CPU = "run with -accel auto or kvm+softcpu: the software CPU executes what this host's KVM refuses"

_SOFTWARE_CPU_ENDS = {
    0x10001: "the guest set up what the software CPU cannot run, such as a fault in ring 3 without a TSS",
    0x10002: "the software CPU gave up on the guest's code",
}
"""native/softcpu/softcpu.h, enum softcpu_end; its module is loaded only where it is used."""


class Look(Protocol):
    """What can be said of a vCPU that stands still, from the guest's memory; it is made only where it is needed."""

    def where(self, registers: Registers) -> str:
        """Which image RIP is in, as ``DxeCore+0x1a2b``; "" where that is not known."""

    def evidence(self, registers: Registers) -> str:
        """Lines on what it was doing there."""


def describe(
    vcpu: "Vcpu", end: Any, memory: "GuestMemory", look: Callable[[], Look], *, software_cpu: bool
) -> tuple[Reason, str, str]:
    """Reason, one line, and further lines for a vCPU whose run ended by itself.

    Args:
        vcpu: the vCPU; its registers are read.
        end: the C core's ``struct vcpu_end``.
        memory: where the instruction bytes are, when KVM did not hand them over.
        look: knows more of the place.
        software_cpu: was it the software CPU that ran the vCPU?
    """
    if end.outcome == lib.VCPU_ERROR:
        return _failed_ioctl(vcpu, end)
    if end.outcome == lib.VCPU_REFUSED:
        return _refused_call(vcpu, end)
    registers = Registers.of(vcpu)
    details = f"{registers.text}\n{look().evidence(registers)}"
    where = f"vCPU {vcpu.index} at {_rip(registers, look)}"
    if end.outcome == lib.VCPU_SHUTDOWN:
        if registers.linear_rip == _RESET_VECTOR:
            unknown = "where is not known: KVM has reset the vCPU's registers, as it does on AMD hosts"
            return Reason.TRIPLE_FAULT, f"triple fault on vCPU {vcpu.index}; {unknown}", registers.text
        return Reason.TRIPLE_FAULT, f"triple fault on {where}", details
    if end.outcome == lib.VCPU_EMULATION_FAILURE:
        code = bytes(end.instruction)[: end.instruction_size] or _bytes_at(vcpu, registers, memory)
        remedy = "" if software_cpu else f"; {_USE_THE_SOFTWARE_CPU}"
        return (
            Reason.EMULATION_FAILURE,
            f"KVM refused the instruction {disassemble(code, registers)} on {where}{remedy}",
            details,
        )
    what = {
        lib.VCPU_INTERNAL_ERROR: _SOFTWARE_CPU_ENDS.get(end.detail, f"KVM internal error, suberror {end.detail}"),
        lib.VCPU_FAIL_ENTRY: f"KVM could not enter the guest, hardware reason {end.detail:#x}",
        lib.VCPU_SYSTEM_EVENT: f"KVM system event {end.detail}",
        lib.VCPU_UNSUPPORTED: f"KVM exit reason {end.detail}, which vmm does not know",
    }.get(end.outcome, f"run outcome {end.outcome}")
    why = "" if end.why == ffi.NULL else f" ({ffi.string(end.why).decode('ascii')})"
    return Reason.KVM_FAILURE, f"{what}{why}, {where}", details


def last_seen(processors: "Processors", streams: "Iterable[Stream]", look: Callable[[], Look]) -> str:
    """Where a machine's vCPUs are, and the last assertion that its guest printed, of the first stream that has one."""
    started = ((vcpu, bool(core.started_ns)) for vcpu, core in zip(processors.vcpus, processors.cores, strict=True))
    said = assertion(*streams)
    where = positions(started, look)
    return f"{where}\nthe guest said: {said}" if said else where


def positions(vcpus: "Iterable[tuple[Vcpu, bool]]", look: Callable[[], Look]) -> str:
    """Where each vCPU is, and what it does there; vCPUs in the same place share that.

    Args:
        vcpus: each with whether it has executed anything. Of one that has not, nothing is read: that would let KVM
            accept a SIPI which it is to see when it runs.
        look: knows more of the places.
    """
    places: dict[str, list[int]] = {}
    more: dict[str, str] = {}
    for vcpu, started in vcpus:
        where = "not started"
        if started:
            registers = Registers.of(vcpu)
            halted = ", halted" if registers.mp_state is MpState.HALTED else ""
            where = f"at {_rip(registers, look)}, {registers.mode}, ring {registers.cpl}{halted}"
            # Whoever waits for another processor says nothing of why nothing goes on.
            if where not in places and (vcpu.index == 0 or not halted) and len(more) < _MOST_EXPLAINED:
                more[where] = look().evidence(registers)
        places.setdefault(where, []).append(vcpu.index)
    lines: list[str] = []
    for where, indices in places.items():
        lines.append(f"vCPU {', '.join(map(str, indices))}: {where}")
        lines += (f"  {line}" for line in more.get(where, "").splitlines())
    return "\n".join(lines)


def assertion(*streams: "Stream") -> str:
    """The last assertion of edk2's that a guest printed of late; "" if there is none."""
    for stream in streams:
        found = re.findall(
            rb"ASSERT(?:_EFI_ERROR|_RETURN_ERROR)? ?[\[(][^\r\n]{1,300}", stream.since(stream.total - _LATE_BYTES)
        )
        if found:
            return legible(found[-1].decode("utf-8", "replace"))
    return ""


def _refused_call(vcpu: "Vcpu", end: Any) -> tuple[Reason, str, str]:
    registers = Registers.of(vcpu)
    message = (
        f"the sandbox refused {call_name(end.detail)} to the thread of vCPU {vcpu.index}, at RIP "
        f"{registers.values['rip']:#x}: the guest has found a fault in vmm, or a device needs more than the sandbox "
        'allows (--sandbox off, or sandbox="off" in Python)'
    )
    return Reason.REFUSED, message, registers.text


def _rip(registers: Registers, look: Callable[[], Look]) -> str:
    image = look().where(registers)
    return f"RIP {registers.values['rip']:#x}" + (f" ({image})" if image else "")


def _failed_ioctl(vcpu: "Vcpu", end: Any) -> tuple[Reason, str, str]:
    message = str(kvm_error(end.error, _ioctl_name(end.detail), f"vCPU {vcpu.index}"))
    try:
        return Reason.KVM_FAILURE, message, Registers.of(vcpu).text
    except KvmError:
        return Reason.KVM_FAILURE, message, ""  # what made the run fail may make this fail too


def _ioctl_name(request: int) -> str:
    names = (name for name in dir(lib) if name == "KVM_RUN" or name.startswith(("KVM_GET_", "KVM_SET_")))
    return next((name for name in names if getattr(lib, name) == request), f"ioctl {request:#x}")


def _bytes_at(vcpu: "Vcpu", registers: Registers, memory: "GuestMemory") -> bytes:
    gpa = vcpu.translate(registers.linear_rip)
    if gpa is None:
        return b""
    for size in range(MAX_INSTRUCTION_SIZE, 0, -1):
        try:
            return memory.read(gpa, size)
        except ValueError:
            continue
    return b""


def disassemble(code: bytes, registers: Registers) -> str:
    """The first instruction of ``code`` in Intel syntax with its bytes; only the bytes where it cannot be decoded."""
    # Loading capstone takes longer than starting a small guest, and few runs fail.
    import capstone

    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[registers.bits]
    decoded: Iterable[Any] = capstone.Cs(capstone.CS_ARCH_X86, mode).disasm(code, registers.values["rip"], 1)
    for instruction in decoded:
        text = f"{instruction.mnemonic} {instruction.op_str}".strip()
        return f"'{text}' ({instruction.bytes.hex(' ')})"
    return f"with the bytes {code.hex(' ')}" if code else "(its bytes cannot be read)"
