r"""The DSDT, and the SSDT of the VM generation counter, in AML.

The DSDT declares only what the machine has: the PCI root with its windows and
interrupts, the ISA bridge with COM1 and RTC, fw_cfg's QEMU0002, HPET,
processors, ``\_S3`` and ``\_S5``.
"""

from __future__ import annotations

from vmm import layout
from vmm.tables import acpi_cpus, acpi_interrupts, acpi_tables, aml, resources
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.tables.acpi_tables import AcpiDescription

VMGENID_GUID_OFFSET = 40
"""Offset of the GUID in ``etc/vmgenid_guid``: far enough from the start that
OVMF's second pass doesn't take the file for a table (QEMU docs/specs/vmgenid)."""

_STATUS_CHANGED = 0x80
"""Microsoft, Virtual Machine Generation ID: what the driver is notified with."""

_FOUR_GIB = 1 << 32
_PRESENT = 0x0F
_PRESENT_HIDDEN = 0x0B
_PCI_HOST_BRIDGE_OSC = bytes.fromhex("5b4ddb33f71f1c4096577441c03dd766")
"""33DB4D5B-1FF7-401C-9657-7441C03DD766, as ToUUID encodes it. Not by the module uuid, which takes longer to load than
all tables take to build."""


def dsdt(machine: AcpiDescription) -> bytes:
    """Build the DSDT; revision 2, so that integers have 64 bits."""
    system = [_pci_root(machine), *acpi_interrupts.links(machine), _motherboard(machine)]
    if machine.hpet_base is not None:
        system.append(_hpet(machine.hpet_base))
    if machine.fw_cfg:
        system.append(_fw_cfg(dma=machine.fw_cfg_dma))
    system.append(acpi_cpus.processors(machine))
    body = acpi_interrupts.mode(machine) + aml.scope("_SB", *system) + acpi_cpus.event(machine)
    for name, number in (("_S3", machine.s3_type), ("_S5", machine.s5_type)):
        if number is not None:
            sleep_type = aml.integer(number)
            body += aml.name(name, aml.package(sleep_type, sleep_type, aml.integer(0), aml.integer(0)))
    return acpi_tables.table("DSDT", 2, body, machine.oem)


def _pci_root(machine: AcpiDescription) -> bytes:
    identity = [aml.name("_HID", aml.eisa_id("PNP0A08" if machine.express else "PNP0A03"))]
    if machine.express:
        identity.append(aml.name("_CID", aml.eisa_id("PNP0A03")))
    windows = [
        resources.bus_numbers(0, machine.buses - 1),
        _ports(layout.PORT_PCI_CONFIG),
        resources.io_window(0, layout.PORT_PCI_CONFIG.start - 1),
        resources.io_window(layout.PORT_PCI_CONFIG.stop, 0xFFFF),
    ]
    windows += [
        resources.memory_window(first, last, cacheable=last >= _FOUR_GIB) for first, last in machine.pci_windows
    ]
    identity += [
        aml.name("_UID", aml.integer(0)),
        aml.name("_SEG", aml.integer(0)),
        aml.name("_BBN", aml.integer(0)),
        aml.name("_CRS", resources.template(*windows)),
    ]
    if machine.express:
        identity.append(_osc())
    if machine.isa_bridge is not None:
        identity.append(acpi_interrupts.routing(machine))
        identity.append(_isa_bridge(machine, *machine.isa_bridge))
    return aml.device("PCI0", *identity)


def _osc() -> bytes:
    """Hand every PCIe feature to the OS: no AML of ours drives any (PCI Firmware 3.3, 4.5.1)."""
    status, control = aml.path("CDW1"), aml.path("CDW3")
    granted = aml.local(0)
    unknown_revision, masked, unknown_uuid = 1 << 3, 1 << 4, 1 << 2
    return aml.method(
        "_OSC",
        4,
        aml.create_dword_field(aml.argument(3), aml.integer(0), "CDW1"),
        aml.if_(
            aml.equal(aml.argument(0), aml.buffer(_PCI_HOST_BRIDGE_OSC)),
            aml.create_dword_field(aml.argument(3), aml.integer(8), "CDW3"),
            aml.and_(control, aml.integer(0x1F), granted),
            aml.if_(
                aml.not_equal(aml.argument(1), aml.integer(1)),
                aml.or_(status, aml.integer(unknown_revision), status),
            ),
            aml.if_(aml.not_equal(control, granted), aml.or_(status, aml.integer(masked), status)),
            aml.store(granted, control),
        ),
        aml.else_(aml.or_(status, aml.integer(unknown_uuid), status)),
        aml.returns(aml.argument(3)),
        serialized=True,
    )


