"""The software CPU beside KVM: its module, and its handle.

On a host without hardware virtualization KVM interprets ring 0 slowly, and refuses instructions that every firmware
uses. There, `SoftwareCpu` executes the guest's instructions in Unicorn's x86 engine on the guest's own RAM, while KVM
keeps being the machine around the CPU: interrupt controllers, timers, HLT, INIT and SIPI.

``vmm._softcpu``, the module with the engine in it, is imported when a machine uses it and never else. It is the only
part of vmm that is linked with Unicorn (GPL version 2).
"""

from __future__ import annotations

import mmap

from vmm import installation, layout
from vmm._native import ffi, lib
from vmm.errors import ConfigError, HostError, KvmError
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack
    from types import ModuleType
    from typing import Any

    from vmm.devices.clock import GuestClock
    from vmm.kvm import CpuidEntry, Vm
    from vmm.memory import GuestMemory


class Counters(NamedTuple):
    """What ran where, summed over the vCPUs.

    Attributes:
        instructions: executed by the engine; counted by translated blocks, so one that faults or is handed to KVM
            counts for the rest of its block too.
        kvm_steps: accesses to interrupt controllers and the 8254, wherever they are.
        interrupts: interrupts delivered.
        halts: HLT instructions that waited.
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


def is_built() -> bool:
    """Is the module there? A build that cannot get Unicorn goes on without it."""
    from importlib.util import find_spec

    return find_spec("vmm._softcpu") is not None


def build_remedy() -> str:
    """Return how to get the module, for people."""
    return installation.remedy(
        "setup",
        "run scripts/setup --again where it can download unicorn",
        "install vmm again where pip can download unicorn (pip install --force-reinstall --no-cache-dir -v says why "
        "if it cannot), or from a wheel that has it",
    )


def load() -> ModuleType:
    """Import ``vmm._softcpu`` and check that it works.

    Raises:
        HostError: the module was not built, cannot be loaded, was built for another ``vmm._native``, or has another
            engine in it than it was written for.
    """
    remedy = f"{build_remedy()}, or use -accel kvm"
    try:
        from vmm import _softcpu
    except ImportError as error:
        raise HostError(f"the software CPU (vmm._softcpu) cannot be loaded: {error}; {remedy}") from error
    if not _softcpu.lib.softcpu_fits(_as_pointer(_softcpu.ffi, "struct vmm_core *", ffi.addressof(lib.vmm_core))):
        raise HostError(f"vmm._softcpu and vmm._native are of different builds of vmm; {remedy}")
    problem = _softcpu.lib.softcpu_self_test()
    if problem != _softcpu.ffi.NULL:
        raise HostError(f"{_softcpu.ffi.string(problem).decode('ascii')}; {remedy}")
    module: ModuleType = _softcpu
    return module


def _as_pointer(their_ffi: Any, kind: str, native: Any) -> Any:
    """Return a pointer of ``vmm._native``'s as the other module's: the two share memory, not types."""
    return their_ffi.cast(kind, int(ffi.cast("uintptr_t", native)))


class SoftwareCpu:
    """The software CPU of one machine; a handle of C's ``struct softcpu``.

    Args:
        core: the machine's ``struct vmm_vm``, which outlives this object.
        vm: the machine in KVM; gets a memory slot that its `GuestMemory` knows nothing of. One without KVM gets none.

    Raises:
        HostError: see `load`; or there is no memory, or thread, for it.
        KvmError: KVM refuses the slot.

    Attributes:
        in_turn: whether time is virtual, and one thread has all vCPUs (`run_in_turn`); else each has its own (`run`).
    """

    def __init__(self, core: Any, vm: Vm) -> None:
        module = load()
        self._ffi, self._lib = module.ffi, module.lib
        self.in_turn = False
        self._at_end: Counters | None = None
        self._trace_at_end: tuple[int, int] | None = None
        native = _as_pointer(self._ffi, "struct vmm_core *", ffi.addressof(lib.vmm_core))
        self._handle = self._lib.softcpu_new(_as_pointer(self._ffi, "struct vmm_vm *", core), native)
        if self._handle == self._ffi.NULL:
            raise HostError(
                "no memory or no thread for the software CPU, which needs 512 MiB of address space: raise the limits "
                "of that (ulimit -v) and of processes (ulimit -u), or use -accel kvm"
            )
        if core.chips:
            return
        stubs = mmap.mmap(-1, self._lib.SOFTCPU_STUB_PAGE_BYTES)
        self._lib.softcpu_set_stubs(self._handle, self._ffi.from_buffer(stubs), layout.SOFTWARE_CPU_STUBS)
        # The last slot: guest memory's count from 0.
        vm.set_user_memory_region(vm.kvm.max_memory_slots - 1, layout.SOFTWARE_CPU_STUBS, len(stubs), stubs)

    def close(self) -> None:
        """Give the engine back. No vCPU may be running; may be called twice."""
        handle, self._handle = self._handle, self._ffi.NULL
        if handle != self._ffi.NULL:
            self._at_end = self._read_counters(handle)
            self._trace_at_end = self._read_trace(handle)
            self._lib.softcpu_free(handle)

    def add_vcpu(self, core_vcpu: Any, cpuid: Sequence[CpuidEntry]) -> None:
        """Let the engine run this vCPU (a ``struct vmm_vcpu``), whose guest finds ``cpuid``.

        Raises:
            KvmError: there is no room for another vCPU, or no TSC offset to be had from KVM.
        """
        leaves = self._ffi.new("struct softcpu_cpuid_leaf[]", len(cpuid))
        for leaf, entry in zip(leaves, cpuid, strict=True):
            leaf.function, leaf.subleaf, leaf.indexed = entry.function, entry.subleaf, entry.indexed
            leaf.eax, leaf.ebx, leaf.ecx, leaf.edx = entry.eax, entry.ebx, entry.ecx, entry.edx
        vcpu = _as_pointer(self._ffi, "struct vmm_vcpu *", core_vcpu)
        error = -self._lib.softcpu_add_vcpu(self._handle, vcpu, leaves, len(cpuid))
        if error:
            raise KvmError(f"the software CPU cannot take over a vCPU: errno {error}", error)

    def reset_vcpu(self, core_vcpu: Any) -> None:
        """Forget, between runs, what the engine knows of a vCPU that KVM has reset; the first vCPU first.

        Raises:
            KvmError: there is no TSC offset to be had from KVM.
        """
        error = -self._lib.softcpu_reset_vcpu(_as_pointer(self._ffi, "struct vmm_vcpu *", core_vcpu))
        if error:
            raise KvmError(f"the software CPU cannot reset a vCPU: errno {error}", error)

    def run(self, core_vcpu: Any) -> int:
        """Run on this thread until the guest or a stop ends it, like ``vmm_vcpu_run``; returns ``end.outcome``."""
        outcome: int = self._lib.softcpu_vcpu_run(_as_pointer(self._ffi, "struct vmm_vcpu *", core_vcpu))
        return outcome

    def run_in_turn(self) -> None:
        """Where time is virtual, run all vCPUs on this thread until the guest or a stop ends one of them.

        Each has its ``end.outcome`` then.
        """
        self._lib.softcpu_run_in_turn(self._handle)

    def smi(self, index: int | None) -> None:
        """Send an SMI to the vCPU with this index, or to all; while a device is used."""
        self._lib.softcpu_smi(self._handle, self._lib.SOFTCPU_ALL_VCPUS if index is None else index)

    def amend_sregs(self, core_vcpu: Any, sregs: Any) -> None:
        """Turn what KVM says of a vCPU's special registers into what the guest has, if nobody has set them since.

        Between runs only; KVM without hardware virtualization forgets, for one, that paging is on outside long mode.
        """
        if self._handle != self._ffi.NULL:
            their_sregs = _as_pointer(self._ffi, "struct kvm_sregs *", sregs)
            self._lib.softcpu_amend_sregs(_as_pointer(self._ffi, "struct vmm_vcpu *", core_vcpu), their_sregs)

    def save_vcpu(self, core_vcpu: Any) -> bytes:
        """Everything of a vCPU that KVM does not hold, between two runs.

        Raises:
            KvmError: KVM does not give or take its registers.
        """
        state = self._ffi.new("struct softcpu_vcpu_state *")
        if not self._lib.softcpu_save_vcpu(_as_pointer(self._ffi, "struct vmm_vcpu *", core_vcpu), state):
            raise _vcpu_error(core_vcpu)
        return bytes(self._ffi.buffer(state))

    def has_registers(self, state: bytes) -> bool:
        """Whether what `save_vcpu` gave has the vCPU's registers; else those of KVM are the guest's."""
        return bool(self._state(state).has_registers)

    def restore_vcpu(self, core_vcpu: Any, state: bytes) -> None:
        """Give a vCPU that has not run yet what `save_vcpu` gave; KVM has the rest of it already.

        Raises:
            ConfigError: the state is another build's.
            KvmError: KVM does not give or take its registers.
        """
        vcpu = _as_pointer(self._ffi, "struct vmm_vcpu *", core_vcpu)
        if not self._lib.softcpu_restore_vcpu(vcpu, self._state(state)):
            raise _vcpu_error(core_vcpu)

    def set_tsc_offset(self, core_vcpu: Any, offset: int) -> None:
        """Let a vCPU's TSC be the host's and ``offset``, for the engine and for KVM's timers.

        Raises:
            KvmError: KVM refuses it.
        """
        error = -self._lib.softcpu_set_tsc_offset(_as_pointer(self._ffi, "struct vmm_vcpu *", core_vcpu), offset)
        if error:
            raise KvmError(f"KVM refuses a TSC offset: errno {error}", error)

    def get_tsc_offset(self, core_vcpu: Any) -> int:
        """What a vCPU's TSC is ahead of the host's, modulo 2^64."""
        return int(self._lib.softcpu_get_tsc_offset(_as_pointer(self._ffi, "struct vmm_vcpu *", core_vcpu)))

    def _state(self, data: bytes) -> Any:
        state = self._ffi.new("struct softcpu_vcpu_state *")
        if len(data) != self._ffi.sizeof(state[0]):
            raise ConfigError("the snapshot is of a vmm with another software CPU; take it again")
        self._ffi.buffer(state)[:] = data
        return state

    def go_by(self, clock: GuestClock, handle: Any) -> None:
        """Let time go by what the guest executes; before there is a vCPU.

        Args:
            clock: the machine's, which stands, and is moved from now on.
            handle: given to ``vmm_python_virtual_time`` of the core.
        """
        self.in_turn = True
        call = self._ffi.cast(
            "void (*)(void *, bool)", int(ffi.cast("uintptr_t", ffi.addressof(lib, "vmm_python_virtual_time")))
        )
        self._lib.softcpu_set_virtual_time(
            self._handle,
            _as_pointer(self._ffi, "struct guest_clock *", clock.core),
            call,
            _as_pointer(self._ffi, "void *", handle),
        )

    def set_due(self, deadline: int) -> None:
        """Of such a time: when the next deadline of a device is; 2^64 - 1: there is none."""
        self._lib.softcpu_set_due(self._handle, deadline)

    def set_replay(self, instructions: int, deadline: int) -> None:
        """When the guest is to get what was recorded: behind that instruction, and not before the deadline."""
        self._lib.softcpu_set_replay(self._handle, instructions, deadline)

    def note_input(self) -> None:
        """The guest is to get something from outside, soon; any thread may."""
        self._lib.softcpu_note_input(self._handle)

    def trace_hash(self) -> tuple[int, int]:
        """A hash over the guest's accesses and interrupts, each with its instruction, and how many; as `counters`."""
        return self._read_trace(self._handle) if self._trace_at_end is None else self._trace_at_end

    def _read_trace(self, handle: Any) -> tuple[int, int]:
        found = self._ffi.new("uint64_t[2]")
        self._lib.softcpu_read_trace(handle, found, found + 1)
        return int(found[0]), int(found[1])

    def counters(self) -> Counters:
        """What ran where until now, or until it was closed; may be called while vCPUs run."""
        return self._read_counters(self._handle) if self._at_end is None else self._at_end

    def _read_counters(self, handle: Any) -> Counters:
        counters = self._ffi.new("struct softcpu_counters *")
        self._lib.softcpu_read_counters(handle, counters)
        return Counters(**{name: int(getattr(counters, name)) for name in Counters._fields})


def _vcpu_error(core_vcpu: Any) -> KvmError:
    error = int(core_vcpu.end.error)
    return KvmError(f"KVM refuses a vCPU's registers: errno {error}", error)


def create_softcpu(core: Any, vm: Vm, memory: GuestMemory, closers: ExitStack) -> SoftwareCpu:
    """Create the software CPU of a machine, and prepare its memory for that.

    Args:
        core: the machine's ``struct vmm_vm``.
        vm: the machine in KVM.
        memory: of the machine.
        closers: take both back.

    Raises:
        HostError: see `load`; or there is no memory, or thread, for it.
        KvmError: KVM refuses a memory slot.
    """
    softcpu = SoftwareCpu(core, vm)
    closers.callback(softcpu.close)
    memory.park_roms(True)
    closers.callback(memory.park_roms, False)
    return softcpu
