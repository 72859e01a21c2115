"""How fast memory of NUMA nodes is: QEMU's ``-machine hmat=on`` with ``-numa hmat-lb`` and ``-numa hmat-cache``.

Source: QEMU, hw/core/numa.c (parse_numa_hmat_lb, parse_numa_hmat_cache) and qapi/machine.json (the words).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm import options
from vmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm.config.numa import NumaNode

HIERARCHIES = ("memory", "first-level", "second-level", "third-level")
"""What is asked for data: memory, or one of the caches that its side has (ACPI 6.5, table 5.146, flags)."""

DATA_TYPES = (
    *("access-latency", "read-latency", "write-latency"),
    *("access-bandwidth", "read-bandwidth", "write-bandwidth"),
)
ASSOCIATIVITIES = ("none", "direct", "complex")
POLICIES = ("none", "write-back", "write-through")
"""ACPI 6.5, tables 5.146 and 5.147: each by its number there."""

_LATENCIES = 3
_CACHE_LEVELS = 3
_MOST = 0xFFFE
"""The largest entry of a table: 0xffff is "not reachable"."""

_MOST_SIZE, _MOST_LINE = (1 << 64) - 1, 0xFFFF
_MOST_LATENCY = _MOST_SIZE // 1000
"""In nanoseconds: a table has a unit of picoseconds, in 64 bits."""

_MIB = 1 << 20
_LOCALITY = ("initiator", "target", "hierarchy", "data-type", "latency", "bandwidth")
_CACHE = ("node-id", "size", "level", "associativity", "policy", "line")


class Locality(NamedTuple):
    """How fast one node's CPUs reach one node's memory.

    Attributes:
        initiator: the node whose CPUs ask.
        target: the node whose memory answers.
        value: a latency in nanoseconds, or a bandwidth in bytes a second, whole MiB; 0 says nothing.
        data_type: one of `DATA_TYPES`.
        hierarchy: one of `HIERARCHIES`.
    """

    initiator: int
    target: int
    value: int
    data_type: str = "access-latency"
    hierarchy: str = "memory"

    @property
    def is_latency(self) -> bool:
        """Whether `value` is a time."""
        return DATA_TYPES.index(self.data_type) < _LATENCIES


class SideCache(NamedTuple):
    """A cache that memory of a node has on its side.

    Attributes:
        node: whose memory.
        size: bytes.
        level: 1 to 3; a higher one is larger.
        associativity: one of `ASSOCIATIVITIES`.
        policy: one of `POLICIES`: what becomes of writes.
        line: bytes of a line.
    """

    node: int
    size: int
    level: int
    associativity: str = "none"
    policy: str = "none"
    line: int = 0


class Hmat(NamedTuple):
    """What the HMAT says beside nodes' initiators."""

    localities: tuple[Locality, ...] = ()
    caches: tuple[SideCache, ...] = ()

    def check(self, nodes: Sequence[NumaNode]) -> None:
        """Refuse what QEMU refuses; only of nodes that have all their CPUs.

        Raises:
            ConfigError: nodes that there are not, numbers that a table can't say, or the same said twice.
        """
        count = len(nodes)
        for number, node in enumerate(nodes):
            _check_initiator(nodes, number, node.initiator)
        for each in self.localities:
            words = f"-numa hmat-lb,initiator={each.initiator},target={each.target}"
            _check_words(each, {"hierarchy": HIERARCHIES, "data_type": DATA_TYPES})
            most = _MOST_LATENCY if each.is_latency else _MOST_SIZE
            _check_numbers(each, {"initiator": _MOST_SIZE, "target": _MOST_SIZE, "value": most})
            for node_id in (each.initiator, each.target):
                if not 0 <= node_id < count:
                    raise ConfigError(f"{words}: there is no node {node_id}; nodes are 0 to {count - 1}")
            if not nodes[each.initiator].cpus:
                raise ConfigError(f"{words}: node {each.initiator} has no CPU that could ask for memory")
            if not each.is_latency and each.value % _MIB:
                raise ConfigError(f"{words},bandwidth={each.value}: must be whole MiB a second")
        for (hierarchy, data_type), group in self.grouped():
            words = f"-numa hmat-lb,hierarchy={hierarchy},data-type={data_type}"
            pairs = [(each.initiator, each.target) for each in group]
            if len({*pairs}) < len(pairs):
                raise ConfigError(f"{words}: the same initiator and target are there twice")
            if max(each.value for each in group) // unit(group) > _MOST:
                raise ConfigError(f"{words}: these differ by more than {_MOST} times their common unit; round them")
        self._check_caches(count)

    def _check_caches(self, count: int) -> None:
        known: dict[tuple[int, int], int] = {}
        for cache in sorted(self.caches, key=lambda cache: (cache.node, cache.level)):
            words = f"-numa hmat-cache,node-id={cache.node},level={cache.level}"
            _check_words(cache, {"associativity": ASSOCIATIVITIES, "policy": POLICIES})
            _check_numbers(cache, {"size": _MOST_SIZE, "line": _MOST_LINE})
            if not 0 <= cache.node < count:
                raise ConfigError(f"{words}: there is no node {cache.node}; nodes are 0 to {count - 1}")
            about = {each.is_latency for each in self.localities if each.target == cache.node and each.value}
            if about != {True, False}:
                raise ConfigError(f"{words}: the node's latency and bandwidth must be said too, with -numa hmat-lb")
            if not 1 <= cache.level <= _CACHE_LEVELS:
                raise ConfigError(f"{words}: levels are 1 to {_CACHE_LEVELS}")
            if (cache.node, cache.level) in known:
                raise ConfigError(f"{words}: the same cache is there twice")
            below = known.get((cache.node, cache.level - 1), 0)
            if cache.level > 1 and not below:
                raise ConfigError(f"{words}: level {cache.level - 1} is missing")
            if cache.size <= below:
                raise ConfigError(f"{words},size={cache.size}: must be more than {below}, the size of the level below")
            known[cache.node, cache.level] = cache.size

    def grouped(self) -> Iterator[tuple[tuple[str, str], list[Locality]]]:
        """Localities of one hierarchy and type, in the order of tables."""
        for hierarchy in HIERARCHIES:
            for data_type in DATA_TYPES:
                group = [each for each in self.localities if (each.hierarchy, each.data_type) == (hierarchy, data_type)]
                if group:
                    yield (hierarchy, data_type), group


