"""What Linux makes of processors, NUMA nodes and memory: sysfs, held against what was asked for.

The guest is not trusted: lines that make no sense are as if they were not there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm.verify.guest_report import LinuxBlocks, LinuxCpu, LinuxNode
from vmm.verify.values import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from vmm.config.machine import MachineConfig
    from vmm.config.parts import RamPlaces
    from vmm.verify.guest_report import GuestReport
    from vmm.verify.result import Subject

_NEAR, _FAR = 10, 20
"""Distances of Linux where no SLIT is (include/linux/topology.h)."""

_APIC_ID = re.compile(rb"processor\s*: (\d{1,5})\napicid\s*: (\d{1,10})\n")
_MEMORY = re.compile(r"SRAT: Node (\d{1,5}) PXM \d{1,10} \[mem (0x[0-9a-f]{1,16})-(0x[0-9a-f]{1,16})\]")

_ROOM = re.compile(_MEMORY.pattern + " hotplug")
_BLOCK = re.compile(rb"/sys/devices/system/memory/memory(\d{1,12})\b")


def decode(files: dict[str, bytes]) -> tuple[dict[int, LinuxCpu], dict[int, LinuxNode]]:
    """CPUs and nodes by Linux's numbers."""
    ids = {int(match[1]): int(match[2]) for match in _APIC_ID.finditer(files.get("apicids", b""))}
    cpus = {}
    for line in files.get("topology", b"").split(b"\n"):
        words = line.split()
        if len(words) == 4 and all(word.isdigit() and len(word) < 10 for word in words) and int(words[0]) in ids:
            number, package, die, core = map(int, words)
            cpus[number] = LinuxCpu(ids[number], package, die, core)
    nodes = {}
    for line in files.get("nodes", b"").split(b"\n"):
        words = line.split()
        if len(words) >= 4 and all(word.isdigit() and len(word) < 18 for word in (words[0], *words[2:])):
            nodes[int(words[0])] = LinuxNode(_list(words[1]), int(words[2]), tuple(map(int, words[3:])))
    return cpus, nodes


def blocks(files: dict[str, bytes]) -> LinuxBlocks:
    """Blocks of memory, in each of which Linux has some."""
    line = files.get("blocks", b"")
    size = re.match(rb"[0-9a-f]{1,12} ", line)
    if size is None:
        return LinuxBlocks(0, ())
    return LinuxBlocks(int(size[0], 16), tuple(sorted({int(match[1]) for match in _BLOCK.finditer(line)})))


def _list(text: bytes) -> tuple[int, ...]:
    """Numbers with a comma in front of each; what is none is left out."""
    return tuple(int(part) for part in text.split(b",") if part.isdigit() and len(part) < 6)


def compare(subject: Subject, config: MachineConfig, ram: RamPlaces, report: GuestReport) -> None:
    """Add rows: how CPUs share sockets, dies and cores; what each node has."""
    topology = config.cpu_topology
    index_of = {topology.apic_id(index): index for index in range(config.max_cpus)}
    known = {number: index_of[cpu.apic_id] for number, cpu in report.linux_cpus.items() if cpu.apic_id in index_of}
    asked, found = range(config.cpus), {known[number]: report.linux_cpus[number] for number in known}
    levels: dict[str, tuple[Callable[[int], Hashable], Callable[[LinuxCpu], Hashable]]] = {
        "sockets": (lambda index: topology.place(index)[:1], lambda cpu: (cpu.package,)),
        "dies": (lambda index: topology.place(index)[:2], lambda cpu: (cpu.package, cpu.die)),
        "cores": (lambda index: topology.place(index)[:3], lambda cpu: (cpu.package, cpu.die, cpu.core)),
    }
    for name, (place, linux_place) in levels.items():
        wanted = _groups((place(index), index) for index in asked)
        there = _groups((linux_place(cpu), index) for index, cpu in found.items())
        _row(subject, f"Linux: {name}", _shown(wanted), _shown(there), right=wanted == there)
    if config.numa is not None:
        _nodes(subject, config, ram, report, known)


