"""What a machine is made of, frozen: the one thing that the command line, Python and pytest all produce.

Everything that can be wrong before ``/dev/kvm`` is opened is found when a :class:`MachineConfig` is made, and raised as
:class:`vmm.errors.ConfigError`. Sizes are in bytes unless a name says otherwise.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from vmm.config.interface import InterfaceChoice, check_options, choose
from vmm.config.parts import (
    MAX_CPUS,
    Accelerator,
    Dispatch,
    FwCfgItem,
    FwCtlItem,
    MachineType,
    PflashDrive,
    Target,
    TargetKind,
    check_readable,
    parse_choice,
    parse_cpu_count,
    parse_memory,
    parse_uuid,
)
from vmm.errors import ConfigError
from vmm.firmware.images import NO_FIRMWARE, FirmwareImages, FirmwareKind, Interface, Layout
from vmm.firmware.load import find
from vmm.options import parse_keys, parse_pairs
from vmm.tables.boot_order import BootOptions, check_paths

if TYPE_CHECKING:
    from uuid import UUID

DEFAULT_MEMORY = 256 << 20


class MachineConfig(NamedTuple):
    """A machine, described; :meth:`create` takes what people write and checks it, the fields are what it became."""

    firmware: FirmwareImages
    cpus: int = 1
    max_cpus: int = 1
    memory: int = DEFAULT_MEMORY
    machine: MachineType = MachineType.AUTO
    interface: Interface = Interface.AUTO
    fw_cfg: tuple[FwCfgItem, ...] = ()
    fwctl: tuple[FwCtlItem, ...] = ()
    fwctl_extensions: bool = False
    """Answer fwctl's NULL, ECHO and SET, which bhyve itself refuses."""
    cpu_count: bool = True
    """Offer the number of CPUs as bhyve does: fwctl's hw.ncpu, or opt/bhyve/hw.ncpu in fw_cfg of a bhyve machine."""
    uuid: bytes | None = None
    """16 bytes, in the order in which a UUID is written (RFC 4122)."""
    serial: Target = Target()
    debugcon: Target = Target()
    boot: BootOptions = BootOptions()
    kernel: Path | None = None
    initrd: Path | None = None
    append: str | None = None
    direct: bool = False
    """Start the kernel without firmware."""
    acpi_tables: tuple[str, ...] = ()
    """What stood behind each ``-acpitable``."""
    smbios: tuple[str, ...] = ()
    """What stood behind each ``-smbios``."""
    smbios_entry_point: int = 32
    """32: SMBIOS 2.8 with an entry point of 32 bits; 64: SMBIOS 3.0."""
    e820: tuple[str, ...] = ()
    """What stood behind each ``-e820``."""
    bootorder: tuple[str, ...] = ()
    """OpenFirmware paths, the first to boot first."""
    vmgenid: bytes | None = None
    """The VM generation id, 16 bytes in GUID order; None: the machine has no such device."""
    vmcoreinfo: bool = False
    """Let the guest's kernel leave the address of its crash notes in etc/vmcoreinfo."""
    accel: Accelerator = Accelerator.AUTO
    dispatch: Dispatch = Dispatch.C
    exit_times: bool = False
    """Time every exit and device access; `vmm.run.exit_times` is what comes of it."""
    trace: str | None = None
    """Where the access log goes: a path, or "-" for stderr."""

    def __repr__(self) -> str:
        """What differs from the defaults."""
        defaults = self._field_defaults
        fields = (
            f"{name}={value!r}"
            for name, value in zip(self._fields, self, strict=True)
            if name not in defaults or value != defaults[name]
        )
        return f"MachineConfig({', '.join(fields)})"

    def _check(self) -> None:
        if not 1 <= self.cpus <= MAX_CPUS:
            raise ConfigError(f"-smp {self.cpus}: a machine has from 1 to {MAX_CPUS} CPUs")
        if not self.cpus <= self.max_cpus <= MAX_CPUS:
            raise ConfigError(f"-smp {self.cpus},maxcpus={self.max_cpus}: maxcpus is from {self.cpus} to {MAX_CPUS}")
        parse_memory(self.memory)
        for item in self.fw_cfg:
            item.check()
        if self.memory < self.firmware.minimum_memory:
            least = self.firmware.minimum_memory >> 20
            raise ConfigError(f"-m {self.memory >> 20}M: {self.firmware.path.name} needs {least}M or more")
        self._check_interface()
        check_tables(self)
        self._check_kernel()

    def _check_kernel(self) -> None:
        if self.direct != (self.firmware.kind is FirmwareKind.NONE):
            raise ConfigError(
                f"-direct starts the kernel without firmware; leave out {self.firmware.path}"
                if self.direct
                else "a machine without firmware starts nothing but a kernel: -direct -kernel PATH"
            )
        if self.direct and self.kernel is None:
            raise ConfigError("-direct starts a kernel; give -kernel PATH too")
        if self.direct and (self.interface_choice.interface is Interface.BHYVE or self.machine_type == "bhyve"):
            raise ConfigError("-direct is for the machines q35 and pc with fw_cfg, from which it takes the tables")
        if self.kernel is None and (self.initrd is not None or self.append is not None):
            raise ConfigError("-initrd and -append belong to a kernel; give -kernel PATH too")
        files = ((self.kernel, "-kernel"), (self.initrd, "-initrd"), (self.boot.splash, "-boot splash"))
        for path, option in files:
            if path is not None:
                check_readable(path, option)

    def _check_interface(self) -> None:
        options: tuple[tuple[str, tuple[FwCfgItem, ...] | tuple[FwCtlItem, ...]], ...]
        options = (("-fw_cfg", self.fw_cfg), ("-fwctl", self.fwctl))
        for option, items in options:
            names = [item.name for item in items]
            for name in names:
                if names.count(name) > 1:
                    raise ConfigError(f"{option} name={name}: the name is given twice")
        fw_cfg = [f"-fw_cfg name={item.name}" for item in self.fw_cfg]
        fw_cfg += [option for option, given in self._carried_by_fw_cfg().items() if given]
        fwctl = [f"-fwctl name={item.name}" for item in self.fwctl]
        fwctl += ["fwctl-ext=on"] if self.fwctl_extensions else []
        if fw_cfg or fwctl:
            check_options(self.interface_choice, fw_cfg, fwctl)

    def _carried_by_fw_cfg(self) -> dict[str, bool]:
        """Options that reach the guest through fw_cfg alone, and whether they were given."""
        return {
            "-kernel": self.kernel is not None and not self.direct,
            "-acpitable": bool(self.acpi_tables),
            "-smbios": bool(self.smbios) and self.machine_type is not MachineType.BHYVE,
            "-e820": bool(self.e820),
            "-bootorder": bool(self.bootorder),
            "-device vmgenid": self.vmgenid is not None,
            "-device vmcoreinfo": self.vmcoreinfo,
        }

    @property
    def input_files(self) -> Iterator[tuple[str, Path]]:
        """Every file that the machine reads, with the option that names it."""
        yield "the firmware", self.firmware.path
        if self.firmware.variables is not None:
            yield "the variable store", self.firmware.variables.path
        for item in self.fw_cfg:
            if item.path is not None:
                yield f"-fw_cfg {item.name}", item.path
        for option, path in (("-kernel", self.kernel), ("-initrd", self.initrd), ("-boot splash=", self.boot.splash)):
            if path is not None:
                yield option, path
        for option, texts in (("-acpitable", self.acpi_tables), ("-smbios", self.smbios)):
            for text in texts:
                for key, value in parse_pairs(text, option):
                    if key in {"file", "data", "path"}:
                        yield from ((option, Path(name)) for name in value.split(":"))

    @property
    def interface_choice(self) -> InterfaceChoice:
        """What answers at ports 0x510 and 0x511, never AUTO, and why."""
        return choose(self.firmware, self.interface)

    @property
    def machine_type(self) -> MachineType:
        """The board: never AUTO."""
        return MachineType(self.firmware.machine) if self.machine is MachineType.AUTO else self.machine

    @classmethod
    def create(
        cls,
        firmware: FirmwareImages | str | Path,
        *,
        variables: str | Path | None = None,
        persist: bool = True,
        cpus: int = 1,
        max_cpus: int | None = None,
        memory: str | int = DEFAULT_MEMORY,
        machine: MachineType | str = MachineType.AUTO,
        fwcfg: Interface | str = Interface.AUTO,
        fw_cfg: Mapping[str, bytes | str | Path] | Sequence[FwCfgItem] = (),
        fwctl: Mapping[str, Any] | Sequence[FwCtlItem] = (),
        fwctl_extensions: bool = False,
        cpu_count: bool = True,
        uuid: "UUID | str | None" = None,
        serial: Target | str = "none",
        debugcon: Target | str = "none",
        boot: BootOptions | str | None = None,
        kernel: str | Path | None = None,
        initrd: str | Path | None = None,
        append: str | None = None,
        direct: bool = False,
        acpi_tables: Iterable[str] = (),
        smbios: Iterable[str] = (),
        smbios_entry_point: int = 32,
        e820: Iterable[str] = (),
        bootorder: Iterable[str] = (),
        devices: Iterable[str] = (),
        accel: Accelerator | str = Accelerator.AUTO,
        dispatch: Dispatch | str = Dispatch.C,
        exit_times: bool = False,
        trace: str | Path | None = None,
    ) -> Self:
        """Return the machine that these words describe.

        ``firmware`` is ``ovmf``, ``seabios``, ``bhyve``, ``probe``, a path, or loaded images; ``none`` goes with
        ``direct``. `vmm.config.keywords.MachineOptions` says what the keywords mean.

        Raises:
            ConfigError: any of these makes no sense, or names a file that is unusable.
        """
        if not isinstance(firmware, FirmwareImages):
            own = None if variables is None else Path(variables)
            firmware = NO_FIRMWARE if firmware == "none" else find(firmware, own, persist=persist and own is not None)
        count = parse_cpu_count(cpus, "-smp")
        items: Iterable[FwCfgItem] = (
            [_fw_cfg_item(name, value) for name, value in fw_cfg.items()] if isinstance(fw_cfg, Mapping) else fw_cfg
        )
        config = cls(
            firmware=firmware,
            cpus=count,
            max_cpus=count if max_cpus is None else max_cpus,
            memory=parse_memory(memory),
            machine=parse_choice(MachineType, machine, "-machine"),
            interface=parse_choice(Interface, fwcfg, "fwcfg="),
            fw_cfg=tuple(items),
            fwctl=tuple(FwCtlItem(*pair) for pair in fwctl.items()) if isinstance(fwctl, Mapping) else tuple(fwctl),
            fwctl_extensions=fwctl_extensions,
            cpu_count=cpu_count,
            uuid=None if uuid is None else parse_uuid(uuid).bytes,
            serial=Target.parse(serial, "-serial"),
            debugcon=Target.parse(debugcon, "-debugcon"),
            boot=BootOptions() if boot is None else BootOptions.parse(boot),
            kernel=None if kernel is None else Path(kernel),
            initrd=None if initrd is None else Path(initrd),
            append=append,
            direct=direct,
            acpi_tables=tuple(acpi_tables),
            smbios=tuple(smbios),
            smbios_entry_point=smbios_entry_point,
            e820=tuple(e820),
            bootorder=tuple(bootorder),
            **_devices(devices),
            accel=parse_choice(Accelerator, accel, "-accel"),
            dispatch=parse_choice(Dispatch, dispatch, "--dispatch"),
            exit_times=exit_times,
            trace=None if trace is None else str(trace),
        )
        config._check()  # the other half of the constructor
        return config


