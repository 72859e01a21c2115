"""A PC as SeaBIOS knows it best: 440FX's host bridge, PIIX's ISA bridge and power management."""

from vmm import layout
from vmm.devices.acpi_pm import PIIX4
from vmm.devices.chipset import Piix4Pm, i440fx_host_bridge, piix3_isa_bridge
from vmm.devices.pirq import PC as WIRING
from vmm.platform.board import Board
from vmm.platform.parts import Parts, Platform, Standing


def build(parts: Parts) -> Platform:
    """Put every device on its bus, map the firmware.

    Raises:
        ConfigError: two devices claim the same addresses.
    """
    board = Board("pc", parts, WIRING)
    shadow = board.map_code()
    flash = board.map_variables()
    board.add_config_and_reset()
    pm = board.add_acpi(PIIX4)
    board.add_at_ports(layout.PORT_GPE0_PIIX4, pm.gpe0, "GPE0")
    board.pci.add(0, 0, i440fx_host_bridge(shadow))
    board.pci.add(1, 0, piix3_isa_bridge(board.pirqs))
    board.pci.add(1, 3, Piix4Pm(pm))
    board.add_cpu_hotplug(layout.PORT_CPU_HOTPLUG_PIIX4, pm)
    board.add_disks()
    board.add_pvpanic()
    hpet = board.add_hpet()

    def standing() -> Standing:
        return board.standing(pm, layout.PORT_GPE0_PIIX4, hpet=hpet)

    return board.finish(pm, board.add_consoles(), board.add_clock(), flash, standing)
