"""Lays the ACPI tables out as fw_cfg files and writes the script that links them.

The files have QEMU's names: ``etc/acpi/rsdp`` (36 bytes, for the F segment),
``etc/acpi/tables`` (all others, never padded), ``etc/table-loader``, and with a
VM generation counter ``etc/vmgenid_guid`` and the writable ``etc/vmgenid_addr``.
"""

from __future__ import annotations

from vmm import late
from vmm.layout import PAGE
from vmm.tables import acpi_dsdt, acpi_numa, acpi_tables, acpi_user
from vmm.tables.acpi_tables import CHECKSUM_OFFSET, HEADER_SIZE, AcpiDescription
from vmm.tables.files import ACPI_FILE, LOADER_FILE, RSDP_FILE, VMGENID_ADDRESS_FILE, VMGENID_GUID_FILE
from vmm.tables.table_loader import Script, Zone

_TABLES_ALIGN = 64  # the FACS must lie on a 64-byte boundary
_RSDP_ALIGN = 16
_RSDP_V1_SIZE, _RSDP_SIZE = 20, 36
_RSDP_CHECKSUM, _RSDP_RSDT, _RSDP_XSDT, _RSDP_EXTENDED_CHECKSUM = 8, 16, 24, 32

__all__ = [
    "AcpiDescription",
    "build_acpi",
]


class _Tables:
    """``etc/acpi/tables`` under construction, with the script that links it."""

    def __init__(self) -> None:
        self.data = bytearray(acpi_tables.facs())
        self.script = Script()
        self.script.allocate(RSDP_FILE, align=_RSDP_ALIGN, zone=Zone.FSEG)
        self.script.allocate(ACPI_FILE, align=_TABLES_ALIGN)

    def append(self, table: bytes) -> int:
        """Add a table and give its offset. Every table starts on a multiple of 8 bytes."""
        self.data += bytes(-len(self.data) % 8)
        offset = len(self.data)
        self.data += table
        return offset

    def link(self, offset: int, size: int, source: str = ACPI_FILE) -> None:
        """Let firmware add an address to the field at ``offset``."""
        self.script.add_pointer(ACPI_FILE, offset, size, source)

    def seal(self, offset: int, table: bytes) -> None:
        """Let firmware compute the checksum of the table at ``offset``."""
        self.script.add_checksum(ACPI_FILE, result=offset + CHECKSUM_OFFSET, start=offset, length=len(table))


def build_acpi(machine: AcpiDescription) -> dict[str, bytes]:
    """Build the fw_cfg files that give a machine its ACPI tables.

    A table that holds no address ships with its checksum; in the others the
    checksum is 0 and ADD_CHECKSUM fills it, behind the table's last ADD_POINTER.
    If the user's tables include an SLIC, its OEM ids replace ours, as the SLIC
    specification wants the FADT and RSDT to agree with it (QEMU does the same).

    Raises:
        ConfigError: the description makes no sense, or a user table repeats one
            that may exist only once.

    """
    machine.check()
    acpi_user.check_signatures(machine.user_tables)
    machine = machine._replace(oem=acpi_user.slic_oem(machine.user_tables, machine.oem))
    tables = _Tables()
    dsdt_offset = tables.append(machine.dsdt or acpi_dsdt.dsdt(machine))
    fadt = acpi_tables.fadt(machine, facs_offset=0, dsdt_offset=dsdt_offset)
    fadt_offset = tables.append(fadt)
    tables.link(fadt_offset + acpi_tables.FADT_FIRMWARE_CTRL, 4)
    tables.link(fadt_offset + acpi_tables.FADT_DSDT, 4)
    tables.link(fadt_offset + acpi_tables.FADT_X_DSDT, 8)
    tables.seal(fadt_offset, fadt)
    offsets = [fadt_offset, tables.append(acpi_tables.madt(machine))]
    if machine.node_memory:
        offsets.append(tables.append(acpi_numa.srat(machine)))
        if machine.distances:
            offsets.append(tables.append(acpi_numa.slit(machine)))
        if machine.hmat is not None:
            late.load("vmm.tables.acpi_hmat")
            from vmm.tables.acpi_hmat import hmat

            offsets.append(tables.append(hmat(machine, machine.hmat)))
    if machine.hpet_base is not None:
        offsets.append(tables.append(acpi_tables.hpet(machine)))
    if machine.ecam_base is not None:
        offsets.append(tables.append(acpi_tables.mcfg(machine)))
    offsets.append(tables.append(acpi_tables.waet(machine)))
    files: dict[str, bytes] = {}
    if machine.vmgenid is not None:
        offsets.append(_add_vmgenid(tables, machine, machine.vmgenid, files))
    offsets += [tables.append(table) for table in machine.user_tables]
    _add_roots(tables, machine, offsets, files)
    files[ACPI_FILE] = bytes(tables.data)
    files[LOADER_FILE] = tables.script.encode()
    return files


def _add_vmgenid(tables: _Tables, machine: AcpiDescription, guid: bytes, files: dict[str, bytes]) -> int:
    page = bytes(acpi_dsdt.VMGENID_GUID_OFFSET) + guid
    files[VMGENID_GUID_FILE] = page.ljust(PAGE, b"\0")
    files[VMGENID_ADDRESS_FILE] = bytes(8)
    tables.script.allocate(VMGENID_GUID_FILE, align=PAGE)
    ssdt, field = acpi_dsdt.vmgenid_ssdt(machine)
    offset = tables.append(ssdt)
    tables.link(offset + field, 4, VMGENID_GUID_FILE)
    tables.seal(offset, ssdt)
    tables.script.write_pointer(VMGENID_ADDRESS_FILE, VMGENID_GUID_FILE, source_offset=acpi_dsdt.VMGENID_GUID_OFFSET)
    return offset


def _add_roots(tables: _Tables, machine: AcpiDescription, offsets: list[int], files: dict[str, bytes]) -> None:
    roots = {}
    for signature, width in (("RSDT", 4), ("XSDT", 8)):
        root = acpi_tables.root_table(signature, offsets, machine.oem)
        roots[signature] = offset = tables.append(root)
        for position in range(len(offsets)):
            tables.link(offset + HEADER_SIZE + width * position, width)
        tables.seal(offset, root)
    files[RSDP_FILE] = acpi_tables.rsdp(rsdt_offset=roots["RSDT"], xsdt_offset=roots["XSDT"], oem=machine.oem)
    script = tables.script
    script.add_pointer(RSDP_FILE, _RSDP_RSDT, 4, ACPI_FILE)
    script.add_pointer(RSDP_FILE, _RSDP_XSDT, 8, ACPI_FILE)
    script.add_checksum(RSDP_FILE, result=_RSDP_CHECKSUM, start=0, length=_RSDP_V1_SIZE)
    script.add_checksum(RSDP_FILE, result=_RSDP_EXTENDED_CHECKSUM, start=0, length=_RSDP_SIZE)
