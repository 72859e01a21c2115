"""A PC as OVMF wants it by default: Q35's host bridge with ECAM, ICH9's ISA bridge."""

from vmm import layout
from vmm.devices.acpi_pm import ICH9
from vmm.devices.chipset import Ich9Lpc, Q35HostBridge
from vmm.devices.pirq import Q35 as WIRING
from vmm.devices.smram import Smram
from vmm.platform.board import Board
from vmm.platform.parts import Parts, Platform, Standing


def build(parts: Parts) -> Platform:
    """Put every device on its bus, map the firmware.

    Raises:
        ConfigError: two devices claim the same addresses.
    """
    board = Board("q35", parts, WIRING)
    shadow = board.map_code()
    flash = board.map_variables()
    board.add_config_and_reset()
    pm = board.add_acpi(ICH9, board.add_smi())
    smram = None if parts.smi is None else Smram(parts.memory, parts.ram_low, plugging=bool(parts.apic_ids))
    host = Q35HostBridge(shadow, board.pci, parts.mmio, smram)
    board.pci.add(0, 0, host)
    board.pci.add(31, 0, Ich9Lpc(pm, board.pirqs))
    board.add_cpu_hotplug(layout.PORT_CPU_HOTPLUG_ICH9, pm)
    board.add_disks()
    board.add_pvpanic()
    hpet = board.add_hpet()

    def standing() -> Standing:
        base = pm.decoded
        gpe0 = None if base is None else range(base + layout.ICH9_GPE0.start, base + layout.ICH9_GPE0.stop)
        return board.standing(pm, gpe0, ecam=host.ecam, hpet=hpet)

    return board.finish(pm, board.add_consoles(), board.add_clock(), flash, standing)
