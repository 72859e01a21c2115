"""What the tables of a machine say: from its description to the fw_cfg files that carry E820, ACPI and SMBIOS.

`vmm.tables` knows the formats, this module the machine: which chipset is where, and what the user added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm import layout
from vmm.config.machine import MachineType
from vmm.firmware.images import FirmwareKind
from vmm.tables import e820

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.config.machine import MachineConfig
    from vmm.memory import GuestMemory
    from vmm.tables.acpi import AcpiDescription

E820_FILE = "etc/e820"

TABLE_FILES = (
    "etc/acpi/rsdp",
    "etc/acpi/tables",
    "etc/table-loader",
    "etc/smbios/smbios-anchor",
    "etc/smbios/smbios-tables",
)
"""The files that every machine has; vmgenid adds two."""


def e820_map(config: MachineConfig, low: int, high: int) -> tuple[e820.E820Entry, ...]:
    """The memory map: RAM below the PCI hole and from 4 GiB on, in bytes, and the user's entries."""
    return e820.build_map(low, high, config.e820)


def has_own_tables(config: MachineConfig) -> bool:
    """Whether the user asked for something in ACPI or SMBIOS that could be wrong."""
    return bool(config.acpi_tables or config.smbios or config.vmgenid)


def build(config: MachineConfig, low: int, high: int, processor_id: int) -> dict[str, bytes]:
    """The ACPI and SMBIOS files by name.

    Args:
        config: the machine.
        low: bytes of RAM from 0.
        high: bytes of RAM from 4 GiB.
        processor_id: CPUID leaf 1, EAX in the low half and EDX in the high one.

    Raises:
        ConfigError: more of the user's than a table has room for.
    """
    from vmm.tables.acpi import build_acpi  # a guest that reads no table need not wait for them

    return build_acpi(acpi_description(config)) | smbios_files(config, low, high, processor_id)


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
    from vmm.tables.smbios import SmbiosDescription, build_smbios

    smbios = SmbiosDescription(
        low_memory=low,
        high_memory=high,
        cpus=config.cpus,
        cores=config.cpus,
        processor_id=processor_id,
        uuid=config.uuid,
        uefi=config.firmware.kind in {FirmwareKind.OVMF, FirmwareKind.BHYVE},
        version=(3, 0) if config.smbios_entry_point == 64 else (2, 8),
        options=config.smbios,
    )
    return build_smbios(smbios)


def acpi_description(config: MachineConfig) -> AcpiDescription:
    """The machine as its ACPI tables describe it."""
    from vmm.tables.acpi_tables import AcpiDescription

    return AcpiDescription(
        cpus=config.cpus,
        max_cpus=config.max_cpus,
        vmgenid=config.vmgenid,
        user_tables=tuple(table.data for table in config.acpi_tables),
        smi_command=layout.PORT_APM.start,
        sci_irq=layout.SCI_IRQ,
        **_board(config),
    )


def _board(config: MachineConfig) -> Mapping[str, Any]:
    from vmm.devices.acpi_pm import BHYVE, ICH9, PIIX4  # loaded with the boards anyway

    model = {MachineType.Q35: ICH9, MachineType.PC: PIIX4, MachineType.BHYVE: BHYVE}[config.machine_type]
    facts: dict[str, Any] = {
        "pm_size": model.size,
        "acpi_enable": model.acpi_enable,
        "acpi_disable": model.acpi_disable,
        "s5_type": model.s5_sleep_type,
    }
    if config.machine_type is MachineType.Q35:
        base = layout.PMBASE_DEFAULT
        gpe0 = (base + layout.ICH9_GPE0.start, len(layout.ICH9_GPE0))
        return facts | {"pm_base": base, "gpe0": gpe0, "ecam_base": layout.LOW_RAM_LIMIT, "isa_bridge": (31, 0)}
    facts["ecam_base"] = None
    if config.machine_type is MachineType.BHYVE:
        hpet = layout.HPET.start
        return facts | {"pm_base": layout.PORT_PM_BHYVE.start, "hpet_base": hpet, "isa_bridge": (31, 0)}
    # edk2, OvmfPkg/Include/IndustryStandard/I440FxPiix4.h (PIIX4_PMBA_VALUE) against SeaBIOS's PORT_ACPI_PM_BASE.
    base = 0xB000 if config.firmware.kind is FirmwareKind.OVMF else layout.PMBASE_DEFAULT
    gpe0 = (layout.PORT_GPE0_PIIX4.start, len(layout.PORT_GPE0_PIIX4))
    return facts | {"pm_base": base, "gpe0": gpe0, "isa_bridge": (1, 0)}
