"""How the INTx pins of PCI devices reach the interrupt controllers: a board's wires, and the ISA bridge's registers.

A pin is wired to one of the bridge's inputs PIRQ A to H, by device number and pin. Each PIRQ has an input of the I/O
APIC, 16 and up, and goes to the ISA interrupt that its routing register names (ICH9 316972, 13.1.8 and 13.1.20).
"""

from __future__ import annotations

from vmm._native import ffi, lib
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

PIRQ_OFF = 0x80
"""Routing register: bit 7 set, not routed."""

_ISA_IRQ = 0x0F

FIRST_GSI: int = lib.PCI_PIRQ_GSI


class Wiring(NamedTuple):
    """Which PIRQ a pin is wired to.

    Attributes:
        pirqs: how many PIRQs take part; the first is A.
        first: the PIRQ of device 0's pin A; each further pin, and each further device, takes the next.
    """

    pirqs: int
    first: int

    def pirq(self, device: int, pin: int = 0) -> int:
        """The PIRQ of a pin, both counted from 0 for A."""
        return (device + pin + self.first) % self.pirqs


Q35 = Wiring(4, 0)
"""SeaBIOS (src/fw/pciinit.c, mch_pci_slot_get_irq) counts so for the first 25 devices."""

PC = Wiring(4, 3)
"""SeaBIOS, piix_pci_slot_get_irq: device 1's pin A is PIRQ A."""

BHYVE = Wiring(8, 5)
"""edk2, OvmfPkg/Bhyve/AcpiTables/Dsdt.asl: the DSDT is the firmware's own."""


class PirqRouter:
    """The PIRQs of a machine.

    Args:
        wiring: of its board.
        sink: where interrupts go, a ``struct interrupt_sink *``.

    Attributes:
        core: the same for devices in C, a ``struct pci_pirqs *``.
    """

    def __init__(self, wiring: Wiring, sink: Any) -> None:
        self.wiring = wiring
        self._sink = sink
        self.core = ffi.new("struct pci_pirqs *", {"sink": sink})

    def route(self, first: int, registers: bytes) -> None:
        """Follow the routing registers of some PIRQs, from ``first`` on."""
        for pirq, register in enumerate(registers, first):
            lib.pci_pirq_route(self.core, pirq, 0 if register & PIRQ_OFF else register & _ISA_IRQ)


def kvm_sink(core: Any) -> Any:
    """Return a ``struct interrupt_sink *`` that leads to KVM's interrupt controllers.

    Args:
        core: the C core's ``struct vmm_vm``, which must live longer.
    """
    line, message = ffi.addressof(lib, "kvm_interrupt_line"), ffi.addressof(lib, "kvm_interrupt_message")
    return ffi.new("struct interrupt_sink *", {"line": line, "message": message, "opaque": core})
