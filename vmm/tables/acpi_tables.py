"""The fixed ACPI tables: FADT, FACS, MADT, MCFG, HPET, WAET, and the root tables.

Layouts are those of the ACPI specification 6.5, chapter 5, unless a function
names another source. All fields are little-endian. Addresses that firmware
fills in are left as 0, or as the offset that ADD_POINTER adds the base to.
"""

from __future__ import annotations

import struct

from vmm import layout
from vmm.errors import ConfigError
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from vmm.tables.memory_attributes import Hmat

HEADER_SIZE: Final = 36
CHECKSUM_OFFSET: Final = 9
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_CREATOR_ID = b"VMM "
_CREATOR_REVISION = 1

FADT_REVISION: Final = 6
_FADT_MINOR_REVISION, _MADT_REVISION = 5, 5
FADT_FIRMWARE_CTRL: Final = 36
FADT_DSDT: Final = 40
FADT_X_DSDT: Final = 140

_SYSTEM_IO = 1
_LOCAL_APIC, _IO_APIC, _OVERRIDE, _LOCAL_APIC_NMI, _LOCAL_X2APIC, _X2APIC_NMI = 0, 1, 2, 4, 9, 10
_APIC_ENABLED, _APIC_ONLINE_CAPABLE = 1, 2
_LEVEL_ACTIVE_HIGH = 0x000D


class Oem(NamedTuple):
    """The identity in every table header: 6 and 8 ASCII characters, blank-padded."""

    oem_id: bytes = b"VMM   "
    table_id: bytes = b"VMM     "
    revision: int = 1


