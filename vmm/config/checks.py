"""What can be wrong with a machine's description, in one field or in several together."""

from __future__ import annotations

from vmm import layout, options
from vmm.config.interface import check_options
from vmm.config.parts import (
    MAX_ADDRESS,
    MAX_MEMORY,
    MAX_MEMORY_SLOTS,
    Accelerator,
    Clock,
    MachineType,
    SystemManagement,
)
from vmm.config.topology import MAX_CPUS
from vmm.errors import ConfigError
from vmm.firmware.images import FirmwareImages, FirmwareKind, Interface
from vmm.tables.boot_order import check_paths
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.config.fields import MachineFields
    from vmm.config.items import FwCfgItem, FwCtlItem

_TYPES = {
    **dict.fromkeys(("cpus", "max_cpus", "memory", "memory_slots", "smbios_entry_point", "max_resets"), int),
    **dict.fromkeys(
        (
            "fwctl_extensions",
            "cpu_count",
            "hpet",
            "s3",
            "acpi",
            "direct",
            "vmcoreinfo",
            "coalesced",
            "exit_times",
            "profile",
            "coverage",
            "hold",
        ),
        bool,
    ),
    "firmware": FirmwareImages,
}
"""Fields that a Python caller could give in another type without an error anywhere."""


def check(config: MachineFields) -> None:
    """Refuse a description that makes no sense, before ``/dev/kvm`` is opened.

    Raises:
        ConfigError: a field makes no sense, or not together with another.
        TypeError: one has a type that it can't have.
    """
    for name, kind in _TYPES.items():
        options.check_type(getattr(config, name), name, kind)
    if not 1 <= config.cpus <= MAX_CPUS:
        raise ConfigError(f"-smp {config.cpus}: a machine has from 1 to {MAX_CPUS} CPUs")
    if not config.cpus <= config.max_cpus <= MAX_CPUS:
        raise ConfigError(f"-smp {config.cpus},maxcpus={config.max_cpus}: maxcpus is from {config.cpus} to {MAX_CPUS}")
    if config.topology is not None:
        config.topology.check(config.cpus, config.max_cpus)
    if config.cpu is not None:
        config.cpu.check()
    for name in ("reboot", "secure_flash"):
        if getattr(config, name) is not None:
            options.check_type(getattr(config, name), name, bool)
    if config.max_resets < 1:
        raise ConfigError(f"--max-resets {config.max_resets}: must be 1 or more; -no-reboot ends at the first reset")
    _check_firmware(config)
    if config.hold and config.gdb is None:
        raise ConfigError("-S lets the machine wait for a debugger; give it a place too: -s, or -gdb tcp::1234")
    _check_memory(config)
    _check_room(config)
    for item in config.fw_cfg:
        item.check()
    _check_interface(config)
    if not config.hpet and config.machine_type is MachineType.BHYVE:
        raise ConfigError("-machine hpet=off: a bhyve machine has an HPET, which is its firmware's only clock")
    if config.s3 and (config.direct or config.machine_type is MachineType.BHYVE):
        raise ConfigError("-machine s3=on: for q35 and pc with firmware, which wakes the guest up")
    _check_acpi(config)
    _check_tables(config)
    _check_kernel(config)
    _check_clock(config)
    if config.drives or config.vhost:
        from vmm.disks import drives

        drives.check_together(config.drives, config.vhost)
        if config.has_smm and config.shares_memory:
            raise ConfigError(
                "-machine smm=on: not beside a qcow2 image or another device of another process, which could write "
                "to the memory of that mode; smm=off does without, for firmware that can"
            )


def _check_clock(config: MachineFields) -> None:
    """Virtual time: nothing may depend on the host's threads."""
    if config.clock is Clock.HOST:
        for option, value in (("--record", config.record), ("--replay", config.replay)):
            if value is not None:
                raise ConfigError(
                    f"{option}: instructions are counted exactly with --clock virtual alone; give it, too"
                )
        return
    refused = (
        (config.accel is not Accelerator.SOFTCPU, f"-accel {config.accel}", "is counted by -accel softcpu alone"),
        (
            config.max_cpus > config.cpus,
            f"-smp {config.cpus},maxcpus={config.max_cpus}",
            "has no CPUs that are plugged in, at whatever moment",
        ),
        (
            any(drive.served for drive in config.drives),
            "-drive format=…",
            "has no disks that another process serves, which has its own time; format=raw is served here",
        ),
        (bool(config.vhost), "-device vhost-user", "has no devices of other processes, which have their own time"),
        (config.gdb is not None, "-gdb", "has no debugger, which stops the guest where it likes"),
        (config.record is not None and config.replay is not None, "--record", "is not recorded while it is replayed"),
    )
    for applies, option, why in refused:
        if applies:
            raise ConfigError(f"{option}: virtual time {why}; leave it out, or --clock virtual")


