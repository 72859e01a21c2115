"""The boards: which devices a machine has, and where. Each module builds one; none knows the machine around it."""

from collections.abc import Callable

from vmm.config import MachineType
from vmm.platform import bhyve, pc, q35
from vmm.platform.parts import Parts, Platform

__all__ = ["Parts", "Platform", "builder"]

_BUILDERS = {MachineType.Q35: q35.build, MachineType.PC: pc.build, MachineType.BHYVE: bhyve.build}


def builder(machine: MachineType) -> Callable[[Parts], Platform]:
    """The function that builds this type of board."""
    return _BUILDERS[machine]