class AcpiDescription(NamedTuple):
    """What the tables say about a machine; every address is guest-physical.

    Attributes:
        cpus: processors present at boot.
        max_cpus: processors that may exist; those beyond ``cpus`` are in the
            MADT as disabled. 0 means ``cpus``.
        plugged: the indices of those of them that are there all the same, since they were plugged in.
        gone: the indices of those that were there at boot, and are no more.
        cpu_hotplug: port of the registers by which the OS learns of that; None: there are none.
        cpu_hotplug_smi: whether firmware is told of it first, by an SMI through ``smi_command``.
        apic_ids: local APIC id of each of ``max_cpus``; empty means 0, 1, 2, …
        cpu_nodes: NUMA node of each of ``max_cpus``.
        node_memory: bytes of RAM of each node; empty: there is no NUMA.
        node_initiators: of each node, the one whose CPUs are nearest, if it has none itself; None: unknown.
        distances: of each node, to each; empty: unknown.
        hmat: how fast memory of nodes is; None: there is no such table.
        low_memory: bytes of RAM from 0, of which the first nodes have their part.
        high_base: where RAM goes on.
        hotplug: where memory of the last node may be plugged in; empty: nowhere.
        pm_base: I/O port of PM1a_EVT; PM1a_CNT is at +4, the PM timer at +8.
            OVMF programs 0x600 on q35 and 0xb000 on pc, SeaBIOS 0x600 on both.
            None where it is decoded nowhere.
        pm_size: ports of the chipset's ACPI block from ``pm_base`` on, to be claimed in the DSDT.
        pm_timer_bits: 24 or 32.
        sci_irq: interrupt of the SCI, level-triggered and active high.
        smi_command: port of SMI_CMD; 0 where ACPI mode is always on.
        acpi_enable: value that turns ACPI mode on at ``smi_command``.
        acpi_disable: value that turns it off.
        s3_type: SLP_TYP that suspends the machine to RAM, 0 to 7; None: it can't.
        s5_type: SLP_TYP that powers the machine off, 0 to 7.
        reset_port: I/O port that resets the machine; None for no reset register.
        reset_value: the byte that does.
        gpe0: port and length in bytes of the GPE0 block; None for none.
        century: CMOS index of the RTC's century; 0 for none.
        power_button: whether PM1 has the fixed power button.
        express: whether the PCI root is one of PCI Express.
        ecam_base: PCIe configuration space; None where it is decoded nowhere.
        ecam_size: its length in bytes, 1 MiB per bus.
        pci_windows: (first, last) of each memory window of the PCI root, below
            or above 4 GiB.
        isa_bridge: device and function of the ISA bridge; None for none.
        pci_slots: numbers of the PCI devices that have interrupt pins; they need an ISA bridge.
        pirqs: how many inputs the ISA bridge has for these pins, 4 or 8; with I/O APICs, input n has GSI
            ``first_gsi`` + n.
        first_pirq: the input of device 0's pin A; each further pin, and each further device, takes the next.
        first_gsi: see ``pirqs``.
        com1: whether there is a serial port at 0x3f8, IRQ 4.
        rtc: whether there is an RTC at 0x70, IRQ 8.
        i8042: whether there is a keyboard controller at 0x60/0x64.
        hpet_base: the HPET's registers; None for no HPET.
        hpet_id: the low half of its capability register.
        hpet_minimum: ticks of the shortest period without a lost interrupt.
        local_apic_base: the local APICs' registers.
        io_apic_base: the I/O APIC's registers; its GSIs start at 0.
        irq0_gsi: GSI that the PIT's IRQ 0 is wired to.
        fw_cfg: whether QEMU0002 is declared at port 0x510.
        fw_cfg_dma: whether its range covers the DMA registers (12 bytes instead of 2).
        pvpanic: whether QEMU0001 is declared, at port 0x505, inside the ISA bridge.
        dsdt: the user's, checksum right, in the place of ours; empty for ours.
        vmgenid: a generation id as 16 bytes in GUID (mixed-endian) order; None for none.
        user_tables: whole tables of the user, checksums right.
        oem: the identity in the headers of our own tables.
    """

    cpus: int = 1
    max_cpus: int = 0
    plugged: frozenset[int] = frozenset()
    gone: frozenset[int] = frozenset()
    cpu_hotplug: int | None = None
    cpu_hotplug_smi: bool = False
    apic_ids: tuple[int, ...] = ()
    cpu_nodes: tuple[int, ...] = ()
    node_memory: tuple[int, ...] = ()
    node_initiators: tuple[int | None, ...] = ()
    distances: tuple[tuple[int, ...], ...] = ()
    hmat: Hmat | None = None
    low_memory: int = 0
    high_base: int = layout.HIGH_RAM_BASE
    hotplug: range = range(0)
    pm_base: int | None = 0x600
    pm_size: int = 0x10
    pm_timer_bits: int = 32
    sci_irq: int = 9
    smi_command: int = 0
    acpi_enable: int = 0
    acpi_disable: int = 0
    s3_type: int | None = None
    s5_type: int = 0
    reset_port: int | None = layout.PORT_PCI_CONFIG.start + 1
    reset_value: int = 6
    gpe0: tuple[int, int] | None = None
    century: int = 0x32
    power_button: bool = False
    express: bool = True
    ecam_base: int | None = layout.ECAM_DEFAULT
    ecam_size: int = 256 << 20
    pci_windows: tuple[tuple[int, int], ...] = ((0xC000_0000, 0xFBFF_FFFF),)
    isa_bridge: tuple[int, int] | None = (31, 0)
    pci_slots: tuple[int, ...] = ()
    pirqs: int = 4
    first_pirq: int = 0
    first_gsi: int = 16
    com1: bool = True
    rtc: bool = True
    i8042: bool = False
    hpet_base: int | None = None
    hpet_id: int = 0x8086A201
    hpet_minimum: int = 0
    local_apic_base: int = layout.LAPIC_BASE
    io_apic_base: int = layout.IOAPIC_BASE
    irq0_gsi: int = 2
    fw_cfg: bool = True
    fw_cfg_dma: bool = True
    pvpanic: bool = False
    dsdt: bytes = b""
    vmgenid: bytes | None = None
    user_tables: tuple[bytes, ...] = ()
    oem: Oem = Oem()

    def check(self) -> None:
        """Refuse what no machine can be.

        Raises:
            ConfigError: a number is out of range, or does not fit another.
        """
        if not 1 <= self.cpus <= self.cpu_count:
            raise ConfigError(f"ACPI: {self.cpus} CPUs of at most {self.cpu_count}")
        if self.apic_ids and len(set(self.apic_ids)) != self.cpu_count:
            raise ConfigError(f"ACPI: {len(set(self.apic_ids))} distinct APIC ids for {self.cpu_count} CPUs")
        if self.node_memory and len(self.cpu_nodes) != self.cpu_count:
            raise ConfigError(f"ACPI: nodes of {len(self.cpu_nodes)} CPUs, and there are {self.cpu_count}")
        if self.ecam_base is not None and (self.ecam_size <= 0 or self.ecam_size % (1 << 20)):
            raise ConfigError(f"ACPI: ECAM of {self.ecam_size:#x} bytes is not a whole number of buses of 1 MiB")
        if self.vmgenid is not None and len(self.vmgenid) != 16:
            raise ConfigError(f"ACPI: a VM generation id has 16 bytes, not {len(self.vmgenid)}")
        if self.pci_slots and self.isa_bridge is None:
            raise ConfigError("ACPI: without an ISA bridge, no interrupt of a PCI device is routed")
        for first, last in self.pci_windows:
            if last < first:
                raise ConfigError(f"ACPI: PCI window {first:#x} to {last:#x} is empty")

    @property
    def cpu_count(self) -> int:
        """Processors in the tables, disabled ones included."""
        return self.max_cpus or self.cpus

    @property
    def buses(self) -> int:
        """PCI buses that the root may have."""
        return 256 if self.ecam_base is None else min(self.ecam_size >> 20, 256)

    def is_present(self, index: int) -> bool:
        """Tell whether a processor is there now."""
        return index in self.plugged if index >= self.cpus else index not in self.gone

    def apic_id(self, index: int) -> int:
        """Give the local APIC id of a processor by its index."""
        return self.apic_ids[index] if self.apic_ids else index


