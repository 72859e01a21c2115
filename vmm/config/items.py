"""What the user adds to fw_cfg and to fwctl: ``-fw_cfg``, ``-f`` and ``-fwctl``."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from vmm import inputs, options
from vmm.config.parts import several
from vmm.errors import ConfigError


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
        # int() refuses thousands of digits.
        is_number = value.isdecimal() and len(value) <= 40 and int(value) < 1 << 32
        return cls(keys["name"], int(value) if is_number else value)


def fw_cfg_items(given: Mapping[str, bytes | str | Path] | Sequence[FwCfgItem | str] | str) -> tuple[FwCfgItem, ...]:
    """Return the items of a mapping from names to contents, or those that ``-fw_cfg`` texts describe.

    Raises:
        ConfigError: see `FwCfgItem.of` and `FwCfgItem.parse`.
        TypeError: another type.
    """
    if isinstance(given, Mapping):
        return tuple(FwCfgItem.of(*pair) for pair in given.items())
    return tuple(map(FwCfgItem.parse, several(given, "fw_cfg", str, FwCfgItem)))


def fwctl_items(given: Mapping[str, Any] | Sequence[FwCtlItem | str] | str) -> tuple[FwCtlItem, ...]:
    """Return the OIDs of a mapping from names to values, or those that ``-fwctl`` texts describe.

    Raises:
        ConfigError: see `FwCtlItem.parse`.
        TypeError: another type.
    """
    if isinstance(given, Mapping):
        return tuple(FwCtlItem(*pair) for pair in given.items())
    return tuple(map(FwCtlItem.parse, several(given, "fwctl", str, FwCtlItem)))
