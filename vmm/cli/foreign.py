"""The words of QEMU's and bhyve's command lines that vmm has nothing for: what each would want, and what becomes of it.

What changes nothing here is taken, with a note; the rest is refused by name, with the reason. This is the one table of
such words; it is loaded only for a command line that has one, or that names devices, drives or a machine.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from vmm.config.cpu_model import CpuModel
from vmm.config.parts import ACCEL_KEYS, KNOWN_DEVICES, Accelerator, MachineType, Target, parse_choice
from vmm.disks.drives import from_bhyve
from vmm.errors import ConfigError
from vmm.options import implied_value, split_commas

ANY = r".*"
"""Every value, or none, changes nothing here."""


class Word(NamedTuple):
    """An option of another VMM."""

    has_value: bool
    why: str
    """Why it can't be served, or need not be."""
    harmless: str | None = None
    """Regular expression of the values that change nothing here; None: there are none."""


class Sorted(NamedTuple):
    """A command line's options, foreign words taken out."""

    options: list[tuple[str, str | None]]
    notes: list[str]
    """What was taken though it changes nothing."""
    refusals: list[str]
    """What can't be served; not empty: there must be no machine."""


DISKS = "the only disks are virtio ones: -drive if=virtio,format=raw,file=PATH"
DISPLAY = "there is no display; the consoles are -serial and -debugcon"
MONITOR = "there is no monitor; Ctrl-A X ends the machine, and Python or pytest steer it"
NETWORK = "there is no network but another program's: -netdev vhost-user"
USB = "there is no USB"
AUDIO = "there is no sound"
LOG = "instructions are not logged; --trace PATH logs what the guest does with fw_cfg"
MIGRATION = "no machine moves to another host; --snapshot-at keeps one in a file, from which --from goes on"
CD = "there are no CD drives; an image of a CD boots as a disk"
FOLDERS = "a folder as a disk is --esp DIR, a copy: what the guest writes there is gone with it"
ACCELERATORS = "the accelerators are -accel auto, kvm, kvm+softcpu and softcpu"
CONSOLES = "a console's target stands behind -serial or -debugcon: stdio, file:PATH or none"
CHARDEVS = "only for vhost-user: socket,id=ID,path=SOCKET; consoles are -serial's and -debugcon's"
DIRECTORIES = "a shared directory is -device vhost-user-fs-pci, with virtiofsd behind it"
FOREGROUND = "vmm stays in the foreground; the shell's & puts it into the background"
PRIVILEGES = "--user and --sandbox say as whom, and how restricted, the machine runs"
XEN = "there is no Xen"
NO_CONFIG = "there are no configuration files"
MEMORY = "RAM is memory without a file, taken when the guest first touches it"
DEVICES = f"no such device here; known are {KNOWN_DEVICES}"

_ON = r"(on|yes|true)"
_WHOLE_HOST = rf"(host|max)(,(migratable=(no|off|false|{_ON})|(kvm|host-phys-bits)={_ON}))*"
_SHARED_RAM = frozenset(("memory-backend-memfd", "memory-backend-file"))
_RTC = r"(base=utc|clock=host|driftfix=(none|slew))"
_S3 = r"(ICH9-LPC|PIIX4_PM)\.disable_s[34]=(1|on)|driver=(ICH9-LPC|PIIX4_PM),property=disable_s[34],value=(1|on)"
_S3_ON = r"(ICH9-LPC|PIIX4_PM)\.disable_s3=(0|off)|driver=(ICH9-LPC|PIIX4_PM),property=disable_s3,value=(0|off)"
_SECURE_FLASH = r"(cfi\.pflash01\.secure=|driver=cfi\.pflash01,property=secure,value=)(?P<value>\w+)"
_DEBUGCON = r"isa-debugcon\.iobase=0x402|driver=isa-debugcon,property=iobase,value=0x402"


def _flags(why: str, *words: str, harmless: str | None = None) -> dict[str, Word]:
    return dict.fromkeys(words, Word(False, why, harmless))


def _values(why: str, *words: str, harmless: str | None = None) -> dict[str, Word]:
    return dict.fromkeys(words, Word(True, why, harmless))


