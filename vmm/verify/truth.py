"""What tables state, held against the machine as it stands: from outside, and by what the guest saw where they say.

A table may arrive byte for byte and still be wrong: firmware moves ECAM and the ACPI ports, and RAM is where it is.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from vmm import layout
from vmm.handoff.tables import reserved_end
from vmm.tables import e820
from vmm.tables.e820 import E820Type
from vmm.tables.files import E820_FILE, RESERVED_END_FILE
from vmm.tables.in_ram import processors
from vmm.verify.acpi import offered_tables
from vmm.verify.guest_report import GuestReport, Look
from vmm.verify.memory import found_map
from vmm.verify.result import Subject
from vmm.verify.values import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vmm.config.numa import Numa
    from vmm.tables.e820 import E820Entry
    from vmm.verify.collect import Collected
    from vmm.verify.evidence import Evidence
    from vmm.verify.facts import Facts

    Tables = Callable[[str], bytes | None]

_SCI, _FLAGS, _GPE0_LENGTH = 46, 112, 92
_PORTS: Final = {"PM1a event": (56, 148), "PM1a control": (64, 172), "PM timer": (76, 208), "GPE0": (80, 220)}
"""FADT: where the port stands, and where its Generic Address Structure (ACPI 6.5, table 5.9)."""
_TIMER_EXTENDED: Final = 1 << 8
_X_GPE0_END: Final = 232
_MADT_ENTRIES: Final = 44
_IO_APIC, _OVERRIDE = 1, 2
_SRAT_ENTRIES: Final = 48
"""ACPI 6.5, table 5.50 and those behind it: three kinds of entries."""
_HOT_PLUGGABLE: Final = 3
"""ACPI 6.5, table 5.53: bits of a range that is enabled, and where nothing is until memory is plugged in."""
_SLIT_COUNT: Final = 36
_DWORD_MEMORY: Final = struct.Struct("<BHBBBIIIII")
_QWORD_MEMORY: Final = struct.Struct("<BHBBBQQQQQ")
_CONSUMER: Final = 1
"""Address space descriptors: tag, length, type, flags, specific flags, granularity, first, last (ACPI 6.5, 6.4.3.5)."""
_IO_APIC_INPUTS: Final = 24
_NOWHERE: Final = "nowhere"


def compare(collected: Collected, report: GuestReport, evidence: Evidence) -> Subject:
    """Compare statement by statement; what no table of the guest's states has no row."""
    subject = Subject("what tables state")
    built = {table.signature: table.data for table in offered_tables(collected, evidence)}
    offered = dict(statements(built.get))
    true = dict(truths(collected.facts))
    for name, found in statements(report.table):
        _row(subject, name, offered.get(name, "-"), found, true.get(name, _NOWHERE))
    _windows(subject, built.get("DSDT"), report.table("DSDT"), collected)
    _ram(subject, collected, report)
    _nodes(subject, built.get("SRAT"), report.table("SRAT"), collected.facts)
    _room(subject, built.get("SRAT"), report.table("SRAT"), collected)
    _distances(subject, built.get("SLIT"), report.table("SLIT"), collected.config.numa)
    _looks(subject, report, collected.facts)
    return subject


def statements(tables: Tables) -> Iterator[tuple[str, str]]:
    """What FADT, MCFG, HPET and MADT state: name and value, in words."""
    fadt, mcfg, hpet, madt = (tables(signature) for signature in ("FACP", "MCFG", "HPET", "APIC"))
    if fadt is not None and len(fadt) >= 116:
        for name, (at, extended) in _PORTS.items():
            port = _number(fadt, at, 4)
            twin = _number(fadt, extended + 4, 8) if len(fadt) >= _X_GPE0_END else port
            words = f"port {port:#x}" if twin in (port, 0) else f"port {port:#x}, and {twin:#x}"
            if port or twin:
                yield f"FADT: {name}", words
        yield "FADT: SCI", f"IRQ {_number(fadt, _SCI, 2)}"
        yield "FADT: PM timer's width", "32 bits" if _number(fadt, _FLAGS, 4) & _TIMER_EXTENDED else "24 bits"
    if mcfg is not None and len(mcfg) >= 60:
        base, first, last = _number(mcfg, 44, 8), mcfg[54], mcfg[55]
        yield "MCFG: ECAM", _span(base + (first << 20), base + (last + 1 << 20) - 1)
    if hpet is not None and len(hpet) >= 56:
        yield "HPET: address", f"{_number(hpet, 44, 8):#x}"
        yield "HPET: id", f"{_number(hpet, 36, 4):#x}"
    if madt is not None and len(madt) >= _MADT_ENTRIES:
        yield from _madt(madt)


