"""What all virtio devices have behind their PCI function: registers, queues and MSI-X's table, as a device's state."""

from contextlib import AbstractContextManager
from typing import Any

from vmm._native import ffi, lib
from vmm.bus import Device
from vmm.devices.virtio.transport import VirtioFunction

_REGISTERS = ("offered_select", "negotiated", "negotiated_select", "status", "isr", "config_vector", "queue_select")
_OF_QUEUE = ("descriptors", "available", "used", "size", "vector", "enabled", "next_available", "next_used")


class VirtioDevice(Device):
    """A virtio device; its ranges on the bus are C's.

    Args:
        function: where PCI has it.
        core: its registers, a ``struct virtio_pci *``.
        lock: the machine's io_lock.
    """

    def __init__(self, function: VirtioFunction, core: Any, lock: AbstractContextManager[object]) -> None:
        self.function = function
        self._core = core
        self._lock = lock

    @property
    def slot(self) -> int:
        """PCI device number."""
        return self.function.slot

    def reset(self) -> None:
        """As at power-on; what the device was still doing reaches the guest no more."""
        with self._lock:
            lib.virtio_pci_reset(self._core)

    def state(self) -> dict[str, Any]:
        """Registers, queues, the class's configuration, MSI-X's table and what is pending there."""
        core = self._core
        return {
            "registers": {name: getattr(core, name) for name in _REGISTERS},
            "configuration": bytes(core.config),
            "queues": [{name: getattr(core.queues[i], name) for name in _OF_QUEUE} for i in range(core.queue_count)],
            "vectors": bytes(core.msix.table),
            "pending": core.msix.pending,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take all of `state`; the function is where it was already."""
        core = self._core
        for name in _REGISTERS:
            setattr(core, name, state["registers"][name])
        for into, data in ((core.config, state["configuration"]), (core.msix.table, state["vectors"])):
            if len(data) != len(into):
                raise ValueError(f"{len(data)} bytes of state instead of {len(into)}")
            ffi.memmove(into, data, len(data))
        core.msix.pending = state["pending"]
        for i, queue in enumerate(state["queues"]):
            for name in _OF_QUEUE:
                setattr(core.queues[i], name, queue[name])
        lib.virtio_pci_update(core)
