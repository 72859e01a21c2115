"""The user's own ACPI tables: ``-acpitable`` as QEMU has it.

``file=`` names whole tables with their headers (compiled AML is one),
``data=`` only bodies, for which the header comes from the other fields. Several
files, joined by ``:``, are one table. Fields given beside ``file=`` replace the
header's. Length and checksum are always made right, and what was wrong is said.
"""

from __future__ import annotations

import os
import struct

from vmm import inputs, options
from vmm.errors import ConfigError
from vmm.tables.acpi_tables import CHECKSUM_OFFSET, HEADER_SIZE, Oem, checksum
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_OPTION = "-acpitable"
_DSDT_OPTION = "-dsdt"
_DSDT = b"DSDT"
_LENGTH = struct.Struct("<I")
_LENGTH_OFFSET = 4
# Field: offset in the header, size, and the largest number, or None for text.
_FIELDS: dict[str, tuple[int, int, int | None]] = {
    "sig": (0, 4, None),
    "rev": (8, 1, 0xFF),
    "oem_id": (10, 6, None),
    "oem_table_id": (16, 8, None),
    "oem_rev": (24, 4, 0xFFFFFFFF),
    "asl_compiler_id": (28, 4, None),
    "asl_compiler_rev": (32, 4, 0xFFFFFFFF),
}
# What QEMU puts where no field says otherwise (hw/acpi/core.c).
_DEFAULT_HEADER = struct.pack("<4sIBB6s8sI4sI", b"QEMU", 0, 1, 0, b"QEMUQE", b"QEMUQEMU", 1, b"QEMU", 1)
_ONLY_OURS = frozenset({b"FACP", b"FACS", b"DSDT", b"APIC", b"MCFG", b"HPET", b"WAET", b"RSDT", b"XSDT", b"RSD "})


class UserTable(NamedTuple):
    """A table ready to be published, and what had to be repaired to make it so."""

    data: bytes
    warnings: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()
    """Where it was read."""

    def __repr__(self) -> str:
        """Leave the contents out, which may be megabytes."""
        return f"UserTable({self.signature}, {len(self.data)} bytes)"

    @property
    def signature(self) -> str:
        """The table's signature."""
        return self.data[:4].decode("latin-1")

    @classmethod
    def parse(cls, value: UserTable | str | bytes | Path) -> UserTable:
        """Read an ``-acpitable`` option and its files; bytes are a whole table, a Path is the file of one.

        Raises:
            ConfigError: an unknown or bad field, an unreadable file, a file too
                short to have a header, or neither (or both) of file and data.
        """
        if isinstance(value, UserTable):
            return value
        if isinstance(value, bytes):
            return repair_table(value)
        if isinstance(value, os.PathLike):
            path = inputs.as_path(value)
            return repair_table(_read([path]), source=str(value))._replace(paths=(path,))
        fields = options.parse_keys(value, _OPTION, known=(*_FIELDS, "file", "data"))
        if ("file" in fields) == ("data" in fields):
            raise ConfigError(f"{_OPTION} {value}: give one of file= and data=")
        names = fields.get("file") or fields.get("data") or ""
        paths = tuple(map(inputs.as_path, names.split(":")))
        content = _read(paths)
        overrides = {name: text for name, text in fields.items() if name in _FIELDS}
        if "data" in fields:
            warnings = () if overrides else (f"{_OPTION} {value}: no header fields given, the defaults are QEMU's",)
            table = bytearray(_DEFAULT_HEADER + content)
            _override(table, overrides)
            _finish(table)
            return cls(bytes(table), warnings, paths)
        return repair_table(content, overrides, source=names)._replace(paths=paths)


