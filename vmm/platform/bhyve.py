"""A PC as FreeBSD's bhyve makes it: fixed ACPI ports, an HPET, RAM all the way up to 1 MiB with SMBIOS in it.

Sources: FreeBSD, usr.sbin/bhyve (pci_hostbridge.c, pci_lpc.c, pci_emul.c, amd64/pm.c); edk2, OvmfPkg/Bhyve, which takes
the base addresses of PCI devices as they are at power-on.
"""

from vmm import layout
from vmm.devices.acpi_pm import BHYVE, AcpiPm
from vmm.devices.chipset import HOST_BRIDGE, IsaBridge
from vmm.devices.pci import SUBSYSTEM_ID, PciFunction
from vmm.devices.pirq import BHYVE as WIRING
from vmm.devices.pirq import PirqRouter
from vmm.platform.board import Board
from vmm.platform.parts import Parts, Platform

_NETAPP = 0x1275
_HOSTBRIDGE = 0x1275
"""pci_hostbridge.c: bhyve's host bridge is NetApp's, and edk2 knows the platform by its device ID."""

_LPC = 0x7000


def build(parts: Parts) -> Platform:
    """Put every device on its bus, map the firmware.

    Raises:
        ConfigError: two devices claim the same addresses.
    """
    board = Board("bhyve", parts, WIRING)
    board.map_rom()
    parts.memory.map_ram(layout.LEGACY_ROM.start, len(layout.LEGACY_ROM))
    flash = board.map_variables()
    board.add_config_and_reset()
    pm = board.add_acpi(BHYVE)
    board.pci.add(0, 0, _plain(PciFunction(_NETAPP, _HOSTBRIDGE, HOST_BRIDGE)))
    board.pci.add(31, 0, Lpc(pm, board.pirqs))
    board.add_disks()
    board.assign_bars(layout.BHYVE_BARS)
    hpet = board.add_hpet()
    # QEMU's port for it, 0x402, is in the middle of this board's PM1a enable register.
    consoles = board.add_consoles(layout.PORT_DEBUG_BOCHS)
    return board.finish(pm, consoles, board.add_clock(), flash, lambda: board.standing(pm, None, hpet=hpet))


class Lpc(IsaBridge):
    """0:31.0: the ISA bridge; the ACPI ports belong to it and never move.

    Args:
        pm: the ACPI block.
        pirqs: what its routing registers route.
    """

    def __init__(self, pm: AcpiPm, pirqs: PirqRouter) -> None:
        super().__init__(_LPC, pirqs)
        _plain(self)
        self._pm = pm
        pm.move(layout.PORT_PM_BHYVE.start)

    def reset(self) -> None:
        """As at power-on, where the ACPI ports are decoded already."""
        super().reset()
        self._pm.move(layout.PORT_PM_BHYVE.start)


def _plain(function: PciFunction) -> PciFunction:
    """Without the subsystem ID that says QEMU."""
    function.set_dword(SUBSYSTEM_ID, 0)
    return function
