"""What a machine is made of, frozen: the one thing that the command line, Python and pytest all produce.

Everything that can be wrong before ``/dev/kvm`` is opened is found when a :class:`MachineConfig` is made, and raised as
:class:`vmm.errors.ConfigError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vmm import inputs, layout, options
from vmm.config.fields import DEFAULT_MAX_RESETS, DEFAULT_MEMORY, MachineFields
from vmm.config.interface import InterfaceChoice, check_options, choose
from vmm.config.parts import (
    MAX_CPUS,
    MAX_MEMORY,
    Accelerator,
    Dispatch,
    MachineType,
    Sandboxing,
    SystemManagement,
    Target,
    TargetKind,
    low_memory,
    parse_choice,
    parse_devices,
    parse_memory,
    several,
)
from vmm.config.spelled import SpelledOut
from vmm.errors import ConfigError
from vmm.firmware.images import NO_FIRMWARE, FirmwareImages, FirmwareKind, Interface, Layout
from vmm.firmware.load import find
from vmm.inputs import InputFile
from vmm.tables.boot_order import BootOptions, check_paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Unpack
    from uuid import UUID

    from vmm.config.debugger import DebugAddress
    from vmm.config.items import FwCfgItem, FwCtlItem
    from vmm.config.keywords import MachineOptions
    from vmm.config.option_roms import OptionRom
    from vmm.disks.drives import Drive
    from vmm.tables.acpi_user import UserTable
    from vmm.tables.e820 import E820Entry
    from vmm.tables.smbios_options import SmbiosOption

_TYPES = {
    **dict.fromkeys(("cpus", "max_cpus", "memory", "smbios_entry_point", "max_resets"), int),
    **dict.fromkeys(
        (
            "fwctl_extensions",
            "cpu_count",
            "hpet",
            "s3",
            "direct",
            "vmcoreinfo",
            "coalesced",
            "exit_times",
            "profile",
            "hold",
        ),
        bool,
    ),
    "firmware": FirmwareImages,
}
"""Fields that a Python caller could give in another type without an error anywhere."""


class MachineConfig(MachineFields):
    """A machine, described; :meth:`create` takes what people write, the fields are what it became.

    However one is made, with other fields by ``_replace`` too, it was checked.
    """

    __slots__ = ()

    def __new__(cls, *values: Any, **fields: Any) -> Self:
        """Check the fields; their order and names are those of the attributes.

        Raises:
            ConfigError: they make no sense, or not together.
            TypeError: one has a type that it can't have.
        """
        self = super().__new__(cls, *values, **fields)
        self._check()
        return self

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Self:  # type: ignore[override]  # mypy's own for tuples has no spelling
        return cls(*iterable)

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
        for name, kind in _TYPES.items():
            options.check_type(getattr(self, name), name, kind)
        if not 1 <= self.cpus <= MAX_CPUS:
            raise ConfigError(f"-smp {self.cpus}: a machine has from 1 to {MAX_CPUS} CPUs")
        if not self.cpus <= self.max_cpus <= MAX_CPUS:
            raise ConfigError(f"-smp {self.cpus},maxcpus={self.max_cpus}: maxcpus is from {self.cpus} to {MAX_CPUS}")
        for name in ("reboot", "secure_flash"):
            if getattr(self, name) is not None:
                options.check_type(getattr(self, name), name, bool)
        if self.max_resets < 1:
            raise ConfigError(f"--max-resets {self.max_resets}: must be 1 or more; -no-reboot ends at the first reset")
        self._check_firmware()
        if self.hold and self.gdb is None:
            raise ConfigError("-S lets the machine wait for a debugger; give it a place too: -s, or -gdb tcp::1234")
        self._check_memory()
        for item in self.fw_cfg:
            item.check()
        self._check_interface()
        if not self.hpet and self.machine_type is MachineType.BHYVE:
            raise ConfigError("-machine hpet=off: a bhyve machine has an HPET, which is its firmware's only clock")
        if self.s3 and (self.direct or self.machine_type is MachineType.BHYVE):
            raise ConfigError("-machine s3=on: for q35 and pc with firmware, which wakes the guest up")
        self._check_tables()
        self._check_kernel()
        if self.drives or self.vhost:
            from vmm.disks import drives

            drives.check_together(self.drives, self.vhost)
            if self.has_smm and self.shares_memory:
                raise ConfigError(
                    "-machine smm=on: not beside a qcow2 image or another device of another process, which could write "
                    "to the memory of that mode; smm=off does without, for firmware that can"
                )

    def _check_firmware(self) -> None:
        if self.has_smm and self.machine_type is not MachineType.Q35:
            raise ConfigError(
                f"-machine {self.machine_type},smm=on: only q35 has system management mode"
                if self.smm is SystemManagement.ON
                else f"{self.firmware.path}: the image needs system management mode (PiSmmCore is in its volumes), "
                f"which only q35 has; leave out -machine {self.machine_type}"
            )
        if self.firmware.needs_smm and not self.has_smm:
            raise ConfigError(
                f"{self.firmware.path}: the image needs system management mode (PiSmmCore is in its volumes): it would "
                "hang; leave out -machine smm=off, or boot an image built without, such as 'ovmf'"
            )
        if self.secure_flash and not self.has_smm:
            raise ConfigError("secure flash is written by system management mode alone; give -machine smm=on, too")

    def _check_memory(self) -> None:
        size = self.memory
        if size <= 0 or size % layout.MIB:
            raise ConfigError(f"-m: guest RAM is a positive number of whole MiB, not {size} bytes")
        if size > MAX_MEMORY:
            raise ConfigError(f"-m {size >> 20}M: more than the {MAX_MEMORY >> 40} TiB that a machine can have")
        if size < self.firmware.minimum_memory:
            who = "a machine without firmware" if self.direct else self.firmware.path.name
            raise ConfigError(f"-m {size >> 20}M: {who} needs {self.firmware.minimum_memory >> 20}M or more")
        most = self.max_ram_below_4g
        if most is not None and (most % layout.MIB or not self.firmware.minimum_memory <= most <= layout.FOUR_GIB):
            least = self.firmware.minimum_memory >> 20
            raise ConfigError(f"-machine max-ram-below-4g={most}: must be whole MiB, from {least}M to 4G")

    def _check_tables(self) -> None:
        if self.e820:
            from vmm.tables import e820

            e820.check_map(e820.build_map(self.low_memory, self.memory - self.low_memory, self.e820))
        if self.acpi_tables:
            from vmm.tables.acpi_user import check_signatures

            check_signatures(table.data for table in self.acpi_tables)
        if self.smbios_entry_point not in {32, 64}:
            raise ConfigError(f"-machine smbios-entry-point-type={self.smbios_entry_point}: must be 32 or 64")
        if self.smbios:
            from vmm.tables.smbios_options import check_together

            check_together(self.smbios)
        check_paths(self.bootorder)
        indices = {drive.bootindex for drive in self.drives} - {None}
        for rom in self.option_roms:
            if rom.bootindex in indices:
                raise ConfigError(f"-option-rom {rom.item.path}: bootindex={rom.bootindex} is another's already")
            indices |= {rom.bootindex} - {None}

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
        if self.append is not None and b"\0" in self.append:
            raise ConfigError(f"-append {self.append!r}: has a NUL, at which the kernel would stop reading")

    def _check_interface(self) -> None:
        options: tuple[tuple[str, tuple[FwCfgItem, ...] | tuple[FwCtlItem, ...]], ...]
        options = (("-fw_cfg", self.fw_cfg), ("-fwctl", self.fwctl))
        for option, items in options:
            names = [item.name for item in items]
            names += [rom.item.name for rom in self.option_roms if option == "-fw_cfg"]
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
        """Options that reach the guest only through fw_cfg, and whether they were given."""
        return {
            "-kernel": self.kernel is not None and not self.direct,
            "-acpitable": bool(self.acpi_tables),
            "-smbios": bool(self.smbios) and self.machine_type is not MachineType.BHYVE,
            "-e820": bool(self.e820),
            "-bootorder": bool(self.bootorder),
            "-option-rom": bool(self.option_roms),
            "-device bootindex=": any(drive.bootindex is not None for drive in self.drives)
            or any(device.bootindex is not None for device in self.vhost),
            "-device vmgenid": self.vmgenid is not None,
            "-device vmcoreinfo": self.vmcoreinfo,
        }

    @property
    def shares_memory(self) -> bool:
        """Whether another process serves a device, in the guest's memory."""
        return bool(self.vhost) or any(drive.served for drive in self.drives)

    @property
    def input_files(self) -> Iterator[tuple[str, Path]]:
        """Every file that the machine reads, with the option that names it."""
        yield "the firmware", self.firmware.path
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
            ("-kernel", self.option_rom),
            ("-initrd", self.initrd),
            ("-boot splash=", self.boot.splash),
        ):
            if file is not None:
                yield option, file.path
        for table in self.acpi_tables:
            yield from (("-acpitable", path) for path in table.paths)
        for drive in self.drives:
            yield drive.option, drive.path
        for structure in self.smbios:
            yield from (("-smbios", path) for path in structure.paths)

    @property
    def interface_choice(self) -> InterfaceChoice:
        """What answers at ports 0x510 and 0x511, never AUTO, and why."""
        return choose(self.firmware, self.interface)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What had to be repaired in the user's ACPI tables, one line each."""
        return tuple(warning for table in self.acpi_tables for warning in table.warnings)

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

    @classmethod
    def create(cls, firmware: FirmwareImages | str | Path, **options: Unpack[MachineOptions]) -> Self:
        """Return the machine that these words describe.

        ``firmware`` is ``ovmf``, ``seabios``, ``bhyve``, ``probe``, a path, or loaded images; ``none`` goes with
        ``direct``. `vmm.config.keywords.MachineOptions` says what the keywords mean.

        Raises:
            ConfigError: any of these makes no sense, or names a file that is unusable.
            TypeError: an option that there is not, or a value of another type.
        """
        known = cls._create.__kwdefaults__ or {}
        for name in options.keys() - known.keys():
            from vmm.legible import suggestion

            near = suggestion(name, [*known])
            raise TypeError(f"a machine has no option {name!r}{near and f'; did you mean {near}?'}")
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        return cls._create(firmware, **given)

    @classmethod
    def _create(
        cls,
        firmware: FirmwareImages | str | Path,
        *,
        variables: str | Path | None = None,
        persist: bool | None = None,
        cpus: int = 1,
        max_cpus: int | None = None,
        memory: str | int = DEFAULT_MEMORY,
        max_ram_below_4g: str | int | None = None,
        machine: MachineType | str = MachineType.AUTO,
        fwcfg: Interface | str = Interface.AUTO,
        fw_cfg: Mapping[str, bytes | str | Path] | Sequence[FwCfgItem | str] | str = (),
        fwctl: Mapping[str, Any] | Sequence[FwCtlItem | str] | str = (),
        fwctl_extensions: bool = False,
        cpu_count: bool = True,
        hpet: bool = True,
        s3: bool = False,
        smm: SystemManagement | str = SystemManagement.AUTO,
        secure_flash: bool | None = None,
        uuid: UUID | str | None = None,
        serial: Target | str = "none",
        debugcon: Target | str = "none",
        boot: BootOptions | str | None = None,
        kernel: str | Path | InputFile | None = None,
        initrd: str | Path | InputFile | None = None,
        append: str | bytes | None = None,
        direct: bool = False,
        acpi_tables: Iterable[UserTable | bytes | Path | str] | UserTable | bytes | Path | str = (),
        smbios: Iterable[SmbiosOption | Mapping[str, Any] | bytes | str] | SmbiosOption | str = (),
        smbios_entry_point: int = 32,
        e820: Iterable[E820Entry | str] | E820Entry | str = (),
        bootorder: Iterable[str] | str = (),
        option_roms: Iterable[OptionRom | Path | str] | OptionRom | Path | str = (),
        devices: Iterable[str] | str = (),
        drives: Iterable[Drive | Path | str] | Drive | Path | str = (),
        chardevs: Iterable[str] | str = (),
        esp: str | Path | None = None,
        reboot: bool | None = None,
        max_resets: int = DEFAULT_MAX_RESETS,
        accel: Accelerator | str = Accelerator.AUTO,
        coalesced: bool = True,
        dispatch: Dispatch | str = Dispatch.C,
        exit_times: bool = False,
        profile: bool = False,
        trace: str | Path | None = None,
        sandbox: Sandboxing | str = Sandboxing.OFF,
        user: str | None = None,
        gdb: DebugAddress | str | None = None,
        hold: bool = False,
    ) -> Self:
        # First what needs no file, then the files: one may be a pipe that makes us wait.
        fields: dict[str, Any] = {
            "cpus": cpus,
            "max_cpus": cpus if max_cpus is None else max_cpus,
            "memory": parse_memory(memory),
            "max_ram_below_4g": None
            if max_ram_below_4g is None
            else options.parse_size(max_ram_below_4g, "-machine max-ram-below-4g="),
            "machine": parse_choice(MachineType, machine, "-machine"),
            "interface": parse_choice(Interface, fwcfg, "fwcfg="),
            "fwctl_extensions": fwctl_extensions,
            "cpu_count": cpu_count,
            "hpet": hpet,
            "s3": s3,
            "smm": parse_choice(SystemManagement, smm, "-machine smm="),
            "secure_flash": secure_flash,
            "uuid": None if uuid is None else options.parse_uuid(uuid).bytes,
            "serial": Target.parse(serial, "-serial"),
            "debugcon": Target.parse(debugcon, "-debugcon"),
            "append": _bytes(append, "append"),
            "direct": direct,
            "smbios_entry_point": smbios_entry_point,
            "bootorder": several(bootorder, "bootorder", str),
            "reboot": reboot,
            "max_resets": max_resets,
            "accel": parse_choice(Accelerator, accel, "-accel"),
            "coalesced": coalesced,
            "dispatch": parse_choice(Dispatch, dispatch, "--dispatch"),
            "exit_times": exit_times,
            "profile": profile,
            "trace": None if trace is None else str(trace),
            "sandbox": parse_choice(Sandboxing, sandbox, "sandbox"),
            "user": user,
            "gdb": gdb,
            "hold": hold,
        }
        shown = several(devices, "devices", str)
        if drives or any(text.removeprefix("driver=").startswith("virtio-blk") for text in shown):
            from vmm.disks.drives import Drive, is_disk, parse_drives

            given = several(drives, "drives", str, Path, Drive)
            fields["drives"] = parse_drives(given, filter(is_disk, shown))
            shown = tuple(text for text in shown if not is_disk(text))
        if chardevs or any(text.removeprefix("driver=").startswith("vhost-user-") for text in shown):
            from vmm.vhost.devices import is_vhost_user, parse_vhost_devices

            fields["vhost"] = parse_vhost_devices(several(chardevs, "chardevs", str), filter(is_vhost_user, shown))
            shown = tuple(text for text in shown if not is_vhost_user(text))
        if esp is not None:
            from vmm.disks.drives import Drive

            options.check_type(esp, "esp", str, Path)
            fields["drives"] = (Drive(Path(esp), folder=True), *fields.get("drives", ()))
        fields |= parse_devices(shown)
        if e820:
            from vmm.tables.e820 import E820Entry

            fields["e820"] = tuple(map(E820Entry.parse, several(e820, "e820", str, E820Entry)))
        if isinstance(gdb, str):
            from vmm.config.debugger import DebugAddress

            fields["gdb"] = DebugAddress.parse(gdb)
        if isinstance(firmware, FirmwareImages):
            if variables is not None or persist is not None:
                raise TypeError("loaded images have their variables: name these where the images are loaded")
        else:
            options.check_type(firmware, "firmware", str, Path)
            if variables is not None:
                options.check_type(variables, "variables", str, Path)
            own = None if variables is None else Path(variables)
            keep = own is not None if persist is None else persist
            firmware = NO_FIRMWARE if firmware == "none" else find(firmware, own, persist=keep)
        if smbios:
            from vmm.tables.smbios_options import SmbiosOption

            given = several(smbios, "smbios", str, bytes, Mapping, SmbiosOption)
            fields["smbios"] = tuple(map(SmbiosOption.parse, given))
            for option in fields["smbios"]:
                # As in QEMU it is the machine's, in fw_cfg too.
                fields["uuid"] = dict(option.fields).get("uuid", fields["uuid"])
        if acpi_tables:
            from vmm.tables.acpi_user import UserTable

            given = several(acpi_tables, "acpi_tables", str, bytes, Path, UserTable)
            fields["acpi_tables"] = tuple(map(UserTable.parse, given))
        if fw_cfg:
            from vmm.config.items import fw_cfg_items

            fields["fw_cfg"] = fw_cfg_items(fw_cfg)
        if option_roms:
            from vmm.config.option_roms import OptionRom

            given = several(option_roms, "option_roms", str, Path, OptionRom)
            fields["option_roms"] = tuple(map(OptionRom.parse, given))
        if fwctl:
            from vmm.config.items import fwctl_items

            fields["fwctl"] = fwctl_items(fwctl)
        fields["kernel"] = _input_file(kernel, "-kernel")
        if fields["kernel"] is not None and firmware.kind is FirmwareKind.SEABIOS:
            from vmm.config.option_rom import option_rom_for

            fields["option_rom"] = option_rom_for(fields["kernel"])
        return cls(
            firmware,
            boot=BootOptions() if boot is None else BootOptions.parse(boot),
            initrd=_input_file(initrd, "-initrd"),
            **fields,
        )


def _bytes(value: str | bytes | None, name: str) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    options.check_type(value, name, str, bytes)
    return options.typed_bytes(value)


def _input_file(value: str | Path | InputFile | None, option: str) -> InputFile | None:
    if value is None or isinstance(value, InputFile):
        return value
    options.check_type(value, option, str, Path)
    return inputs.load_file(Path(value), option)


MachineConfig.create.__func__.__wrapped__ = SpelledOut(MachineConfig.create.__func__)  # type: ignore[attr-defined]

__all__ = [
    "Accelerator",
    "BootOptions",
    "Dispatch",
    "FirmwareImages",
    "FirmwareKind",
    "Interface",
    "InterfaceChoice",
    "Layout",
    "MachineConfig",
    "MachineType",
    "Target",
    "TargetKind",
]