def _isa_bridge(machine: AcpiDescription, device: int, function: int) -> bytes:
    children = [acpi_interrupts.registers(machine)]
    if machine.com1:
        com1 = _ports(layout.PORT_COM1), resources.irq(layout.COM1_IRQ)
        children.append(_isa_device("COM1", "PNP0501", *com1, unit=1))
    if machine.rtc:
        children.append(_isa_device("RTC", "PNP0B00", _ports(layout.PORT_CMOS), resources.irq(layout.RTC_IRQ)))
    if machine.i8042:
        ports = _ports(layout.PORT_I8042_DATA) + _ports(layout.PORT_I8042_COMMAND)
        children.append(_isa_device("KBD", "PNP0303", ports, resources.irq(1)))
        children.append(_isa_device("MOU", "PNP0F13", resources.irq(12)))
    if machine.pvpanic:
        children.append(_pvpanic())
    return aml.device("ISA", aml.name("_ADR", aml.integer(device << 16 | function)), *children)


def _isa_device(name: str, hardware_id: str, *descriptors: bytes, unit: int | None = None) -> bytes:
    body = [aml.name("_HID", aml.eisa_id(hardware_id))]
    if unit is not None:
        body.append(aml.name("_UID", aml.integer(unit)))
    return aml.device(name, *body, aml.name("_CRS", resources.template(*descriptors)))


def _pvpanic() -> bytes:
    """Declare QEMU0001, with the names that QEMU's has (build_pvpanic_isa_aml in hw/misc/pvpanic-isa.c)."""
    ports = layout.PORT_PVPANIC
    return aml.device(
        "PEVT",
        aml.name("_HID", aml.string("QEMU0001")),
        aml.name("_CRS", resources.template(_ports(ports))),
        aml.port_region("PEOR", ports.start, len(ports)),
        aml.byte_fields("PEOR", {0: "PEPT"}),
        aml.name("_STA", aml.integer(_PRESENT)),
        aml.method("RDPT", 0, aml.store(aml.path("PEPT"), aml.local(0)), aml.returns(aml.local(0))),
        aml.method("WRPT", 1, aml.store(aml.argument(0), aml.path("PEPT"))),
    )


def _ports(ports: range) -> bytes:
    return resources.io(ports.start, len(ports))


def _motherboard(machine: AcpiDescription) -> bytes:
    """Claim what belongs to no device: the ECAM, which Linux wants reserved, the PM block, other events' ports."""
    claimed = []
    block = range(0) if machine.pm_base is None else range(machine.pm_base, machine.pm_base + machine.pm_size)
    if block:
        claimed.append(resources.io(block.start, len(block)))
    if machine.gpe0 is not None and machine.gpe0[0] not in block:
        claimed.append(resources.io(*machine.gpe0))
    if machine.cpu_hotplug is not None:
        claimed.append(resources.io(machine.cpu_hotplug, acpi_cpus.REGISTERS))
    if machine.ecam_base is not None:
        claimed.append(resources.memory64(machine.ecam_base, machine.ecam_size))
    return aml.device(
        "MBRD",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name("_UID", aml.integer(1)),
        aml.name("_CRS", resources.template(*claimed)),
    )


def _hpet(base: int) -> bytes:
    return aml.device(
        "HPET",
        aml.name("_HID", aml.eisa_id("PNP0103")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", resources.template(resources.memory32(base, len(layout.HPET), writable=False))),
    )


def _fw_cfg(*, dma: bool) -> bytes:
    """Declare QEMU0002, hidden from a user's device list as QEMU does (docs/specs/fw_cfg)."""
    ports = resources.io(layout.PORT_FW_CFG.start, len(layout.PORT_FW_CFG) if dma else 2)
    return aml.device(
        "FWCF",
        aml.name("_HID", aml.string("QEMU0002")),
        aml.name("_STA", aml.integer(_PRESENT_HIDDEN)),
        aml.name("_CRS", resources.template(ports)),
    )


def vmgenid_ssdt(machine: AcpiDescription) -> tuple[bytes, int]:
    """Build the SSDT of the VM generation counter (Microsoft's specification of 2012).

    ``ADDR`` gives the GUID's address as a package of the low and the high 32 bits. GPE 5 says that it has changed
    (`vmm.devices.acpi_pm.GPE_VMGENID`).

    Returns:
        The table, checksum 0, and the offset of the 4-byte field to which the
        loader adds the address of ``etc/vmgenid_guid``.

    """
    base = aml.path("VGIA")
    marker = aml.name("VGIA", aml.dword(0))
    address = aml.method(
        "ADDR",
        0,
        aml.store(aml.package(aml.integer(0), aml.integer(0)), aml.local(0)),
        aml.add(base, aml.integer(VMGENID_GUID_OFFSET), aml.index(aml.local(0), aml.integer(0))),
        aml.returns(aml.local(0)),
    )
    device = aml.device(
        "VGEN",
        aml.name("_HID", aml.string("VMMV0001")),
        aml.name("_CID", aml.string("VM_Gen_Counter")),
        aml.name("_DDN", aml.string("VM_Gen_Counter")),
        address,
    )
    notify = aml.method("_E05", 0, aml.notify("\\_SB.VGEN", aml.integer(_STATUS_CHANGED)))
    body = marker + aml.scope("_SB", device) + aml.scope("\\_GPE", notify)
    return (
        acpi_tables.table("SSDT", 2, body, machine.oem, final=False),
        acpi_tables.HEADER_SIZE + len(marker) - 4,
    )
