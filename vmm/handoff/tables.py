"""What the tables of a machine say: from its description to the fw_cfg files that carry E820, ACPI and SMBIOS.

`vmm.tables` knows the formats, this module the machine: which chipset is where, and what the user added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm import late, layout
from vmm.config.machine import MachineType
from vmm.firmware.images import FirmwareKind
from vmm.tables import e820

if TYPE_CHECKING:
    from vmm.config.machine import MachineConfig
    from vmm.memory import GuestMemory
    from vmm.platform import Standing
    from vmm.tables.acpi import AcpiDescription


PCI_HOLE_END = layout.IOAPIC_BASE
"""QEMU, hw/pci-host/q35.c and i440fx.c: devices may have what lies between RAM and the I/O APIC."""

PCI_HOLES_64 = {MachineType.Q35: (layout.GIB, 32 * layout.GIB), MachineType.PC: (layout.GIB, 2 * layout.GIB)}
"""Alignment and size of the window behind RAM: QEMU, include/hw/pci-host/q35.h and hw/pci-host/i440fx.c,
pci-hole64-size."""

BHYVE_PCI_HOLE_64 = (32 * layout.GIB, 32 * layout.GIB)
"""bhyve: usr.sbin/bhyve/pci_emul.c, PCI_EMUL_MEMSIZE64."""


def e820_map(config: MachineConfig, low: int, high: int) -> tuple[e820.E820Entry, ...]:
    """The memory map: RAM below the PCI hole and from 4 GiB on, in bytes, and the user's entries."""
    return e820.build_map(low, high, config.e820)


def has_own_tables(config: MachineConfig) -> bool:
    """Whether the user asked for something in ACPI or SMBIOS that could be wrong."""
    return bool(config.acpi_tables or config.smbios or config.vmgenid)


