"""Why KVM_RUN came back: a closed set of typed exits, and `Unsupported` for what a newer kernel adds.

Source: ``<linux/kvm.h>``, struct kvm_run and KVM_EXIT_*; the kernel's Documentation/virt/kvm/api.rst, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmm._native import ffi, lib

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Io:
    """KVM_EXIT_IO: IN, OUT, or a batch of INS or OUTS.

    Attributes:
        port: the first port.
        size: bytes of one element: 1, 2, 4.
        count: elements, all at the same port; more than 1 only for string instructions.
        is_write: OUT.
        data: ``size * count`` bytes, little-endian: what the guest writes, or where the answer to its read belongs.
            It is memory shared with KVM, good until the next run.
    """

    port: int
    size: int
    count: int
    is_write: bool
    data: memoryview


@dataclass(frozen=True, slots=True)
class Mmio:
    """KVM_EXIT_MMIO: a load or store where no memory slot is, or a store to a read-only one.

    Attributes:
        gpa: guest physical address.
        is_write: a store.
        data: 1 to 8 bytes, as in `Io`.
    """

    gpa: int
    is_write: bool
    data: memoryview


@dataclass(frozen=True, slots=True)
class Hlt:
    """KVM_EXIT_HLT: only without an in-kernel interrupt controller, which otherwise waits inside."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """KVM_EXIT_SHUTDOWN: a triple fault. Hosts that interpret ring 0 hang instead: have a deadline."""


@dataclass(frozen=True, slots=True)
class InternalError:
    """KVM_EXIT_INTERNAL_ERROR: KVM gave up.

    Attributes:
        suberror: KVM_INTERNAL_ERROR_EMULATION (an instruction it cannot emulate), _SIMUL_EX, _DELIVERY_EV,
            _UNEXPECTED_EXIT_REASON.
        data: up to 16 numbers that mean something to KVM's developers.
        instruction: the bytes at RIP, if KVM says; empty otherwise.
    """

    suberror: int
    data: tuple[int, ...]
    instruction: bytes


@dataclass(frozen=True, slots=True)
class FailEntry:
    """KVM_EXIT_FAIL_ENTRY: the hardware refused the guest's state.

    Attributes:
        hardware_reason: VMX's or SVM's own number.
        cpu: the host CPU it happened on.
    """

    hardware_reason: int
    cpu: int


@dataclass(frozen=True, slots=True)
class SystemEvent:
    """KVM_EXIT_SYSTEM_EVENT: KVM_SYSTEM_EVENT_SHUTDOWN, _RESET, _CRASH …, with up to 16 numbers."""

    type: int
    data: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Debug:
    """KVM_EXIT_DEBUG: a step or a breakpoint that `Vcpu.set_guest_debug` asked for.

    Attributes:
        exception: 1 #DB, 3 #BP.
        pc: linear address of the instruction.
        dr6: which condition.
        dr7: as it was.
    """

    exception: int
    pc: int
    dr6: int
    dr7: int


@dataclass(frozen=True, slots=True)
class Intr:
    """A signal came, or immediate_exit was set (KVM_EXIT_INTR, or EINTR)."""


@dataclass(frozen=True, slots=True)
class Woken:
    """An AP that waited for INIT or SIPI got it (EAGAIN): run it again."""


@dataclass(frozen=True, slots=True)
class IrqWindowOpen:
    """KVM_EXIT_IRQ_WINDOW_OPEN: request_interrupt_window was set, and the guest can take an interrupt now."""


@dataclass(frozen=True, slots=True)
class Hypercall:
    """KVM_EXIT_HYPERCALL: the guest's VMCALL, for hypercalls handed to user space; six arguments."""

    number: int
    arguments: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TprAccess:
    """KVM_EXIT_TPR_ACCESS: a 32-bit guest touched the LAPIC's task priority register."""

    rip: int
    is_write: bool


@dataclass(frozen=True, slots=True)
class IoapicEoi:
    """KVM_EXIT_IOAPIC_EOI: end of a level interrupt, with a split interrupt controller."""

    vector: int


@dataclass(frozen=True, slots=True)
class Rdmsr:
    """KVM_EXIT_X86_RDMSR: an MSR read handed to user space (KVM_CAP_X86_USER_SPACE_MSR); ``reason`` is why."""

    index: int
    reason: int


