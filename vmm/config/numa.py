"""NUMA: nodes with CPUs and memory, and how far they are from each other; QEMU's ``-numa``.

Source: QEMU, hw/core/numa.c (options, distances) and hw/i386/x86.c (the node of a CPU that has none: by its socket).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

from vmm import options
from vmm.config.parts import several
from vmm.config.topology import Place
from vmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.config.topology import Topology
    from vmm.tables.memory_attributes import Hmat, Locality, SideCache

MAX_NODES = 128
"""QEMU: include/sysemu/numa.h."""

LOCAL, NEIGHBOUR, MOST = 10, 20, 255
"""Distances: a node to itself, to another where nobody said how far, the largest (ACPI 6.5, 5.2.17: no way)."""

_MIB = 1 << 20
_NO_HMAT = "that is for the HMAT, which -machine hmat=on adds"
_NODE = ("nodeid", "cpus", "mem", "memdev", "initiator")
_CPU = ("node-id", "socket-id", "die-id", "core-id", "thread-id")
_DISTANCE = ("src", "dst", "val")
_BACKENDS = ("memory-backend-ram", "memory-backend-memfd", "memory-backend-file")


class NumaNode(NamedTuple):
    """One node.

    Attributes:
        cpus: CPUs by index, the first of a machine is 0; no node's has any: they are spread by socket.
        memory: bytes of RAM, whole MiB; 0 in all nodes: RAM is spread evenly.
        initiator: the node whose CPUs are nearest, of one that has none, for the HMAT; None: nobody said.
    """

    cpus: tuple[int, ...] = ()
    memory: int = 0
    initiator: int | None = None


class Numa(NamedTuple):
    """All nodes.

    Attributes:
        nodes: by number; RAM is theirs in this order.
        distances: of each node, to each; empty: nobody said.
        hmat: how fast memory is; None: there is no HMAT.
    """

    nodes: tuple[NumaNode, ...]
    distances: tuple[tuple[int, ...], ...] = ()
    hmat: Hmat | None = None

    @classmethod
    def parse(
        cls,
        value: Self | Iterable[NumaNode | str] | NumaNode | str,
        topology: Topology,
        objects: Iterable[str] = (),
        *,
        hmat: bool = False,
    ) -> Self:
        """Read ``-numa`` texts, or nodes.

        Args:
            value: ``node[,nodeid=N][,cpus=FIRST[-LAST]][,mem=SIZE|,memdev=ID]``, ``cpu,node-id=N,socket-id=…``,
                ``dist,src=N,dst=N,val=N``, ``hmat-lb,…``, ``hmat-cache,…``.
            topology: of the CPUs.
            objects: ``-object`` texts, memory that ``memdev`` names.
            hmat: have an HMAT.

        Raises:
            ConfigError: they make no sense.
        """
        if isinstance(value, Numa) and not (hmat and value.hmat is None):
            return value
        if hmat:
            from vmm.tables.memory_attributes import Hmat
        if isinstance(value, Numa):
            return value._replace(hmat=Hmat())
        parser = _Texts(topology, _backends(objects), hmat=hmat)
        for one in several(value, "numa", str, NumaNode):
            parser.add(one)
        nodes, distances = parser.nodes, parser.distances
        if sorted(nodes) != [*range(len(nodes))]:
            raise ConfigError(
                f"-numa: nodes have the numbers from 0 on, and there are {', '.join(map(str, sorted(nodes)))}"
            )
        ordered = [nodes[number] for number in range(len(nodes))]
        cpus = [parser.cpus.get(number, []) for number in range(len(ordered))]
        whole = tuple(
            node._replace(cpus=tuple(sorted({*node.cpus, *more}))) for node, more in zip(ordered, cpus, strict=True)
        )
        said = Hmat(tuple(parser.localities), tuple(parser.caches)) if hmat else None
        return cls(whole, _complete(distances, len(whole)), said)

    def completed(self, topology: Topology, memory: int) -> Self:
        """With what was left out: CPUs that are in no node, and memory that was not spread.

        Args:
            topology: of all CPUs.
            memory: bytes of RAM.
        """
        nodes = list(self.nodes)
        count = len(nodes)
        placed = {cpu for node in nodes for cpu in node.cpus}
        if not placed:
            for number, node in enumerate(nodes):
                mine = [cpu for cpu in range(topology.cpus) if topology.place(cpu).socket % count == number]
                nodes[number] = node._replace(cpus=tuple(mine))
        elif missing := set(range(topology.cpus)) - placed:
            nodes[0] = nodes[0]._replace(cpus=tuple(sorted({*nodes[0].cpus, *missing})))
        if not any(node.memory for node in nodes):
            each = memory // count // _MIB * _MIB
            sizes = [each] * (count - 1) + [memory - each * (count - 1)]
            nodes = [node._replace(memory=size) for node, size in zip(nodes, sizes, strict=True)]
        return self._replace(nodes=tuple(nodes))

    def check(self, topology: Topology, memory: int) -> None:
        """Refuse what does not fit the machine.

        Raises:
            ConfigError: CPUs that there are not, or in two nodes; memory that is more or less than RAM; distances.
            TypeError: something is no number.
        """
        if not 1 <= len(self.nodes) <= MAX_NODES:
            raise ConfigError(f"-numa: {len(self.nodes)} nodes; a machine has from 1 to {MAX_NODES}")
        owner: dict[int, int] = {}
        for number, node in enumerate(self.nodes):
            options.check_type(node.memory, "memory of a node", int)
            if node.memory < 0 or node.memory % _MIB:
                raise ConfigError(f"-numa node,nodeid={number},mem={node.memory}: must be whole MiB")
            for cpu in node.cpus:
                options.check_type(cpu, "a node's CPU", int)
                if not 0 <= cpu < topology.cpus:
                    raise ConfigError(f"-numa: node {number} has CPU {cpu}; there are {topology.cpus}, from 0 on")
                if owner.setdefault(cpu, number) != number:
                    raise ConfigError(f"-numa: CPU {cpu} is in node {owner[cpu]} and in node {number}")
        total = sum(node.memory for node in self.nodes)
        if total and total != memory:
            raise ConfigError(f"-numa: the nodes have {total >> 20} MiB together, and -m says {memory >> 20} MiB")
        _check_distances(self.distances, len(self.nodes))
        if self.hmat is not None:
            from vmm.config import hmat

            for number, node in enumerate(self.nodes):
                _check_initiator(self.nodes, number, node.initiator)
            hmat.check(self.hmat, [bool(node.cpus) for node in self.nodes])
        elif any(node.initiator is not None for node in self.nodes):
            raise ConfigError(f"-numa node,initiator=: {_NO_HMAT}")

    def node_of(self, cpu: int) -> int:
        """The node of a CPU, by its index; 0 if it is in none."""
        return next((number for number, node in enumerate(self.nodes) if cpu in node.cpus), 0)


class _Texts:
    """``-numa`` texts, added up."""

    def __init__(self, topology: Topology, backends: dict[str, int], *, hmat: bool) -> None:
        self._hmat = hmat
        self._topology = topology
        self._backends = backends
        self.nodes: dict[int, NumaNode] = {}
        self.cpus: dict[int, list[int]] = {}
        self.distances: dict[tuple[int, int], int] = {}
        self.localities: list[Locality] = []
        self.caches: list[SideCache] = []

    def add(self, value: NumaNode | str) -> None:
        if isinstance(value, NumaNode):
            self.nodes[len(self.nodes)] = value
            return
        kind = options.implied_value(value, "type")
        rest = ",".join(part for part in value.split(",") if part not in {kind, f"type={kind}"})
        option = f"-numa {kind},"
        if kind == "node":
            self._node(value, options.parse_pairs(rest, option, known=_NODE) if rest else [])
        elif kind == "cpu":
            self._cpu(value, _numbers(rest, option, _CPU))
        elif kind == "dist":
            self._distance(value, _numbers(rest, option, _DISTANCE))
        elif kind in {"hmat-lb", "hmat-cache"}:
            if not self._hmat:
                raise ConfigError(f"-numa {value}: {_NO_HMAT}")
            from vmm.config.hmat import parse_cache, parse_locality

            if kind == "hmat-lb":
                self.localities.append(parse_locality(rest))
            else:
                self.caches.append(parse_cache(rest))
        else:
            raise ConfigError(f"-numa {value}: known are node, cpu, dist, hmat-lb and hmat-cache")

    def _node(self, text: str, pairs: list[tuple[str, str]]) -> None:
        keys = {key: value for key, value in pairs if key != "cpus"}  # which may be given several times, as in QEMU
        number = options.parse_int(
            keys.get("nodeid", len(self.nodes)), "-numa nodeid=", minimum=0, maximum=MAX_NODES - 1
        )
        if number in self.nodes:
            raise ConfigError(f"-numa {text}: there is a node {number} already")
        if "mem" in keys and "memdev" in keys:
            raise ConfigError(f"-numa {text}: mem and memdev say the same; give one of them")
        memory = options.parse_size(keys.get("mem", 0), "-numa mem=", unit="m")
        if "memdev" in keys:
            backend = keys["memdev"]
            if backend not in self._backends:
                raise ConfigError(f"-numa {text}: no -object memory-backend-ram,id={backend},size=SIZE is there")
            memory = self._backends[backend]
        initiator = keys.get("initiator")
        near = None if initiator is None else options.parse_int(initiator, "-numa initiator=", minimum=0)
        self.nodes[number] = NumaNode(memory=memory, initiator=near)
        self.cpus.setdefault(number, []).extend(cpu for key, value in pairs if key == "cpus" for cpu in _range(value))

    def _cpu(self, text: str, keys: dict[str, int]) -> None:
        if keys.get("node-id") not in self.nodes:
            raise ConfigError(f"-numa {text}: node-id= names no -numa node that was given before")
        topology = self._topology
        limits = Place(topology.sockets, topology.dies, topology.cores, topology.threads)
        ranges = []
        for name, limit in zip(("socket-id", "die-id", "core-id", "thread-id"), limits, strict=True):
            number = keys.get(name)
            if number is not None and number >= limit:
                raise ConfigError(f"-numa {text}: {name} is from 0 to {limit - 1} in this machine")
            ranges.append(range(limit) if number is None else (number,))
        if len(keys) == 1:
            raise ConfigError(f"-numa {text}: names no CPU; give socket-id=, die-id=, core-id= or thread-id=")
        sockets, dies, cores, threads = ranges
        self.cpus[keys["node-id"]] += [
            topology.index_of(Place(socket, die, core, thread))
            for socket in sockets
            for die in dies
            for core in cores
            for thread in threads
        ]

    def _distance(self, text: str, keys: dict[str, int]) -> None:
        if missing := [key for key in _DISTANCE if key not in keys]:
            raise ConfigError(f"-numa {text}: {missing[0]}= is missing")
        source, target = keys["src"], keys["dst"]
        for node in (source, target):
            if node not in self.nodes:
                raise ConfigError(f"-numa {text}: there is no -numa node {node} before it")
        self.distances[source, target] = keys["val"]


def _numbers(text: str, option: str, known: tuple[str, ...]) -> dict[str, int]:
    pairs = options.parse_keys(text, option, known=known)
    return {
        key: options.parse_int(value, f"{option}{key}=", minimum=0, maximum=1 << 31) for key, value in pairs.items()
    }


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    start = options.parse_int(first, "-numa cpus=", minimum=0, maximum=1 << 16)
    end = options.parse_int(last, "-numa cpus=", minimum=0, maximum=1 << 16) if last else start
    if end < start:
        raise ConfigError(f"-numa cpus={text}: ends before it begins")
    return range(start, end + 1)


def _backends(objects: Iterable[str]) -> dict[str, int]:
    """Sizes of memory backends by id."""
    sizes: dict[str, int] = {}
    for text in objects:
        keys = options.parse_keys(text, "-object", implied="qom-type")
        if keys.get("qom-type") not in _BACKENDS:
            raise ConfigError(f"-object {text}: known are memory backends, for -numa node,memdev=")
        for key in ("id", "size"):
            if key not in keys:
                raise ConfigError(f"-object {text}: {key}= is missing")
        if keys["id"] in sizes:
            raise ConfigError(f"-object {text}: there is an object {keys['id']} already")
        sizes[keys["id"]] = options.parse_size(keys["size"], "-object size=")
    return sizes


def _complete(given: dict[tuple[int, int], int], count: int) -> tuple[tuple[int, ...], ...]:
    """All distances, from those that were given: one way is enough where no two ways differ.

    Raises:
        ConfigError: one is missing.
    """
    if not given:
        return ()
    asymmetric = any(given.get((target, source), value) != value for (source, target), value in given.items())
    rows = []
    for source in range(count):
        row = []
        for target in range(count):
            default = LOCAL if source == target else None
            if not asymmetric:
                default = given.get((target, source), default)
            value = given.get((source, target), default)
            if value is None:
                other = "both ways, for they differ somewhere" if asymmetric else "one way at least"
                raise ConfigError(
                    f"-numa dist,src={source},dst={target} is missing: a distance for each two nodes, {other}"
                )
            row.append(value)
        rows.append(tuple(row))
    return tuple(rows)


def _check_initiator(nodes: tuple[NumaNode, ...], number: int, initiator: int | None) -> None:
    if initiator is None:
        return
    options.check_type(initiator, "a node's initiator", int)
    words = f"-numa node,nodeid={number},initiator={initiator}"
    if not 0 <= initiator < len(nodes):
        raise ConfigError(f"{words}: there is no node {initiator}; nodes are 0 to {len(nodes) - 1}")
    if nodes[number].cpus and initiator != number:
        raise ConfigError(f"{words}: node {number} has CPUs, and is its own initiator; leave initiator= out")
    if not nodes[initiator].cpus:
        raise ConfigError(f"{words}: node {initiator} has no CPU that could ask for memory")


def _check_distances(distances: tuple[tuple[int, ...], ...], count: int) -> None:
    if distances and [len(row) for row in distances] != [count] * count:
        raise ConfigError(f"-numa: distances are {count} rows of {count}, or none at all")
    for source, row in enumerate(distances):
        for target, value in enumerate(row):
            options.check_type(value, "a distance", int)
            if not LOCAL <= value <= MOST:
                raise ConfigError(f"-numa dist,src={source},dst={target},val={value}: must be from {LOCAL} to {MOST}")
            if source == target and value != LOCAL:
                raise ConfigError(f"-numa dist,src={source},dst={source},val={value}: to itself a node has {LOCAL}")
