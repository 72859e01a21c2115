r"""The processors in the DSDT, and how the OS learns of one that is plugged in, or is to be taken out.

``\_GPE._E02`` scans the registers of `vmm.devices.cpu_hotplug` for what has happened, and notifies the processor's
device; the OS then asks that for its state (``_STA``) and its local APIC (``_MAT``), says what became of it (``_OST``),
and lets go of it (``_EJ0``). Source: ACPI 6.5, 5.6.6, 6.2.10, 6.3; docs/specs/acpi_cpu_hotplug in QEMU.
"""

from __future__ import annotations

from vmm.tables import acpi_tables, aml
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.tables.acpi_tables import AcpiDescription

REGISTERS = 12
"""Ports of the registers."""

PRESENT = 0x0F
_DEVICE_CHECK, _EJECT_REQUEST = 1, 3

_SMI = 4
"""`vmm.devices.smi.HOTPLUG_COMMAND`."""

_NEXT_EVENT, _OST_EVENT, _OST_STATUS = 0, 1, 2
"""Commands of the registers."""


def processors(machine: AcpiDescription) -> bytes:
    """Declare each processor as ACPI0007 in a container; those not present say so in ``_STA``."""
    hotplug = machine.cpu_hotplug
    return aml.device(
        "CPUS",
        aml.name("_HID", aml.string("ACPI0010")),
        aml.name("_CID", aml.eisa_id("PNP0A05")),
        *(_registers(machine, hotplug) + _methods(machine) if hotplug is not None else []),
        *(_processor(machine, index) for index in range(machine.cpu_count)),
    )


def event(machine: AcpiDescription) -> bytes:
    """Declare what is done at the event of a processor that comes or is to go, GPE 2."""
    if machine.cpu_hotplug is None:
        return b""
    return aml.scope("_GPE", aml.method("_E02", 0, aml.call("\\_SB.CPUS.CSCN")))


def _processor(machine: AcpiDescription, index: int) -> bytes:
    number = aml.integer(index)
    body = [aml.name("_HID", aml.string("ACPI0007")), aml.name("_UID", number)]
    if machine.cpu_hotplug is None:
        body.append(aml.name("_STA", aml.integer(PRESENT if machine.is_present(index) else 0)))
    else:
        event, status = aml.argument(0), aml.argument(1)
        body += [
            aml.method("_STA", 0, aml.returns(aml.call("CSTA", number))),
            aml.name("_MAT", aml.buffer(acpi_tables.local_apic(machine, index, present=True))),
            aml.method("_OST", 3, aml.call("COST", number, event, status)),
        ]
        if index:
            body.append(aml.method("_EJ0", 1, aml.call("CEJT", number)))
    if machine.node_memory:
        body.append(aml.name("_PXM", aml.integer(machine.cpu_nodes[index])))
    return aml.device(_name(index), *body)


def _name(index: int) -> str:
    return f"C{index:03X}"


def _registers(machine: AcpiDescription, port: int) -> list[bytes]:
    """Declare them: which processor is meant, what it is, a command and its data; one method at a time uses them."""
    flags = {32: ("CPEN", 1), 33: ("CINS", 1), 34: ("CRMV", 1), 35: ("CEJ0", 1), 40: ("CCMD", 8)}
    smi = [aml.port_region("SMIR", machine.smi_command, 1), aml.byte_fields("SMIR", {0: "SMIC"})]
    return [
        *(smi if machine.cpu_hotplug_smi else []),
        aml.mutex("CPLK"),
        aml.port_region("PRST", port, REGISTERS),
        aml.fields("PRST", aml.BYTE_ACCESS | aml.WRITE_AS_ZEROS, flags),
        aml.fields("PRST", aml.DWORD_ACCESS, {0: ("CSEL", 32), 64: ("CDAT", 32)}),
    ]


def _methods(machine: AcpiDescription) -> list[bytes]:
    zero, one = aml.integer(0), aml.integer(1)
    first, second = aml.local(0), aml.local(1)
    # It handles all that it finds, by the same registers.
    smi = [aml.store(aml.integer(_SMI), aml.path("SMIC")), aml.store(second, aml.path("CSEL"))]
    return [
        # What makes them registers, and no bitmap of processors any more.
        aml.method("_INI", 0, aml.store(zero, aml.path("CSEL"))),
        _locked(
            "CSTA",
            1,
            aml.store(aml.argument(0), aml.path("CSEL")),
            aml.store(zero, first),
            aml.if_(aml.equal(aml.path("CPEN"), one), aml.store(aml.integer(PRESENT), first)),
            result=first,
        ),
        _locked(
            "COST",
            3,
            aml.store(aml.argument(0), aml.path("CSEL")),
            aml.store(aml.integer(_OST_EVENT), aml.path("CCMD")),
            aml.store(aml.argument(1), aml.path("CDAT")),
            aml.store(aml.integer(_OST_STATUS), aml.path("CCMD")),
            aml.store(aml.argument(2), aml.path("CDAT")),
        ),
        _locked(
            "CEJT",
            1,
            aml.store(aml.argument(0), aml.path("CSEL")),
            aml.store(one, aml.path("CEJ0")),
        ),
        aml.method("CTFY", 2, *(_notify(index) for index in range(machine.cpu_count))),
        _locked(
            "CSCN",
            0,
            aml.store(zero, first),
            aml.while_(
                aml.less(first, aml.integer(machine.cpu_count)),
                aml.store(first, aml.path("CSEL")),
                # Selects the next one from there on, and begins at 0 again behind the last.
                aml.store(aml.integer(_NEXT_EVENT), aml.path("CCMD")),
                aml.store(aml.path("CDAT"), second),
                aml.if_(aml.less(second, first), aml.break_()),
                aml.if_(
                    aml.equal(aml.path("CINS"), one),
                    *(smi if machine.cpu_hotplug_smi else []),
                    aml.call("CTFY", second, aml.integer(_DEVICE_CHECK)),
                    aml.store(one, aml.path("CINS")),
                ),
                aml.else_(aml.if_(aml.equal(aml.path("CRMV"), zero), aml.break_())),
                # Of one that came and is to go again, both are said, in this order: no other event may come.
                aml.if_(
                    aml.equal(aml.path("CRMV"), one),
                    aml.call("CTFY", second, aml.integer(_EJECT_REQUEST)),
                    aml.store(one, aml.path("CRMV")),
                ),
                aml.add(second, one, first),
            ),
        ),
    ]


def _locked(target: str, arguments: int, *body: bytes, result: bytes | None = None) -> bytes:
    """Declare a method that has the registers for itself."""
    end = [] if result is None else [aml.returns(result)]
    return aml.method(target, arguments, aml.acquire("CPLK"), *body, aml.release("CPLK"), *end, serialized=True)


def _notify(index: int) -> bytes:
    return aml.if_(aml.equal(aml.argument(0), aml.integer(index)), aml.notify(_name(index), aml.argument(1)))
