"""The parts of a machine's description, each with the text that QEMU or bhyve users write for it.

Everything that can be wrong with a part by itself is found here and raised as :class:`vmm.errors.ConfigError`.
"""

from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

from vmm import options
from vmm.errors import ConfigError
from vmm.firmware.images import FirmwareImages
from vmm.firmware.load import load

if TYPE_CHECKING:
    from uuid import UUID

MAX_CPUS = 255
"""xAPIC ids have 8 bits, and 255 addresses all (Intel SDM volume 3, section 11.6.1)."""

MEBIBYTE = 1 << 20
MAX_MEMORY = 1 << 43
"""8 TiB: all above the PCI hole is one memory slot, which has fewer than 2**31 pages (Linux, KVM_MEM_MAX_NR_PAGES)."""

NAME_LIMIT = 55
"""Characters in the name of an fw_cfg file: 56 bytes in the directory, one of them NUL."""


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
        if value in {"none", "null"}:
            return cls()
        if value == "stdio":
            return cls(TargetKind.STDIO)
        if value.startswith("file:") and value != "file:":
            return cls(TargetKind.FILE, Path(value.removeprefix("file:")))
        raise ConfigError(f"{option} {value}: not a target; known are stdio, none and file:PATH")


class FwCfgItem(NamedTuple):
    """A file that the user adds to fw_cfg: bytes, or a path whose file is mapped rather than copied."""

    name: str
    data: bytes | None = None
    path: Path | None = None

    def __repr__(self) -> str:
        """With a few of its bytes."""
        from reprlib import repr as shortened  # noqa: PLC0415  # for people who print one

        return f"FwCfgItem({self.name!r}, {shortened(self.data) if self.path is None else repr(str(self.path))})"

    def check(self) -> None:
        """Refuse an item that no directory can hold.

        Raises:
            ConfigError: a bad name, neither or both of data and path, or a file that can't be read.
        """
        if not self.name:
            raise ConfigError("-fw_cfg: an item needs a name, like name=opt/org.example/greeting")
        if len(self.name) > NAME_LIMIT:
            raise ConfigError(
                f"-fw_cfg name={self.name}: {len(self.name)} characters; a name has {NAME_LIMIT} at the most"
            )
        if not self.name.isascii() or not self.name.isprintable():
            raise ConfigError(f"-fw_cfg name={self.name!r}: a name is printable ASCII")
        if (self.data is None) == (self.path is None):
            raise ConfigError(f"-fw_cfg name={self.name}: give either file= or string=")
        if self.path is not None:
            check_readable(self.path, f"-fw_cfg name={self.name}")

    @classmethod
    def parse(cls, text: str, option: str, *, terminate: bool = False) -> Self:
        """Read ``[name=]NAME,file=PATH|string=TEXT``.

        Args:
            text: what the user typed.
            option: after what.
            terminate: put a NUL behind the string, as bhyve's ``-f`` does and QEMU's ``-fw_cfg`` does not.

        Raises:
            ConfigError: a name that is missing or too long, neither or both of file and string, an unreadable file.
        """
        keys = options.parse_keys(text, option, known=("name", "file", "string"), implied="name")
        if "file" in keys and "string" in keys:
            raise ConfigError(f"{option} {text}: give either file= or string=, not both")
        string = keys.get("string")
        if string == "":
            raise ConfigError(f"{option} {text}: string= is empty; for an empty item give file= with an empty file")
        item = cls(
            keys.get("name", ""),
            None if string is None else string.encode("utf-8", "surrogateescape") + (b"\0" if terminate else b""),
            Path(keys["file"]) if "file" in keys else None,
        )
        item.check()
        return item


