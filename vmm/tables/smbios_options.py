"""``-smbios`` as QEMU has it: fields of a structure type, or structures from a file."""

from __future__ import annotations

import re

from vmm import inputs, options
from vmm.errors import ConfigError
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import Any, Final, Self

_OPTION = "-smbios"
HEADER_SIZE: Final = 4
END_OF_TABLE: Final = 127
OEM_STRINGS: Final = 11
MOST_STRINGS: Final = 255
"""A string's number, and the number of OEM strings, are one byte (DSP0134 6.1.3, 7.12)."""

DEVICE_KINDS: Final = ("other", "unknown", "video", "scsi", "ethernet", "tokenring", "sound", "pata", "sata", "sas")
"""Type 41's device types, counted from 1 (DSP0134 7.42.2)."""

# Fields by structure type: a largest number, a tuple of words, "switch", "uuid", "release", or None for a string.
_FieldKinds = dict[str, int | str | tuple[str, ...] | None]


def _strings(*names: str) -> _FieldKinds:
    return dict.fromkeys(names)


FIELDS: Final[dict[int, _FieldKinds]] = {
    0: {**_strings("vendor", "version", "date"), "release": "release", "uefi": "switch"},
    1: {**_strings("manufacturer", "product", "version", "serial"), "uuid": "uuid", **_strings("sku", "family")},
    2: _strings("manufacturer", "product", "version", "serial", "asset", "location"),
    3: _strings("manufacturer", "version", "serial", "asset", "sku"),
    4: {
        **_strings("sock_pfx", "manufacturer", "version", "serial", "asset", "part"),
        "max-speed": 0xFFFF,
        "current-speed": 0xFFFF,
        "processor-id": (1 << 64) - 1,
    },
    8: {
        **_strings("internal_reference", "external_reference"),
        "connector_type": 0xFF,
        "port_type": 0xFF,
    },
    OEM_STRINGS: _strings("value", "path"),
    17: {**_strings("loc_pfx", "bank", "manufacturer", "serial", "asset", "part"), "speed": 0xFFFF},
    41: {**_strings("designation"), "kind": DEVICE_KINDS, "instance": 0xFF},
}


class SmbiosOption(NamedTuple):
    """One ``-smbios`` option: fields of ``type``, or ``structures`` from a file.

    Strings are bytes, as the guest finds them; a UUID is 16 bytes in the order in which it is written, a release its
    major number times 256 plus the minor one, a kind the number in the structure. Only type 11 has a field repeatedly.
    """

    type: int
    fields: tuple[tuple[str, bytes | int], ...] = ()
    structures: tuple[bytes, ...] = ()
    paths: tuple[Path, ...] = ()
    """What was read for them."""

    @classmethod
    def parse(cls, value: Self | str | bytes | Mapping[str, Any]) -> Self:
        """Read ``type=N,field=…`` or ``file=PATH``.

        Bytes, and a file, hold one or more whole structures, each with its strings and the two NULs that end it. A
        mapping has the same keys as the text, like ``{"type": 11, "value": ["one", "two"]}``.

        Raises:
            ConfigError: an unknown type or field, a bad value, or a file that is
                unreadable or no structure.
        """
        if isinstance(value, SmbiosOption):
            return value
        if isinstance(value, bytes):
            return cls._of_structures(value, "bytes")
        pairs: list[tuple[str, Any]]
        if isinstance(value, str):
            pairs = list(options.parse_pairs(value, _OPTION))
        else:
            several = [(key, part) for key, part in value.items() if isinstance(part, list | tuple)]
            pairs = [pair for pair in value.items() if pair not in several]
            pairs += [(key, part) for key, parts in several for part in parts]
        names = [key for key, _ in pairs]
        if "file" in names:
            if len(pairs) > 1:
                raise ConfigError(f"{_OPTION} {value}: file= stands alone, the file has the type and all fields")
            path = inputs.as_path(pairs[0][1])
            content = inputs.read_file(path, _OPTION, limit=inputs.TABLE_LIMIT)
            return cls._of_structures(content, f"file={path}")._replace(paths=(path,))
        if names.count("type") != 1:
            raise ConfigError(f"{_OPTION} {value}: give type=N once, or file=PATH")
        number = options.parse_int(dict(pairs)["type"], f"{_OPTION} type=", minimum=0, maximum=0xFF)
        if number not in FIELDS:
            known = ", ".join(str(kind) for kind in FIELDS)
            raise ConfigError(f"{_OPTION} type={number}: only types {known} have fields; use file= for others")
        fields = [_convert(number, key, text) for key, text in pairs if key != "type"]
        keys = [key for key, _ in fields]
        for key in keys:
            if keys.count(key) > 1 and number != OEM_STRINGS:
                raise ConfigError(f"{_OPTION} type={number}: field '{key}' is given twice")
        return cls(number, tuple(fields), paths=tuple(inputs.as_path(text) for key, text in pairs if key == "path"))

    @classmethod
    def _of_structures(cls, content: bytes, source: str) -> Self:
        try:
            structures = tuple(split_structures(content))
        except ValueError as error:
            raise ConfigError(f"{_OPTION} {source}: {error}") from None
        if not structures:
            raise ConfigError(f"{_OPTION} {source}: the file is empty")
        if any(structure[0] == END_OF_TABLE for structure in structures):
            raise ConfigError(f"{_OPTION} {source}: type {END_OF_TABLE} ends the table, and is always ours")
        return cls(structures[0][0], structures=structures)


