"""The parts of a machine's description, each with the text that QEMU or bhyve users write for it.

Everything that can be wrong with a single part is found here and raised as :class:`vmm.errors.ConfigError`.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from vmm import inputs, options
from vmm.errors import ConfigError

MAX_CPUS = 255
"""xAPIC ids have 8 bits, and 255 addresses all (Intel SDM volume 3, section 11.6.1)."""

_TOPOLOGY = ("sockets", "dies", "clusters", "cores", "threads")
"""Keys of QEMU's -smp."""

MAX_MEMORY = 1 << 43
"""8 TiB: all above the PCI hole is one memory slot, which has fewer than 2**31 pages (Linux, KVM_MEM_MAX_NR_PAGES)."""


class MachineType(StrEnum):
    """Which board is built."""

    AUTO = "auto"
    """The one that the firmware is known to want."""
    Q35 = "q35"
    PC = "pc"
    """i440FX."""
    BHYVE = "bhyve"


class Accelerator(StrEnum):
    """Who executes the guest's instructions."""

    AUTO = "auto"
    """KVM where it has hardware virtualization; the software CPU beside it elsewhere."""
    KVM = "kvm"
    KVM_SOFTCPU = "kvm+softcpu"
    """The software CPU; KVM has the interrupt controllers and timers."""


class Dispatch(StrEnum):
    """Which half of this program answers fw_cfg's ports."""

    C = "c"
    PYTHON = "python"
    """Only to show what that costs: the same items, no access log."""


class TargetKind(StrEnum):
    """Where a character device's output goes."""

    NONE = "none"
    STDIO = "stdio"
    FILE = "file"


class Target(NamedTuple):
    """A character device's other end; whatever it is, ``until`` and ``send`` see the stream too."""

    kind: TargetKind = TargetKind.NONE
    path: Path | None = None

    @classmethod
    def parse(cls, value: Self | str, option: str) -> Self:
        """Read ``none``, ``stdio`` or ``file:PATH``.

        Raises:
            ConfigError: anything else.
        """
        if isinstance(value, Target):
            return value
        options.check_type(value, option, str)
        if value in {"none", "null"}:
            return cls()
        if value == "stdio":
            return cls(TargetKind.STDIO)
        if value.startswith("file:") and value != "file:":
            return cls(TargetKind.FILE, Path(value.removeprefix("file:")))
        raise ConfigError(f"{option} {value}: not a target; known are stdio, none and file:PATH")


class FwCfgItem(NamedTuple):
    """A file that the user adds to fw_cfg."""

    name: str
    data: inputs.Contents
    path: Path | None = None
    """Where they were read."""

    def __repr__(self) -> str:
        """With a few of its bytes."""
        from reprlib import repr as shortened

        return f"FwCfgItem({self.name!r}, {shortened(self.data) if self.path is None else repr(str(self.path))})"

    def check(self) -> None:
        """Refuse an item that no directory can hold.

        Raises:
            ConfigError: a bad name.
        """
        from vmm.devices.fw_cfg_format import check_name

        check_name(self.name, "-fw_cfg name=")

    @classmethod
    def parse(cls, value: Self | str, option: str = "-fw_cfg", *, terminate: bool = False) -> Self:
        """Read ``[name=]NAME,file=PATH|string=TEXT``.

        Args:
            value: what the user typed; an item is given back as it is.
            option: after what.
            terminate: put a NUL behind the string, as bhyve's ``-f`` does and QEMU's ``-fw_cfg`` does not.

        Raises:
            ConfigError: no name, neither or both of file and string, an unreadable file.
        """
        if isinstance(value, FwCfgItem):
            return value
        keys = options.parse_keys(value, option, known=("name", "file", "string"), implied="name")
        if ("file" in keys) == ("string" in keys):
            raise ConfigError(f"{option} {value}: give either file= or string=")
        if "file" in keys:
            path, data = inputs.load_file(Path(keys["file"]), f"{option} {value}")
            return cls(keys.get("name", ""), data, path)
        if not keys["string"]:
            raise ConfigError(f"{option} {value}: string= is empty; for an empty item give file=/dev/null")
        return cls(keys.get("name", ""), options.typed_bytes(keys["string"]) + (b"\0" if terminate else b""))

    @classmethod
    def of(cls, name: str, value: "bytes | str | Path") -> Self:
        """Return an item whose contents are bytes, a text (UTF-8 without NUL), or those of a file.

        Raises:
            ConfigError: an unreadable file.
            TypeError: another type.
        """
        if isinstance(value, Path):
            path, data = inputs.load_file(value, f"-fw_cfg name={name}")
            return cls(name, data, path)
        if isinstance(value, str):
            return cls(name, options.typed_bytes(value))
        if isinstance(value, bytes | bytearray | memoryview):
            return cls(name, bytes(value))
        hint = f"; an integer has no width: {value!r}.to_bytes(…)" if isinstance(value, int) else ""
        raise TypeError(f"fw_cfg item {name}: bytes, str or a Path, not {type(value).__name__}{hint}")