def unit(group: Sequence[Locality]) -> int:
    """The largest unit that all values of one type are multiples of: powers of 10 ns, or of 2 bytes a second."""
    values = [each.value for each in group if each.value]
    if not values:
        return 1
    step = 10 if group[0].is_latency else 2
    found = 1
    while all(value % (found * step) == 0 for value in values):
        found *= step
    return found


def parse_locality(text: str) -> Locality:
    """Read ``initiator=N,target=N,hierarchy=…,data-type=…,latency=NS|bandwidth=SIZE``.

    Raises:
        ConfigError: another key, a word that is none of QEMU's, or one missing.
    """
    option = "-numa hmat-lb,"
    keys = options.parse_keys(text, option, known=_LOCALITY)
    _need(keys, _LOCALITY[:4], option, text)
    hierarchy = _one_of(keys, "hierarchy", HIERARCHIES, option)
    data_type = _one_of(keys, "data-type", DATA_TYPES, option)
    wanted, other = ("latency", "bandwidth") if "latency" in data_type else ("bandwidth", "latency")
    if other in keys:
        raise ConfigError(f"{option}{text}: {data_type} is said with {wanted}=, not with {other}=")
    _need(keys, (wanted,), option, text)
    value = keys[wanted]
    number = (
        options.parse_int(value, f"{option}latency=", minimum=0, maximum=_MOST_LATENCY)
        if wanted == "latency"
        else options.parse_size(value, f"{option}bandwidth=")
    )
    initiator, target = (options.parse_int(keys[key], f"{option}{key}=", minimum=0) for key in _LOCALITY[:2])
    return Locality(initiator, target, number, data_type, hierarchy)


def parse_cache(text: str) -> SideCache:
    """Read ``node-id=N,size=SIZE,level=N[,associativity=…][,policy=…][,line=N]``.

    Raises:
        ConfigError: another key, a word that is none of QEMU's, or one missing.
    """
    option = "-numa hmat-cache,"
    keys = {"associativity": "none", "policy": "none", "line": "0"}
    keys |= options.parse_keys(text, option, known=_CACHE)
    _need(keys, _CACHE[:3], option, text)
    return SideCache(
        node=options.parse_int(keys["node-id"], f"{option}node-id=", minimum=0),
        size=options.parse_size(keys["size"], f"{option}size="),
        level=options.parse_int(keys["level"], f"{option}level="),
        associativity=_one_of(keys, "associativity", ASSOCIATIVITIES, option),
        policy=_one_of(keys, "policy", POLICIES, option),
        line=options.parse_int(keys["line"], f"{option}line=", minimum=0, maximum=_MOST_LINE),
    )


def _need(keys: dict[str, str], needed: Sequence[str], option: str, text: str) -> None:
    if missing := [key for key in needed if key not in keys]:
        raise ConfigError(f"{option}{text}: {missing[0]}= is missing")


def _one_of(keys: dict[str, str], key: str, words: tuple[str, ...], option: str) -> str:
    if keys[key] not in words:
        raise ConfigError(f"{option}{key}={keys[key]}: must be one of {', '.join(words)}")
    return keys[key]


def _check_numbers(said: Locality | SideCache, numbers: dict[str, int]) -> None:
    for name, most in numbers.items():
        value = getattr(said, name)
        options.check_type(value, name, int)
        if not 0 <= value <= most:
            raise ConfigError(f"-numa hmat: {name} {value}: must be from 0 to {most}")


def _check_words(said: Locality | SideCache, words: dict[str, tuple[str, ...]]) -> None:
    for name, known in words.items():
        if getattr(said, name) not in known:
            raise ConfigError(f"-numa hmat: {name} {getattr(said, name)!r}: must be one of {', '.join(known)}")


def _check_initiator(nodes: Sequence[NumaNode], number: int, initiator: int | None) -> None:
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