def check_together(given: Iterable[SmbiosOption]) -> None:
    """Refuse options that contradict each other.

    Raises:
        ConfigError: fields and a file for the same type, or more OEM strings than a structure can count.
    """
    given = list(given)
    from_files = {structure[0] for option in given for structure in option.structures}
    for option in given:
        if option.type in from_files and not option.structures:
            raise ConfigError(
                f"{_OPTION}: both file= and fields for type {option.type}; a structure from a file is complete"
            )
    strings = sum(len(option.fields) for option in given if option.type == OEM_STRINGS)
    if strings > MOST_STRINGS:
        raise ConfigError(f"{_OPTION} type={OEM_STRINGS}: {strings} strings; a machine has {MOST_STRINGS} at the most")


def _convert(number: int, key: str, value: Any) -> tuple[str, bytes | int]:
    what = f"{_OPTION} type={number},{key}="
    if key not in FIELDS[number]:
        raise ConfigError(f"{_OPTION} type={number}: unknown field '{key}' (known: {', '.join(FIELDS[number])})")
    kind = FIELDS[number][key]
    if isinstance(kind, int):
        return key, options.parse_int(value, what, minimum=0, maximum=kind)
    if kind == "switch":
        return key, value if isinstance(value, bool) else options.parse_bool(value, what)
    if kind == "uuid":
        return key, options.parse_uuid(value, what).bytes
    if isinstance(kind, tuple):
        if value not in kind:
            raise ConfigError(f"{what}{value}: must be one of {', '.join(kind)}")
        return key, kind.index(value) + 1
    if kind == "release":
        match = re.fullmatch(r"([0-9]{1,3})\.([0-9]{1,3})", value)
        if match is None or int(match[1]) > 0xFF or int(match[2]) > 0xFF:
            raise ConfigError(f"{what}{value}: must be MAJOR.MINOR, each 0 to 255")
        return key, int(match[1]) << 8 | int(match[2])
    if key == "path":
        what += str(value)
        key, value = "value", inputs.read_file(inputs.as_path(value), what, limit=inputs.TABLE_LIMIT)
    options.check_type(value, what, str, bytes)
    data = options.typed_bytes(value) if isinstance(value, str) else value
    if b"\0" in data:
        raise ConfigError(f"{what}: has a NUL, which would end the string in the middle")
    return key, data


def split_structures(data: bytes) -> Iterator[bytes]:
    """Split concatenated structures: a header with its length, strings, two NULs (DSP0134 6.1).

    Raises:
        ValueError: a structure is cut short; the message has its offset.

    """
    offset = 0
    while offset < len(data):
        rest = data[offset:]
        if len(rest) < HEADER_SIZE or rest[1] < HEADER_SIZE or rest[1] > len(rest):
            raise ValueError(f"no whole SMBIOS structure at offset {offset}")
        end = rest.find(b"\0\0", rest[1])
        if end < 0:
            raise ValueError(f"the strings of the SMBIOS structure at offset {offset} don't end with two NULs")
        yield rest[: end + 2]
        offset += end + 2
