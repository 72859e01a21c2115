"""Writes that KVM keeps for a while, without an exit: those that have no effect before somebody looks.

The ring that they wait in is emptied in C (`native/coalesced.c`).
"""

from __future__ import annotations

from vmm import layout
from vmm._native import ffi, lib
from vmm.config.parts import MachineType
from vmm.firmware.images import Interface
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from typing import Any

    from vmm.config.machine import MachineConfig
    from vmm.kvm import Vcpu, Vm


def is_coalesced(config: MachineConfig, vm: Vm) -> bool:
    """Whether writes of a machine that KVM executes are kept: unless every access is to be seen."""
    asked = config.coalesced and config.trace is None and not config.exit_times
    return asked and bool(vm.check_extension(lib.KVM_CAP_COALESCED_PIO))


def keep_writes(config: MachineConfig, vm: Vm) -> None:
    """Have KVM keep writes to the debug port and to the selector of fw_cfg, once `drain` says who takes them."""
    bhyve = config.machine_type is MachineType.BHYVE
    ports = [layout.PORT_DEBUG_BOCHS if bhyve else layout.PORT_DEBUG_QEMU]
    if config.interface_choice.interface is Interface.QEMU:
        ports.append(layout.PORT_FW_CFG_NOTES)
    for each in ports:
        vm.coalesce_writes(each.start, len(each), port=True)


def drain(core: Any, vcpu: Vcpu, wake: Callable[[], object], parts: ExitStack) -> Callable[[], None]:
    """Take the writes that KVM keeps.

    Returns what is to be called every few milliseconds of a run, so that they don't wait for ever.

    Args:
        core: the machine, a ``struct vmm_vm *``.
        vcpu: any of it; all share the ring.
        wake: lets a thread take io_lock soon that mostly sleeps: on a busy host a vCPU's would wait long for its turn.
        parts: takes care of the end.
    """
    lib.vmm_vm_coalesce(core, vcpu.coalesced_ring)
    parts.callback(lib.vmm_vm_coalesce, core, ffi.NULL)

    def poll() -> None:
        if lib.vmm_vm_poll(core):
            wake()

    return poll
