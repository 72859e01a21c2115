"""Runs a table-loader script on its blobs as OVMF and as SeaBIOS do.

Firmware drops tables without a word. This interpreter says, per command, what
each of the two does and why: the rules are those of edk2's
OvmfPkg/Library/../QemuFwCfgAcpi.c (2022.11) and SeaBIOS's
src/fw/romfile_loader.c (1.16), which differ; see ``run``.

Addresses are invented unless the caller gives them; nothing here touches guest RAM.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from vmm.tables import table_loader
from vmm.tables.acpi_tables import checksum
from vmm.tables.table_loader import (
    AddChecksum,
    AddPointer,
    Allocate,
    Command,
    Malformed,
    Unknown,
    WritePointer,
    Zone,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_PAGE = 4096
_HEADER_SIZE = 36
_FACS_SIZE = 64
_MAX_INSTALLED = 128  # INSTALLED_TABLES_MAX in QemuFwCfgAcpi.c
_SEABIOS_MIN_ALIGN = 16  # MALLOC_MIN_ALIGN in src/malloc.h
_SEABIOS_FSEG = (0xF5000, 0xFFFF0)
_UNIQUE = {b"FACP", b"FACS", b"DSDT"}  # AcpiTableDxe keeps one of each
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Rules(Enum):
    """Whose rules to run by."""

    OVMF = "ovmf"
    SEABIOS = "seabios"


@dataclass
class Blob:
    """A file that ALLOCATE loaded: its guest-physical base address and current bytes."""

    file: str
    base: int
    data: bytearray
    zone: int
    only_tables: bool = True


@dataclass(frozen=True)
class Step:
    """What became of one command; ``reason`` is empty if it succeeded."""

    index: int
    command: Command
    ok: bool
    reason: str = ""


@dataclass(frozen=True)
class FoundTable:
    """A table that firmware looked at: offset in bytes into its file, and the verdict."""

    signature: str
    file: str
    offset: int
    length: int
    address: int
    accepted: bool
    reason: str = ""


@dataclass
class LoaderResult:
    """All that running a script gave.

    ``ok`` is false if firmware would publish no table of the script: for OVMF
    after any failure, for SeaBIOS if the script as a whole is refused or no
    usable RSDP results. ``written`` maps fw_cfg items to what WRITE_POINTER
    left in them.
    """

    rules: Rules
    ok: bool = True
    reason: str = ""
    steps: list[Step] = field(default_factory=list)
    blobs: dict[str, Blob] = field(default_factory=dict)
    tables: list[FoundTable] = field(default_factory=list)
    written: dict[str, bytes] = field(default_factory=dict)

    @property
    def failures(self) -> list[Step]:
        """The commands that failed."""
        return [step for step in self.steps if not step.ok]


class _RefusedError(Exception):
    """A command failed by the rules in force; the text is the reason."""


def run(
    script: bytes,
    files: Mapping[str, bytes],
    rules: Rules,
    *,
    bases: Mapping[str, int] | None = None,
    writable: Collection[str] = (),
    dma: bool = True,
) -> LoaderResult:
    """Run a script and tell what a firmware makes of it.

    OVMF stops at the first failure and takes everything back; if the script
    succeeds, a second pass offers each distinct ADD_POINTER target to the table
    protocol. SeaBIOS skips what fails and goes on; then it follows the RSDP that
    lies in the F segment.

    Args:
        script: content of ``etc/table-loader``.
        files: the fw_cfg directory: every file by name with its content.
        rules: which firmware.
        bases: guest-physical addresses by file, where known.
        writable: names of items that accept writes; a WRITE_POINTER elsewhere fails.
        dma: whether fw_cfg offers DMA, without which nothing can be written.

    """
    result = LoaderResult(rules)
    try:
        commands = table_loader.decode(script)
    except ValueError as error:
        result.ok, result.reason = False, str(error)
        return result
    machine = _Loader(result, files, bases or {}, frozenset(writable), commands, dma=dma)
    machine.first_pass(commands)
    if rules is Rules.OVMF:
        if result.ok:
            _ovmf_second_pass(result, commands)
        if not result.ok:
            # Addresses already handed to the host are zeroed again.
            result.written = {name: bytes(len(data)) for name, data in result.written.items()}
    else:
        _seabios_search(result)
    return result


class _Loader:
    """The first pass: commands in order, on blobs that ALLOCATE creates."""

    def __init__(
        self,
        result: LoaderResult,
        files: Mapping[str, bytes],
        bases: Mapping[str, int],
        writable: frozenset[str],
        commands: tuple[Command, ...],
        *,
        dma: bool,
    ) -> None:
        self._result = result
        self._files = files
        self._bases = bases
        self._writable = writable
        self._dma = dma
        self._ovmf = result.rules is Rules.OVMF
        # OVMF allocates below 4 GiB only what a pointer narrower than 8 bytes refers to.
        self._below_4g = {
            command.source for command in commands if isinstance(command, AddPointer) and command.size < 8
        }
        self._next = {"low": 0x7F00_0000, "high": 0x1_4000_0000, "fseg": _SEABIOS_FSEG[0]}

    def first_pass(self, commands: tuple[Command, ...]) -> None:
        """Run the commands, recording a step for each."""
        result = self._result
        for index, command in enumerate(commands):
            try:
                self._execute(command)
            except _RefusedError as refusal:
                result.steps.append(Step(index, command, ok=False, reason=str(refusal)))
                if self._ovmf:
                    result.ok = False
                    result.reason = f"record {index} ({command}): {refusal}"
                    return
            else:
                result.steps.append(Step(index, command, ok=True))

    def _execute(self, command: Command) -> None:
        if isinstance(command, Allocate):
            self._allocate(command)
        elif isinstance(command, AddPointer):
            self._add_pointer(command)
        elif isinstance(command, AddChecksum):
            self._add_checksum(command)
        elif isinstance(command, WritePointer):
            self._write_pointer(command)
        elif isinstance(command, Malformed):
            raise _RefusedError("a file name is not terminated within its 56 bytes")
        else:
            assert isinstance(command, Unknown)  # noqa: S101 - narrows the closed union

    def _allocate(self, command: Allocate) -> None:
        blobs = self._result.blobs
        if self._ovmf:
            if command.align > _PAGE:
                raise _RefusedError(f"alignment {command.align} is above {_PAGE}")
        elif command.align & (command.align - 1):
            raise _RefusedError(f"alignment {command.align} is not a power of two")
        elif command.zone not in {Zone.HIGH, Zone.FSEG}:
            raise _RefusedError(f"zone {command.zone} is neither HIGH (1) nor FSEG (2)")
        if command.file not in self._files:
            raise _RefusedError(f"no fw_cfg file {command.file}")
        data = bytearray(self._files[command.file])
        if not data:
            raise _RefusedError(f"{command.file} is empty")
        if command.file in blobs:
            if self._ovmf:
                raise _RefusedError(f"duplicate ALLOCATE of {command.file}")
            return  # SeaBIOS loads a second copy; every name lookup still finds the first.
        base = self._place(command, len(data))
        blobs[command.file] = Blob(command.file, base, data, command.zone)

    def _place(self, command: Allocate, size: int) -> int:
        known = self._bases.get(command.file)
        if known is not None:
            return known
        if self._ovmf:
            pool = "low" if command.file in self._below_4g else "high"
            align = _PAGE
        else:
            pool = "fseg" if command.zone == Zone.FSEG else "low"
            align = max(command.align, _SEABIOS_MIN_ALIGN)
        base = -(-self._next[pool] // align) * align
        if pool == "fseg" and base + size > _SEABIOS_FSEG[1]:
            raise _RefusedError(f"{size} bytes do not fit into the F segment")
        self._next[pool] = base + size
        return base

    def _blob(self, name: str) -> Blob:
        blob = self._result.blobs.get(name)
        if blob is None:
            raise _RefusedError(f"{name} was not allocated")
        return blob

    def _add_pointer(self, command: AddPointer) -> None:
        dest, source = self._blob(command.dest), self._blob(command.source)
        self._check_field(command.offset, command.size, len(dest.data), command.dest)
        end = command.offset + command.size
        value = int.from_bytes(dest.data[command.offset : end], "little")
        if self._ovmf and value >= len(source.data):
            raise _RefusedError(f"value {value:#x} points outside {command.source} ({len(source.data):#x} B)")
        value += source.base
        limit = 1 << (8 * command.size)
        if self._ovmf and value >= limit:
            raise _RefusedError(f"address {value:#x} does not fit into {command.size} bytes")
        dest.data[command.offset : end] = (value % limit).to_bytes(command.size, "little")

    def _add_checksum(self, command: AddChecksum) -> None:
        blob = self._blob(command.file)
        size = len(blob.data)
        end = command.start + command.length
        if command.result >= size or end > size:
            raise _RefusedError(
                f"range {command.start:#x}+{command.length:#x} or result {command.result:#x} "
                f"is outside {command.file} ({size:#x} B)"
            )
        value = checksum(blob.data[command.start : end])
        if not self._ovmf:
            value = (blob.data[command.result] + value) & 0xFF
        blob.data[command.result] = value

    def _write_pointer(self, command: WritePointer) -> None:
        source = self._blob(command.source)
        if command.dest not in self._files:
            raise _RefusedError(f"no fw_cfg file {command.dest}")
        size = len(self._files[command.dest])
        self._check_field(command.dest_offset, command.size, size, command.dest)
        if command.source_offset >= len(source.data):
            raise _RefusedError(
                f"offset {command.source_offset:#x} is outside {command.source} ({len(source.data):#x} B)"
            )
        value = source.base + command.source_offset
        if value >> (8 * command.size):
            raise _RefusedError(f"address {value:#x} does not fit into {command.size} bytes")
        if not self._dma:
            raise _RefusedError("fw_cfg offers no DMA, so nothing can be written")
        if command.dest not in self._writable:
            raise _RefusedError(f"{command.dest} is read-only")
        target = bytearray(self._result.written.get(command.dest, self._files[command.dest]))
        end = command.dest_offset + command.size
        target[command.dest_offset : end] = value.to_bytes(command.size, "little")
        self._result.written[command.dest] = bytes(target)
        source.only_tables = False

    @staticmethod
    def _check_field(offset: int, size: int, total: int, name: str) -> None:
        if size not in {1, 2, 4, 8}:
            raise _RefusedError(f"pointer size {size} is not 1, 2, 4 or 8")
        if offset + size > total:
            raise _RefusedError(f"field {offset:#x}+{size} is outside {name} ({total:#x} B)")


def _ovmf_second_pass(result: LoaderResult, commands: tuple[Command, ...]) -> None:
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
        if sum(t.accepted for t in result.tables) == _MAX_INSTALLED and table.accepted:
            result.ok = False
            result.reason = f"record {index} ({command}): more than {_MAX_INSTALLED} tables"
            return
        result.tables.append(table)
        if not table.accepted and not table.signature.startswith(("RSDT", "XSDT")):
            blob.only_tables = False


def _probe(blob: Blob, offset: int) -> FoundTable:
    data = blob.data[offset:]
    name = data[:4].decode("latin-1")

    def verdict(length: int, reason: str) -> FoundTable:
        address = blob.base + offset
        return FoundTable(name, blob.file, offset, length, address, not reason, reason)

    if len(data) < _HEADER_SIZE:
        return verdict(0, f"only {len(data)} bytes are left, a table header has {_HEADER_SIZE}")
    (length,) = _U32.unpack_from(data, 4)
    if name == "FACS" and len(data) >= _FACS_SIZE and _FACS_SIZE <= length <= len(data):
        return verdict(length, "")
    if not _HEADER_SIZE <= length <= len(data):
        return verdict(length, f"length {length:#x} is not within {_HEADER_SIZE} and what is left")
    if checksum(data[:length]):
        return verdict(length, f"checksum is wrong: the bytes sum to {sum(data[:length]) & 0xFF:#x}")
    if name in {"RSDT", "XSDT"}:
        return verdict(length, "OVMF builds its own")
    return verdict(length, "")


def _seabios_search(result: LoaderResult) -> None:
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
    body = blob.data[root.offset + _HEADER_SIZE : root.offset + root.length]
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
