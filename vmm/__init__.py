"""vmm: a KVM-backed mini virtual machine monitor for people who develop firmware and hypervisors."""

from __future__ import annotations

from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

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


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package, whose import alone must not load the whole machine.

    Args:
        package: its name.
        homes: where each of its public names is.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(homes[name]), name)

    return load, lambda: sorted(homes)


__getattr__, __dir__ = lazy_names(__name__, _HOMES)
