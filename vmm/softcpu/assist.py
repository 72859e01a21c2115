"""The software CPU beside KVM: whether it is used, and its handle.

On a host without hardware virtualization KVM interprets ring 0 slowly, and refuses instructions that every firmware
uses. There, `Assist` executes the guest's instructions in Unicorn's x86 engine on the guest's own RAM, while KVM keeps
being the machine around the CPU: interrupt controllers, timers, HLT, INIT and SIPI.

``vmm._assist``, the module with the engine in it, is imported when a machine uses it and never else. It is the only
part of vmm that is linked with Unicorn (GPL version 2).
"""

import errno
import mmap
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from vmm._native import ffi, lib
from vmm.config.parts import AssistMode
from vmm.errors import HostError, KvmError
from vmm.kvm import CpuidEntry, Kvm

CPUINFO = Path("/proc/cpuinfo")

INTERPRETED_BELOW = 10_000_000
"""Instructions a second: well above the kernel's emulator (10^6), well below any CPU, entry and exit included."""

_PROBE_ITERATIONS = 2048


class Decision(NamedTuple):
    """Is the software CPU used, and why (one clause, for people)."""

    use: bool
    why: str


class Counters(NamedTuple):
    """What ran where, summed over the vCPUs.

    Attributes:
        instructions: executed by the engine; counted by translated blocks, so one that faults or is handed to KVM
            counts for the rest of its block too.
        kvm_steps: single instructions that KVM executed, because they reach its chips.
        interrupts: interrupts delivered by KVM.
        halts: HLT instructions, for which KVM waits.
        swaps: how often the engine went from one vCPU to another.
        invalidations: how often a device's write or a change of the memory map dropped translated code.
        translations_flushed: how often all translated code was dropped because its buffer was full.
    """

    instructions: int
    kvm_steps: int
    interrupts: int
    halts: int
    swaps: int
    invalidations: int
    translations_flushed: int


def has_hardware_virtualization() -> bool:
    """Does the host's CPU have VMX or SVM, as ``/proc/cpuinfo`` says?"""
    try:
        text = CPUINFO.read_text(encoding="ascii", errors="replace")
    except OSError:
        return True
    for line in text.splitlines():
        if line.startswith("flags"):
            return not {"vmx", "svm"}.isdisjoint(line.split())
    return True


def ring0_speed(kvm: Kvm) -> float:
    """Instructions a second that KVM executes in ring 0, measured for a millisecond on a guest of its own.

    Raises:
        KvmError: KVM refuses to make or run that guest.
    """
    code = b"\xb9" + _PROBE_ITERATIONS.to_bytes(2, "little") + b"\xe2\xfe\xf4"  # mov cx, n; loop $; hlt
    with mmap.mmap(-1, mmap.PAGESIZE) as memory, kvm.create_vm() as vm:
        memory[: len(code)] = code
        vm.set_user_memory_region(0, 0, len(memory), memory)
        with vm.create_vcpu(0) as vcpu:
            sregs = vcpu.get_sregs()
            sregs.cs.base = sregs.cs.selector = 0
            vcpu.set_sregs(sregs)
            regs = vcpu.get_regs()
            regs.rip, regs.rflags = 0, 2
            vcpu.set_regs(regs)
            began = time.perf_counter()
            # Not run_once: making the classes of its typed exits takes longer than this measurement.
            while lib.kvm_abi_ioctl_value(vcpu.fd, lib.KVM_RUN, 0) == -errno.EINTR:
                pass
            return _PROBE_ITERATIONS / max(time.perf_counter() - began, 1e-9)


def decide(mode: AssistMode, kvm: Kvm) -> Decision:
    """Will the software CPU run this machine's vCPUs on this host?

    Raises:
        HostError: it is asked for where KVM would not stay out of its way.
    """
    if mode is AssistMode.OFF:
        return Decision(use=False, why="switched off")
    if has_hardware_virtualization():
        if mode is AssistMode.ON:
            # It single-steps KVM where an interpreter runs ring 0; a real CPU would run on instead.
            raise HostError(
                "--assist on: this host's CPU has hardware virtualization, KVM runs guests by itself; use auto"
            )
        return Decision(use=False, why="the CPU has hardware virtualization")
    if mode is AssistMode.ON:
        return Decision(use=True, why="switched on")
    speed = ring0_speed(kvm)
    if speed >= INTERPRETED_BELOW:
        return Decision(use=False, why=f"KVM runs {speed / 1e6:.0f} million instructions/s in ring 0")
    return Decision(
        use=True,
        why=f"no hardware virtualization: KVM interprets {speed / 1e6:.1f} million instructions/s in ring 0",
    )