def checksum(data: bytes | bytearray) -> int:
    """Give the byte that makes the sum of ``data`` and itself 0 modulo 256."""
    return -sum(data) & 0xFF


def table(signature: str, revision: int, body: bytes, oem: Oem, *, final: bool = True) -> bytes:
    """Put a header before a body.

    Args:
        signature: four ASCII characters.
        revision: of the table's layout.
        body: what follows the 36-byte header.
        oem: the identity.
        final: fill the checksum in; otherwise leave it 0 for ADD_CHECKSUM.

    """
    length = HEADER_SIZE + len(body)
    header = _HEADER.pack(
        signature.encode("ascii"),
        length,
        revision,
        0,
        oem.oem_id,
        oem.table_id,
        oem.revision,
        _CREATOR_ID,
        _CREATOR_REVISION,
    )
    whole = bytearray(header + body)
    if final:
        whole[CHECKSUM_OFFSET] = checksum(whole)
    return bytes(whole)


def _register(port: int | None, bits: int, access: int) -> bytes:
    """Encode a Generic Address Structure in I/O space; ``access`` 1 is byte, 2 word, 3 dword. None: all zero."""
    return bytes(12) if not port else struct.pack("<BBBBQ", _SYSTEM_IO, bits, 0, access, port)


def facs() -> bytes:
    """Build the FACS: 64 bytes, no checksum, to lie on a 64-byte boundary."""
    return struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def fadt(machine: AcpiDescription, *, facs_offset: int, dsdt_offset: int) -> bytes:
    """Build the FADT, 276 bytes, checksum 0.

    FIRMWARE_CTRL, DSDT and X_DSDT hold offsets into the file that the loader
    script patches; X_FIRMWARE_CTRL stays 0, since only one of the two may be used.
    """
    gpe0_port, gpe0_length = machine.gpe0 or (0, 0)
    pm_event, pm_control, pm_timer = (machine.pm_base + at if machine.pm_base is not None else 0 for at in (0, 4, 8))
    flags = 1 << 0 | 1 << 2 | 1 << 5 | 1 << 6  # WBINVD, PROC_C1, SLP_BUTTON and FIX_RTC absent
    flags |= 0 if machine.power_button else 1 << 4
    flags |= 1 << 8 if machine.pm_timer_bits == 32 else 0
    flags |= 1 << 10 if machine.reset_port is not None else 0
    boot_architecture = 1 << 0 | 1 << 2  # legacy devices, no VGA
    boot_architecture |= 1 << 1 if machine.i8042 else 0
    boot_architecture |= 0 if machine.rtc else 1 << 5
    body = struct.pack(
        "<IIBBHIBBBBIIIIIIII",
        facs_offset,
        dsdt_offset,
        0,
        0,
        machine.sci_irq,
        machine.smi_command,
        machine.acpi_enable,
        machine.acpi_disable,
        0,
        0,
        pm_event,
        0,
        pm_control,
        0,
        0,
        pm_timer,
        gpe0_port,
        0,
    )
    # Latencies above 100 and 1000 µs say that there is neither C2 nor C3.
    body += struct.pack(
        "<BBBBBBBBHHHHBBBBBHBI",
        4,
        2,
        0,
        4,
        gpe0_length,
        0,
        0,
        0,
        0xFFF,
        0xFFF,
        0,
        0,
        0,
        0,
        0,
        0,
        machine.century,
        boot_architecture,
        0,
        flags,
    )
    body += _register(machine.reset_port, 8, 1)
    body += struct.pack("<BHBQQ", machine.reset_value, 0, _FADT_MINOR_REVISION, 0, dsdt_offset)
    none = bytes(12)
    body += _register(pm_event, 32, 2) + none
    body += _register(pm_control, 16, 2) + none
    body += none
    body += _register(pm_timer, 32, 3)
    body += _register(gpe0_port, 8 * gpe0_length, 1) + none
    body += none + none + bytes(8)
    return table("FACP", FADT_REVISION, body, machine.oem, final=False)


