"""``-smbios`` as QEMU has it: fields of a structure type, or structures from a file."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from vmm import options
from vmm.errors import ConfigError

_OPTION = "-smbios"
HEADER_SIZE: Final = 4
END_OF_TABLE: Final = 127
_LISTS = frozenset({"value", "path"})

# Fields by structure type: a largest number, "switch", or None for a string.
_FieldKinds = dict[str, int | str | None]


def _strings(*names: str) -> _FieldKinds:
    return dict.fromkeys(names)


FIELDS: Final[dict[int, _FieldKinds]] = {
    0: {**_strings("vendor", "version", "date", "release"), "uefi": "switch"},
    1: _strings("manufacturer", "product", "version", "serial", "uuid", "sku", "family"),
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
    11: _strings("value", "path"),
    17: {**_strings("loc_pfx", "bank", "manufacturer", "serial", "asset", "part"), "speed": 0xFFFF},
    41: {**_strings("designation", "kind"), "instance": 0xFF},
}
REPEATABLE: Final = frozenset({8, 11, 41})
"""Types of which each option adds a structure; for the others, fields add up."""


class SmbiosOption(NamedTuple):
    """One ``-smbios`` option: fields of ``type``, or ``structures`` from a file.

    ``fields`` keeps numbers and switches converted; type 11 has only "strings".
    """

    type: int
    fields: tuple[tuple[str, str | int], ...] = ()
    structures: tuple[bytes, ...] = ()


def parse_smbios(text: str) -> SmbiosOption:
    """Parse ``-smbios type=N,field=…`` or ``-smbios file=PATH``.

    A file holds one or more whole structures, each with its strings and the
    two NULs that end it.

    Raises:
        ConfigError: an unknown type or field, a bad value, or a file that is
            unreadable or no structure.

    """
    pairs = options.parse_pairs(text, _OPTION)
    names = [key for key, _ in pairs]
    if "file" in names:
        if len(pairs) > 1:
            raise ConfigError(f"{_OPTION} {text}: file= stands alone, the file has the type and all fields")
        return _from_file(pairs[0][1])
    if names.count("type") != 1:
        raise ConfigError(f"{_OPTION} {text}: give type=N once, or file=PATH")
    number = options.parse_int(dict(pairs)["type"], f"{_OPTION} type=", minimum=0, maximum=0xFF)
    if number not in FIELDS:
        known = ", ".join(str(kind) for kind in FIELDS)
        raise ConfigError(f"{_OPTION} type={number}: only types {known} have fields; use file= for others")
    fields: list[tuple[str, str | int]] = []
    for key, value in pairs:
        if key == "type":
            continue
        if key not in FIELDS[number]:
            known = ", ".join(FIELDS[number])
            raise ConfigError(f"{_OPTION} type={number}: unknown field '{key}' (known: {known})")
        if key in dict(fields) and key not in _LISTS:
            raise ConfigError(f"{_OPTION} type={number}: field '{key}' is given twice")
        fields.append(_convert(number, key, value))
    return SmbiosOption(number, tuple(fields))


def _convert(number: int, key: str, value: str) -> tuple[str, str | int]:
    what = f"{_OPTION} type={number} {key}"
    kind = FIELDS[number][key]
    if kind == "switch":
        return key, int(options.parse_bool(value, what))
    if isinstance(kind, int):
        return key, options.parse_int(value, f"{what}=", minimum=0, maximum=kind)
    if key == "uuid":
        try:
            from uuid import UUID  # noqa: PLC0415  # loads `platform`, for one field

            return key, str(UUID(value))
        except ValueError:
            raise ConfigError(f"{what}={value}: not a UUID (8-4-4-4-12 hex digits)") from None
    if key == "release":
        match = re.fullmatch(r"([0-9]{1,3})\.([0-9]{1,3})", value)
        if match is None or int(match[1]) > 0xFF or int(match[2]) > 0xFF:
            raise ConfigError(f"{what}={value}: must be MAJOR.MINOR, each 0 to 255")
        return key, value
    if key == "path":
        key, value = "value", _read(value).decode("latin-1").rstrip("\n")
    return key, check_string(value, what=what)


def check_string(value: str, *, what: str) -> str:
    """Give back a text that an SMBIOS structure can hold.

    Raises:
        ConfigError: it has a NUL or a character beyond 8 bits.

    """
    if "\0" in value or any(ord(character) > 0xFF for character in value):
        raise ConfigError(f"{what}={value!r}: must be 8-bit text without NUL")
    return value


def _read(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise ConfigError(f"{_OPTION}: cannot read '{name}': {error.strerror}") from error


def _from_file(name: str) -> SmbiosOption:
    content = _read(name)
    try:
        structures = tuple(split_structures(content))
    except ValueError as error:
        raise ConfigError(f"{_OPTION} file={name}: {error}") from None
    if not structures:
        raise ConfigError(f"{_OPTION} file={name}: the file is empty")
    if any(structure[0] == END_OF_TABLE for structure in structures):
        raise ConfigError(f"{_OPTION} file={name}: type {END_OF_TABLE} ends the table, and is always ours")
    return SmbiosOption(structures[0][0], structures=structures)


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