def _check_firmware(config: MachineFields) -> None:
    if config.has_smm and config.machine_type is not MachineType.Q35:
        raise ConfigError(
            f"-machine {config.machine_type},smm=on: only q35 has system management mode"
            if config.smm is SystemManagement.ON
            else f"{config.firmware.path}: the image needs system management mode (PiSmmCore is in its volumes), "
            f"which only q35 has; leave out -machine {config.machine_type}"
        )
    if config.firmware.needs_smm and not config.has_smm:
        raise ConfigError(
            f"{config.firmware.path}: the image needs system management mode (PiSmmCore is in its volumes): it would "
            "hang; leave out -machine smm=off, or boot an image built without, such as 'ovmf'"
        )
    if config.secure_flash and not config.has_smm:
        raise ConfigError("secure flash is written by system management mode alone; give -machine smm=on, too")


def _check_memory(config: MachineFields) -> None:
    size = config.memory
    if size <= 0 or size % layout.MIB:
        raise ConfigError(f"-m: guest RAM is a positive number of whole MiB, not {size} bytes")
    if size > MAX_MEMORY:
        raise ConfigError(f"-m {size >> 20}M: more than the {MAX_MEMORY >> 40} TiB that a machine can have")
    if size < config.firmware.minimum_memory:
        who = "a machine without firmware" if config.direct else config.firmware.path.name
        raise ConfigError(f"-m {size >> 20}M: {who} needs {config.firmware.minimum_memory >> 20}M or more")
    most = config.max_ram_below_4g
    if most is not None and (most % layout.MIB or not config.firmware.minimum_memory <= most <= layout.FOUR_GIB):
        least = config.firmware.minimum_memory >> 20
        raise ConfigError(f"-machine max-ram-below-4g={most}: must be whole MiB, from {least}M to 4G")


def _check_room(config: MachineFields) -> None:
    """By the rules of QEMU (machine_set_mem in hw/core/machine.c, pc_memory_init in hw/i386/pc.c)."""
    most, slots = config.max_memory, config.memory_slots
    if most is None:
        if slots:
            raise ConfigError(f"-m slots={slots}: for memory that is plugged in; give maxmem=SIZE, too")
        return
    options.check_type(most, "max_memory", int)
    if most < config.memory:
        raise ConfigError(
            f"-m maxmem={most}: must be at least the {config.memory} bytes of RAM that there are; "
            "without a unit behind it, it is in bytes"
        )
    if not 0 <= slots <= MAX_MEMORY_SLOTS:
        raise ConfigError(f"-m slots={slots}: must be from 0 to {MAX_MEMORY_SLOTS}")
    if most == config.memory:
        if slots:
            raise ConfigError(f"-m slots={slots}: maxmem= is as much RAM as there is, which leaves nothing to plug in")
        return
    if most % layout.PAGE or most > MAX_ADDRESS:
        raise ConfigError(f"-m maxmem={most}: must be whole pages of 4K, and no more than {MAX_ADDRESS >> 40}T")
    if config.machine_type is MachineType.BHYVE:
        raise ConfigError("-m maxmem=: for q35 and pc; bhyve plugs no memory in, and its firmware would not hear of it")
    if config.numa is None:
        raise ConfigError("-m maxmem=: memory that may be plugged in belongs to a NUMA node; give numa, too")


def _check_acpi(config: MachineFields) -> None:
    options.check_type(config.pvpanic, "pvpanic", int)
    if config.machine_type is MachineType.BHYVE and config.pvpanic:
        raise ConfigError("-device pvpanic: for q35 and pc; bhyve has no such device")
    if config.acpi:
        return
    if config.machine_type is MachineType.BHYVE:
        raise ConfigError("-machine acpi=off: for q35 and pc; a bhyve machine's firmware makes its own tables")
    given = {
        "-acpitable": bool(config.acpi_tables),
        "-dsdt": config.dsdt is not None,
        "-device vmgenid": config.vmgenid is not None,
        "-machine s3=on": config.s3,
    }
    if needing := [option for option, is_given in given.items() if is_given]:
        raise ConfigError(f"-machine acpi=off: {' and '.join(needing)} is for the tables that are not there then")