class FwCtlItem(NamedTuple):
    """An OID that the user adds to fwctl; a callable is asked at each GET."""

    name: str
    value: int | bytes | str | Callable[[], int | bytes | str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``[name=]OID,value=TEXT|file=PATH``; a value that is a number becomes a 4-byte integer.

        Raises:
            ConfigError: an OID that is missing, neither or both of value and file, an unreadable file.
        """
        keys = options.parse_keys(text, "-fwctl", known=("name", "value", "file"), implied="name")
        if not keys.get("name"):
            raise ConfigError(f"-fwctl {text}: an OID needs a name, like name=hw.ncpu,value=4")
        if ("file" in keys) == ("value" in keys):
            raise ConfigError(f"-fwctl {text}: give either value= or file=")
        if "file" in keys:
            return cls(keys["name"], read_file(Path(keys["file"]), f"-fwctl {text}"))
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
            raise ConfigError(f"-drive {text}: format={keys['format']} is not known; raw is: qemu-img convert -O raw")
        if not keys.get("file"):
            raise ConfigError(f"-drive {text}: file=PATH is missing")
        unit = keys.get("unit")
        return cls(
            Path(keys["file"]),
            options.parse_bool(keys.get("readonly", keys.get("read-only", "off")), "-drive readonly"),
            None if unit is None else options.parse_int(unit, "-drive unit=", minimum=0, maximum=1),
        )


def check_readable(path: Path, option: str) -> None:
    """Open a file for reading, and close it.

    Raises:
        ConfigError: that is not possible.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"{option}: {path} is a directory")
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{option}: cannot read {path}: {(error.strerror or str(error)).lower()}") from None


def read_file(path: Path, option: str) -> bytes:
    """Return a file's bytes.

    Raises:
        ConfigError: it can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{option}: cannot read {path}: {(error.strerror or str(error)).lower()}") from None


def parse_memory(value: str | int, option: str = "-m") -> int:
    """Return guest RAM in bytes, from QEMU's ``[size=]SIZE`` (a bare number is MiB) or from an ``int`` of bytes.

    Raises:
        ConfigError: not a size, not whole MiB, too little or too much.
    """
    if isinstance(value, str):
        value = options.parse_keys(value, option, known=("size",), implied="size")["size"]
    size = options.parse_size(value, option, unit="m")
    if size <= 0 or size % MEBIBYTE:
        raise ConfigError(f"{option} {value}: guest RAM is a positive number of whole MiB")
    if size > MAX_MEMORY:
        raise ConfigError(f"{option} {value}: more than the {MAX_MEMORY >> 40} TiB that a machine can have")
    return size


def parse_smp(text: str, option: str = "-smp") -> tuple[int, int]:
    """Return (CPUs at boot, possible CPUs) from QEMU's ``[cpus=]N[,maxcpus=M]``.

    Raises:
        ConfigError: another key, or not a number.
    """
    keys = options.parse_keys(text, option, known=("cpus", "maxcpus"), implied="cpus")
    most = parse_cpu_count(keys["maxcpus"], f"{option} maxcpus=") if "maxcpus" in keys else None
    cpus = parse_cpu_count(keys["cpus"], option) if "cpus" in keys else most
    if cpus is None:
        raise ConfigError(f"{option} {text}: no number of CPUs")
    return cpus, cpus if most is None else most


def parse_cpu_count(text: str | int, option: str) -> int:
    """Return a number of CPUs.

    Raises:
        ConfigError: not a number from 1 to :data:`MAX_CPUS`.
    """
    try:
        return options.parse_int(text, option, minimum=1, maximum=MAX_CPUS)
    except ConfigError:
        raise ConfigError(f"{options.shown(option, text)}: a machine has from 1 to {MAX_CPUS} CPUs") from None


def parse_uuid(value: "UUID | str", option: str = "-uuid") -> "UUID":
    """Return a UUID.

    Raises:
        ConfigError: the text is none.
    """
    if not isinstance(value, str):
        return value
    from uuid import UUID  # noqa: PLC0415  # loads `platform`, for one option

    try:
        return UUID(value)
    except ValueError:
        raise ConfigError(
            f"{options.shown(option, value)}: not a UUID, like 4600cb32-38ec-4b2f-8acb-81c6ea54f2d8"
        ) from None


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


def pflash_images(drives: Iterable[PflashDrive]) -> FirmwareImages:
    """Load what ``-drive if=pflash`` options name; drives without unit take the free ones in order.

    Raises:
        ConfigError: a unit twice, VARS without CODE, or what :func:`vmm.firmware.load.load` raises.
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
    if variables is not None:
        return load(code.path, variables.path, persist=not variables.readonly)
    return load(code.path, persist=not code.readonly)