class FwCtlItem(NamedTuple):
    """An OID that the user adds to fwctl; a callable is asked at each GET."""

    name: str
    value: int | bytes | str | Callable[[], int | bytes | str]
    path: Path | None = None
    """Where it was read."""

    @classmethod
    def parse(cls, text: Self | str) -> Self:
        """Read ``[name=]OID,value=TEXT|file=PATH``; a value that is a number becomes a 4-byte integer.

        Raises:
            ConfigError: an OID that is missing, neither or both of value and file, an unreadable file.
        """
        if isinstance(text, FwCtlItem):
            return text
        keys = options.parse_keys(text, "-fwctl", known=("name", "value", "file"), implied="name")
        if not keys.get("name"):
            raise ConfigError(f"-fwctl {text}: an OID needs a name, like name=hw.ncpu,value=4")
        if ("file" in keys) == ("value" in keys):
            raise ConfigError(f"-fwctl {text}: give either value= or file=")
        if "file" in keys:
            from vmm.devices.fwctl_format import VALUE_LIMIT

            path = Path(keys["file"])
            return cls(keys["name"], inputs.read_file(path, f"-fwctl {text}", limit=VALUE_LIMIT), path)
        value = keys["value"]
        return cls(keys["name"], int(value) if value.isdecimal() and int(value) < 1 << 32 else value)