def _madt(madt: bytes) -> Iterator[tuple[str, str]]:
    chips, overrides = [], {}
    at = _MADT_ENTRIES
    while at + 2 <= len(madt) and madt[at + 1] >= 2:
        entry = madt[at : at + madt[at + 1]]
        at += len(entry) if len(entry) == entry[1] else len(madt)
        if entry[0] == _IO_APIC:
            chips.append(f"{_number(entry, 4, 4):#x}")
        elif entry[0] == _OVERRIDE:
            overrides[_number(entry, 3, 1)] = _number(entry, 4, 4)
    yield "MADT: local APIC", f"{_number(madt, 36, 4):#x}"
    yield "MADT: enabled APIC ids", _ids(processor.apic_id for processor in processors(madt) if processor.enabled)
    yield "MADT: I/O APIC", ", ".join(chips)
    yield "MADT: the PIT's IRQ 0", f"GSI {overrides.get(0, 0)}"


def truths(facts: Facts) -> Iterator[tuple[str, str]]:
    """What the machine would state: the same names, and values as `statements` words them."""
    standing = facts.standing
    if standing.pm_base is not None:
        places = {"PM1a event": layout.PM_EVENT, "PM1a control": layout.PM_CONTROL, "PM timer": layout.PM_TIMER}
        yield from ((f"FADT: {name}", f"port {standing.pm_base + at:#x}") for name, at in places.items())
    if standing.gpe0 is not None:
        yield "FADT: GPE0", f"port {standing.gpe0.start:#x}"
    yield "FADT: SCI", f"IRQ {layout.SCI_IRQ}"
    yield "FADT: PM timer's width", f"{facts.pm_timer_bits} bits"
    if standing.ecam is not None:
        yield "MCFG: ECAM", _span(standing.ecam.start, standing.ecam.stop - 1)
    if standing.hpet is not None:
        yield "HPET: address", f"{standing.hpet.start:#x}"
        yield "HPET: id", f"{facts.hpet_id:#x}"
    yield "MADT: local APIC", f"{facts.local_apic:#x}"
    yield "MADT: enabled APIC ids", _ids(facts.apic_ids)
    yield "MADT: I/O APIC", f"{facts.io_apic:#x}"
    yield "MADT: the PIT's IRQ 0", f"GSI {layout.PIT_GSI}"


def windows(dsdt: bytes | None) -> list[tuple[int, int]]:
    """First and last address of each range of memory that a root of the DSDT passes on."""
    result = []
    for at in range(len(dsdt or b"")):
        for layout_of, tag in ((_DWORD_MEMORY, 0x87), (_QWORD_MEMORY, 0x8A)):
            if dsdt is None or dsdt[at] != tag or at + layout_of.size > len(dsdt):
                continue
            _tag, length, kind, flags, _specific, _granularity, first, last, _offset, size = layout_of.unpack_from(
                dsdt, at
            )
            whole = length == layout_of.size - 3 and kind == 0 and first + size - 1 == last
            if whole and not flags & _CONSUMER:
                result.append((first, last))
    return result


def _windows(subject: Subject, offered: bytes | None, found: bytes | None, collected: Collected) -> None:
    facts, room = collected.facts, collected.ram.hotplug
    standing = facts.standing
    taken = [(first, last, "memory") for first, last in facts.memory]
    taken += [
        (place, place + 0xFFF, name) for place, name in ((facts.local_apic, "local APIC"), (facts.io_apic, "I/O APIC"))
    ]
    for place, name in ((standing.ecam, "ECAM"), (standing.hpet, "HPET"), (room, "room for memory")):
        if place:
            taken.append((place.start, place.stop - 1, name))
    own = windows(offered)
    for first, last in windows(found):
        there = [f"{name} at {start:#x}" for start, end, name in taken if first <= end and start <= last]
        there += _beyond(last, facts)
        words = _span(first, last)
        true = "free" if not there else ", ".join(there)
        _row(subject, "DSDT: PCI window", words if (first, last) in own else "-", words, true, ok=not there)