def check_tables(config: MachineConfig) -> None:
    """Read the texts that become tables.

    Raises:
        ConfigError: one of them makes no sense, or names a file that is unusable.
    """
    if config.e820:
        from vmm.tables.e820 import parse_entry  # noqa: PLC0415  # few machines have these, and all start faster so

        for text in config.e820:
            parse_entry(text)
    if config.acpi_tables:
        from vmm.tables.acpi_user import check_signatures, parse_acpitable  # noqa: PLC0415

        check_signatures(parse_acpitable(text).data for text in config.acpi_tables)
    if config.smbios_entry_point not in {32, 64}:
        raise ConfigError(f"-machine smbios-entry-point-type={config.smbios_entry_point}: must be 32 or 64")
    if config.smbios:
        from vmm.tables.smbios_options import parse_smbios  # noqa: PLC0415

        for text in config.smbios:
            parse_smbios(text)
    check_paths(config.bootorder)


def _devices(texts: Iterable[str]) -> dict[str, Any]:
    """Return the fields that ``-device`` texts set.

    Raises:
        ConfigError: no such device, or a bad property.
    """
    fields: dict[str, Any] = {}
    for text in texts:
        keys = parse_keys(text, "-device", known=("driver", "guid", "id"), implied="driver")
        driver = keys.get("driver")
        if driver not in {"vmgenid", "vmcoreinfo"}:
            raise ConfigError(f"-device {text}: no such device here; known are vmgenid and vmcoreinfo")
        if driver in fields:
            raise ConfigError(f"-device {driver}: a machine has one at the most")
        if driver == "vmgenid":
            from uuid import uuid4  # noqa: PLC0415  # see check_tables

            guid = keys.get("guid", "auto")
            generation = uuid4() if guid == "auto" else parse_uuid(guid, "-device vmgenid,guid=")
            fields[driver] = generation.bytes_le
        elif "guid" in keys:
            raise ConfigError(f"-device {text}: vmcoreinfo has no guid")
        else:
            fields[driver] = True
    return fields


def _fw_cfg_item(name: str, value: bytes | str | Path) -> FwCfgItem:
    if isinstance(value, Path):
        return FwCfgItem(name, path=value)
    if isinstance(value, int):
        raise TypeError(f"fw_cfg item {name}: bytes, str or a Path; an integer has no width: {value!r}.to_bytes(…)")
    return FwCfgItem(name, value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value))


__all__ = [
    "Accelerator",
    "BootOptions",
    "Dispatch",
    "FirmwareImages",
    "FirmwareKind",
    "FwCfgItem",
    "FwCtlItem",
    "Interface",
    "InterfaceChoice",
    "Layout",
    "MachineConfig",
    "MachineType",
    "PflashDrive",
    "Target",
    "TargetKind",
]