WORDS: dict[str, Word] = {
    # QEMU 7.2
    **_values(DISKS, *(f"-{name}" for name in ("hda", "hdb", "hdc", "hdd", "fda", "fdb", "cdrom", "sd", "mtdblock"))),
    **_values(DISKS, "-blockdev", "-iscsi"),
    **_flags("there are no floppy disks", "-no-fd-bootchk", harmless=ANY),
    **_flags("there are no IDE disks", "-win2k-hack", harmless=ANY),
    **_values(DISPLAY, "-display", "-vga", "-vnc", harmless="none"),
    **_flags(DISPLAY, "-nographic", harmless=ANY),
    **_values(DISPLAY, "-spice", "-rotate"),
    **_flags(DISPLAY, "-full-screen", "-portrait"),
    **_values("there is no keyboard", "-k", harmless=ANY),
    **_values(AUDIO, "-audio", "-audiodev", harmless=r"(driver=)?none(,.*)?"),
    **_flags(AUDIO, "-audio-help"),
    **_values(NETWORK, "-net", "-nic", harmless="none"),
    **_values(MONITOR, "-monitor", "-qmp", "-qmp-pretty", harmless="none"),
    **_values(MONITOR, "-mon"),
    **_flags(MONITOR, "-preconfig"),
    **_values("there is no parallel port", "-parallel", harmless="none"),
    **_values("Ctrl-A is the only escape character", "-echr"),
    **_flags(USB, "-usb"),
    **_values(USB, "-usbdevice"),
    **_values(DIRECTORIES, "-fsdev", "-virtfs"),
    **_values("there is no TPM", "-tpmdev"),
    **_values("there is no watchdog", "-watchdog-action"),
    **_values("a PC has no device tree", "-dtb"),
    **_flags("KVM runs the guest anyway; -accel says how", "-enable-kvm", harmless=ANY),
    **_values(MEMORY, "-mem-path"),
    **_flags(MEMORY, "-mem-prealloc", harmless=ANY),
    **_values(MEMORY, "-overcommit", harmless=r"(mem-lock|cpu-pm)=off(,(mem-lock|cpu-pm)=off)?"),
    **_values("the clock is the host's, in UTC", "-rtc", harmless=rf"{_RTC}(,{_RTC})*"),
    **_values("guest time is the host's, or counted by --clock virtual, a nanosecond an instruction", "-icount"),
    **_values("devices have no such properties", "-global", harmless=rf"{_S3}|{_DEBUGCON}"),
    **_values("devices have no such properties", "-set"),
    **_values("there are no such objects", "-add-fd"),
    **_flags("powering off ends the machine, with status 0", "-no-shutdown"),
    **_flags("the software CPU translates as it does; a debugger steps", "-singlestep"),
    **_values(LOG, "-d", "-D", "-dfilter", "-trace", "-plugin"),
    **_flags(LOG, "-enable-sync-profile"),
    **_values("there is no window to show a name", "-name", harmless=ANY),
    **_values("messages on stderr are as they are", "-msg", harmless=ANY),
    **_values("it is about QEMU's own interfaces", "-compat", harmless=ANY),
    **_values("nothing here takes random numbers from it", "-seed", harmless=ANY),
    **_values("firmware has a name (vmm info lists them) or a path", "-L"),
    **_flags("there are no default devices", "-nodefaults", harmless=ANY),
    **_flags(NO_CONFIG, "-no-user-config", harmless=ANY),
    **_values(NO_CONFIG, "-readconfig"),
    **_values(FOREGROUND, "-pidfile"),
    **_flags(FOREGROUND, "-daemonize"),
    **_flags(FOREGROUND, "-async-teardown", harmless=ANY),
    **_values(PRIVILEGES, "-chroot", "-runas", "-sandbox"),
    **_values(MIGRATION, "-incoming", "-loadvm", "-dump-vmstate"),
    **_flags(MIGRATION, "-only-migratable"),
    **_values(XEN, "-xen-domid"),
    **_flags(XEN, "-xen-attach", "-xen-domid-restrict"),
    **_flags("write vmm --version", "-version"),
    # QEMU 10
    **_flags(LOG, "-perfmap", "-jitdump"),
    **_values("give the kernel's loader to firmware as -kernel", "-shim"),
    **_values(PRIVILEGES, "-run-with", harmless=r"(exit-with-parent|async-teardown)=off"),
    # bhyve, FreeBSD 14; its -k, -D and -S are QEMU's here
    **_flags("ACPI tables are always there", "-A", harmless=ANY),
    **_flags("HLT and PAUSE are up to KVM", "-H", "-P", harmless=ANY),
    **_flags("unknown MSRs are up to KVM", "-w", harmless=ANY),
    **_flags("the clock is in UTC", "-u", harmless=ANY),
    **_values(NO_CONFIG, "-o"),
    **_values("vCPUs are threads; pin them with taskset", "-p"),
    **_values("the spelling here is -gdb tcp:[HOST]:PORT, with -S to wait", "-G"),
    **_flags("there are no core files of guests", "-C"),
}

_BHYVE_SLOT = re.compile(r"\d+(:\d+){0,2},(?P<device>.*)")
"""What stands behind bhyve's -s; QEMU's has no value."""