def _ram(subject: Subject, collected: Collected, report: GuestReport) -> None:
    sides = (("etc/e820: RAM", e820.decode(collected.tables[E820_FILE])), ("the guest's map: RAM", found_map(report)))
    for name, entries in sides:
        ranges = [entry for entry in entries if entry.type == E820Type.RAM]
        problems = [words for entry in ranges for words in _unbacked(entry, collected.facts)]
        size = sum(entry.length for entry in ranges)
        words = f"{size >> 20} MiB"
        offered, found = (words, "-") if name.startswith("etc") else ("-", words)
        _row(subject, name, offered, found, ", ".join(problems) or "memory is there", ok=not problems)


def _nodes(subject: Subject, offered: bytes | None, found: bytes | None, facts: Facts) -> None:
    """What the SRAT says that nodes have, held against the RAM and the processors that are there."""
    own = nodes_of(offered or b"")
    for node, (_, ranges) in sorted(nodes_of(found or b"").items()):
        entries = [e820.E820Entry(base, length, E820Type.RAM) for base, length in ranges]
        problems = [words for entry in entries for words in _unbacked(entry, facts)]
        size = sum(entry.length for entry in entries)
        mine = own.get(node, ((), ()))
        words = "-" if node not in own else f"{sum(length for _, length in mine[1]) >> 10} KiB"
        true = ", ".join(problems) or "memory is there"
        _row(subject, f"SRAT: RAM of node {node}", words, f"{size >> 10} KiB", true, ok=not problems)
    listed = {apic_id for ids, _ in nodes_of(found or b"").values() for apic_id in ids}
    if found is not None:
        offered_ids = _ids(apic_id for ids, _ in own.values() for apic_id in ids)
        right = listed >= set(facts.apic_ids)
        _row(subject, "SRAT: APIC ids", offered_ids, _ids(listed), f"there are {_ids(facts.apic_ids)}", ok=right)


def _room(subject: Subject, offered: bytes | None, found: bytes | None, collected: Collected) -> None:
    """Where memory may be plugged in, as the SRAT says and as firmware is told, held against what is kept free."""
    room, numa, facts = collected.ram.hotplug, collected.config.numa, collected.facts
    true = _room_words([(len(numa.nodes) - 1, room.start, len(room))] if room and numa is not None else [])
    own, there = (_room_words(hotplug_of(srat or b"")) for srat in (offered, found))
    problems = [f"memory at {first:#x}" for first, last in facts.memory if first < room.stop and room.start <= last]
    problems += _beyond(room.stop - 1, facts) if room else []
    if (offered or found) and {true, own, there} != {"-"}:
        words = ", ".join([true, *problems])
        _row(subject, "SRAT: room for memory", own, there, words, ok=there == true and not problems)
    if room:
        said = _number(collected.published.get(RESERVED_END_FILE, b""), 0, 8)
        end = reserved_end(collected.ram)
        _row(subject, RESERVED_END_FILE, f"{said:#x}", "-", f"{end:#x}", ok=said == end)


def _room_words(ranges: list[tuple[int, int, int]]) -> str:
    return ", ".join(f"node {node} {_span(base, base + length - 1)}" for node, base, length in ranges) or "-"


def _distances(subject: Subject, offered: bytes | None, found: bytes | None, numa: Numa | None) -> None:
    """What the SLIT says, a row for each node, held against what the machine was asked to have."""
    if numa is None or not numa.distances:
        return
    own, there = _rows(offered), _rows(found)
    for node, far in enumerate(numa.distances):
        said, seen = (" ".join(map(str, rows[node])) if node < len(rows) else "-" for rows in (own, there))
        _row(subject, f"SLIT: distances of node {node}", said, seen, " ".join(map(str, far)))


def _rows(slit: bytes | None) -> list[bytes]:
    """ACPI 6.5, table 5.59; none where it is not as long as it says."""
    count = _number(slit or b"", _SLIT_COUNT, 8)
    if slit is None or len(slit) != _SLIT_COUNT + 8 + count * count:
        return []
    return [slit[at : at + count] for at in range(_SLIT_COUNT + 8, len(slit), count)] if count else []


