"""What can be said of a vCPU that stands still: which image it is in, and what it was doing there."""

from typing import TYPE_CHECKING

from vmm.debug.images import Images
from vmm.debug.why import evidence

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vmm.cpu.registers import Registers
    from vmm.firmware.images import FirmwareImages
    from vmm.memory import GuestMemory
    from vmm.run.evidence import GuestException, VcpuEvidence


class Look:
    """At one machine; `vmm.run.failure.Look`.

    Args:
        memory: of the machine.
        firmware: what it started with.
        symbols: the user's folder of files with symbols, if there is one.

    Attributes:
        images: what is loaded.
    """

    def __init__(self, memory: "GuestMemory", firmware: "FirmwareImages", symbols: "Path | None" = None) -> None:
        self.images = Images(memory, firmware, symbols)
        self._memory = memory

    def at(self, index: int, registers: "Registers", exceptions: "Iterable[GuestException]") -> "VcpuEvidence":
        """What the vCPU was doing."""
        return evidence(index, registers, self._memory.read, self.images.place(registers.values), exceptions)
