"""ACPI: every table that was offered against those that the guest reaches from the RSDP, byte by byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.tables import table_loader
from vmm.tables.acpi_tables import CHECKSUM_OFFSET, HEADER_SIZE
from vmm.tables.files import LOADER_FILE, RSDP_FILE, VMGENID_GUID_FILE
from vmm.tables.table_loader import AddPointer
from vmm.verify import aml
from vmm.verify.acpi_fields import field_at
from vmm.verify.result import Subject
from vmm.verify.values import Table, Verdict

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from vmm.tables.loader_result import FoundTable
    from vmm.verify.collect import Collected
    from vmm.verify.evidence import Evidence
    from vmm.verify.guest_report import GuestReport, Located

_ROOTS = ("RSDT", "XSDT")
_FADT_POINTERS = {36: "FACS", 40: "DSDT", 132: "FACS", 140: "DSDT"}
"""FIRMWARE_CTRL, DSDT, X_FIRMWARE_CTRL, X_DSDT: firmware chooses which of each pair it fills (ACPI 6.5, 5.2.9)."""


@dataclass(frozen=True)
class _Pointer:
    """A field that the loader patches: offset in the table, size in bytes, and what it shall point at."""

    offset: int
    size: int
    target: str


@dataclass(frozen=True)
class Offered:
    """A table as it was built, before any pointer was filled in."""

    signature: str
    file: str
    offset: int
    data: bytes
    pointers: tuple[_Pointer, ...]


def compare(collected: Collected, report: GuestReport, evidence: Evidence) -> Subject:
    """Compare every table; say where a table comes from that nobody offered."""
    subject = Subject("ACPI tables")
    offered = offered_tables(collected, evidence)
    pool = [found for found in report.acpi if _signature(found) not in _ROOTS]
    if collected.config.acpi:
        _compare_rsdp(subject, report, evidence)
    elif report.rsdp is not None:
        subject.add("RSDP", "-", f"at {report.rsdp.address:#x}", Verdict.EXTRA)
    for table in offered:
        candidates = [found for found in pool if _signature(found) == table.signature]
        if not candidates:
            reason = _why_missing(table, collected, evidence)
            values = Table(table.signature, table.data), None
            subject.add(_title(table), f"{len(table.data)} bytes", "-", Verdict.MISSING, reason=reason, values=values)
            continue
        best = min(candidates, key=lambda found: _distance(table, found.data))
        pool.remove(best)
        _compare_table(subject, table, best, collected, report, evidence)
    for found in pool:
        where = f"{len(found.data)} bytes at {found.address:#x}"
        subject.add(_signature(found), "-", where, Verdict.EXTRA, values=(None, Table(_signature(found), found.data)))
    return subject


def offered_tables(collected: Collected, evidence: Evidence) -> list[Offered]:
    """Tables as they were built."""
    tables = [table for table in evidence.intended.tables if table.accepted]
    targets = {(table.file, table.offset): table.signature for table in tables}
    commands = table_loader.decode(collected.tables.get(LOADER_FILE, b""))
    pointers = [command for command in commands if isinstance(command, AddPointer)]
    result = []
    for table in tables:
        data = collected.tables[table.file][table.offset : table.offset + table.length]
        own = tuple(
            _pointer(command, data, table, targets)
            for command in pointers
            if command.dest == table.file and table.offset <= command.offset < table.offset + table.length
        )
        result.append(Offered(table.signature, table.file, table.offset, data, own))
    return result


def _pointer(command: AddPointer, data: bytes, table: FoundTable, targets: dict[tuple[str, int], str]) -> _Pointer:
    at = command.offset - table.offset
    value = int.from_bytes(data[at : at + command.size], "little")
    return _Pointer(at, command.size, targets.get((command.source, value), command.source))


def _compare_rsdp(subject: Subject, report: GuestReport, evidence: Evidence) -> None:
    rsdp = report.rsdp
    if rsdp is None:
        reason = evidence.never_read(LOADER_FILE) or evidence.loader.reason or "firmware installed no table"
        subject.add("RSDP", RSDP_FILE, "-", Verdict.MISSING, reason=reason)
        return
    wrong = sum(rsdp.data[:20]) & 0xFF or sum(rsdp.data) & 0xFF
    size = f"{len(rsdp.data)} bytes " if rsdp.data else ""
    subject.add(
        "RSDP",
        RSDP_FILE,
        f"{size}at {rsdp.address:#x}",
        Verdict.ALTERED if wrong else Verdict.ARRIVED,
        difference="its checksum is wrong"
        if wrong
        else "OVMF builds its own, and RSDT and XSDT"
        if evidence.is_ovmf
        else "",
    )


def _compare_table(
    subject: Subject,
    table: Offered,
    found: Located,
    collected: Collected,
    report: GuestReport,
    evidence: Evidence,
) -> None:
    data = found.data
    problems, filled = [], []
    if len(data) != len(table.data):
        problems.append(f"length is {len(data)}")
    targets = {other.address: _signature(other) for other in report.acpi}
    pointers = {pointer.offset: pointer for pointer in table.pointers}
    if table.signature == "FACP":
        for at, target in _FADT_POINTERS.items():
            pointers.setdefault(at, _Pointer(at, 4 if at < HEADER_SIZE + 8 else 8, target))
    skip = set()
    for pointer in pointers.values():
        skip |= set(range(pointer.offset, pointer.offset + pointer.size))
        name = field_at(table.signature, pointer.offset)[0]
        value = int.from_bytes(data[pointer.offset : pointer.offset + pointer.size], "little")
        want = targets.get(value, "")
        if pointer.target == VMGENID_GUID_FILE:
            want = pointer.target if value and value == _vmgenid_page(collected) else ""
        if want == pointer.target:
            filled.append(name)
        elif not (table.signature == "FACP" and value == 0 and _twin_resolves(data, pointer, targets)):
            problems.append(f"{name} is {value:#x}, where there is no {pointer.target}")
    if table.signature != "FACS":
        skip.add(CHECKSUM_OFFSET)
        if sum(data) & 0xFF:
            problems.append(f"checksum is wrong, the bytes sum to {sum(data) & 0xFF:#x}")
    differs = [f"{name} was {was}, is {now}" for name, was, now in differences(table.signature, table.data, data, skip)]
    problems += differs
    if table.signature in aml.SIGNATURES and (differs or len(data) != len(table.data)):
        filled_in = bytes(data[at] if at in skip and at < len(data) else byte for at, byte in enumerate(table.data))
        problems.append(aml.compare(filled_in, data))
    reason = ""
    if problems:
        reason = _why_altered(table, collected, evidence)
    subject.add(
        _title(table),
        f"{len(table.data)} bytes",
        f"{len(data)} bytes at {found.address:#x}",
        Verdict.ALTERED if problems else Verdict.ARRIVED,
        difference="; ".join(problems) or (f"filled in: {', '.join(filled)}" if filled else ""),
        reason=reason,
        values=(Table(table.signature, table.data), Table(_signature(found), data)),
    )


def differences(
    signature: str, offered: bytes, found: bytes, skip: Container[int] = ()
) -> Iterator[tuple[str, str, str]]:
    """Name every field that differs, once, and what it has on both sides; `skip` has offsets of bytes that may."""
    done = -1
    for at in range(min(len(found), len(offered))):
        if at in skip or at < done or found[at] == offered[at]:
            continue
        name, start, size = field_at(signature, at)
        done = start + size
        yield name, _bytes(offered[start:done]), _bytes(found[start:done])


def _twin_resolves(data: bytes, pointer: _Pointer, targets: dict[int, str]) -> bool:
    """Whether the other one of FADT's two pointers to the same table is filled in."""
    for at, target in _FADT_POINTERS.items():
        size = 4 if at < HEADER_SIZE + 8 else 8
        value = int.from_bytes(data[at : at + size], "little")
        if target == pointer.target and targets.get(value) == target:
            return True
    return False


