"""Which terminal UEFI firmware takes its serial port for: what it wrote into its variable ConIn.

The store is the guest's to write, so whatever is in it, nothing is raised, and no size leads outside.

Source: UEFI 2.10, 3.3 (ConIn) and 10.3.4 (device path nodes); edk2, MdeModulePkg/Include/Guid/VariableFormat.h, whose
numbers are little-endian, and Guid/TtyTerm.h.
"""

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING
from uuid import UUID

from vmm.firmware.images import FirmwareKind
from vmm.run.keys import TerminalType

if TYPE_CHECKING:
    from vmm.devices.flash import Flash

_GUIDS = {
    UUID("e0c14753-f9be-11d2-9a0c-0090273fc14d").bytes_le: TerminalType.PC_ANSI,
    UUID("dfa66065-b419-11d3-9a2d-0090273fc14d").bytes_le: TerminalType.VT100,
    UUID("7baec70b-57e0-4c76-8e87-2f9e28088343").bytes_le: TerminalType.VT100_PLUS,
    UUID("ad15a0d6-8bec-4acf-a073-d01de77e2d88").bytes_le: TerminalType.VT_UTF8,
    UUID("7d916d80-5bb1-458c-a48f-e25fdd51ef94").bytes_le: TerminalType.TTY_TERM,
    UUID("e4364a7f-f825-430e-9d3a-9c9be6817ca5").bytes_le: TerminalType.LINUX,
    UUID("fbfca56b-bb36-4b78-aaab-be1b97ec7ccb").bytes_le: TerminalType.XTERM_R6,
    UUID("8e46dddd-3d49-4a9d-b875-3c086f6aa2bd").bytes_le: TerminalType.VT400,
    UUID("fc7dd6e0-813c-434d-b4da-3bd649e9e15a").bytes_le: TerminalType.SCO,
}

_HEADERS = {
    UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le: struct.Struct("<HBxI28xII16s"),
    UUID("ddcf3616-3275-4164-98b6-fe85707ffe7d").bytes_le: struct.Struct("<HBxIII16s"),
}
"""A variable's header by the GUID of its store, with and without authentication: start id, state, attributes, sizes of
name and data, vendor."""

_VOLUME_HEADER_SIZE_AT = 48
_STORE_HEADER = struct.Struct("<16sI8x")
_START_ID = 0x55AA
_VALID = (0x3F, 0x3E)
"""States: added; added, and about to be replaced by another that is not valid yet."""

_GLOBAL_VARIABLE = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le
_CON_IN = "ConIn\0".encode("utf-16-le")

_ACPI_NODE, _VENDOR_NODE = (2, 1), (3, 10)
_COM1 = struct.pack("<II", 0x050141D0, 0)
"""PNP0501 with UID 0, as OVMF numbers the serial ports."""


def find_terminal(flash: "Flash | None", kind: FirmwareKind) -> TerminalType:
    """Which type of terminal a guest expects at its serial port; AUTO: that is not known yet.

    Args:
        flash: where its firmware keeps variables, if it does.
        kind: of the firmware.
    """
    if flash is not None:
        return console_terminal(flash.contents())
    return TerminalType.AUTO if kind is FirmwareKind.BHYVE else TerminalType.TTY_TERM


def console_terminal(store: bytes) -> TerminalType:
    """Return the type that a variable store's ConIn names for COM1; AUTO if there is none yet.

    Args:
        store: the flash, from its volume's header on.
    """
    terminal = TerminalType.AUTO
    for vendor, name, data in _variables(store):
        if vendor == _GLOBAL_VARIABLE and name == _CON_IN:
            terminal = _terminal(data)
    return terminal


def _variables(store: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield vendor, name and data of each variable that is not deleted."""
    at = int.from_bytes(store[_VOLUME_HEADER_SIZE_AT : _VOLUME_HEADER_SIZE_AT + 2], "little")
    if at + _STORE_HEADER.size > len(store):
        return
    kind, size = _STORE_HEADER.unpack_from(store, at)
    header = _HEADERS.get(kind)
    if header is None:
        return
    end = min(at + size, len(store))
    at += _STORE_HEADER.size
    while at + header.size <= end:
        start_id, state, _, name_size, data_size, vendor = header.unpack_from(store, at)
        if start_id != _START_ID:
            return
        name_at = at + header.size
        data_at = name_at + name_size
        if state in _VALID:
            yield vendor, store[name_at:data_at], store[data_at : data_at + data_size]
        at = data_at + data_size
        at += -at % 4


def _terminal(paths: bytes) -> TerminalType:
    """Return the type in the first of several device paths that leads over COM1."""
    at, before = 0, b""
    while at + 4 <= len(paths):
        kind, subtype, size = struct.unpack_from("<BBH", paths, at)
        node = paths[at + 4 : at + size]
        if (kind, subtype) == _ACPI_NODE:
            before = node[:8]
        elif (kind, subtype) == _VENDOR_NODE and before == _COM1 and node[:16] in _GUIDS:
            return _GUIDS[node[:16]]
        at += max(size, 4)
    return TerminalType.AUTO
