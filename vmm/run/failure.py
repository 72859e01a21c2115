"""Why a vCPU ended, in words: for the one line that a user reads, and the evidence below it."""

import re
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from vmm._native import ffi, lib
from vmm.cpu.registers import Registers
from vmm.errors import KvmError
from vmm.kvm.descriptor import kvm_error
from vmm.legible import legible
from vmm.run.evidence import Access, Evidence, GuestException, VcpuEvidence
from vmm.run.outcome import Outcome, Reason
from vmm.sandbox import call_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmm.bus import Bus
    from vmm.cpu.processors import Processors
    from vmm.kvm import Vcpu
    from vmm.memory import GuestMemory
    from vmm.run.console import Stream

MAX_INSTRUCTION_SIZE = 15
"""Bytes of the longest x86 instruction (Intel SDM volume 2, section 2.3.11)."""

_LATE_BYTES = 1 << 16
"""Of a console: where such words are looked for."""

_CONFESSIONS = re.compile(
    rb"ASSERT(?:_EFI_ERROR|_RETURN_ERROR)? ?[\[(][^\r\n]{1,300}"
    rb"|!!!! (?:X64|IA32) Exception Type - [^\r\n]{1,100}!!!!(?:\s{0,4}ExceptionData - [^\r\n]{1,80})?"
    rb"|Kernel panic - not syncing[^\r\n]{1,300}"
)
"""edk2's DebugLib; its CpuExceptionHandlerLib, with the error code in a second line; Linux."""

_RESET_VECTOR = 0xFFFFFFF0
"""Linear RIP after INIT (SDM volume 3, 10.1.4). After SVM's SHUTDOWN intercept the VMCB is undefined (APM volume 2,
15.14.3), so that kvm-amd brings the vCPU there (shutdown_interception in arch/x86/kvm/svm/svm.c)."""

_USE_THE_SOFTWARE_CPU = "run with -accel auto or kvm+softcpu: the software CPU executes what this host's KVM refuses"

_SOFTWARE_CPU_ENDS = {
    0x10001: "the guest set up what the software CPU cannot run",
    0x10002: "the software CPU gave up on the guest's code",
}
"""native/softcpu/softcpu.h, enum softcpu_end; its module is loaded only where it is used."""


class Look(Protocol):
    """What can be said of a vCPU that stands still, from the guest's memory; it is made only where it is needed."""

    def around(self) -> "Callable[[int, Registers, Iterable[GuestException]], VcpuEvidence]":
        """What tells what vCPUs were doing, by index, and where; good as long as the machine stands still."""


def describe(
    vcpu: "Vcpu", core: Any, memory: "GuestMemory", look: Callable[[], Look], *, software_cpu: bool
) -> tuple[Reason, str, str]:
    """Reason, one line, and further lines for a vCPU whose run ended by itself.

    Args:
        vcpu: the vCPU; its registers are read.
        core: its ``struct vmm_vcpu``.
        memory: where the instruction bytes are, when KVM did not hand them over.
        look: knows more of the place.
        software_cpu: was it the software CPU that ran the vCPU?
    """
    end = core.end
    if end.outcome == lib.VCPU_ERROR:
        return _failed_ioctl(vcpu, end)
    if end.outcome == lib.VCPU_REFUSED:
        return _refused_call(vcpu, end)
    registers = Registers.of(vcpu)
    seen = look().around()(vcpu.index, registers, exceptions(vcpu, core))
    details = f"{registers.text}\n{seen.text}"
    place = f" ({seen.place})" if seen.place else ""
    where = f"vCPU {vcpu.index} at RIP {registers.values['rip']:#x}{place}"
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


