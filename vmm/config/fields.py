"""The fields of a `vmm.config.machine.MachineConfig`, unchecked: what a machine's description consists of.

Beside each other they say more, such as which board firmware wants that nobody asked for; that is here, too.

Sizes are in bytes unless a name says otherwise.
"""

from __future__ import annotations

from vmm import layout
from vmm.config.interface import InterfaceChoice, choose
from vmm.config.parts import Accelerator, Clock, Dispatch, MachineType, Sandboxing, SystemManagement, Target, low_memory
from vmm.config.topology import Topology
from vmm.firmware.images import FirmwareImages, FirmwareKind, Interface
from vmm.tables.boot_order import BootOptions
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmm.config.cpu_model import CpuModel
    from vmm.config.debugger import DebugAddress
    from vmm.config.items import FwCfgItem, FwCtlItem
    from vmm.config.numa import Numa
    from vmm.config.option_roms import OptionRom
    from vmm.disks.drives import Drive
    from vmm.inputs import InputFile
    from vmm.tables.acpi_user import UserTable
    from vmm.tables.e820 import E820Entry
    from vmm.tables.smbios_options import SmbiosOption
    from vmm.vhost.backend import VhostDevice

DEFAULT_MEMORY = 256 << 20
DEFAULT_MAX_RESETS = 10