def _check_tables(config: MachineFields) -> None:
    if config.e820:
        from vmm.tables import e820

        entries = e820.build_map(config.low_memory, config.memory - config.low_memory, config.e820)
        e820.check_map([entry for entry in config.e820 if entry.type == e820.E820Type.RAM])
        e820.check_map(entries, holes=e820.has_holes(config.e820))
    if config.acpi_tables:
        from vmm.tables.acpi_user import check_signatures

        check_signatures(table.data for table in config.acpi_tables)
    if config.numa is not None:
        config.numa.check(config.cpu_topology, config.memory)
        own = sorted({table.data[:4].decode("latin-1") for table in config.acpi_tables} & {"SRAT", "SLIT", "HMAT"})
        if own:
            raise ConfigError(f"-acpitable with {' and '.join(own)}: -numa makes these; leave one of both out")
    if config.smbios_entry_point not in {32, 64}:
        raise ConfigError(f"-machine smbios-entry-point-type={config.smbios_entry_point}: must be 32 or 64")
    if config.smbios:
        from vmm.tables.smbios_options import check_together

        check_together(config.smbios)
    check_paths(config.bootorder)
    indices = {drive.bootindex for drive in config.drives} - {None}
    for rom in config.option_roms:
        if rom.bootindex in indices:
            raise ConfigError(f"-option-rom {rom.item.path}: bootindex={rom.bootindex} is another's already")
        indices |= {rom.bootindex} - {None}


def _check_kernel(config: MachineFields) -> None:
    if config.direct != (config.firmware.kind is FirmwareKind.NONE):
        raise ConfigError(
            f"-direct starts the kernel without firmware; leave out {config.firmware.path}"
            if config.direct
            else "a machine without firmware starts nothing but a kernel: -direct -kernel PATH"
        )
    if config.direct and config.kernel is None:
        raise ConfigError("-direct starts a kernel; give -kernel PATH too")
    if config.direct and (config.interface_choice.interface is Interface.BHYVE or config.machine_type == "bhyve"):
        raise ConfigError("-direct is for the machines q35 and pc with fw_cfg, from which it takes the tables")
    if config.kernel is None and (config.initrd is not None or config.append is not None):
        raise ConfigError("-initrd and -append belong to a kernel; give -kernel PATH too")
    if config.append is not None and b"\0" in config.append:
        raise ConfigError(f"-append {config.append!r}: has a NUL, at which the kernel would stop reading")


def _check_interface(config: MachineFields) -> None:
    options: tuple[tuple[str, tuple[FwCfgItem, ...] | tuple[FwCtlItem, ...]], ...]
    options = (("-fw_cfg", config.fw_cfg), ("-fwctl", config.fwctl))
    for option, items in options:
        names = [item.name for item in items]
        names += [rom.item.name for rom in config.option_roms if option == "-fw_cfg"]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{option} name={name}: the name is given twice")
    fw_cfg = [f"-fw_cfg name={item.name}" for item in config.fw_cfg]
    fw_cfg += [option for option, given in _carried_by_fw_cfg(config).items() if given]
    fwctl = [f"-fwctl name={item.name}" for item in config.fwctl]
    fwctl += ["fwctl-ext=on"] if config.fwctl_extensions else []
    if fw_cfg or fwctl:
        check_options(config.interface_choice, fw_cfg, fwctl)


def _carried_by_fw_cfg(config: MachineFields) -> dict[str, bool]:
    """Options that reach the guest only through fw_cfg, and whether they were given."""
    return {
        "-kernel": config.kernel is not None and not config.direct,
        "-m maxmem=": bool(config.memory_room),
        "-acpitable": bool(config.acpi_tables),
        "-dsdt": config.dsdt is not None,
        "-smbios": bool(config.smbios) and config.machine_type is not MachineType.BHYVE,
        "-e820": bool(config.e820),
        "-bootorder": bool(config.bootorder),
        "-option-rom": bool(config.option_roms),
        "-device bootindex=": any(drive.bootindex is not None for drive in config.drives)
        or any(device.bootindex is not None for device in config.vhost),
        "-device vmgenid": config.vmgenid is not None,
        "-device vmcoreinfo": config.vmcoreinfo,
        "-device pvpanic": bool(config.pvpanic),
    }
