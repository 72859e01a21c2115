"""What a machine is made of, frozen: the one thing that the command line, Python and pytest all produce.

Everything that can be wrong before ``/dev/kvm`` is opened is found when a :class:`MachineConfig` is made, and raised as
:class:`vmm.errors.ConfigError`.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmm import inputs, options
from vmm.config.checks import check
from vmm.config.fields import DEFAULT_MAX_RESETS, DEFAULT_MEMORY, MachineFields
from vmm.config.interface import InterfaceChoice
from vmm.config.parts import (
    Accelerator,
    Clock,
    Dispatch,
    MachineType,
    Sandboxing,
    SystemManagement,
    Target,
    TargetKind,
    parse_choice,
    parse_devices,
    parse_memory,
    several,
)
from vmm.config.spelled import SpelledOut
from vmm.config.topology import Topology
from vmm.errors import ConfigError
from vmm.firmware.images import NO_FIRMWARE, FirmwareImages, FirmwareKind, Interface, Layout
from vmm.firmware.load import find
from vmm.inputs import InputFile
from vmm.tables.boot_order import BootOptions
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import Any, Self, Unpack
    from uuid import UUID

    from vmm.config.cpu_model import CpuModel
    from vmm.config.debugger import DebugAddress
    from vmm.config.items import FwCfgItem, FwCtlItem
    from vmm.config.keywords import MachineOptions
    from vmm.config.numa import Numa, NumaNode
    from vmm.config.option_roms import OptionRom
    from vmm.disks.drives import Drive
    from vmm.tables.acpi_user import UserTable
    from vmm.tables.e820 import E820Entry
    from vmm.tables.smbios_options import SmbiosOption


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
        check(self)
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
        cpus: int | None = None,
        max_cpus: int | None = None,
        topology: Topology | str | None = None,
        cpu: CpuModel | str | None = None,
        numa: Numa | Iterable[NumaNode | str] | NumaNode | str = (),
        objects: Iterable[str] | str = (),
        hmat: bool = False,
        memory: str | int = DEFAULT_MEMORY,
        max_memory: str | int | None = None,
        memory_slots: int | None = None,
        max_ram_below_4g: str | int | None = None,
        machine: MachineType | str = MachineType.AUTO,
        fwcfg: Interface | str = Interface.AUTO,
        fw_cfg: Mapping[str, bytes | str | Path] | Sequence[FwCfgItem | str] | str = (),
        fwctl: Mapping[str, Any] | Sequence[FwCtlItem | str] | str = (),
        fwctl_extensions: bool = False,
        cpu_count: bool = True,
        hpet: bool = True,
        s3: bool = False,
        acpi: bool = True,
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
        dsdt: UserTable | bytes | Path | str | None = None,
        smbios: Iterable[SmbiosOption | Mapping[str, Any] | bytes | str] | SmbiosOption | str = (),
        smbios_entry_point: int = 32,
        e820: Iterable[E820Entry | str] | E820Entry | str = (),
        bootorder: Iterable[str] | str = (),
        option_roms: Iterable[OptionRom | Path | str] | OptionRom | Path | str = (),
        devices: Iterable[str] | str = (),
        drives: Iterable[Drive | Path | str] | Drive | Path | str = (),
        chardevs: Iterable[str] | str = (),
        netdevs: Iterable[str] | str = (),
        esp: str | Path | None = None,
        reboot: bool | None = None,
        max_resets: int = DEFAULT_MAX_RESETS,
        accel: Accelerator | str = Accelerator.AUTO,
        clock: Clock | str = Clock.HOST,
        record: str | Path | None = None,
        replay: str | Path | InputFile | None = None,
        coalesced: bool = True,
        dispatch: Dispatch | str = Dispatch.C,
        exit_times: bool = False,
        profile: bool = False,
        coverage: bool = False,
        trace: str | Path | None = None,
        sandbox: Sandboxing | str = Sandboxing.OFF,
        user: str | None = None,
        gdb: DebugAddress | str | None = None,
        hold: bool = False,
        symbols: str | Path | None = None,
    ) -> Self:
        # First what needs no file, then the files: one may be a pipe that makes us wait.
        if topology is not None:
            cpus, max_cpus, topology = Topology.parse(topology, cpus, max_cpus)
        cpus = 1 if cpus is None else cpus
        if topology == Topology(cores=cpus if max_cpus is None else max_cpus):
            topology = None  # as if nobody had said so
        size, most, slots = parse_memory(memory, max_memory, memory_slots)
        fields: dict[str, Any] = {
            "cpus": cpus,
            "max_cpus": cpus if max_cpus is None else max_cpus,
            "topology": topology,
            "memory": DEFAULT_MEMORY if size is None else size,
            "max_memory": most,
            "memory_slots": slots,
            "max_ram_below_4g": None
            if max_ram_below_4g is None
            else options.parse_size(max_ram_below_4g, "-machine max-ram-below-4g="),
            "machine": parse_choice(MachineType, machine, "-machine"),
            "interface": parse_choice(Interface, fwcfg, "fwcfg="),
            "fwctl_extensions": fwctl_extensions,
            "cpu_count": cpu_count,
            "hpet": hpet,
            "s3": s3,
            "acpi": acpi,
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
            "clock": parse_choice(Clock, clock, "--clock"),
            "record": None if record is None else str(record),
            "coalesced": coalesced,
            "dispatch": parse_choice(Dispatch, dispatch, "--dispatch"),
            "exit_times": exit_times,
            "profile": profile,
            "coverage": coverage,
            "trace": None if trace is None else str(trace),
            "sandbox": parse_choice(Sandboxing, sandbox, "sandbox"),
            "user": user,
            "gdb": gdb,
            "hold": hold,
            "symbols": symbols_from(symbols),
        }
        shown = several(devices, "devices", str)
        drivers = {options.implied_value(text, "driver") for text in shown}
        if drives or any(driver.startswith("virtio-blk") for driver in drivers):
            from pathlib import Path

            from vmm.disks.drives import Drive, is_disk, parse_drives

            given = several(drives, "drives", str, Path, Drive)
            fields["drives"] = parse_drives(given, filter(is_disk, shown))
            shown = tuple(text for text in shown if not is_disk(text))
        others = ("vhost-user-", "virtio-net")
        if chardevs or netdevs or any(driver.startswith(others) for driver in drivers):
            from vmm.vhost.devices import is_vhost_user, parse_vhost_devices

            sockets, networks = several(chardevs, "chardevs", str), several(netdevs, "netdevs", str)
            fields["vhost"] = parse_vhost_devices(sockets, filter(is_vhost_user, shown), networks)
            shown = tuple(text for text in shown if not is_vhost_user(text))
        if esp is not None:
            from pathlib import Path

            from vmm.disks.drives import Drive

            options.check_type(esp, "esp", str, Path)
            fields["drives"] = (Drive(Path(esp), folder=True), *fields.get("drives", ()))
        virtual = fields["clock"] is Clock.VIRTUAL
        if virtual and fields["accel"] is Accelerator.AUTO:
            fields["accel"] = Accelerator.SOFTCPU
        fields |= parse_devices(shown, repeatable=virtual)
        if cpu is not None:
            from vmm.config.cpu_model import CpuModel

            fields["cpu"] = CpuModel.parse(cpu)
        if objects and not numa:
            raise ConfigError("-object: memory backends are for -numa node,memdev=ID; without -numa, -m says it all")
        if not numa and most not in {None, fields["memory"]}:
            numa = "node"  # as in QEMU: guests take no more memory where an SRAT does not say that it may come
        if numa:
            from vmm.config.numa import Numa

            arranged = Topology(cores=fields["max_cpus"]) if topology is None else topology
            nodes = Numa.parse(numa, arranged, several(objects, "objects", str), hmat=hmat)
            fields["numa"] = nodes.completed(arranged, fields["memory"])
        elif hmat:
            raise ConfigError("-machine hmat=on: the HMAT is about NUMA nodes; give -numa node, or leave it out")
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
            for name, file in (("firmware", firmware), ("variables", variables)):
                if file is not None and not isinstance(file, str):
                    from pathlib import Path

                    options.check_type(file, name, str, Path)
            keep = variables is not None if persist is None else persist
            firmware = NO_FIRMWARE if firmware == "none" else find(firmware, variables, persist=keep)
        if smbios:
            from vmm.tables.smbios_options import SmbiosOption

            given = several(smbios, "smbios", str, bytes, Mapping, SmbiosOption)
            fields["smbios"] = tuple(map(SmbiosOption.parse, given))
            for option in fields["smbios"]:
                # As in QEMU it is the machine's, in fw_cfg too.
                fields["uuid"] = dict(option.fields).get("uuid", fields["uuid"])
        if acpi_tables:
            from pathlib import Path

            from vmm.tables.acpi_user import UserTable

            given = several(acpi_tables, "acpi_tables", str, bytes, Path, UserTable)
            fields["acpi_tables"] = tuple(map(UserTable.parse, given))
        if dsdt is not None:
            from pathlib import Path

            from vmm.tables.acpi_user import UserTable, read_dsdt

            options.check_type(dsdt, "dsdt", str, bytes, Path, UserTable)
            fields["dsdt"] = read_dsdt(dsdt)
        if fw_cfg:
            from vmm.config.items import fw_cfg_items

            fields["fw_cfg"] = fw_cfg_items(fw_cfg)
        if option_roms:
            from pathlib import Path

            from vmm.config.option_roms import OptionRom

            given = several(option_roms, "option_roms", str, Path, OptionRom)
            fields["option_roms"] = tuple(map(OptionRom.parse, given))
        if fwctl:
            from vmm.config.items import fwctl_items

            fields["fwctl"] = fwctl_items(fwctl)
        fields["kernel"] = _input_file(kernel, "-kernel")
        if fields["kernel"] is not None and firmware.kind is FirmwareKind.SEABIOS:
            from vmm.config.kernel_rom import kernel_rom_for

            fields["kernel_rom"] = kernel_rom_for(fields["kernel"])
        return cls(
            firmware,
            boot=BootOptions() if boot is None else BootOptions.parse(boot),
            initrd=_input_file(initrd, "-initrd"),
            replay=_input_file(replay, "--replay"),
            **fields,
        )


def _bytes(value: str | bytes | None, name: str) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    options.check_type(value, name, str, bytes)
    return options.typed_bytes(value)


def symbols_from(value: str | Path | None) -> Path | None:
    """The folder with symbols that a user names, absolute.

    Raises:
        ConfigError: it is no folder.
        TypeError: it is no path.
    """
    if value is None:
        return None
    from pathlib import Path

    options.check_type(value, "--symbols", str, Path)
    path = Path(value)
    if not path.is_dir():
        raise ConfigError(f"--symbols {value}: not a folder")
    return path.resolve()


def _input_file(value: str | Path | InputFile | None, option: str) -> InputFile | None:
    if value is None or isinstance(value, InputFile):
        return value
    from pathlib import Path

    options.check_type(value, option, str, Path)
    return inputs.load_file(value, option)


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
