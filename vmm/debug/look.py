"""What can be said of a vCPU that stands still: which image it is in, and what it was doing there."""

from typing import TYPE_CHECKING

from vmm.debug.images import Images
from vmm.debug.why import Where, evidence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
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

    def around(self) -> "Callable[[int, Registers, Iterable[GuestException]], VcpuEvidence]":
        """What tells what vCPUs were doing; good as long as the machine stands still."""
        # Many vCPUs, few page tables: what is found for one of them need not be looked for again.
        places: dict[tuple[int, ...], Where] = {}

        def at(index: int, registers: "Registers", exceptions: "Iterable[GuestException]") -> "VcpuEvidence":
            tables = tuple(registers.values[name] for name in ("cr0", "cr3", "cr4", "efer"))
            if tables not in places:
                places[tables] = self.images.place(registers.values)
            return evidence(index, registers, self._memory.read, places[tables], exceptions)

        return at
