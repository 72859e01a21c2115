"""The boards: which devices a machine has, and where. Each module builds one; none knows the machine around it."""

from collections.abc import Callable
from importlib import import_module

from vmm.config.machine import MachineType
from vmm.platform.parts import Parts, Platform, Standing

__all__ = ["Parts", "Platform", "Standing", "builder"]


def builder(machine: MachineType) -> Callable[[Parts], Platform]:
    """The function that builds this type of board; no other board's devices are loaded."""
    build: Callable[[Parts], Platform] = import_module(f"{__name__}.{machine}").build
    return build
