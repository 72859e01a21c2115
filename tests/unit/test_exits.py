"""Decoding struct kvm_run, for the exits that no small guest can bring about on every host."""

import mmap
from collections.abc import Callable
from typing import Any, get_args

import pytest
from vmm._native import ffi, lib

from vmm.kvm import exits
from vmm.kvm.exit_reasons import reason_name
from vmm.kvm.exits import (
    Exit,
    FailEntry,
    Hypercall,
    InternalError,
    IoapicEoi,
    IrqWindowOpen,
    Rdmsr,
    SystemEvent,
    TprAccess,
    Unknown,
    Unsupported,
    Wrmsr,
    decode,
)


def decoded(reason: int, fill: Callable[[Any], None] = lambda _: None) -> Exit:
    page = mmap.mmap(-1, 4096)
    run = ffi.cast("struct kvm_run *", ffi.from_buffer(page))
    run.exit_reason = reason
    fill(run)
    return decode(run, page)


def test_a_reason_of_a_newer_kernel() -> None:
    assert decoded(4711) == Unsupported(4711)


def test_fail_entry() -> None:
    def fill(run: Any) -> None:
        run.fail_entry.hardware_entry_failure_reason, run.fail_entry.cpu = 0x80000021, 3

    assert decoded(lib.KVM_EXIT_FAIL_ENTRY, fill) == FailEntry(0x80000021, 3)


def test_internal_error_with_more_data_than_there_is_room_for() -> None:
    def fill(run: Any) -> None:
        run.internal.suberror, run.internal.ndata = lib.KVM_INTERNAL_ERROR_DELIVERY_EV, 0xFFFFFFFF
        run.internal.data[15] = 9

    assert decoded(lib.KVM_EXIT_INTERNAL_ERROR, fill) == InternalError(3, (0,) * 15 + (9,), b"")


def test_emulation_failure_without_data_has_no_instruction() -> None:
    def fill(run: Any) -> None:
        run.internal.suberror, run.internal.ndata = lib.KVM_INTERNAL_ERROR_EMULATION, 0
        # Stale, since ndata does not cover it.
        run.emulation_failure.flags = lib.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
        run.emulation_failure.insn_size = 15

    assert decoded(lib.KVM_EXIT_INTERNAL_ERROR, fill) == InternalError(1, (), b"")


def test_emulation_failure_never_reads_past_the_instruction() -> None:
    def fill(run: Any) -> None:
        run.internal.suberror, run.internal.ndata = lib.KVM_INTERNAL_ERROR_EMULATION, 4
        run.emulation_failure.flags = lib.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
        run.emulation_failure.insn_size = 200
        run.emulation_failure.insn_bytes = bytes(range(15))

    failure = decoded(lib.KVM_EXIT_INTERNAL_ERROR, fill)
    assert isinstance(failure, InternalError)
    assert failure.instruction == bytes(range(15))


def test_system_event() -> None:
    def fill(run: Any) -> None:
        run.system_event.type, run.system_event.ndata = lib.KVM_SYSTEM_EVENT_CRASH, 2
        run.system_event.data[0:2] = [5, 6]

    assert decoded(lib.KVM_EXIT_SYSTEM_EVENT, fill) == SystemEvent(3, (5, 6))


def test_msr_exits() -> None:
    def fill(run: Any) -> None:
        run.msr.index, run.msr.data, run.msr.reason = 0xC0010015, 0x1234, 2

    assert decoded(lib.KVM_EXIT_X86_RDMSR, fill) == Rdmsr(0xC0010015, 2)
    assert decoded(lib.KVM_EXIT_X86_WRMSR, fill) == Wrmsr(0xC0010015, 0x1234, 2)


def test_hypercall() -> None:
    def fill(run: Any) -> None:
        run.hypercall.nr = 12
        run.hypercall.args = [1, 2, 3, 4, 5, 6]

    assert decoded(lib.KVM_EXIT_HYPERCALL, fill) == Hypercall(12, (1, 2, 3, 4, 5, 6))


def test_small_exits() -> None:
    def fill(run: Any) -> None:
        run.tpr_access.rip, run.tpr_access.is_write = 0x7C00, 1

    def eoi(run: Any) -> None:
        run.eoi.vector = 0x31

    def unknown(run: Any) -> None:
        run.hw.hardware_exit_reason = 77

    assert decoded(lib.KVM_EXIT_TPR_ACCESS, fill) == TprAccess(0x7C00, True)
    assert decoded(lib.KVM_EXIT_IOAPIC_EOI, eoi) == IoapicEoi(0x31)
    assert decoded(lib.KVM_EXIT_UNKNOWN, unknown) == Unknown(77)
    assert decoded(lib.KVM_EXIT_IRQ_WINDOW_OPEN) == IrqWindowOpen()
    assert decoded(lib.KVM_EXIT_INTR) == exits.Intr()


def test_exits_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Unsupported(1).reason = 2  # type: ignore[misc]


def test_the_set_is_closed() -> None:
    kinds = {value for value in vars(exits).values() if isinstance(value, type) and value.__module__ == exits.__name__}
    assert kinds == set(get_args(Exit))


@pytest.mark.parametrize(
    ("reason", "name"),
    [(2, "io"), (5, "hlt"), (6, "mmio"), (8, "shutdown"), (17, "internal-error"), (29, "rdmsr"), (4711, "exit-4711")],
)
def test_reason_name(reason: int, name: str) -> None:
    assert reason_name(reason) == name