def repair_table(
    content: bytes, overrides: dict[str, str] | None = None, *, source: str = "table", option: str = _OPTION
) -> UserTable:
    """Take a whole table, replace header fields, make length and checksum right.

    Args:
        content: the table with its header.
        overrides: ``-acpitable`` fields by name, as text.
        source: names the table in warnings and errors.
        option: what the user typed it after.

    Raises:
        ConfigError: shorter than a header, or a bad field.

    """
    if len(content) < HEADER_SIZE:
        raise ConfigError(
            f"{option} {source}: {len(content)} bytes are no table, a header has {HEADER_SIZE}; "
            "-acpitable data= is for a body without one"
        )
    if len(content) > inputs.TABLE_LIMIT:
        raise ConfigError(f"{option} {source}: {len(content)} bytes, more than {inputs.TABLE_LIMIT}")
    if not content[:4].isascii() or not content[:4].decode("ascii").isprintable():
        raise ConfigError(
            f"{option} {source}: starts with {content[:4].hex()}, which is no signature; "
            "is it ASL source, or a body for data=?"
        )
    signature = content[:4].decode("ascii")
    warnings = []
    (length,) = _LENGTH.unpack_from(content, _LENGTH_OFFSET)
    if length != len(content):
        warnings.append(f"{option} {source}: {signature} says {length} bytes and has {len(content)}; length repaired")
    elif sum(content) & 0xFF:
        right = (content[CHECKSUM_OFFSET] - sum(content)) & 0xFF
        warnings.append(
            f"{option} {source}: checksum of {signature} is {content[CHECKSUM_OFFSET]:#04x}, repaired to {right:#04x}"
        )
    table = bytearray(content)
    _override(table, overrides or {})
    _finish(table)
    return UserTable(bytes(table), tuple(warnings))


def check_signatures(tables: Iterable[bytes]) -> None:
    """Refuse user tables of which there may be only one, and that is ours.

    Raises:
        ConfigError: names the signature.

    """
    for table in tables:
        if table[:4] in _ONLY_OURS:
            raise ConfigError(
                f"{_OPTION}: {table[:4].decode()} would be a second one; add an SSDT, or another signature, instead"
                f"{'; -dsdt PATH takes the place of ours' if table[:4] == _DSDT else ''}"
            )


def read_dsdt(value: UserTable | bytes | Path | str) -> UserTable:
    """Read a DSDT that takes the place of ours: a file with compiled AML, or its bytes.

    Raises:
        ConfigError: it cannot be read, or is no DSDT.
    """
    if isinstance(value, UserTable):
        table = value
    elif isinstance(value, bytes):
        table = repair_table(value, option=_DSDT_OPTION)
    else:
        path = inputs.as_path(value)
        data = inputs.read_file(path, _DSDT_OPTION, limit=inputs.TABLE_LIMIT)
        table = repair_table(data, source=str(value), option=_DSDT_OPTION)._replace(paths=(path,))
    if table.data[:4] != _DSDT:
        raise ConfigError(f"{_DSDT_OPTION}: the table is {table.signature}; -acpitable adds one that is no DSDT")
    return table


def slic_oem(tables: Iterable[bytes], oem: Oem) -> Oem:
    """Give the OEM identity of an SLIC among the tables, or the one passed in."""
    for table in tables:
        if table[:4] == b"SLIC":
            return Oem(table[10:16], table[16:24], oem.revision)
    return oem


def _read(paths: Iterable[Path]) -> bytes:
    return b"".join(inputs.read_file(path, _OPTION, limit=inputs.TABLE_LIMIT) for path in paths)


def _override(table: bytearray, fields: dict[str, str]) -> None:
    for name, value in fields.items():
        offset, size, largest = _FIELDS[name]
        if largest is None:
            try:
                encoded = value.encode("ascii")
            except UnicodeEncodeError:
                raise ConfigError(f"{_OPTION} {name}={value}: must be ASCII") from None
            if len(encoded) > size:
                raise ConfigError(f"{_OPTION} {name}={value}: at most {size} characters")
            table[offset : offset + size] = encoded.ljust(size, b"\0")
        else:
            number = options.parse_int(value, f"{_OPTION} {name}=", minimum=0, maximum=largest)
            table[offset : offset + size] = number.to_bytes(size, "little")


def _finish(table: bytearray) -> None:
    _LENGTH.pack_into(table, _LENGTH_OFFSET, len(table))
    table[CHECKSUM_OFFSET] = 0
    table[CHECKSUM_OFFSET] = checksum(table)