class AcpiFiles:
    """The ACPI files of one machine: what its registers say changes them, and never their sizes.

    A guest takes the sizes from fw_cfg's directory, which it reads before it has set the chipset up, and the contents
    after that. What is shorter than it can become has zeros behind it: QEMU does so, and both firmwares skip those
    (docs/tables.md).

    Args:
        config: the machine.
        low: bytes of RAM from 0.
        high: bytes of RAM from 4 GiB.
    """

    def __init__(self, config: MachineConfig, low: int, high: int) -> None:
        self._config, self._low, self._high = config, low, high
        self._sizes: dict[str, int] = {}

    def build(self, standing: Standing) -> dict[str, bytes]:
        """The files by name, for a board whose registers say this.

        Raises:
            ConfigError: more of the user's than a table has room for.
        """
        files = self._build(standing)
        if not self._sizes:
            for longest in self._longest(standing):
                for name, data in self._build(longest).items():
                    self._sizes[name] = max(len(data), self._sizes.get(name, 0))
        return {name: data.ljust(self._sizes[name], b"\0") for name, data in files.items()}

    def _build(self, standing: Standing) -> dict[str, bytes]:
        late.load("vmm.tables.acpi")
        from vmm.tables.acpi import build_acpi  # a guest that reads no table need not wait for them

        return build_acpi(acpi_description(self._config, self._low, self._high, standing))

    def _longest(self, standing: Standing) -> list[Standing]:
        """Those of the registers' values that make most of a table: ECAM in the middle of each PCI window."""
        if self._config.machine_type is not MachineType.Q35:
            return [standing._replace(pm_base=layout.PMBASE_DEFAULT)]
        base, size = layout.PMBASE_DEFAULT, layout.ECAM_SIZES[-1]
        windows = pci_windows(self._config.machine_type, self._low, self._high, None)
        middles = [first + (last + 1 - first) // 2 & -size for first, last in windows]
        return [
            standing._replace(pm_base=base, gpe0=range(base, base + 1), ecam=range(middle, middle + size))
            for middle in middles
        ]


def place_smbios(config: MachineConfig, memory: GuestMemory, processor_id: int) -> None:
    """Store SMBIOS in RAM, where bhyve's board has it; arguments as `build`.

    Raises:
        ConfigError: a ``-smbios`` option makes no sense.
    """
    from vmm.tables.smbios_placement import place

    files = smbios_files(config, memory.low_size, memory.high_size, processor_id)
    room = layout.SMBIOS_BHYVE
    memory.write(room.start, place(files, room.start, len(room)))


def smbios_files(config: MachineConfig, low: int, high: int, processor_id: int) -> dict[str, bytes]:
    """SMBIOS as two fw_cfg files, its address and checksums left to the firmware; arguments as `build`.

    Raises:
        ConfigError: more structures than version 2.8 has room for.
    """
    late.load("vmm.tables.smbios")
    from vmm.tables.smbios import SmbiosDescription, build_smbios

    smbios = SmbiosDescription(
        low_memory=low,
        high_memory=high,
        cpus=config.cpus,
        cores=config.cpus,
        processor_id=processor_id,
        uuid=config.uuid,
        unasked=_unasked_smbios(config),
        uefi=config.firmware.kind in {FirmwareKind.OVMF, FirmwareKind.BHYVE},
        version=(3, 0) if config.smbios_entry_point == 64 else (2, 8),
        options=config.smbios,
    )
    return build_smbios(smbios)


def _unasked_smbios(config: MachineConfig) -> frozenset[int]:
    """What is in SMBIOS though no option asks for it: bhyve tells all, and without firmware there is none to say so."""
    if config.machine_type is MachineType.BHYVE:
        return frozenset((0, 2))
    return frozenset((0,)) if config.direct else frozenset()


def acpi_description(config: MachineConfig, low: int, high: int, standing: Standing) -> AcpiDescription:
    """The machine as its ACPI tables describe it; arguments as `AcpiFiles`."""
    from vmm.devices.acpi_pm import BHYVE, ICH9, PIIX4  # loaded with the boards anyway
    from vmm.devices.hpet import BLOCK_ID, MINIMUM_TICKS
    from vmm.devices.pirq import BHYVE as BHYVE_WIRING
    from vmm.devices.pirq import FIRST_GSI, PC, Q35
    from vmm.tables.acpi_tables import AcpiDescription

    machine = config.machine_type
    pm = {MachineType.Q35: ICH9, MachineType.PC: PIIX4, MachineType.BHYVE: BHYVE}[machine]
    wiring = {MachineType.Q35: Q35, MachineType.PC: PC, MachineType.BHYVE: BHYVE_WIRING}[machine]
    gpe0, ecam = standing.gpe0, standing.ecam
    return AcpiDescription(
        cpus=config.cpus,
        max_cpus=config.max_cpus,
        pm_base=standing.pm_base,
        pm_size=pm.size,
        pm_timer_bits=pm.timer_bits,
        sci_irq=layout.SCI_IRQ,
        smi_command=layout.PORT_APM.start,
        acpi_enable=pm.acpi_enable,
        acpi_disable=pm.acpi_disable,
        s3_type=pm.s3_sleep_type if config.s3 else None,
        s5_type=pm.s5_sleep_type,
        gpe0=None if gpe0 is None else (gpe0.start, len(gpe0)),
        power_button=True,
        express=machine is MachineType.Q35,
        ecam_base=None if ecam is None else ecam.start,
        ecam_size=0 if ecam is None else len(ecam),
        pci_windows=pci_windows(machine, low, high, ecam),
        isa_bridge=(1, 0) if machine is MachineType.PC else (31, 0),
        pci_slots=standing.pci_slots,
        pirqs=wiring.pirqs,
        first_pirq=wiring.first,
        first_gsi=FIRST_GSI,
        hpet_base=None if standing.hpet is None else standing.hpet.start,
        hpet_id=BLOCK_ID,
        hpet_minimum=MINIMUM_TICKS,
        vmgenid=config.vmgenid,
        user_tables=tuple(table.data for table in config.acpi_tables),
    )


def pci_windows(machine: MachineType, low: int, high: int, ecam: range | None) -> tuple[tuple[int, int], ...]:
    """First and last address of each range that the PCI root passes on: two holes in RAM, and in those ECAM.

    Args:
        machine: the board.
        low: bytes of RAM from 0.
        high: bytes of RAM from 4 GiB.
        ecam: where PCIe configuration space is.
    """
    hole, (align, size) = range(low, PCI_HOLE_END), PCI_HOLES_64.get(machine, BHYVE_PCI_HOLE_64)
    if machine is MachineType.BHYVE:
        hole = layout.BHYVE_BARS
    start = -(-(layout.HIGH_RAM_BASE + high) // align) * align
    windows = []
    for window in (hole, range(start, start + size)):
        parts = [window]
        if ecam is not None and ecam.start < window.stop and window.start < ecam.stop:
            parts = [range(window.start, ecam.start), range(ecam.stop, window.stop)]
        windows += [(part.start, part.stop - 1) for part in parts if part]
    return tuple(windows)