def explained(
    outcome: Outcome,
    processors: "Processors",
    buses: "tuple[Bus, Bus]",
    streams: "Iterable[Stream]",
    look: Callable[[], Look],
) -> Outcome:
    """The end of a run with all that is known of why; no vCPU runs.

    Args:
        outcome: what is known already; its details are of the vCPU that ended by itself.
        processors: the machine's vCPUs.
        buses: its ports and MMIO.
        streams: its consoles; what the first one says of a failure counts.
        look: knows the guest's images.
    """
    seen = []
    at = look().around()
    for vcpu, core_vcpu in zip(processors.vcpus, processors.cores, strict=True):
        if not processors.present[vcpu.index]:
            continue
        # Of one that has not executed anything, nothing is read: that would let KVM accept a SIPI which it is to see
        # when it runs.
        if not core_vcpu.started_ns:
            seen.append(VcpuEvidence(vcpu.index, started=False))
            continue
        with suppress(KvmError):  # what made the run fail may make this fail too
            registers = Registers.of(vcpu)
            if core_vcpu.end.outcome == lib.VCPU_SHUTDOWN and registers.linear_rip == _RESET_VECTOR:
                continue  # not the guest's any more
            seen.append(at(vcpu.index, registers, exceptions(vcpu, core_vcpu)))
    evidence = Evidence(tuple(seen), tuple(last_accesses(processors.cores[0].vm, *buses)), confession(*streams))
    told = next(
        (
            vcpu.index
            for vcpu, core in zip(processors.vcpus, processors.cores, strict=True)
            if outcome.details and core.end.outcome not in {lib.VCPU_STOPPED, lib.VCPU_DEBUG}
        ),
        None,
    )
    details = "\n".join(filter(None, (outcome.details, evidence.text(but=told))))
    return outcome._replace(details=details, evidence=evidence)


def exceptions(vcpu: "Vcpu", core: Any) -> list[GuestException]:
    """The last exceptions of a vCPU, in order: the software CPU has seen them, KVM knows of one that is under way."""
    count = core.exception_count
    kept = [core.exceptions[at % lib.VCPU_EXCEPTIONS] for at in range(max(0, count - lib.VCPU_EXCEPTIONS), count)]
    if kept:
        return [GuestException.of(each.vector, each.error_code, each.rip, each.cr2) for each in kept]
    under_way = vcpu.get_vcpu_events().exception
    if not (under_way.injected or under_way.pending):
        return []
    return [GuestException.of(under_way.nr, under_way.error_code)]


def last_accesses(core: Any, ports: "Bus", mmio: "Bus") -> "Iterator[Access]":
    """What a machine's vCPUs asked of devices last, in order, with the names that those have now.

    Args:
        core: its ``struct vmm_vm``.
        ports: its ports.
        mmio: its MMIO.
    """
    with ports.lock:
        latest, kept = core.recent.latest, core.recent.accesses
        for at in range(latest + 1, latest + 1 + lib.RECENT_ACCESSES):
            entry = kept[at % lib.RECENT_ACCESSES]
            if entry.times:
                yield Access(
                    None if entry.vcpu == lib.RECENT_UNKNOWN_VCPU else entry.vcpu,
                    (mmio if entry.is_mmio else ports).name_at(entry.address),
                    "mmio" if entry.is_mmio else "port",
                    entry.address,
                    entry.size,
                    entry.count,
                    bool(entry.is_write),
                    entry.value,
                    entry.times,
                )


def confession(*streams: "Stream") -> str:
    """What a guest printed of late of a failure of its own: edk2's last assertion or exception, Linux's panic.

    Of the first console that has one; "" if none has.
    """
    for stream in streams:
        found = _CONFESSIONS.findall(stream.since(stream.total - _LATE_BYTES))
        if found:
            return legible(" ".join(found[-1].decode("utf-8", "replace").split()))
    return ""


def _refused_call(vcpu: "Vcpu", end: Any) -> tuple[Reason, str, str]:
    registers = Registers.of(vcpu)
    message = (
        f"the sandbox refused {call_name(end.detail)} to the thread of vCPU {vcpu.index}, at RIP "
        f"{registers.values['rip']:#x}: the guest has found a fault in vmm, or a device needs more than the sandbox "
        'allows (--sandbox off, or sandbox="off" in Python)'
    )
    return Reason.REFUSED, message, registers.text


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