def _nodes(subject: Subject, config: MachineConfig, ram: RamPlaces, report: GuestReport, known: dict[int, int]) -> None:
    from vmm.tables.acpi_numa import memory_ranges

    if config.numa is None:
        return
    nodes = config.numa.nodes
    offered = memory_ranges(tuple(node.memory for node in nodes), ram.low, ram.high_base)
    log = [_MEMORY.fullmatch(re.sub(r"^ACPI: ", "", text)) for _, text in report.log]
    found = [(int(match[2], 16), int(match[3], 16) + 1, int(match[1])) for match in log if match is not None]
    for number, node in enumerate(nodes):
        linux = report.linux_nodes.get(number, LinuxNode((), 0, ()))
        wanted = sorted(cpu for cpu in node.cpus if cpu < config.cpus)
        cpus = sorted(known.get(cpu, -1) for cpu in linux.cpus)
        _row(subject, f"Linux: CPUs of node {number}", _numbers(wanted), _numbers(cpus), right=cpus == wanted)
        spans = [(base, base + size) for base, size, owner in offered if owner == number]
        taken = [(first, end) for first, end, owner in found if owner == number]
        _row(subject, f"Linux: memory of node {number}", _spans(spans), _spans(taken), right=sorted(taken) == spans)
        default = [_NEAR if other == number else _FAR for other in range(len(nodes))]
        far = list(config.numa.distances[number]) if config.numa.distances else default
        # A node with neither memory nor CPUs at boot is none to Linux.
        same = [value for other, value in enumerate(far) if nodes[other].memory or nodes[other].cpus]
        _row(
            subject, f"Linux: distances of node {number}", _numbers(far), _numbers(linux.distances),
            right=list(linux.distances) in (far, same if node.memory or node.cpus else []),
        )  # fmt: skip
    if ram.room:
        _room(subject, ram, len(nodes) - 1, report)
    if config.numa.hmat is not None:
        from vmm.verify import linux_hmat

        linux_hmat.compare(subject, config.numa, config.numa.hmat, report)


def _room(subject: Subject, ram: RamPlaces, node: int, report: GuestReport) -> None:
    """Where memory may be plugged in, and that none is there: Linux has blocks for RAM alone."""
    log = [_ROOM.fullmatch(re.sub(r"^ACPI: ", "", text)) for _, text in report.log]
    found = [(int(match[1]), int(match[2], 16), int(match[3], 16) + 1) for match in log if match is not None]
    wanted = [(node, ram.hotplug.start, ram.hotplug.stop)]
    shown, seen = (", ".join(f"node {n} {_spans([(a, end)])}" for n, a, end in rooms) for rooms in (wanted, found))
    _row(subject, "Linux: room for memory", shown, seen or "none", right=found == wanted)
    size, numbers = report.linux_blocks
    if size:
        parts = [(first, end) for first, end in ((0, ram.low), (ram.high_base, ram.end)) if first < end]
        asked = {number for first, end in parts for number in range(first // size, -(-end // size))}
        runs = [
            _spans(_joined((number * size, number * size + size) for number in all_of))
            for all_of in (sorted(asked), numbers)
        ]
        _row(subject, "Linux: blocks of memory", *runs, right=asked == {*numbers})


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for first, end in spans:
        follows = joined and joined[-1][1] == first
        joined.append((joined.pop()[0] if follows else first, end))
    return joined


def _row(subject: Subject, name: str, offered: str, found: str, *, right: bool) -> None:
    verdict = Verdict.ARRIVED if right else Verdict.ALTERED
    subject.add(name, offered, found, verdict, reason="" if right else "Linux makes something else of CPUID or tables")


def _groups(pairs: Iterable[tuple[Hashable, int]]) -> set[frozenset[int]]:
    groups: dict[Hashable, set[int]] = {}
    for key, index in pairs:
        groups.setdefault(key, set()).add(index)
    return {frozenset(members) for members in groups.values()}


def _shown(groups: set[frozenset[int]]) -> str:
    sizes = sorted({len(group) for group in groups})
    words = "-".join(map(str, sizes if len(sizes) < 2 else (sizes[0], sizes[-1])))
    return f"{len(groups)} with {words or 0} CPUs"


def _numbers(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers)) or "none"


def _spans(spans: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{first:#x}-{end - 1:#x}" for first, end in spans) or "none"
