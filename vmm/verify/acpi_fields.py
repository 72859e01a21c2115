"""Names of ACPI fields by offset: the header of all tables, and the FADT (ACPI 6.5, tables 5.4 and 5.9)."""

from __future__ import annotations

_HEADER = (
    ("signature", 4),
    ("length", 4),
    ("revision", 1),
    ("checksum", 1),
    ("OEM id", 6),
    ("OEM table id", 8),
    ("OEM revision", 4),
    ("creator id", 4),
    ("creator revision", 4),
)
_FADT = (
    ("FIRMWARE_CTRL", 4), ("DSDT", 4), ("reserved", 1), ("Preferred_PM_Profile", 1), ("SCI_INT", 2), ("SMI_CMD", 4),
    ("ACPI_ENABLE", 1), ("ACPI_DISABLE", 1), ("S4BIOS_REQ", 1), ("PSTATE_CNT", 1), ("PM1a_EVT_BLK", 4),
    ("PM1b_EVT_BLK", 4), ("PM1a_CNT_BLK", 4), ("PM1b_CNT_BLK", 4), ("PM2_CNT_BLK", 4), ("PM_TMR_BLK", 4),
    ("GPE0_BLK", 4), ("GPE1_BLK", 4), ("PM1_EVT_LEN", 1), ("PM1_CNT_LEN", 1), ("PM2_CNT_LEN", 1), ("PM_TMR_LEN", 1),
    ("GPE0_BLK_LEN", 1), ("GPE1_BLK_LEN", 1), ("GPE1_BASE", 1), ("CST_CNT", 1), ("P_LVL2_LAT", 2), ("P_LVL3_LAT", 2),
    ("FLUSH_SIZE", 2), ("FLUSH_STRIDE", 2), ("DUTY_OFFSET", 1), ("DUTY_WIDTH", 1), ("DAY_ALRM", 1), ("MON_ALRM", 1),
    ("CENTURY", 1), ("IAPC_BOOT_ARCH", 2), ("reserved", 1), ("Flags", 4), ("RESET_REG", 12), ("RESET_VALUE", 1),
    ("ARM_BOOT_ARCH", 2), ("FADT minor version", 1), ("X_FIRMWARE_CTRL", 8), ("X_DSDT", 8), ("X_PM1a_EVT_BLK", 12),
    ("X_PM1b_EVT_BLK", 12), ("X_PM1a_CNT_BLK", 12), ("X_PM1b_CNT_BLK", 12), ("X_PM2_CNT_BLK", 12),
    ("X_PM_TMR_BLK", 12), ("X_GPE0_BLK", 12), ("X_GPE1_BLK", 12), ("SLEEP_CONTROL_REG", 12), ("SLEEP_STATUS_REG", 12),
    ("Hypervisor Vendor Identity", 8),
)  # fmt: skip
_FACS = (("signature", 4), ("length", 4), ("Hardware_Signature", 4), ("Firmware_Waking_Vector", 4), ("Global_Lock", 4))


def field_at(signature: str, offset: int) -> tuple[str, int, int]:
    """Return the field that a byte belongs to: name, offset, size; a byte of no known field stands for itself."""
    fields = _FACS if signature == "FACS" else (*_HEADER, *(_FADT if signature == "FACP" else ()))
    start = 0
    for name, size in fields:
        if start <= offset < start + size:
            return name, start, size
        start += size
    return f"byte {offset:#x}", offset, 1
