"""The machine that a parsed command line describes, by the options of `vmm.cli.machine_arguments`."""

from __future__ import annotations

from vmm.cli.machine_arguments import MACHINE_KEYS
from vmm.config.machine import MachineConfig
from vmm.config.parts import ACCEL_KEYS, Sandboxing, Target
from vmm.config.topology import Smp, parse_smp
from vmm.errors import ConfigError
from vmm.firmware.images import FirmwareKind
from vmm.options import implied_value, parse_bool, parse_int, parse_keys, split_commas
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from typing import Any

    from vmm.config.items import FwCfgItem

DEFAULT_FIRMWARE = "ovmf"


def sandboxing(text: str | None, widest: Sandboxing) -> Sandboxing:
    """Return what ``--sandbox`` stands for: ``widest`` where it is on.

    Raises:
        ConfigError: it is neither on nor off.
    """
    return widest if text is None or parse_bool(text, "--sandbox") else Sandboxing.OFF


def config_from(arguments: argparse.Namespace) -> MachineConfig:
    """Return the machine that a parsed command line describes.

    Raises:
        ConfigError: options that contradict each other, or what :meth:`MachineConfig.create` raises.
    """
    if arguments.smp is not None and arguments.bhyve_cpus is not None:
        raise ConfigError("-smp and -c say the same; give one of them")
    smp = parse_smp(arguments.smp) if arguments.smp is not None else Smp()
    if arguments.bhyve_cpus is not None:
        smp = parse_smp(arguments.bhyve_cpus, "-c")
    machine = _machine_keys(arguments.machine)
    accel = parse_keys(arguments.accel, "-accel", known=ACCEL_KEYS, implied="accel")
    files, interface = _firmware(arguments)
    wanted = {interface or "auto", machine.get("fwcfg", "auto")} - {"auto"}
    if len(wanted) > 1:
        raise ConfigError(
            f"-l …,fwcfg={interface} and -machine fwcfg={machine['fwcfg']}: fw_cfg and fwctl live at the same ports "
            "(0x510, 0x511), a machine has one of them"
        )
    config = MachineConfig.create(
        **files,
        cpus=smp.cpus,
        max_cpus=smp.max_cpus,
        topology=smp.topology,
        cpu=arguments.cpu,
        numa=arguments.numa,
        objects=[text for text in arguments.object if not _is_secret(text)],
        hmat=parse_bool(machine.get("hmat", "off"), "-machine hmat"),
        memory=arguments.m,
        max_ram_below_4g=machine.get("max-ram-below-4g"),
        machine=machine.get("type", "auto"),
        fwcfg=wanted.pop() if wanted else "auto",
        fw_cfg=items_from(arguments),
        fwctl=arguments.fwctl,
        fwctl_extensions=parse_bool(machine.get("fwctl-ext", "off"), "-machine fwctl-ext"),
        smbios_entry_point=parse_int(machine.get("smbios-entry-point-type", 32), "-machine smbios-entry-point-type="),
        hpet=parse_bool(machine.get("hpet", "on"), "-machine hpet"),
        acpi=parse_bool(machine.get("acpi", "on"), "-machine acpi"),
        s3=parse_bool(machine.get("s3", "off"), "-machine s3"),
        smm=machine.get("smm"),
        secure_flash=_optional_bool(machine.get("secure-flash"), "-machine secure-flash"),
        cpu_count=parse_bool(machine.get("hw.ncpu", "on"), "-machine hw.ncpu"),
        uuid=arguments.uuid,
        serial=_given(arguments.serial, "stdio"),
        debugcon=_given(arguments.debugcon, "stdio"),
        acpi_tables=arguments.acpitable,
        dsdt=arguments.dsdt,
        smbios=arguments.smbios,
        e820=arguments.e820,
        boot=arguments.boot,
        kernel=arguments.kernel,
        initrd=arguments.initrd,
        append=arguments.append,
        direct=arguments.direct,
        bootorder=arguments.bootorder,
        option_roms=arguments.option_rom,
        devices=arguments.device,
        drives=disks_from(arguments),
        chardevs=arguments.chardev,
        netdevs=arguments.netdev,
        esp=arguments.esp,
        reboot=_reboot(arguments),
        max_resets=parse_int(arguments.max_resets, "--max-resets "),
        accel=accel.get("accel", "auto"),
        clock=arguments.clock,
        record=arguments.record,
        replay=arguments.replay,
        coalesced=parse_bool(accel.get("coalesced", "on"), "-accel coalesced"),
        dispatch=arguments.dispatch,
        trace=arguments.trace,
        exit_times=arguments.exit_times,
        sandbox=sandboxing(arguments.sandbox, arguments.widest_sandbox),
        user=arguments.user,
        gdb=arguments.gdb,
        hold=arguments.hold,
        symbols=arguments.symbols,
    )
    if arguments.debugcon is None and config.firmware.kind is FirmwareKind.SEABIOS:
        config = config._replace(debugcon=Target())  # it prints the same on the serial port
    return config


def items_from(arguments: argparse.Namespace) -> list[FwCfgItem | str]:
    """Return the items of fw_cfg that a parsed command line adds.

    Raises:
        ConfigError: one of them makes no sense.
    """
    if not arguments.bhyve_fw_cfg:
        return [*arguments.fw_cfg]
    from vmm.config.items import FwCfgItem

    return [*arguments.fw_cfg, *(FwCfgItem.parse(text, "-f", terminate=True) for text in arguments.bhyve_fw_cfg)]