_OWN_DEVICES = "vmgenid|vmcoreinfo|pvpanic|virtio-(blk|net)(-pci(-non-transitional)?)?|vhost-user-(blk|fs|device)-pci"

_DEVICES = {
    r"virtio-blk-(ccw|device|pci-transitional)\b.*|virtio-scsi.*": DISKS,
    r"(ide|scsi|nvme|ahci|ich9-ahci|floppy|lsi|megasas|sdhci)\b.*": DISKS,
    r"virtio-net-(ccw|device|pci-transitional)\b.*|e1000.*|rtl8139.*|vmxnet3.*|pcnet.*|ne2k.*|igb.*": NETWORK,
    r"usb-.*|.*[xeuo]hci.*": USB,
    r"VGA.*|.*vga.*|virtio-gpu.*|qxl.*|ramfb.*|bochs-display.*": DISPLAY,
    r"tpm-.*": "there is no TPM",
    r"isa-debugcon.*|isa-serial.*": CONSOLES,
    r"virtio-9p.*": DIRECTORIES,
    r"isa-debug-exit.*": "there is no such port; a guest ends the run by powering off",
    rf"(?!({_OWN_DEVICES})$).*": DEVICES,
}

_VALUES = {
    "-device": _DEVICES,
    "-netdev": {r"(?!vhost-user$).*": NETWORK},
    "-chardev": {r"(?!socket$).*": CHARDEVS},
    "-drive": {
        r"(.*[^,],)?file=fat:.*": FOLDERS,
        r"(.*[^,],)?if=(?!(pflash|virtio|none)(,|$)).*": DISKS,
        r"(.*[^,],)?media=cdrom(,.*)?": CD,
    },
}
"""Regular expressions of values that our own words have elsewhere, and why they can't be served."""

_IMPLIED = {"-device": "driver", "-netdev": "type", "-chardev": "backend"}
"""Of which key's value those expressions are, where it is not all of them."""

_MACHINE_HARMLESS = (
    r"accel=kvm(:.*)?|(usb|vmport|graphics|nvdimm|i8042)=off|vmport=auto|(pit|kernel-irqchip)=on"
    r"|(dump-guest-core|mem-merge|suppress-vmdesc)=o\w+"
)
_ACCEL_HARMLESS = {"kernel-irqchip=on", "thread=multi"}
_SWITCHED_OFF = {"-no-hpet": "hpet=off", "-no-acpi": "acpi=off"}
_MACHINE_REFUSED = {"accel": ACCELERATORS}
_MACHINE_TYPES = {"pc-q35-": "q35", "pc-i440fx-": "pc"}
"""What QEMU's versioned machines begin with."""


def has_value(word: str, following: str | None) -> bool | None:
    """Return whether a value stands behind a foreign word; None: the word is nobody's."""
    if word == "-s" and following is not None and _BHYVE_SLOT.fullmatch(following):
        return True
    if word == "-pflash":
        return True
    if word in _SWITCHED_OFF:
        return False
    known = WORDS.get(word)
    return None if known is None else known.has_value


