"""What can be said of a vCPU that stands still: which image it is in, and what it was doing there."""

from typing import TYPE_CHECKING

from vmm.debug.images import Images
from vmm.debug.why import evidence

if TYPE_CHECKING:
    from vmm.cpu.registers import Registers
    from vmm.firmware.images import FirmwareImages
    from vmm.memory import GuestMemory


class Look:
    """At one machine; `vmm.run.failure.Look`.

    Args:
        memory: of the machine.
        firmware: what it started with.

    Attributes:
        images: what is loaded.
    """

    def __init__(self, memory: "GuestMemory", firmware: "FirmwareImages") -> None:
        self.images = Images(memory, firmware)
        self._memory = memory

    def where(self, registers: "Registers") -> str:
        """Which image RIP is in, as ``DxeCore+0x1a2b``; "" where that is not known."""
        return self.images.where(registers.values)(registers.linear_rip)

    def evidence(self, registers: "Registers") -> str:
        """Lines on what the vCPU was doing."""
        return evidence(registers, self._memory.read, self.images.where(registers.values))
