"""Which tables firmware finds once a table-loader script has run: OVMF by its pointers, SeaBIOS from the RSDP.

Source: edk2's OvmfPkg/Library/../QemuFwCfgAcpi.c (2022.11), SeaBIOS's src/fw/biostables.c (1.16).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vmm.tables.acpi_tables import HEADER_SIZE, checksum
from vmm.tables.loader_result import FoundTable
from vmm.tables.table_loader import AddPointer, Zone

if TYPE_CHECKING:
    from vmm.tables.loader_result import Blob, LoaderResult
    from vmm.tables.table_loader import Command

_FACS_SIZE = 64
_MAX_INSTALLED = 128  # INSTALLED_TABLES_MAX in QemuFwCfgAcpi.c
_UNIQUE = {b"FACP", b"FACS", b"DSDT"}  # AcpiTableDxe keeps one of each
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


def ovmf_second_pass(result: LoaderResult, commands: tuple[Command, ...]) -> None:
    """Probe each distinct pointer target as edk2's Process2ndPassCmdAddPointer does."""
    seen: set[int] = set()
    for index, command in enumerate(commands):
        if not isinstance(command, AddPointer):
            continue
        holder, blob = result.blobs[command.dest], result.blobs[command.source]
        end = command.offset + command.size
        address = int.from_bytes(holder.data[command.offset : end], "little")
        offset = address - blob.base
        if address in seen:
            continue
        seen.add(address)
        if not 0 <= offset < len(blob.data):
            # A later pointer or checksum overwrote this field; edk2 would assert.
            result.ok = False
            result.reason = f"record {index} ({command}): its field was overwritten later"
            return
        table = _probe(blob, offset)
        if table.accepted and table.signature.encode("latin-1") in _UNIQUE:
            known = [t for t in result.tables if t.accepted and t.signature == table.signature]
            if known:
                result.ok = False
                result.reason = f"record {index} ({command}): a second {table.signature}"
                return
        if result.ok and table.accepted and sum(t.accepted for t in result.tables) == _MAX_INSTALLED:
            # edk2 stops here; which tables there are beyond that is what other firmware may take.
            result.ok = False
            result.reason = f"record {index} ({command}): more than {_MAX_INSTALLED} tables"
        result.tables.append(table)
        if not table.accepted and not table.signature.startswith(("RSDT", "XSDT")):
            blob.only_tables = False


def _probe(blob: Blob, offset: int) -> FoundTable:
    data = blob.data[offset:]
    name = data[:4].decode("latin-1")

    def verdict(length: int, reason: str) -> FoundTable:
        address = blob.base + offset
        return FoundTable(name, blob.file, offset, length, address, not reason, reason)

    if len(data) < HEADER_SIZE:
        return verdict(0, f"only {len(data)} bytes are left, a table header has {HEADER_SIZE}")
    (length,) = _U32.unpack_from(data, 4)
    if name == "FACS" and len(data) >= _FACS_SIZE and _FACS_SIZE <= length <= len(data):
        return verdict(length, "")
    if not HEADER_SIZE <= length <= len(data):
        return verdict(length, f"length {length:#x} is not within {HEADER_SIZE} and what is left")
    if checksum(data[:length]):
        return verdict(length, f"checksum is wrong: the bytes sum to {sum(data[:length]) & 0xFF:#x}")
    if name in {"RSDT", "XSDT"}:
        return verdict(length, "OVMF builds its own")
    return verdict(length, "")


def seabios_search(result: LoaderResult) -> None:
    """Follow the RSDP in the F segment, as find_acpi_rsdp and the OS after it do."""
    for blob in result.blobs.values():
        if blob.zone != Zone.FSEG or bytes(blob.data[:8]) != b"RSD PTR ":
            continue
        if len(blob.data) < 20 or checksum(blob.data[:20]):
            result.ok, result.reason = False, f"the RSDP in {blob.file} has a wrong checksum"
            return
        _seabios_follow(result, blob)
        return
    result.ok = False
    result.reason = "no RSDP in the F segment: SeaBIOS falls back to its own tables, if built in"


def _seabios_follow(result: LoaderResult, rsdp: Blob) -> None:
    (rsdt,) = _U32.unpack_from(rsdp.data, 16)
    xsdt = 0
    if rsdp.data[15] >= 2 and len(rsdp.data) >= 36:
        (xsdt,) = _U64.unpack_from(rsdp.data, 24)
    root_address, width = (xsdt, 8) if xsdt else (rsdt, 4)
    root = _table_at(result, root_address)
    if not root.accepted:
        result.ok = False
        result.reason = f"the root table at {root_address:#x}: {root.reason}"
        return
    blob = result.blobs[root.file]
    body = blob.data[root.offset + HEADER_SIZE : root.offset + root.length]
    for position in range(0, len(body) - width + 1, width):
        table = _table_at(result, int.from_bytes(body[position : position + width], "little"))
        result.tables.append(table)
        if table.accepted and table.signature == "FACP":
            data = result.blobs[table.file].data[table.offset : table.offset + table.length]
            facs, dsdt = struct.unpack_from("<II", data, 36)
            result.tables.extend(_table_at(result, address) for address in (facs, dsdt) if address)


def _table_at(result: LoaderResult, address: int) -> FoundTable:
    for blob in result.blobs.values():
        if blob.base <= address < blob.base + len(blob.data):
            table = _probe(blob, address - blob.base)
            if table.reason.startswith("OVMF"):
                return FoundTable(table.signature, table.file, table.offset, table.length, address, accepted=True)
            return table
    return FoundTable("", "", 0, 0, address, accepted=False, reason=f"{address:#x} is outside every file")
