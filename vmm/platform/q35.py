"""A PC as OVMF wants it by default: Q35's host bridge with ECAM, ICH9's ISA bridge."""

from vmm.devices.acpi_pm import ICH9
from vmm.devices.chipset import Ich9Lpc, Q35HostBridge
from vmm.platform.parts import Board, Parts, Platform


def build(parts: Parts) -> Platform:
    """Put every device on its bus, map the firmware.

    Raises:
        ConfigError: two devices claim the same addresses.
    """
    board = Board("q35", parts)
    shadow = board.code()
    flash = board.variables()
    board.config_and_reset()
    pm = board.acpi(ICH9)
    board.pci.add(0, 0, Q35HostBridge(shadow, board.pci, parts.mmio))
    board.pci.add(31, 0, Ich9Lpc(pm))
    return board.finish(pm, board.consoles(), board.clock(), flash)