def _optional_bool(value: str | None, option: str) -> bool | None:
    return None if value is None else parse_bool(value, option)


def _given(*values: Any) -> Any:
    """Return the first that the user gave; an empty text counts as given, and is refused where it means nothing."""
    return next(value for value in values if value is not None)


def _reboot(arguments: argparse.Namespace) -> bool | None:
    """Return whether a reset restarts the machine; None: nothing was said."""
    known = ("reboot", "shutdown", "panic")
    wanted = None if arguments.action is None else parse_keys(arguments.action, "-action", known=known)
    reboot = None if wanted is None else wanted.get("reboot")
    if reboot not in {None, "reset", "shutdown"}:
        raise ConfigError(f"-action reboot={reboot}: must be reset or shutdown")
    if wanted is not None and wanted.get("shutdown", "poweroff") != "poweroff":
        raise ConfigError(f"-action shutdown={wanted['shutdown']}: powering off ends the machine, with status 0")
    if wanted is not None and wanted.get("panic", "shutdown") not in {"shutdown", "exit-failure"}:
        raise ConfigError(f"-action panic={wanted['panic']}: a panic ends the machine, with status 1")
    if arguments.no_reboot:
        return False
    return None if reboot is None else reboot == "reset"


def _machine_keys(text: str | None) -> dict[str, str]:
    if text is None:
        return {}
    return parse_keys(text, "-machine", known=MACHINE_KEYS, implied="type")


def _firmware(arguments: argparse.Namespace) -> tuple[dict[str, Any], str | None]:
    """Return the files in the words of `MachineConfig.create`, and the interface that ``-l`` asks for."""
    flash = [text for text in arguments.drive if _is_flash(text)]
    given = {
        "FIRMWARE": arguments.firmware,
        "-bios": arguments.bios,
        "-drive": flash or None,
        "-l": arguments.bootrom,
    }
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ConfigError(f"{' and '.join(named)} each name the firmware; give one of them")
    if arguments.direct and named:
        raise ConfigError(f"-direct starts the kernel without firmware; leave out {named[0]}")
    if arguments.direct:
        return {"firmware": "none"}, None
    if flash:
        from vmm.config.drives import PflashDrive, flash_files

        files = flash_files(PflashDrive.parse(text) for text in flash)
        return files | ({"persist": False} if arguments.snapshot else {}), None
    if arguments.bootrom is not None:
        return _bootrom(arguments.bootrom)
    return {"firmware": _given(arguments.firmware, arguments.bios, DEFAULT_FIRMWARE)}, None


def _is_flash(text: str) -> bool:
    return "if=pflash" in split_commas(text)


def disks_from(arguments: argparse.Namespace) -> list[str]:
    """Return the ``-drive`` texts that are disks, with the file of a passphrase in the place of its id."""
    secrets = dict(map(_secret, filter(_is_secret, arguments.object)))
    texts = [_with_secret(text, secrets) for text in arguments.drive if not _is_flash(text)]
    if secrets:
        raise ConfigError(f"-object secret,id={next(iter(secrets))}: no -drive has it as key-secret=")
    if not arguments.snapshot:
        return texts
    return [text if "snapshot=" in text.replace(",,", "") else f"{text},snapshot=on" for text in texts]


def _is_secret(text: str) -> bool:
    return implied_value(text, "qom-type") == "secret"


def _secret(text: str) -> tuple[str, str]:
    """Return the id of a secret, and its file."""
    keys = parse_keys(text, "-object", implied="qom-type")
    if "data" in keys:
        raise ConfigError(
            "-object secret,data=: whoever lists processes would see it; file=PATH names a file that has it"
        )
    if set(keys) != {"qom-type", "id", "file"}:
        raise ConfigError(f"-object {text}: the form is secret,id=ID,file=PATH")
    return keys["id"], keys["file"]


def _with_secret(text: str, secrets: dict[str, str]) -> str:
    """Take the secret that a ``-drive`` names."""
    parts = split_commas(text)
    for position, part in enumerate(parts):
        key, _, name = part.partition("=")
        if key in {"key-secret", "encrypt.key-secret"}:
            if name not in secrets:
                raise ConfigError(
                    f"-drive {text}: {key}={name}: there is no -object secret,id={name or 'ID'},file=PATH"
                )
            parts[position] = f"secret-file={secrets.pop(name)}"
    return ",".join(part.replace(",", ",,") for part in parts)


def _bootrom(text: str) -> tuple[dict[str, Any], str | None]:
    """Read bhyve's ``bootrom,ROM[,VARS][,fwcfg=…]``: the second comma field is VARS unless it contains '='."""
    device, *parts = split_commas(text)
    if device != "bootrom" or not parts or not parts[0]:
        raise ConfigError(f"-l {text}: the only form here is bootrom,ROM[,VARS][,fwcfg=qemu|bhyve|auto]")
    rom, *parts = parts
    variables = parts.pop(0) if parts and "=" not in parts[0] else None
    keys = parse_keys(",".join(parts), f"-l {text}", known=("fwcfg",)) if parts else {}
    # bhyve maps a ROM without VARS read-only: only a VARS file is ever written.
    return {"firmware": rom, "variables": variables}, keys.get("fwcfg")
