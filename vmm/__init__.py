"""vmm: a KVM-backed mini virtual machine monitor for people who develop firmware and hypervisors."""

from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    # `import vmm.errors` must not load the whole machine: a command line that only prints help starts at once.
    if name not in _HOMES:
        raise AttributeError(f"module 'vmm' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