def load() -> ModuleType:
    """Import ``vmm._assist`` and check that it works.

    Raises:
        HostError: the module was not built, cannot be loaded, or is not the engine that it was written for.
    """
    remedy = "run scripts/setup, which builds it, or use --assist off"
    try:
        from vmm import _assist  # noqa: PLC0415 - loaded by those machines alone that use it
    except ImportError as error:
        raise HostError(f"the software CPU (vmm._assist) cannot be loaded: {error}; {remedy}") from error
    problem = _assist.lib.assist_self_test()
    if problem != _assist.ffi.NULL:
        raise HostError(f"{_assist.ffi.string(problem).decode('ascii')}; {remedy}")
    module: ModuleType = _assist
    return module


class Assist:
    """The software CPU of one machine; a handle of C's ``struct assist``.

    Args:
        core: the machine's ``struct vmm_vm``, which outlives this object.

    Raises:
        HostError: see `load`; or there is no memory for it.
    """

    def __init__(self, core: Any) -> None:
        module = load()
        self._ffi, self._lib = module.ffi, module.lib
        self._at_end: Counters | None = None
        native = self._pointer("struct vmm_core *", ffi.addressof(lib.vmm_core))
        self._handle = self._lib.assist_new(self._pointer("struct vmm_vm *", core), native)
        if self._handle == self._ffi.NULL:
            raise HostError("no memory for the software CPU: it needs 256 MiB of address space")

    def close(self) -> None:
        """Give the engine back. No vCPU may be running; may be called twice."""
        handle, self._handle = self._handle, self._ffi.NULL
        if handle != self._ffi.NULL:
            self._at_end = self._read_counters(handle)
            self._lib.assist_free(handle)

    def add_vcpu(self, core_vcpu: Any, cpuid: Sequence[CpuidEntry]) -> None:
        """Let the engine run this vCPU (a ``struct vmm_vcpu``), whose guest finds ``cpuid``.

        Raises:
            KvmError: there is no room for another vCPU, or no TSC offset to be had from KVM.
        """
        leaves = self._ffi.new("struct assist_cpuid_leaf[]", len(cpuid))
        for leaf, entry in zip(leaves, cpuid, strict=True):
            leaf.function, leaf.subleaf, leaf.indexed = entry.function, entry.subleaf, entry.indexed
            leaf.eax, leaf.ebx, leaf.ecx, leaf.edx = entry.eax, entry.ebx, entry.ecx, entry.edx
        vcpu = self._pointer("struct vmm_vcpu *", core_vcpu)
        error = -self._lib.assist_add_vcpu(self._handle, vcpu, leaves, len(cpuid))
        if error:
            raise KvmError(f"the software CPU cannot take over a vCPU: errno {error}", error)

    def run(self, core_vcpu: Any) -> int:
        """Run on this thread until the guest or a stop ends it, like ``vmm_vcpu_run``; returns ``end.outcome``."""
        outcome: int = self._lib.assist_vcpu_run(self._pointer("struct vmm_vcpu *", core_vcpu))
        return outcome

    def counters(self) -> Counters:
        """What ran where until now, or until it was closed; may be called while vCPUs run."""
        return self._read_counters(self._handle) if self._at_end is None else self._at_end

    def _read_counters(self, handle: Any) -> Counters:
        counters = self._ffi.new("struct assist_counters *")
        self._lib.assist_read_counters(handle, counters)
        return Counters(**{name: int(getattr(counters, name)) for name in Counters._fields})

    def _pointer(self, kind: str, native: Any) -> Any:
        """Return a pointer of the other module's as this one's: the two share memory, not types."""
        return self._ffi.cast(kind, int(ffi.cast("uintptr_t", native)))