def _why_altered(table: Offered, collected: Collected, evidence: Evidence) -> str:
    published = collected.published.get(table.file, b"")[table.offset : table.offset + len(table.data)]
    for candidate in evidence.loader.tables:
        if (candidate.file, candidate.offset) == (table.file, table.offset) and not candidate.accepted:
            return candidate.reason
    reason = _stray_pointers(table, collected) or _failures(evidence)
    if reason:
        return reason
    if published != table.data:
        return "it was published like that"
    return "overridden by firmware"


def _stray_pointers(table: Offered, collected: Collected) -> str:
    """Name the pointers in a table that point outside their file; SeaBIOS does not look."""
    files = collected.published
    try:
        commands = table_loader.decode(files.get(LOADER_FILE, b""))
    except ValueError as error:
        return f"{LOADER_FILE}: {error}"
    reasons = []
    for index, command in enumerate(commands):
        if not isinstance(command, AddPointer) or command.dest != table.file:
            continue
        if table.offset <= command.offset < table.offset + len(table.data):
            field = files.get(command.dest, b"")[command.offset : command.offset + command.size]
            value, size = int.from_bytes(field, "little"), len(files.get(command.source, b""))
            if value >= size:
                reasons.append(f"record {index} ({command}): value {value:#x} points outside the file ({size:#x} B)")
    return "; ".join(reasons)


