"""What device models drive: interrupt lines, power, memory. No device knows the machine around it."""

import mmap
from collections.abc import Callable
from typing import Protocol

Irq = Callable[[bool], None]
"""Drives one interrupt line: True asserts it."""

Msi = Callable[[int, int], object]
"""Sends a message-signalled interrupt: address, data (Intel SDM volume 3, 11.11)."""

Sink = Callable[[bytes], object]
"""Takes what a guest printed."""


RomBuffer = mmap.mmap | memoryview | bytearray
"""What can stand behind read-only memory; page-aligned, whole pages."""


class PowerControl(Protocol):
    """What the guest can do to its own machine. Returns at once; the vCPUs stop soon after."""

    def reset(self, reason: str) -> None:
        """The guest asked for a reset; ``reason`` names the register it used."""

    def suspend(self) -> None:
        """The guest entered ACPI's S3."""

    def power_off(self) -> None:
        """The guest entered ACPI's S5."""

    def panic(self) -> None:
        """The guest's kernel said that it has panicked."""

    def remove_cpu(self) -> None:
        """The guest has let go of a CPU, which is not there any more."""


class FlashFile(Protocol):
    """Where flash is kept from one run to the next; `vmm.firmware.variables.VariableFile` is one."""

    contents: mmap.mmap
    """What the flash holds."""

    def store(self, first: int, end: int) -> None:
        """Keep what changed from ``first`` to before ``end``."""


class MemoryMapper(Protocol):
    """The part of guest memory that a chipset rearranges; `vmm.memory.GuestMemory` has more."""

    def map_ram(self, gpa: int, size: int, *, read_only: bool = False, ram: int | None = None) -> None:
        """Show the RAM that belongs to ``gpa``, or to ``ram``, there."""

    def map_smm(self, gpa: int, size: int, ram: int) -> None:
        """Show the RAM that belongs to ``ram`` at ``gpa``, to vCPUs in system management mode and nobody else."""

    def unmap_smm(self, gpa: int) -> None:
        """Take away what `map_smm` shows from ``gpa`` on."""

    def map_rom(self, gpa: int, contents: RomBuffer) -> None:
        """Show ``contents`` read-only at ``gpa``, in place; stores become MMIO accesses."""

    def unmap(self, gpa: int) -> None:
        """Take away the region that starts at ``gpa``."""

    def store_behind(self, gpa: int, data: bytes) -> None:
        """Store into the RAM that belongs to ``gpa``, whatever is mapped there."""
