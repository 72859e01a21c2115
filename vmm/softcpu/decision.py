"""Who executes the guest's instructions on this host: KVM, or the software CPU beside it, or that alone."""

from __future__ import annotations

import errno
import mmap
import time

from vmm._native import lib
from vmm.config.parts import Accelerator
from vmm.errors import HostError
from vmm.kvm import Kvm
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vmm.devices.clock import GuestClock

CPUINFO = "/proc/cpuinfo"

INTERPRETED_BELOW = 10_000_000
"""Instructions a second: well above the kernel's emulator (10^6), well below any CPU, entry and exit included."""

MOST_BESIDE_KVM = 32
"""CPUs of one machine. Some 15 system calls go to KVM's interrupt controllers for each tick of each CPU's timer: with
twice as many CPUs, Linux takes twice as long to start as with chips of our own, with four times as many nine times."""

_PROBE_ITERATIONS = 2048


class Decision(NamedTuple):
    """What was decided, and why.

    Attributes:
        name: never AUTO.
        why: one clause, for people.
    """

    name: Accelerator
    why: str


def has_hardware_virtualization() -> bool:
    """Does the host's CPU have VMX or SVM, as ``/proc/cpuinfo`` says?"""
    try:
        with open(CPUINFO, encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith("flags"):
                    return not {"vmx", "svm"}.isdisjoint(line.split())
    except OSError:
        pass
    return True


def ring0_speed(kvm: Kvm) -> float:
    """Instructions a second that KVM executes in ring 0, measured for a millisecond on a guest of its own.

    Raises:
        KvmError: KVM refuses to make or run that guest.
    """
    code = b"\xb9" + _PROBE_ITERATIONS.to_bytes(2, "little") + b"\xe2\xfe\xf4"  # mov cx, n; loop $; hlt
    memory = mmap.mmap(-1, mmap.PAGESIZE)  # goes with its last user: what Ctrl-C interrupts may still hold it
    with kvm.create_vm() as vm:
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


def check_smm(accelerator: Decision, kvm: Kvm) -> None:
    """See whether a machine can have system management mode.

    Raises:
        HostError: it cannot.
    """
    if accelerator.name is Accelerator.KVM and not kvm.check_extension(lib.KVM_CAP_X86_SMM):
        raise HostError(
            "this host's KVM has no system management mode (KVM_CAP_X86_SMM), which the firmware or -machine smm=on "
            f"needs; -accel softcpu has it (-accel {accelerator.name} was chosen because: {accelerator.why})"
        )


def open_host(wanted: Accelerator, clock: GuestClock | None = None, cpus: int = 1) -> Kvm:
    """Open KVM, or what takes its place where the software CPU does without.

    Args:
        wanted: by the user.
        clock: what the time of machines goes by, with the software CPU alone; None: it goes on with the host's.
        cpus: how many the machine can have.

    Raises:
        HostError: KVM cannot be used, and the software CPU is not to do without it, or was not built.
    """
    if wanted is Accelerator.SOFTCPU:
        return _without_kvm("asked for", clock)
    try:
        kvm = Kvm()
    except HostError as error:
        return _fall_back(wanted, error)
    try:
        kvm.require()
        decided = decide(wanted, kvm) if wanted is Accelerator.AUTO and cpus > MOST_BESIDE_KVM else None
    except HostError as error:
        kvm.close()
        return _fall_back(wanted, error)
    except BaseException:
        kvm.close()
        raise
    if decided is None or decided.name is not Accelerator.KVM_SOFTCPU:
        return kvm
    kvm.close()
    return _without_kvm(f"{decided.why}, and {cpus} CPUs are more than it serves well")


def _fall_back(wanted: Accelerator, error: HostError) -> Kvm:
    if wanted is not Accelerator.AUTO:
        raise HostError(f"-accel {wanted}: {error}; -accel softcpu does without KVM") from error
    from vmm.softcpu import engine

    if not engine.is_built():
        raise HostError(f"{error}; the software CPU, which does without KVM, is not built: {engine.build_remedy()}")
    return _without_kvm(f"no KVM: {error}")


def _without_kvm(why: str, clock: GuestClock | None = None) -> Kvm:
    from vmm.softcpu.chips import ChipsSystem  # few hosts lack KVM

    return ChipsSystem(why, clock)


def decide(wanted: Accelerator, kvm: Kvm, *, interpretable: bool = True) -> Decision:
    """Which accelerator shall run a machine on this host?

    Args:
        wanted: what the user asks for.
        kvm: what `open_host` gave.
        interpretable: whether the firmware also runs where KVM interprets ring 0.

    Raises:
        HostError: it is asked for where KVM would not stay out of its way; or nothing here can run the firmware.
    """
    if kvm.stands_in is not None:
        return Decision(Accelerator.SOFTCPU, kvm.stands_in)
    if wanted is Accelerator.KVM:
        return Decision(Accelerator.KVM, "asked for")
    if has_hardware_virtualization():
        if wanted is Accelerator.KVM_SOFTCPU:
            # It single-steps KVM where an interpreter runs ring 0; a real CPU would run on instead.
            raise HostError(
                "-accel kvm+softcpu: this host's CPU has hardware virtualization, KVM runs guests by itself; use auto"
            )
        return Decision(Accelerator.KVM, "the CPU has hardware virtualization")
    if wanted is Accelerator.KVM_SOFTCPU:
        return Decision(Accelerator.KVM_SOFTCPU, "asked for")
    speed = ring0_speed(kvm)
    if speed >= INTERPRETED_BELOW:
        return Decision(Accelerator.KVM, f"KVM runs {speed / 1e6:.0f} million instructions/s in ring 0")
    why = f"no hardware virtualization: KVM interprets {speed / 1e6:.1f} million instructions/s in ring 0"
    from vmm.softcpu import engine

    if engine.is_built():
        return Decision(Accelerator.KVM_SOFTCPU, why)
    if not interpretable:
        raise HostError(
            f"{why}, and lacks some that this firmware uses; the software CPU is not built: {engine.build_remedy()}"
        )
    return Decision(Accelerator.KVM, f"{why}; the software CPU is not built (vmm info says how to get it)")
