"""What the tables of a machine say: from its description to the fw_cfg files that carry E820, ACPI and SMBIOS.

`vmm.tables` knows the formats, this module the machine: which chipset is where, and what the user added.
"""

from __future__ import annotations

from vmm import late, layout
from vmm.config.machine import MachineType
from vmm.config.parts import RamPlaces, low_memory
from vmm.errors import ConfigError
from vmm.firmware.images import FirmwareKind
from vmm.tables import e820
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.config.machine import MachineConfig
    from vmm.cpu.cpuid import Addresses
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

OVMF_PCI_HOLE_64 = (32 * layout.GIB, 32 * layout.GIB)
"""What OVMF takes behind RAM whatever the board has: edk2, OvmfPkg/Library/PlatformInitLib/MemDetect.c,
PlatformGetFirstNonAddress. It maps all of that, and hangs without a word where the CPU has no such addresses."""


def place_ram(config: MachineConfig, addresses: Addresses) -> RamPlaces:
    """Where the machine's RAM is, and may be.

    Args:
        config: the machine.
        addresses: what its CPUs say.

    Raises:
        ConfigError: RAM, the room for more of it, or the PCI window behind that is where the CPU has no addresses.
    """
    amd, bits = addresses
    size, room = config.memory, config.memory_room

    def end_of(size: int, room: int) -> int:
        ram = _places(config, size, room, amd=amd)
        own = _behind(ram, OVMF_PCI_HOLE_64).stop if config.firmware.kind is FirmwareKind.OVMF else 0
        return max(_used(config, ram), own)

    if end_of(size, room) <= 1 << bits:
        return _places(config, size, room, amd=amd)
    from bisect import bisect_left

    if (end := end_of(size, 0)) > 1 << bits:
        beyond = bisect_left(range(size // layout.MIB), True, key=lambda mib: end_of(mib * layout.MIB, 0) > 1 << bits)
        option, what = f"-m {_size(size)}", "RAM and the PCI window behind it"
        remedy = (
            f"-m {_size((beyond - 1) * layout.MIB)} or less" if beyond > 1 else "more of them: -cpu host,phys-bits=N"
        )
    else:
        end, slots = end_of(size, room), config.memory_slots * layout.GIB
        beyond = bisect_left(
            range(room // layout.MIB), True, key=lambda mib: end_of(size, mib * layout.MIB) > 1 << bits
        )
        option, most = f"-m maxmem={_size(size + room - slots)}", (beyond - 1) * layout.MIB - slots
        what = "the room for more RAM, with 1G for each slot, and the PCI window behind it"
        remedy = f"maxmem={_size(size + most)} or less" if most > 0 else "fewer slots"
    raise ConfigError(
        f"{option}: {what} end at {end:#x}, and the guest's CPU has addresses of {bits} bits, up to {1 << bits:#x}; "
        f"ask for {remedy}"
    )


def _size(size: int) -> str:
    """As -m takes it."""
    return f"{size // layout.GIB}G" if size % layout.GIB == 0 else f"{size // layout.MIB}M"


def _places(config: MachineConfig, size: int, room: int, *, amd: bool) -> RamPlaces:
    """As QEMU does (pc_memory_init in hw/i386/pc.c): what would reach AMD's hole is behind it as a whole."""
    low = low_memory(config.machine_type, size, config.max_ram_below_4g)
    ram = RamPlaces(low, size - low, room=room)
    beyond = amd and config.machine_type is not MachineType.BHYVE and _used(config, ram) > layout.HYPERTRANSPORT.start
    return ram._replace(high_base=layout.HYPERTRANSPORT.stop) if beyond else ram


def _used(config: MachineConfig, ram: RamPlaces) -> int:
    """The first address that nothing may have."""
    return pci_windows(config.machine_type, ram, None)[-1][1] + 1


def _behind(ram: RamPlaces, hole: tuple[int, int]) -> range:
    """A window of this alignment and size behind all RAM that there may be."""
    align, size = hole
    start = -(-ram.hotplug.stop // align) * align
    return range(start, start + size)


def reserved_end(ram: RamPlaces) -> int:
    """What etc/reserved-memory-end says where memory may be plugged in: the whole GiB behind that."""
    return -(-ram.hotplug.stop // layout.GIB) * layout.GIB


def e820_map(config: MachineConfig, ram: RamPlaces) -> tuple[e820.E820Entry, ...]:
    """The memory map: RAM, the hole that it has gone around, and the user's entries.

    Raises:
        ConfigError: one of these is where that is.
    """
    extra = config.e820
    if ram.high_base != layout.HIGH_RAM_BASE:
        hole = layout.HYPERTRANSPORT
        extra = (*extra, e820.E820Entry(hole.start, len(hole), e820.E820Type.RESERVED))
    entries = e820.build_map(ram.low, ram.high, extra, ram.high_base)
    if ram.high_base != layout.HIGH_RAM_BASE:
        e820.check_map(entries)
    return entries


def has_own_tables(config: MachineConfig) -> bool:
    """Whether the user asked for something in ACPI or SMBIOS that could be wrong."""
    return bool(config.acpi_tables or config.dsdt or config.smbios or config.vmgenid)


class AcpiFiles:
    """The ACPI files of one machine: what its registers say changes them, and never their sizes.

    A guest takes the sizes from fw_cfg's directory, which it reads before it has set the chipset up, and the contents
    after that. What is shorter than it can become has zeros behind it: QEMU does so, and both firmwares skip those
    (docs/tables.md).

    Args:
        config: the machine.
        ram: where its RAM is.
    """

    def __init__(self, config: MachineConfig, ram: RamPlaces) -> None:
        self._config, self._ram = config, ram
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

        return build_acpi(acpi_description(self._config, self._ram, standing))

    def _longest(self, standing: Standing) -> list[Standing]:
        """Those of the registers' values that make most of a table: ECAM in the middle of each PCI window."""
        if self._config.machine_type is not MachineType.Q35:
            return [standing._replace(pm_base=layout.PMBASE_DEFAULT)]
        base, size = layout.PMBASE_DEFAULT, layout.ECAM_SIZES[-1]
        windows = pci_windows(self._config.machine_type, self._ram, None)
        middles = [first + (last + 1 - first) // 2 & -size for first, last in windows]
        return [
            standing._replace(
                pm_base=base,
                gpe0=range(base, base + 1),
                ecam=range(middle, middle + size),
                announces_cpus=self._config.has_smm,
            )
            for middle in middles
        ]


def load_builders() -> None:
    """Load what builds the tables."""
    from vmm.tables import acpi, smbios  # noqa: F401


def place_smbios(config: MachineConfig, memory: GuestMemory, processor_id: int) -> None:
    """Store SMBIOS in RAM, where bhyve's board has it; arguments as `build`.

    Raises:
        ConfigError: a ``-smbios`` option makes no sense.
    """
    from vmm.tables.smbios_placement import place

    files = smbios_files(config, memory.places, processor_id)
    room = layout.SMBIOS_BHYVE
    memory.write(room.start, place(files, room.start, len(room)))


def smbios_files(config: MachineConfig, ram: RamPlaces, processor_id: int) -> dict[str, bytes]:
    """SMBIOS as two fw_cfg files, its address and checksums left to the firmware; arguments as `build`.

    Raises:
        ConfigError: more structures than version 2.8 has room for.
    """
    late.load("vmm.tables.smbios")
    from vmm.tables.smbios import SmbiosDescription, build_smbios

    topology = config.cpu_topology
    smbios = SmbiosDescription(
        low_memory=ram.low,
        high_memory=ram.high,
        high_base=ram.high_base,
        cpus=config.cpus,
        sockets=topology.sockets,
        cores=topology.dies * topology.cores,
        threads=topology.threads,
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


def acpi_description(config: MachineConfig, ram: RamPlaces, standing: Standing) -> AcpiDescription:
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
    topology, numa = config.cpu_topology, config.numa
    cpus = range(config.max_cpus)
    return AcpiDescription(
        cpus=config.cpus,
        max_cpus=config.max_cpus,
        plugged=standing.plugged,
        gone=standing.gone,
        cpu_hotplug=standing.cpu_hotplug,
        cpu_hotplug_smi=standing.announces_cpus,
        apic_ids=tuple(map(topology.apic_id, cpus)),
        cpu_nodes=() if numa is None else tuple(map(numa.node_of, cpus)),
        node_memory=() if numa is None else tuple(node.memory for node in numa.nodes),
        node_initiators=() if numa is None else tuple(node.initiator for node in numa.nodes),
        distances=() if numa is None else numa.distances,
        hmat=None if numa is None else numa.hmat,
        low_memory=ram.low,
        high_base=ram.high_base,
        hotplug=ram.hotplug,
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
        pci_windows=pci_windows(machine, ram, ecam),
        isa_bridge=(1, 0) if machine is MachineType.PC else (31, 0),
        pci_slots=standing.pci_slots,
        pirqs=wiring.pirqs,
        first_pirq=wiring.first,
        first_gsi=FIRST_GSI,
        hpet_base=None if standing.hpet is None else standing.hpet.start,
        hpet_id=BLOCK_ID,
        hpet_minimum=MINIMUM_TICKS,
        pvpanic=bool(config.pvpanic),
        dsdt=b"" if config.dsdt is None else config.dsdt.data,
        vmgenid=config.vmgenid,
        user_tables=tuple(table.data for table in config.acpi_tables),
    )


def pci_windows(machine: MachineType, ram: RamPlaces, ecam: range | None) -> tuple[tuple[int, int], ...]:
    """First and last address of each range that the PCI root passes on: two holes in RAM, and in those ECAM.

    Args:
        machine: the board.
        ram: where RAM is, and may be.
        ecam: where PCIe configuration space is.
    """
    hole = layout.BHYVE_BARS if machine is MachineType.BHYVE else range(ram.low, PCI_HOLE_END)
    windows = []
    for window in (hole, _behind(ram, PCI_HOLES_64.get(machine, BHYVE_PCI_HOLE_64))):
        parts = [window]
        if ecam is not None and ecam.start < window.stop and window.start < ecam.stop:
            parts = [range(window.start, ecam.start), range(ecam.stop, window.stop)]
        windows += [(part.start, part.stop - 1) for part in parts if part]
    return tuple(windows)
