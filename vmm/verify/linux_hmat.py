"""What Linux makes of an HMAT: its log (drivers/acpi/numa/hmat.c), held against what was asked for.

The guest is not trusted: lines that make no sense are as if they were not there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm.tables.memory_attributes import ASSOCIATIVITIES, DATA_TYPES, HIERARCHIES, POLICIES
from vmm.verify.values import Verdict

if TYPE_CHECKING:
    from vmm.config.numa import Numa
    from vmm.tables.memory_attributes import Hmat
    from vmm.verify.guest_report import GuestReport
    from vmm.verify.result import Subject

    Values = dict[tuple[int, int], int]

_LOG = "acpi/hmat: (?:HMAT: )?"
_INITIATOR = re.compile(_LOG + r"Memory Flags:([0-9a-f]{4}) Processor Domain:(\d{1,10}) Memory Domain:(\d{1,10})")
_LOCALITY = re.compile(_LOG + r"Locality: Flags:([0-9a-f]{2}) Type:([A-Za-z ]{1,20}) Initiator Domains:.*")
_PAIR = re.compile(_LOG + r" *Initiator-Target\[(\d{1,10})-(\d{1,10})\]:(\d{1,10}) (?:nsec|MB/s)")
_CACHE = re.compile(_LOG + r"Cache: Domain:(\d{1,10}) Size:(\d{1,20}) Attrs:([0-9a-f]{8}) .*")
_VALID = 1
_MIB = 1 << 20


def compare(subject: Subject, numa: Numa, hmat: Hmat, report: GuestReport) -> None:
    """Add rows: which CPUs are nearest to each node, latencies and bandwidths of each kind, caches."""
    lines = [text for _, text in report.log]
    near = {node: node if each.cpus else each.initiator for node, each in enumerate(numa.nodes)}
    found = {
        int(match[3]): int(match[2]) if int(match[1], 16) & _VALID else None
        for match in map(_INITIATOR.fullmatch, lines)
        if match is not None
    }
    _row(subject, "initiators", _near(near), _near(found))
    there = _localities(lines)
    for (hierarchy, data_type), group in hmat.grouped():
        scale = 1 if group[0].is_latency else _MIB
        wanted = {(each.initiator, each.target): each.value // scale for each in group if each.value}
        name = data_type.replace("-", " ") + ("" if hierarchy == HIERARCHIES[0] else f", {hierarchy} cache")
        unit = "ns" if group[0].is_latency else "MiB/s"
        _row(subject, name, _pairs(wanted, unit), _pairs(there.get((hierarchy, data_type), {}), unit))
    if hmat.caches:
        offered = [
            f"node {each.node} level {each.level}: {each.size >> 10} KiB, "
            f"{each.associativity}, {each.policy}, {each.line}"
            for each in hmat.caches
        ]
        seen = [_cache(*match.groups()) for match in map(_CACHE.fullmatch, lines) if match is not None]
        _row(subject, "memory side caches", "; ".join(sorted(offered)), "; ".join(sorted(seen)) or "none")


def _localities(lines: list[str]) -> dict[tuple[str, str], Values]:
    """Latencies in ns and bandwidths in MiB/s, by hierarchy and type; 0 says nothing, and is left out."""
    result: dict[tuple[str, str], Values] = {}
    values: Values = {}
    for line in lines:
        if (head := _LOCALITY.fullmatch(line)) is not None:
            level, data_type = int(head[1], 16) & 15, head[2].lower().replace(" ", "-")
            values = {}
            if level < len(HIERARCHIES) and data_type in DATA_TYPES:
                values = result.setdefault((HIERARCHIES[level], data_type), values)
        elif (pair := _PAIR.fullmatch(line)) is not None and int(pair[3]):
            values[int(pair[1]), int(pair[2])] = int(pair[3])
    return result


def _cache(node: str, size: str, attributes: str) -> str:
    word = int(attributes, 16)
    kind, policy = word >> 8 & 15, word >> 12 & 15
    words = (names[number] if number < len(names) else "?"
             for names, number in ((ASSOCIATIVITIES, kind), (POLICIES, policy)))  # fmt: skip
    return f"node {int(node)} level {word >> 4 & 15}: {int(size) >> 10} KiB, {', '.join(words)}, {word >> 16}"


def _near(initiators: dict[int, int | None]) -> str:
    return " ".join("-" if value is None else str(value) for _, value in sorted(initiators.items())) or "none"


def _pairs(values: Values, unit: str) -> str:
    return ", ".join(f"{a}-{b}: {value} {unit}" for (a, b), value in sorted(values.items())) or "none"


def _row(subject: Subject, name: str, offered: str, found: str) -> None:
    right = offered == found
    reason = (
        "" if right else "Linux was built without ACPI_HMAT, its log has lost lines, or it takes the table otherwise"
    )
    subject.add(f"Linux: {name}", offered, found, Verdict.ARRIVED if right else Verdict.ALTERED, reason=reason)