def _why_missing(table: Offered, collected: Collected, evidence: Evidence) -> str:
    loader = evidence.loader
    unread = evidence.never_read(LOADER_FILE) or evidence.never_read(table.file)
    if unread:
        return unread
    if not loader.ok:
        consequence = f"{evidence.firmware} takes all tables back" if evidence.is_ovmf else "no table is found"
        return f"{loader.reason}: {consequence}"
    for candidate in loader.tables:
        if (candidate.file, candidate.offset) == (table.file, table.offset) and not candidate.accepted:
            return (
                f"{evidence.firmware}'s second pass rejects it: {candidate.reason}"
                if evidence.is_ovmf
                else (candidate.reason)
            )
    if not any((other.file, other.offset) == (table.file, table.offset) for other in loader.tables):
        published = collected.published.get(LOADER_FILE, b"")
        if not _points_at(published, collected.published, table):
            return f"no ADD_POINTER of the script leads to {table.file}+{table.offset:#x}"
    return _failures(evidence) or f"dropped, for a reason that our rules of {evidence.firmware} do not know"


def _failures(evidence: Evidence) -> str:
    return "; ".join(f"record {step.index} ({step.command}): {step.reason}" for step in evidence.loader.failures)


def _points_at(script: bytes, files: dict[str, bytes], table: Offered) -> bool:
    try:
        commands = table_loader.decode(script)
    except ValueError:
        return False
    for command in commands:
        if isinstance(command, AddPointer) and command.source == table.file:
            field = files.get(command.dest, b"")[command.offset : command.offset + command.size]
            if int.from_bytes(field, "little") == table.offset:
                return True
    return False


def _distance(table: Offered, data: bytes) -> int:
    return abs(len(data) - len(table.data)) + sum(a != b for a, b in zip(table.data, data, strict=False))


def _vmgenid_page(collected: Collected) -> int:
    return (collected.vmgenid_address or 0) - 40 if collected.vmgenid_address else 0


def _signature(found: Located) -> str:
    return found.data[:4].decode("latin-1")


def _title(table: Offered) -> str:
    if table.signature == "SSDT":
        return f"SSDT {table.data[16:24].decode('latin-1').rstrip(chr(0) + ' ')}"
    return table.signature


def _bytes(data: bytes) -> str:
    """Show short fields as numbers, others as hexadecimal bytes."""
    if len(data) in {1, 2, 4, 8}:
        return f"{int.from_bytes(data, 'little'):#x}"
    return data[:16].hex(" ") + ("…" if len(data) > 16 else "")
