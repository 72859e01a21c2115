"""The memory map: every record of etc/e820 against INT 15h E820 or UEFI's memory map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm import layout
from vmm.errors import ConfigError
from vmm.legible import counted
from vmm.tables import e820
from vmm.tables.e820 import E820Entry, E820Type
from vmm.tables.files import E820_FILE
from vmm.verify.e820_views import ovmf_view, seabios_view
from vmm.verify.guest_report import GuestReport, Kind
from vmm.verify.result import Subject
from vmm.verify.values import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.verify.collect import Collected
    from vmm.verify.evidence import Evidence

_UEFI_TYPES = {0: 2, 9: 3, 10: 4} | dict.fromkeys((1, 2, 3, 4, 5, 6, 7), 1)
"""EFI_MEMORY_TYPE to E820 type (UEFI 2.10, table 7.10): what an OS may use once boot services are gone is RAM."""

_SEABIOS_ROOM = 32, 128
"""BUILD_MAX_E820 in SeaBIOS's src/config.h, to 1.16.2 and from 1.16.3 on."""

_LEGACY = E820Entry(0x9_0000, layout.LEGACY_END - 0x9_0000, E820Type.RESERVED)
"""EBDA, display memory, ROMs: firmware takes them out of RAM on every PC."""


def found_map(report: GuestReport) -> list[E820Entry]:
    """The guest's memory map with neighbours of one type joined, as E820 records by address."""
    if report.kind is not Kind.UEFI:
        entries = sorted(report.e820)
    else:
        entries = sorted(
            E820Entry(row.base, row.length, _UEFI_TYPES[row.type])
            for row in report.memory_map
            if row.type in _UEFI_TYPES and row.length
        )
    joined: list[E820Entry] = []
    for entry in entries:
        last = joined[-1] if joined else None
        if last is not None and last.end == entry.base and last.type == entry.type:
            joined[-1] = E820Entry(last.base, last.length + entry.length, last.type)
        else:
            joined.append(entry)
    return joined


def maps(collected: Collected, report: GuestReport) -> dict[str, list[E820Entry]]:
    """Both maps, for a picture of them side by side."""
    return {"offered": sorted(e820.decode(collected.tables[E820_FILE])), "found": found_map(report)}


def compare(collected: Collected, report: GuestReport, evidence: Evidence) -> Subject:
    """Compare record by record, and look for RAM that was never offered."""
    subject = Subject("memory map")
    offered = e820.decode(collected.tables[E820_FILE])
    found = found_map(report)
    subject.whole = tuple(sorted(offered)), tuple(found)
    _check_published(subject, collected, evidence)
    full = ""
    if report.kind is Kind.BIOS and len(report.e820) in _SEABIOS_ROOM:
        full = f"SeaBIOS has room for {len(report.e820)} entries, and needs some itself"
    for entry in offered:
        if entry.type == E820Type.RAM:
            _compare_ram(subject, entry, found, evidence, full)
        else:
            _compare_other(subject, entry, offered, found, evidence, full)
    ram = [entry for entry in offered if entry.type == E820Type.RAM]
    for entry in found:
        if entry.type == E820Type.RAM and (stray := e820.without(entry, ram)):
            subject.add("RAM never offered", "-", _words(stray), Verdict.ALTERED, reason=evidence.never_read(E820_FILE))
    return subject


def _check_published(subject: Subject, collected: Collected, evidence: Evidence) -> None:
    published = collected.published.get(E820_FILE, b"")
    try:
        e820.check_map(e820.decode(published), holes=e820.has_holes(collected.config.e820))
    except (ConfigError, ValueError) as error:
        subject.add(
            E820_FILE,
            f"{len(collected.tables[E820_FILE])} bytes",
            f"{len(published)} bytes published",
            Verdict.ALTERED,
            reason=f"{error}; {evidence.firmware} does not complain about that",
        )


def _compare_ram(subject: Subject, entry: E820Entry, found: list[E820Entry], evidence: Evidence, full: str) -> None:
    ram = _overlaps(entry, (other for other in found if other.type == E820Type.RAM))
    kept = _overlaps(entry, (other for other in found if other.type != E820Type.RAM))
    lost = [
        gap for gap in e820.without(entry, [*ram, *kept]) if not _LEGACY.base <= gap.base or not gap.end <= _LEGACY.end
    ]
    firmwares = [other for other in kept if not _LEGACY.base <= other.base or not other.end <= _LEGACY.end]
    difference = f"firmware keeps {_words(firmwares)}" if firmwares else ""
    verdict, reason = Verdict.ARRIVED, ""
    if lost:
        verdict = Verdict.ALTERED if ram else Verdict.MISSING
        difference = f"lost {_words(lost)}"
        reason = (
            evidence.never_read(E820_FILE) or full or f"{evidence.firmware} made another map of the published etc/e820"
        )
    subject.add(str(entry), _size(entry.length), _size(sum(part.length for part in ram)), verdict,
                difference=difference, reason=reason)  # fmt: skip


def _compare_other(
    subject: Subject,
    entry: E820Entry,
    offered: tuple[E820Entry, ...],
    found: list[E820Entry],
    evidence: Evidence,
    full: str,
) -> None:
    same = _overlaps(entry, (other for other in found if other.type == entry.type))
    lost = e820.without(entry, same)
    if not lost:
        subject.add(str(entry), _size(entry.length), _size(entry.length), Verdict.ARRIVED)
        return
    view = ovmf_view(offered) if evidence.is_ovmf else seabios_view(offered)
    reason = evidence.never_read(E820_FILE)
    if not reason and entry in view.dropped:
        taken = "only RAM (a newer one reserved, too)" if evidence.is_ovmf else "only RAM and reserved"
        reason = f"{evidence.firmware} takes {taken} records from etc/e820 and drops the others"
    instead = _overlaps(entry, (other for other in found if other.type != entry.type))
    subject.add(
        str(entry),
        _size(entry.length),
        _size(sum(part.length for part in same)) if same else "nothing",
        Verdict.ALTERED if same else Verdict.MISSING,
        difference=f"the guest finds {_words(instead)} there" if instead else f"not in the guest's map: {_words(lost)}",
        reason=reason or full or "overridden by firmware",
    )


def _overlaps(entry: E820Entry, others: Iterable[E820Entry]) -> list[E820Entry]:
    parts = []
    for other in others:
        base, end = max(entry.base, other.base), min(entry.end, other.end)
        if base < end:
            parts.append(E820Entry(base, end - base, other.type))
    return parts


def _words(entries: Iterable[E820Entry]) -> str:
    return ", ".join(map(str, entries))


def _size(length: int) -> str:
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if length >= 1 << shift:
            return f"{length / (1 << shift):.2f}".rstrip("0").rstrip(".") + f" {unit}"
    return counted(length, "byte")
