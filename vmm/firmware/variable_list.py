"""The variables in a VARS file, read and written by virt-firmware while no machine has them.

The file is edk2's: a firmware volume with a store of authenticated variables (MdeModulePkg/Include/Guid/
VariableFormat.h). virt-firmware is imported when it is needed, and is no dependency of vmm otherwise.
"""

import logging
import struct
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm import inputs, installation
from vmm.errors import ConfigError, HostError
from vmm.firmware.variables import VariableFile

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST = 16 << 20
"""Bytes of a VARS file, as of all firmware."""

_ENTRY = struct.Struct("<HBxL28xLL16x")
"""A variable's header: what begins each, state, attributes, and the bytes of name and value, which follow."""
_IS_ENTRY = 0x55AA
_IS_VALID = 0x3F
_ERASED = b"\xff"
_UNWRITTEN = 0xFFFFFFFF

_NEW = 0x7
"""Non-volatile, for boot services and run time (UEFI 2.10, 8.2.1)."""


class Listed(NamedTuple):
    """One variable; ``value`` is what virt-firmware makes of it, for people."""

    name: str
    guid: str
    attributes: int
    data: bytes
    value: str


def _load() -> tuple[Any, Any]:
    try:
        from virt.firmware import efi
        from virt.firmware.varstore import edk2
    except ImportError as error:
        remedy = installation.extra_remedy("vars")
        raise HostError(f"virt-firmware reads VARS files, and is not there ({error}): {remedy}") from None
    logging.getLogger().setLevel(logging.CRITICAL)  # it says on the root logger what errors here say
    return edk2, efi


def _is_name(data: bytes) -> bool:
    """Whether these bytes are a variable's name: UTF-16, with a NUL behind it and nowhere else."""
    try:
        return data.decode("utf-16-le").find("\0") == len(data) // 2 - 1 > 0
    except UnicodeDecodeError:
        return False


class VariableList:
    """What is in a file.

    Args:
        path: the VARS file.

    Raises:
        ConfigError: it cannot be read, or is none.
        HostError: virt-firmware is not there.
    """

    def __init__(self, path: Path) -> None:
        data = inputs.read_file(path, "variable store", limit=LARGEST)
        edk2, _ = _load()
        self._path = path
        self._read = data
        try:
            self._store = edk2.Edk2VarStore(str(path))
        except (SystemExit, struct.error, ValueError) as error:  # virt-firmware ends the process where it finds none
            raise ConfigError(f"{path}: no store of UEFI variables is in it (a VARS file of OVMF's has one)") from error
        count = self._count()
        self.variables: Any = self._store.get_varlist()
        if count != len(self.variables):
            raise ConfigError(
                f"{path}: virt-firmware would lose variables of it: two have one name, or one was never written whole"
            )

    def _count(self) -> int:
        """How many there are, whatever their names.

        Raises:
            ConfigError: something in the store is no variable; virt-firmware would take that for the end, and write the
                file anew without what comes behind.
        """
        data, at, end, count = self._store.filedata, self._store.start, self._store.end, 0
        if end > len(data):
            raise ConfigError(f"{self._path}: has {len(data)} bytes, and its store of variables would end at {end}")
        while at + _ENTRY.size <= end:
            magic, state, attributes, name, size = _ENTRY.unpack_from(data, at)
            if state == 0xFF or _UNWRITTEN in {attributes, name, size}:
                name = size = 0  # as edk2 goes on behind a header that was not written to its end (VariableParsing.c)
            behind = at + _ENTRY.size + name + size
            is_valid = state == _IS_VALID
            if magic != _IS_ENTRY or behind > end or (is_valid and not _is_name(data[at + _ENTRY.size :][:name])):
                break
            count += is_valid
            at = behind + 3 & ~3
        if data[at:end].strip(_ERASED):
            raise ConfigError(
                f"{self._path}: what is at {at:#x} is no variable: the store is damaged; a copy of the firmware's "
                "own VARS file is an empty one"
            )
        return count

    def list(self) -> list[Listed]:
        """All, by name."""
        return [
            Listed(name, str(variable.guid), int(variable.attr), bytes(variable.data), str(variable.fmt_data() or ""))
            for name, variable in sorted(self.variables.items())
        ]

    def set(self, name: str, data: bytes, guid: str | None = None) -> None:
        """Give a variable this value; a new one is non-volatile, and for boot and run time.

        Raises:
            ConfigError: no value, no name that UEFI has, or a GUID that is none or not that of the variable there is.
        """
        from virt.firmware.efi import efivar

        if not data:
            raise ConfigError(f"{self._path}: {name} without a value would be none: vmm vars delete takes it away")
        if not name or any("\ud800" <= letter <= "\udfff" or letter > "\uffff" for letter in name):
            raise ConfigError(
                f"{self._path}: {name!r} is no name: UEFI's have characters up to U+FFFF, one at the least"
            )
        known = self.variables.get(name)
        try:
            attributes = None if name in efivar.efivar_defaults or name.startswith("Boot") else _NEW
            made = efivar.EfiVar(name, guid=guid, attr=attributes, data=data)
        except ValueError as error:
            raise ConfigError(f"--guid {guid}: {error}") from None
        if known is None:
            self.variables[name] = made
        elif guid is not None and str(made.guid) != str(known.guid):
            raise ConfigError(f"{self._path}: {name} is there with another GUID, {known.guid}")
        else:
            known.data = data
            known.update_time()

    def delete(self, name: str) -> None:
        """Take a variable out.

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in self.variables:
            raise ConfigError(f"{self._path}: it has no variable {name}; vmm vars list shows those that it has")
        del self.variables[name]

    def enroll(self, certificate: Path, *, microsoft: bool) -> None:
        """Turn Secure Boot on: the certificate becomes PK, KEK, and the db's, beside Microsoft's if those are wanted.

        Raises:
            ConfigError: the file is no certificate in PEM format.
        """
        from virt.firmware.efi import guids

        inputs.read_file(certificate, "certificate", limit=1 << 20)
        try:
            self.variables.enroll_platform_with_cert(str(certificate), ms_kek="all" if microsoft else "none")
            self.variables.add_cert("db", guids.OvmfEnrollDefaultKeys, str(certificate), True)
            if microsoft:
                self.variables.add_microsoft_keys()
            self.variables.enable_secureboot()
        except (ValueError, SystemExit, AttributeError) as error:
            raise ConfigError(f"{certificate}: no certificate (X.509, in PEM format)") from error

    def write(self) -> None:
        """Write the file, in place; it must be as it was read, and nobody's.

        Raises:
            ConfigError: a machine keeps its variables there, it was changed meanwhile, or has no room for them.
            HostError: it cannot be written.
        """
        store = self._store
        try:
            variables = store.bytes_varlist(self.variables)
        except SystemExit:
            raise ConfigError(f"{self._path}: there is no room for that in the store") from None
        # Not bytes_varstore(), which fills the rest byte by byte, with a copy of all for each.
        new = (store.filedata[: store.start] + variables).ljust(store.end, b"\xff") + store.filedata[store.end :]
        with _opened(self._path, len(self._read)) as file:
            if file.contents[:] != self._read:
                raise ConfigError(f"{self._path}: somebody changed it meanwhile; try again")
            file.contents[:] = new
            file.store(0, len(new))


@contextmanager
def _opened(path: Path, size: int) -> "Iterator[VariableFile]":
    with closing(VariableFile(path, size)) as file:
        yield file
