"""Runs a table-loader script on its blobs as OVMF and as SeaBIOS do.

Firmware drops tables without a word. This interpreter says, per command, what
each of the two does and why: the rules are those of edk2's
OvmfPkg/Library/../QemuFwCfgAcpi.c (2022.11) and SeaBIOS's
src/fw/romfile_loader.c (1.16), which differ; see ``run``.

Addresses are invented unless the caller gives them; nothing here touches guest RAM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.layout import PAGE
from vmm.tables import table_loader
from vmm.tables.acpi_tables import checksum
from vmm.tables.loader_result import Blob, LoaderResult, Rules, Step
from vmm.tables.loader_search import ovmf_second_pass, seabios_search
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

_SEABIOS_MIN_ALIGN = 16  # MALLOC_MIN_ALIGN in src/malloc.h
_SEABIOS_FSEG = (0xF5000, 0xFFFF0)


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
            ovmf_second_pass(result, commands)
        if not result.ok:
            # Addresses already handed to the host are zeroed again.
            result.written = {name: bytes(len(data)) for name, data in result.written.items()}
    else:
        seabios_search(result)
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
            if command.align > PAGE:
                raise _RefusedError(f"alignment {command.align} is above {PAGE}")
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
            align = PAGE
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
