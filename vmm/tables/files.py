"""Names of the fw_cfg files that carry a machine's tables. Apart from what makes them, which few guests wait for."""

from __future__ import annotations

from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


E820_FILE: Final = "etc/e820"

RESERVED_END_FILE: Final = "etc/reserved-memory-end"
"""u64 little-endian: firmware gives no address below it to devices (QEMU, pc_memory_init in hw/i386/pc.c)."""

RSDP_FILE: Final = "etc/acpi/rsdp"
ACPI_FILE: Final = "etc/acpi/tables"
LOADER_FILE: Final = "etc/table-loader"

VMGENID_GUID_FILE: Final = "etc/vmgenid_guid"
VMGENID_ADDRESS_FILE: Final = "etc/vmgenid_addr"
"""QEMU, docs/specs/vmgenid.rst: firmware writes the GPA of the generation id here, u64 little-endian."""

SMBIOS_ANCHOR_FILE: Final = "etc/smbios/smbios-anchor"
SMBIOS_FILE: Final = "etc/smbios/smbios-tables"

ACPI_FILES: Final = (RSDP_FILE, ACPI_FILE, LOADER_FILE)
"""What depends on the board's registers; vmgenid adds two."""

SMBIOS_FILES: Final = (SMBIOS_ANCHOR_FILE, SMBIOS_FILE)

WRITABLE_FILES: Final = frozenset({VMGENID_ADDRESS_FILE})
"""The files that firmware writes into."""