def sort(options: list[tuple[str, str | None]], machine_keys: tuple[str, ...]) -> Sorted:
    """Take the foreign words out of a command line's options, and foreign values out of ours.

    Args:
        options: words with their values, ours and foreign ones; others are taken for ours.
        machine_keys: what may stand behind -machine.
    """
    result = Sorted([], [], [])
    given: set[str] = set()
    numa = any(word == "-numa" for word, _ in options)
    for word, value in options:
        text = word if value is None else f"{word} {value}"
        if word == "-pflash" and value is not None:
            result.options.append(("-drive", f"if=pflash,format=raw,file={value.replace(',', ',,')}"))
        elif word in _SWITCHED_OFF:
            result.options.append(("-machine", _SWITCHED_OFF[word]))
        elif word == "-global" and value is not None and re.fullmatch(_S3_ON, value):
            result.options.append(("-machine", "s3=on"))
        elif word == "-global" and value is not None and (secure := re.fullmatch(_SECURE_FLASH, value)):
            result.options.append(("-machine", f"secure-flash={secure['value']}"))
        elif word in {"-serial", "-debugcon"} and value is not None:
            _console(word, value, result, again=word in given)
        elif word == "-cpu" and value is not None and re.fullmatch(_WHOLE_HOST, value):
            result.notes.append(f"{text} changes nothing: the guest sees the host's processor, as KVM offers it")
        elif word == "-cpu" and value is not None:
            _parsed(word, value, CpuModel.parse, result)
        elif word == "-object" and value is not None and implied_value(value, "qom-type") == "secret":
            result.options.append((word, value))
        elif word == "-object" and value is not None and not numa:
            words = "RAM is shared where a device needs it; there are no objects beside -numa's and secret"
            if implied_value(value, "qom-type") in _SHARED_RAM and "share=on" in split_commas(value):
                result.notes.append(f"{text} changes nothing: {words}")
            else:
                result.refusals.append(f"{text}: {words}")
        elif word in _VALUES and value is not None:
            what = implied_value(value, _IMPLIED[word]) if word in _IMPLIED else value
            why = next((why for values, why in _VALUES[word].items() if re.fullmatch(values, what, re.DOTALL)), None)
            _take(word, value, why, result)
        elif word == "-accel" and value is not None:
            _accel(value, result, again=word in given)
        elif word == "-machine" and value is not None:
            _machine(value, machine_keys, result)
        elif word == "-s" and value is not None:
            slot = _BHYVE_SLOT.fullmatch(value)
            if slot is not None and slot["device"] in {"hostbridge", "lpc", "amd_hostbridge"}:
                result.notes.append(f"{text} changes nothing: it is always there")
            elif (disk := from_bhyve(value)) is not None:
                result.options.extend(zip(("-drive", "-device"), disk, strict=True))
            else:
                result.refusals.append(f"{text}: no such device here; known are virtio-blk, hostbridge and lpc")
        elif word in WORDS:
            known = WORDS[word]
            if known.harmless is not None and re.fullmatch(known.harmless, value or "", re.DOTALL):
                result.notes.append(f"{text} changes nothing: {known.why}")
            else:
                result.refusals.append(f"{text}: {known.why}")
        else:
            result.options.append((word, value))
        given.add(word)
    return result


def _accel(value: str, result: Sorted, *, again: bool) -> None:
    kept: list[str] = []
    for position, part in enumerate(split_commas(value)):
        key, separator, name = part.partition("=")
        if not separator and position == 0:
            key, name = "accel", part
        if key == "accel" and name not in set(Accelerator):
            if again:
                result.notes.append(f"-accel {value} changes nothing: the one before it is there")
            else:
                result.refusals.append(f"-accel {value}: {ACCELERATORS}")
            return
        if key in ACCEL_KEYS:
            kept.append(part)
        elif part in _ACCEL_HARMLESS:
            result.notes.append(f"-accel {part} changes nothing here")
        else:
            result.refusals.append(f"-accel {part}: no such property here; known are {', '.join(ACCEL_KEYS)}")
    if kept:
        result.options.append(("-accel", ",".join(kept)))


def _take(word: str, value: str, why: str | None, result: Sorted) -> None:
    if why is None:
        result.options.append((word, value))
    else:
        result.refusals.append(f"{word} {value}: {why}")


def _parsed(word: str, value: str, parse: Callable[[str], object], result: Sorted) -> None:
    """Take a value that its reader takes."""
    try:
        parse(value)
    except ConfigError as error:
        result.refusals.append(str(error))
    else:
        result.options.append((word, value))


def _console(word: str, value: str, result: Sorted, *, again: bool) -> None:
    if again and value == "none":
        result.notes.append(f"{word} {value} changes nothing: there is one such port")
    elif again:
        result.refusals.append(f"{word} {value}: there is one such port, and it has a target already")
    elif value == "mon:stdio":
        result.options.append((word, "stdio"))
        result.notes.append(f"{word} {value} means only stdio: {MONITOR}")
    else:
        _parsed(word, value, partial(Target.parse, option=word), result)


def _machine(value: str, keys: tuple[str, ...], result: Sorted) -> None:
    kept: list[str] = []
    for position, part in enumerate(split_commas(value)):
        key, separator, name = part.partition("=")
        if not separator and position == 0:
            key, name = "type", part
        if key == "type":
            board = next((board for start, board in _MACHINE_TYPES.items() if name.startswith(start)), None)
            if board is not None:
                result.notes.append(f"-machine {name} is {board}: boards have no versions here")
            try:
                kept.append(f"type={board or parse_choice(MachineType, name, '-machine')}")
            except ConfigError as error:
                result.refusals.append(str(error))
        elif key in keys or not re.fullmatch(r"[\w.-]+", key):
            kept.append(part.replace(",", ",,"))
        elif re.fullmatch(_MACHINE_HARMLESS, part):
            result.notes.append(f"-machine {part} changes nothing here")
        else:
            why = _MACHINE_REFUSED.get(key, f"no such property here; known are {', '.join(keys)}")
            result.refusals.append(f"-machine {part}: {why}")
    if kept:
        result.options.append(("-machine", ",".join(kept)))