class MachineFields(NamedTuple):
    """What a machine's description consists of, in its final form, and what follows from it."""

    firmware: FirmwareImages
    cpus: int = 1
    max_cpus: int = 1
    topology: Topology | None = None
    """How all of these are arranged; None: cores of one socket."""
    cpu: CpuModel | None = None
    """What is different from the host's processor."""
    numa: Numa | None = None
    """NUMA nodes, each with all that it has; None: there is no NUMA."""
    memory: int = DEFAULT_MEMORY
    max_memory: int | None = None
    """What RAM may become as memory is plugged in; None: no more than it is."""
    memory_slots: int = 0
    """In how many pieces."""
    max_ram_below_4g: int | None = None
    """Where RAM is cut below 4 GiB at the latest; None: where the board cuts it."""
    machine: MachineType = MachineType.AUTO
    interface: Interface = Interface.AUTO
    fw_cfg: tuple[FwCfgItem, ...] = ()
    fwctl: tuple[FwCtlItem, ...] = ()
    fwctl_extensions: bool = False
    """Answer fwctl's NULL, ECHO and SET, which bhyve itself refuses."""
    cpu_count: bool = True
    """Offer the number of CPUs as bhyve does: fwctl's hw.ncpu, or opt/bhyve/hw.ncpu in fw_cfg of a bhyve machine."""
    hpet: bool = True
    """Have an HPET."""
    s3: bool = False
    """Offer S3, suspend to RAM."""
    acpi: bool = True
    """Offer ACPI tables."""
    smm: SystemManagement = SystemManagement.AUTO
    """Have system management mode."""
    secure_flash: bool | None = None
    """Let only that mode write the variable store; None: where the firmware needs the mode, which then writes it."""
    uuid: bytes | None = None
    """16 bytes, in the order in which a UUID is written (RFC 4122)."""
    serial: Target = Target()
    debugcon: Target = Target()
    boot: BootOptions = BootOptions()
    kernel: InputFile | None = None
    initrd: InputFile | None = None
    append: bytes | None = None
    """The kernel's command line, without the NUL at its end."""
    kernel_rom: InputFile | None = None
    """What starts the kernel under a BIOS: read here, because a machine in the sandbox opens no such file."""
    direct: bool = False
    """Start the kernel without firmware."""
    acpi_tables: tuple[UserTable, ...] = ()
    """The user's own."""
    dsdt: UserTable | None = None
    """The user's, in the place of ours."""
    smbios: tuple[SmbiosOption, ...] = ()
    smbios_entry_point: int = 32
    """32: SMBIOS 2.8 with an entry point of 32 bits; 64: SMBIOS 3.0."""
    e820: tuple[E820Entry, ...] = ()
    """Entries of the memory map beside RAM's."""
    bootorder: tuple[str, ...] = ()
    """OpenFirmware paths, the first to boot first."""
    option_roms: tuple[OptionRom, ...] = ()
    """Those that firmware takes from fw_cfg; SeaBIOS does."""
    vmgenid: bytes | None = None
    """The VM generation id, 16 bytes in GUID order; None: the machine has no such device."""
    vmcoreinfo: bool = False
    """Let the guest's kernel leave the address of its crash notes in etc/vmcoreinfo."""
    pvpanic: int = 0
    """What the guest's kernel may report at its pvpanic port (`vmm.devices.pvpanic.EVENTS`); 0: there is none."""
    drives: tuple[Drive, ...] = ()
    """The disks."""
    vhost: tuple[VhostDevice, ...] = ()
    """Devices that other processes serve, reached by sockets."""
    reboot: bool | None = None
    """Whether a reset by the guest restarts the machine, or ends it; None: it ends guests of ours, which so fail."""
    max_resets: int = DEFAULT_MAX_RESETS
    """How often the guest may reset the machine within one run."""
    accel: Accelerator = Accelerator.AUTO
    clock: Clock = Clock.HOST
    """What the guest's time goes by."""
    record: str | None = None
    """Where everything goes that the guest gets from outside, with its instruction; of virtual time."""
    replay: InputFile | None = None
    """Such a file, which the guest gets everything from."""
    coalesced: bool = True
    """Let KVM keep writes to fw_cfg's selector and the debug port until somebody looks; not beside `trace` or times."""
    dispatch: Dispatch = Dispatch.C
    exit_times: bool = False
    """Time every exit and device access; `vmm.run.exit_times` is what comes of it."""
    profile: bool = False
    """Look at what the vCPUs execute all the time; `vmm.run.profile` is what comes of it."""
    coverage: bool = False
    """Note which lines of source the guest's code reaches; `vmm.run.coverage` is what comes of it."""
    trace: str | None = None
    """Where the access log goes: a path, or "-" for stderr."""
    sandbox: Sandboxing = Sandboxing.OFF
    user: str | None = None
    """Whom the process belongs to before the guest executes; None: it stays as it is."""
    gdb: DebugAddress | None = None
    """Where a debugger finds the machine; None: nowhere."""
    hold: bool = False
    """Let the first run wait for a debugger."""
    symbols: Path | None = None
    """A folder whose files have the symbols of images in the guest; absolute."""

    @property
    def shares_memory(self) -> bool:
        """Whether another process serves a device, in the guest's memory."""
        return bool(self.vhost) or any(drive.served for drive in self.drives)

    @property
    def input_files(self) -> Iterator[tuple[str, str | Path]]:
        """Every file that the machine reads, with the option that names it."""
        yield "the firmware", self.firmware.file
        if self.firmware.variables is not None:
            yield "the variable store", self.firmware.variables.path
        for item in (*self.fw_cfg, *(rom.item for rom in self.option_roms)):
            if item.path is not None:
                yield f"-fw_cfg {item.name}", item.path
        for oid in self.fwctl:
            if oid.path is not None:
                yield f"-fwctl {oid.name}", oid.path
        for option, file in (
            ("-kernel", self.kernel),
            ("-kernel", self.kernel_rom),
            ("-initrd", self.initrd),
            ("-boot splash=", self.boot.splash),
            ("--replay", self.replay),
        ):
            if file is not None:
                yield option, file.path
        for table in self.acpi_tables:
            yield from (("-acpitable", path) for path in table.paths)
        if self.dsdt is not None:
            yield from (("-dsdt", path) for path in self.dsdt.paths)
        for drive in self.drives:
            if not drive.url:
                yield drive.option, drive.path
            if drive.secret is not None:
                yield drive.option, drive.secret
        for structure in self.smbios:
            yield from (("-smbios", path) for path in structure.paths)

    @property
    def interface_choice(self) -> InterfaceChoice:
        """What answers at ports 0x510 and 0x511, never AUTO, and why."""
        return choose(self.firmware, self.interface)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What had to be repaired in the user's ACPI tables, one line each."""
        tables = self.acpi_tables if self.dsdt is None else (self.dsdt, *self.acpi_tables)
        return tuple(warning for table in tables for warning in table.warnings)

    @property
    def cpu_topology(self) -> Topology:
        """How the CPUs are arranged."""
        return Topology(cores=self.max_cpus) if self.topology is None else self.topology

    @property
    def can_plug_cpus(self) -> bool:
        """Whether CPUs can be plugged in: bhyve's board has nothing that would tell the guest."""
        return self.max_cpus > self.cpus and self.machine_type is not MachineType.BHYVE

    @property
    def memory_room(self) -> int:
        """Bytes of addresses for memory that may be plugged in, as in QEMU with 1 GiB more for each slot."""
        if self.max_memory is None or self.max_memory == self.memory:
            return 0
        return self.max_memory - self.memory + self.memory_slots * layout.GIB

    @property
    def resets(self) -> bool:
        """Whether a reset by the guest restarts the machine."""
        return self.firmware.kind is not FirmwareKind.PROBE if self.reboot is None else self.reboot

    @property
    def low_memory(self) -> int:
        """Bytes of RAM below 4 GiB, the rest is from there on."""
        return low_memory(self.machine_type, self.memory, self.max_ram_below_4g)

    @property
    def has_smm(self) -> bool:
        """Whether the machine has system management mode."""
        return self.smm is SystemManagement.ON or (self.smm is SystemManagement.AUTO and self.firmware.needs_smm)

    @property
    def has_secure_flash(self) -> bool:
        """Whether only system management mode may write the variable store."""
        return self.firmware.needs_smm if self.secure_flash is None else self.secure_flash

    @property
    def machine_type(self) -> MachineType:
        """The board: never AUTO."""
        return MachineType(self.firmware.machine) if self.machine is MachineType.AUTO else self.machine
