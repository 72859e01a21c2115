"""System management interrupts: how they reach the vCPUs, whoever executes these."""

from typing import TYPE_CHECKING, Any

from vmm import layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.kvm import Vcpu
    from vmm.softcpu.engine import SoftwareCpu

_TO_ALL = layout.LAPIC_BASE | 0xFF << 12
_MSI_SMI = 2 << 8
"""Destination, and delivery mode SMI (Intel SDM volume 3, 11.11)."""


def send_smi(core: Any, vcpus: "Sequence[Vcpu]", softcpu: "SoftwareCpu | None", *, broadcast: bool) -> None:
    """Send one, on the thread of the vCPU that asks for it, whose next instruction it comes before.

    Args:
        core: the C core's ``struct vmm_vm``, which knows who asks.
        vcpus: of the machine.
        softcpu: what executes them, if it is not KVM.
        broadcast: to all of them, not only to the one that asks.

    Raises:
        KvmError: KVM refuses it.
    """
    asks = int(core.accessing)
    if softcpu is not None:
        softcpu.smi(None if broadcast else asks)
        return
    if broadcast:
        # Not KVM_SMI, which would wait until the others leave the guest.
        vcpus[asks].vm.signal_msi(_TO_ALL, _MSI_SMI)
    else:
        vcpus[asks].smi()