class PflashDrive(NamedTuple):
    """One ``-drive if=pflash``: unit 0 is CODE or a single image, unit 1 is VARS."""

    path: Path
    readonly: bool = False
    unit: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``if=pflash,format=raw,file=PATH[,readonly=on|off][,unit=0|1]``.

        Raises:
            ConfigError: another interface or format, no file, or a unit that does not exist.
        """
        keys = options.parse_keys(text, "-drive", known=("if", "format", "file", "readonly", "read-only", "unit"))
        if keys.get("if") != "pflash":
            raise ConfigError(f"-drive {text}: only if=pflash exists here: firmware flash")
        if keys.get("format", "raw") != "raw":
            raise ConfigError(f"-drive {text}: format={keys['format']} is not known; raw is (qemu-img convert -O raw)")
        if not keys.get("file"):
            raise ConfigError(f"-drive {text}: file=PATH is missing")
        unit = keys.get("unit")
        return cls(
            Path(keys["file"]),
            options.parse_bool(keys.get("readonly", keys.get("read-only", "off")), "-drive readonly"),
            None if unit is None else options.parse_int(unit, "-drive unit=", minimum=0, maximum=1),
        )


def parse_smp(value: str, option: str = "-smp") -> tuple[int, int]:
    """Return (CPUs at boot, possible CPUs) from QEMU's ``[cpus=]N[,maxcpus=M][,sockets=1][,cores=N][,threads=1]``.

    Raises:
        ConfigError: another key, not a number, or a topology that this machine does not have.
    """
    keys = options.parse_keys(value, option, known=("cpus", "maxcpus", *_TOPOLOGY), implied="cpus")
    numbers = {
        key: options.parse_int(number, option if key == "cpus" else f"{option} {key}=") for key, number in keys.items()
    }
    most = numbers.get("maxcpus", numbers.get("cores", numbers.get("cpus")))
    if most is None:
        raise ConfigError(f"{option} {value}: no number of CPUs")
    for key in _TOPOLOGY:
        fits = most if key == "cores" else 1
        if numbers.get(key, fits) != fits:
            raise ConfigError(
                f"{option} {value}: a machine has one socket with one thread a core; {key}={fits} fits here"
            )
    return numbers.get("cpus", most), most


def parse_memory(value: str | int, option: str = "-m") -> int:
    """Return guest RAM in bytes, from QEMU's ``[size=]SIZE`` (a bare number is MiB) or from an ``int`` of bytes.

    Raises:
        ConfigError: not a size.
    """
    if not isinstance(value, str):
        options.check_type(value, option, int)
        return value
    size = options.parse_keys(value, option, known=("size",), implied="size")["size"]
    return options.parse_size(size, option, unit="m")


def parse_devices(texts: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `MachineConfig` that ``-device`` texts set.

    Raises:
        ConfigError: no such device, or a bad property.
    """
    fields: dict[str, Any] = {}
    for text in texts:
        keys = options.parse_keys(text, "-device", known=("driver", "guid", "id"), implied="driver")
        driver = keys.get("driver")
        if driver not in {"vmgenid", "vmcoreinfo"}:
            raise ConfigError(f"-device {text}: no such device here; known are vmgenid and vmcoreinfo")
        if driver in fields:
            raise ConfigError(f"-device {driver}: a machine has one at the most")
        if driver == "vmgenid":
            from uuid import uuid4

            guid = keys.get("guid", "auto")
            generation = uuid4() if guid == "auto" else options.parse_uuid(guid, "-device vmgenid,guid=")
            fields[driver] = generation.bytes_le
        elif "guid" in keys:
            raise ConfigError(f"-device {text}: vmcoreinfo has no guid")
        else:
            fields[driver] = True
    return fields


def several(value: Any, name: str, *single: type) -> tuple[Any, ...]:
    """Return what may be given once or repeatedly as a tuple.

    Raises:
        TypeError: it is of another type, or has something of another type in it.
    """
    alone = isinstance(value, (*single, Mapping)) or not isinstance(value, Iterable)
    values = (value,) if alone else tuple(value)
    for one in values:
        options.check_type(one, name, *single)
    return values


Choice = TypeVar("Choice", bound=StrEnum)


def parse_choice(kind: type[Choice], value: Choice | str, option: str) -> Choice:
    """Return the member of an enumeration that a word names.

    Raises:
        ConfigError: none has that name.
    """
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(f"{options.shown(option, value)}: not known; known are {', '.join(kind)}") from None


def flash_files(drives: Iterable[PflashDrive]) -> dict[str, Any]:
    """Return what ``-drive if=pflash`` options mean in the words of `MachineConfig.create`.

    Drives without unit take the free ones in order.

    Raises:
        ConfigError: a unit twice, or VARS without CODE.
    """
    units: dict[int, PflashDrive] = {}
    for drive in drives:
        unit = drive.unit if drive.unit is not None else next((n for n in (0, 1) if n not in units), 2)
        if unit > 1:
            raise ConfigError(f"-drive file={drive.path}: there are two flash units, CODE (0) and VARS (1)")
        if unit in units:
            raise ConfigError(f"-drive file={drive.path}: unit {unit} is taken by {units[unit].path}")
        units[unit] = drive
    if 0 not in units:
        raise ConfigError(f"-drive file={units[1].path}: unit 0, the firmware's CODE, is missing")
    code, variables = units[0], units.get(1)
    return {
        "firmware": code.path,
        "variables": None if variables is None else variables.path,
        "persist": not (code if variables is None else variables).readonly,
    }
