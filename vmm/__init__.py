"""vmm: a KVM-backed mini virtual machine monitor for people who develop firmware and hypervisors."""

from typing import TYPE_CHECKING

from vmm.lazy import public

if TYPE_CHECKING:
    from vmm.config.keywords import MachineOptions
    from vmm.config.machine import MachineConfig
    from vmm.machine import Machine
    from vmm.run.expected import Expected, ExpectError, SendError
    from vmm.run.outcome import Outcome, Reason
    from vmm.run.snapshot import Snapshot

__all__ = [
    "ExpectError",
    "Expected",
    "Machine",
    "MachineConfig",
    "MachineOptions",
    "Outcome",
    "Reason",
    "SendError",
    "Snapshot",
]

_HOMES = {
    "ExpectError": "vmm.run.expected",
    "Expected": "vmm.run.expected",
    "Machine": "vmm.machine",
    "MachineConfig": "vmm.config.machine",
    "MachineOptions": "vmm.config.keywords",
    "Outcome": "vmm.run.outcome",
    "Reason": "vmm.run.outcome",
    "SendError": "vmm.run.expected",
    "Snapshot": "vmm.run.snapshot",
}

__getattr__, __dir__ = public(__name__, _HOMES)
