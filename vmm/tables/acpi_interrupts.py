r"""How the interrupt pins of PCI devices are routed, in AML: ``_PRT``, the link devices behind it, and ``\_PIC``.

With I/O APICs, each PIRQ of the ISA bridge has a GSI of its own. With PICs, a register of the bridge says which ISA
interrupt it is, and the OS sets that through a link device (ACPI specification 6.5, 6.2.13 and 6.2.9 to 6.2.16).

All this is there if a PCI device has an interrupt pin.
"""

from __future__ import annotations

from vmm.tables import aml, resources
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.tables.acpi_tables import AcpiDescription

_REGISTERS, _REGISTERS_SIZE = 0x60, 0x0C
"""Routing registers of PIRQ A to D, and from 0x68 on, which PIIX3 lacks, of E to H (ICH9 316972, 13.1.8, 13.1.20)."""

_NOT_ROUTED = 0x80
_IRQ = 0x0F
_CHOICE = (5, 10, 11)
"""ISA interrupts that no device of these boards has."""

_MODE = "PICM"
_PINS = 4
_PRESENT, _PRESENT_DISABLED = 0x0B, 0x09
"""_STA: present, shown, working; not enabled."""


def mode(machine: AcpiDescription) -> bytes:
    r"""Remember what the OS says by ``\_PIC``: 0 for PICs, 1 for I/O APICs."""
    if not machine.pci_slots:
        return b""
    return aml.name(_MODE, aml.integer(0)) + aml.method("_PIC", 1, aml.store(aml.argument(0), aml.path(_MODE)))


def registers(machine: AcpiDescription) -> bytes:
    """Declare the routing registers, inside of the ISA bridge."""
    if not machine.pci_slots:
        return b""
    offsets = {pirq + pirq // 4 * 4: _register(pirq) for pirq in range(machine.pirqs)}
    region = aml.pci_config_region("PIRR", _REGISTERS, _REGISTERS_SIZE if machine.pirqs > 4 else 4)
    return region + aml.byte_fields("PIRR", offsets)


def links(machine: AcpiDescription) -> list[bytes]:
    """Declare a link device for each PIRQ."""
    return [_link(pirq) for pirq in range(machine.pirqs)] if machine.pci_slots else []


def routing(machine: AcpiDescription) -> bytes:
    """Declare ``_PRT`` of the PCI root: where each pin of each slot in use goes."""
    if not machine.pci_slots:
        return b""
    by_pic, by_apic = [], []
    links = [aml.path(_link_name(pirq)) for pirq in range(machine.pirqs)]
    for slot in machine.pci_slots:
        address = aml.integer(slot << 16 | 0xFFFF)
        for pin in range(_PINS):
            pirq = (slot + pin + machine.first_pirq) % machine.pirqs
            number, zero = aml.integer(pin), aml.integer(0)
            by_pic.append(aml.package(address, number, links[pirq], zero))
            by_apic.append(aml.package(address, number, zero, aml.integer(machine.first_gsi + pirq)))
    return (
        aml.name("PRTP", aml.package(*by_pic))
        + aml.name("PRTA", aml.package(*by_apic))
        + aml.method(
            "_PRT",
            0,
            aml.if_(aml.path(_MODE), aml.returns(aml.path("PRTA"))),
            aml.returns(aml.path("PRTP")),
        )
    )


def _link_name(pirq: int) -> str:
    return f"LNK{_letter(pirq)}"


def _register(pirq: int) -> str:
    return f"PRQ{_letter(pirq)}"


def _letter(pirq: int) -> str:
    return "ABCDEFGH"[pirq]


def _link(pirq: int) -> bytes:
    register = aml.path(f"^^PCI0.ISA.{_register(pirq)}")  # from a method of the link device
    number = aml.path("PIRN")
    return aml.device(
        _link_name(pirq),
        aml.name("_HID", aml.eisa_id("PNP0C0F")),
        aml.name("_UID", aml.integer(pirq)),
        aml.name("_PRS", resources.template(resources.interrupts(*_CHOICE))),
        aml.method(
            "_STA",
            0,
            aml.if_(
                aml.and_(register, aml.integer(_NOT_ROUTED)),
                aml.returns(aml.integer(_PRESENT_DISABLED)),
            ),
            aml.returns(aml.integer(_PRESENT)),
        ),
        aml.method("_DIS", 0, aml.or_(register, aml.integer(_NOT_ROUTED), register)),
        aml.name("PIRT", resources.template(resources.interrupts(0))),
        aml.method(
            "_CRS",
            0,
            aml.create_dword_field(aml.path("PIRT"), aml.integer(resources.INTERRUPT_NUMBER), "PIRN"),
            aml.and_(register, aml.integer(_IRQ), number),
            aml.returns(aml.path("PIRT")),
            serialized=True,
        ),
        aml.method(
            "_SRS",
            1,
            aml.create_dword_field(aml.argument(0), aml.integer(resources.INTERRUPT_NUMBER), "PIRN"),
            aml.store(number, register),
            serialized=True,
        ),
    )