@dataclass(frozen=True, slots=True)
class Wrmsr:
    """KVM_EXIT_X86_WRMSR: likewise, a write of ``value``."""

    index: int
    value: int
    reason: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """KVM_EXIT_UNKNOWN: the hardware left the guest for a reason that KVM does not know."""

    hardware_reason: int


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Any other exit reason; ``reason`` is its KVM_EXIT number."""

    reason: int


Exit = (
    Io
    | Mmio
    | Hlt
    | Shutdown
    | InternalError
    | FailEntry
    | SystemEvent
    | Debug
    | Intr
    | Woken
    | IrqWindowOpen
    | Hypercall
    | TprAccess
    | IoapicEoi
    | Rdmsr
    | Wrmsr
    | Unknown
    | Unsupported
)


def decode(run: Any, page: mmap.mmap) -> Exit:
    """The exit that ``run`` (struct kvm_run) describes; ``page`` is the mapping it lies in, which data points into."""
    reason: int = run.exit_reason
    if reason == lib.KVM_EXIT_IO:
        access = run.io
        data = memoryview(page)[access.data_offset : access.data_offset + access.size * access.count]
        return Io(access.port, access.size, access.count, access.direction == lib.KVM_EXIT_IO_OUT, data)
    if reason == lib.KVM_EXIT_MMIO:
        access = run.mmio
        return Mmio(access.phys_addr, bool(access.is_write), memoryview(page)[_MMIO_DATA : _MMIO_DATA + access.len])
    decoder = _DECODERS.get(reason)
    return decoder(run) if decoder else Unsupported(reason)


def _internal_error(run: Any) -> InternalError:
    error = run.internal
    data = tuple(error.data[0 : min(error.ndata, len(error.data))])
    instruction = b""
    failure = run.emulation_failure
    # The flags are there only if ndata covers them.
    if (
        error.suberror == lib.KVM_INTERNAL_ERROR_EMULATION
        and error.ndata
        and failure.flags & lib.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
    ):
        instruction = bytes(failure.insn_bytes[0 : min(failure.insn_size, len(failure.insn_bytes))])
    return InternalError(error.suberror, data, instruction)


def _system_event(run: Any) -> SystemEvent:
    event = run.system_event
    return SystemEvent(event.type, tuple(event.data[0 : min(event.ndata, len(event.data))]))


def _debug(run: Any) -> Debug:
    arch = run.debug.arch
    return Debug(arch.exception, arch.pc, arch.dr6, arch.dr7)


_MMIO_DATA: int = ffi.offsetof("struct kvm_run", "mmio") + ffi.offsetof("kvm_run_mmio", "data")

_DECODERS: dict[int, Callable[[Any], Exit]] = {
    lib.KVM_EXIT_HLT: lambda _: Hlt(),
    lib.KVM_EXIT_SHUTDOWN: lambda _: Shutdown(),
    lib.KVM_EXIT_INTERNAL_ERROR: _internal_error,
    lib.KVM_EXIT_FAIL_ENTRY: lambda run: FailEntry(run.fail_entry.hardware_entry_failure_reason, run.fail_entry.cpu),
    lib.KVM_EXIT_SYSTEM_EVENT: _system_event,
    lib.KVM_EXIT_DEBUG: _debug,
    lib.KVM_EXIT_INTR: lambda _: Intr(),
    lib.KVM_EXIT_IRQ_WINDOW_OPEN: lambda _: IrqWindowOpen(),
    lib.KVM_EXIT_HYPERCALL: lambda run: Hypercall(run.hypercall.nr, tuple(run.hypercall.args)),
    lib.KVM_EXIT_TPR_ACCESS: lambda run: TprAccess(run.tpr_access.rip, bool(run.tpr_access.is_write)),
    lib.KVM_EXIT_IOAPIC_EOI: lambda run: IoapicEoi(run.eoi.vector),
    lib.KVM_EXIT_X86_RDMSR: lambda run: Rdmsr(run.msr.index, run.msr.reason),
    lib.KVM_EXIT_X86_WRMSR: lambda run: Wrmsr(run.msr.index, run.msr.data, run.msr.reason),
    lib.KVM_EXIT_UNKNOWN: lambda run: Unknown(run.hw.hardware_exit_reason),
}