def local_apic(machine: AcpiDescription, index: int, *, present: bool) -> bytes:
    """Build the MADT's entry of a processor, which its ``_MAT`` is, too.

    APIC ids from 255 on need x2APIC entries (ACPI 5.2.12.12); the processor's
    UID is its index, as the DSDT's processor devices say. One that may be
    plugged in is called so (ACPI 6.3): Linux has no room for others, unless
    tables are older and a hypervisor that it knows gave them
    (acpi_is_processor_usable in arch/x86/kernel/acpi/boot.c).
    """
    apic_id, absent = machine.apic_id(index), 0 if machine.cpu_hotplug is None else _APIC_ONLINE_CAPABLE
    flags = _APIC_ENABLED if present else absent
    if apic_id < 255 and index < 255:
        return struct.pack("<BBBBI", _LOCAL_APIC, 8, index, apic_id, flags)
    return struct.pack("<BBHIII", _LOCAL_X2APIC, 16, 0, apic_id, flags, index)


def madt(machine: AcpiDescription) -> bytes:
    """Build the MADT: one entry per processor, the I/O APIC, overrides, NMI lines."""
    entries = b""
    for index in range(machine.cpu_count):
        entries += local_apic(machine, index, present=machine.is_present(index))
    entries += struct.pack("<BBBBII", _IO_APIC, 12, 0, 0, machine.io_apic_base, 0)
    if machine.irq0_gsi:
        entries += struct.pack("<BBBBIH", _OVERRIDE, 10, 0, 0, machine.irq0_gsi, 0)
    entries += struct.pack("<BBBBIH", _OVERRIDE, 10, 0, machine.sci_irq, machine.sci_irq, _LEVEL_ACTIVE_HIGH)
    entries += struct.pack("<BBBHB", _LOCAL_APIC_NMI, 6, 0xFF, 0, 1)
    if any(machine.apic_id(index) >= 255 for index in range(machine.cpu_count)):
        entries += struct.pack("<BBHIB3x", _X2APIC_NMI, 12, 0, 0xFFFFFFFF, 1)
    pcat_compatible = 1
    head = struct.pack("<II", machine.local_apic_base, pcat_compatible)
    return table("APIC", _MADT_REVISION, head + entries, machine.oem)


def mcfg(machine: AcpiDescription) -> bytes:
    """Build the MCFG for one segment (PCI Firmware Specification 3.3, section 4.1.2)."""
    if machine.ecam_base is None:
        raise ValueError("there is no ECAM to describe")
    return table("MCFG", 1, struct.pack("<8xQHBB4x", machine.ecam_base, 0, 0, machine.buses - 1), machine.oem)


def hpet(machine: AcpiDescription) -> bytes:
    """Build the HPET table (IA-PC HPET specification 1.0a, section 3.2.4)."""
    if machine.hpet_base is None:
        raise ValueError("there is no HPET to describe")
    block = struct.pack("<IBBBBQBHB", machine.hpet_id, 0, 0, 0, 0, machine.hpet_base, 0, machine.hpet_minimum, 0)
    return table("HPET", 1, block, machine.oem)


def waet(machine: AcpiDescription) -> bytes:
    """Build the WAET (Microsoft, Windows ACPI Emulated Devices Table): the PM timer needs one read."""
    return table("WAET", 1, struct.pack("<I", 1 << 1), machine.oem)


def root_table(signature: str, offsets: Sequence[int], oem: Oem) -> bytes:
    """Build an RSDT (4-byte entries) or XSDT (8-byte entries), checksum 0."""
    width = 4 if signature == "RSDT" else 8
    body = b"".join(offset.to_bytes(width, "little") for offset in offsets)
    return table(signature, 1, body, oem, final=False)


def rsdp(*, rsdt_offset: int, xsdt_offset: int, oem: Oem) -> bytes:
    """Build the RSDP of revision 2, 36 bytes, both checksums 0."""
    return struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, oem.oem_id, 2, rsdt_offset, 36, xsdt_offset, 0)