def nodes_of(srat: bytes) -> dict[int, tuple[list[int], list[tuple[int, int]]]]:
    """APIC ids, and base and length of memory, by node; what is not enabled, or makes no sense, is left out."""
    nodes: dict[int, tuple[list[int], list[tuple[int, int]]]] = {}
    for entry in _srat_entries(srat):
        kind = entry[0], len(entry)
        if kind == (0, 16) and _number(entry, 4, 4) & 1:
            nodes.setdefault(entry[2] | _number(entry, 9, 3) << 8, ([], []))[0].append(entry[3])
        elif kind == (1, 40) and _number(entry, 28, 4) & _HOT_PLUGGABLE == 1:
            nodes.setdefault(_number(entry, 2, 4), ([], []))[1].append((_number(entry, 8, 8), _number(entry, 16, 8)))
        elif kind == (2, 24) and _number(entry, 12, 4) & 1:
            nodes.setdefault(_number(entry, 4, 4), ([], []))[0].append(_number(entry, 8, 4))
    return nodes


def hotplug_of(srat: bytes) -> list[tuple[int, int, int]]:
    """Node, base and length of each range in which memory may be plugged in; what makes no sense is left out."""
    return [
        (_number(entry, 2, 4), _number(entry, 8, 8), _number(entry, 16, 8))
        for entry in _srat_entries(srat)
        if (entry[0], len(entry)) == (1, 40) and _number(entry, 28, 4) & _HOT_PLUGGABLE == _HOT_PLUGGABLE
    ]


def _srat_entries(srat: bytes) -> Iterator[bytes]:
    at = _SRAT_ENTRIES
    while at + 2 <= len(srat) and 2 <= srat[at + 1] <= len(srat) - at:
        yield srat[at : at + srat[at + 1]]
        at += srat[at + 1]


def _unbacked(entry: E820Entry, facts: Facts) -> Iterator[str]:
    yield from _beyond(entry.end - 1, facts)
    at = entry.base
    backed = sorted([*facts.ram, (layout.LEGACY_VIDEO.start, layout.LEGACY_END - 1)])
    for first, last in backed:
        if first <= at <= last:
            at = last + 1
    if at < entry.end:
        yield f"nothing at {at:#x}"


def _beyond(last: int, facts: Facts) -> list[str]:
    bits = facts.physical_bits
    return [f"addresses have {bits} bits"] if bits and last >> bits else []


def _looks(subject: Subject, report: GuestReport, facts: Facts) -> None:
    """What the guest saw; true is what it had to see."""
    for what, seen in report.looks.items():
        if what is Look.ECAM:
            found, true = f"0:0.0 is {seen.first:08x}", f"0:0.0 is {seen.second:08x}"
        elif what is Look.PM_TIMER:
            found, true = ("counts" if seen.first != seen.second else f"stands at {seen.first:#x}"), "counts"
        elif what is Look.HPET:
            found, true = f"id {seen.first:#x}", f"id {facts.hpet_id:#x}"
        elif what in {Look.LOCAL_APIC, Look.X2APIC}:
            number = seen.first >> 24 if what is Look.LOCAL_APIC else seen.first
            found, true = f"id {number}", f"id {number if number in facts.apic_ids else _ids(facts.apic_ids)}"
        else:
            found, true = f"{(seen.first >> 16 & 0xFF) + 1} inputs", f"{_IO_APIC_INPUTS} inputs"
        name = (
            what.name.replace("_", " ")
            .replace("LOCAL", "local")
            .replace("TIMER", "timer")
            .replace("IO ", "I/O ")
            .replace("X2", "x2")
        )
        place = f"MSR {seen.where:#x}" if what is Look.X2APIC else f"at {seen.where:#x}"
        _row(subject, f"the guest's look: {name}", place, found, true)


def _row(subject: Subject, name: str, offered: str, found: str, true: str, *, ok: bool | None = None) -> None:
    right = found == true if ok is None else ok
    reason = "" if right else "the machine is otherwise"
    subject.add(name, offered, found, Verdict.TRUE if right else Verdict.UNTRUE, true=true, reason=reason)


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def _span(first: int, last: int) -> str:
    return f"{first:#x}-{last:#x}"


def _ids(numbers: Iterable[int]) -> str:
    """Numbers as ranges: "0-3, 8"."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] + 1 == number:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges) or "none"
