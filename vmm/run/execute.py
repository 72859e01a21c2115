"""What a vCPU's thread does: the guest's instructions, until a stop or the guest ends that."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vmm._native import lib
from vmm.run.outcome import Reason

if TYPE_CHECKING:
    from vmm.kvm import Vcpu
    from vmm.memory import GuestMemory
    from vmm.softcpu.engine import SoftwareCpu


def execute_vcpu(
    vcpu: "Vcpu",
    core_vcpu: Any,
    memory: "GuestMemory",
    softcpu: "SoftwareCpu | None",
    finish: Callable[[Reason, str, str], None],
    flush: Callable[[], None],
) -> None:
    """Run one vCPU on the calling thread.

    Args:
        vcpu: KVM's part.
        core_vcpu: its ``struct vmm_vcpu``.
        memory: of the machine.
        softcpu: what executes it; None: KVM does.
        finish: told why it ended by itself.
        flush: passes on what devices hold back for a moment.
    """
    run = lib.vmm_vcpu_run if softcpu is None else softcpu.run
    if run(core_vcpu) != lib.VCPU_STOPPED:
        from vmm.run import failure  # noqa: PLC0415  # most guests end well

        finish(*failure.describe(vcpu, core_vcpu.end, memory, software_cpu=softcpu is not None))
    flush()
