"""How fast memory of NUMA nodes is: QEMU's ``-machine hmat=on`` with ``-numa hmat-lb`` and ``-numa hmat-cache``.

Source: QEMU, hw/core/numa.c (parse_numa_hmat_lb, parse_numa_hmat_cache) and qapi/machine.json (the words).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm import options
from vmm.errors import ConfigError
from vmm.tables.memory_attributes import (
    ASSOCIATIVITIES,
    DATA_TYPES,
    HIERARCHIES,
    POLICIES,
    Hmat,
    Locality,
    SideCache,
    unit,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_CACHE_LEVELS = 3
_MOST = 0xFFFE
"""The largest entry of a table: 0xffff is "not reachable"."""

_MOST_SIZE, _MOST_LINE = (1 << 64) - 1, 0xFFFF
_MOST_LATENCY = _MOST_SIZE // 1000
"""In nanoseconds: a table has a unit of picoseconds, in 64 bits."""

_MIB = 1 << 20
_LOCALITY = ("initiator", "target", "hierarchy", "data-type", "latency", "bandwidth")
_CACHE = ("node-id", "size", "level", "associativity", "policy", "line")


def check(said: Hmat, has_cpus: Sequence[bool]) -> None:
    """Refuse what QEMU refuses; of nodes by number, some of which have CPUs.

    Raises:
        ConfigError: nodes that there are not, numbers that a table can't say, or the same said twice.
        TypeError: something is of another type.
    """
    options.check_type(said, "hmat", Hmat)
    for name, kind in (("localities", Locality), ("caches", SideCache)):
        options.check_type(getattr(said, name), f"{name} of an HMAT", tuple)
        for one in getattr(said, name):
            options.check_type(one, f"one of the {name} of an HMAT", kind)
    count = len(has_cpus)
    for each in said.localities:
        words = f"-numa hmat-lb,initiator={each.initiator},target={each.target}"
        _check_words(each, {"hierarchy": HIERARCHIES, "data_type": DATA_TYPES})
        most = _MOST_LATENCY if each.is_latency else _MOST_SIZE
        _check_numbers(each, {"initiator": _MOST_SIZE, "target": _MOST_SIZE, "value": most})
        for node_id in (each.initiator, each.target):
            if not 0 <= node_id < count:
                raise ConfigError(f"{words}: there is no node {node_id}; nodes are 0 to {count - 1}")
        if not has_cpus[each.initiator]:
            raise ConfigError(f"{words}: node {each.initiator} has no CPU that could ask for memory")
        if not each.is_latency and each.value % _MIB:
            raise ConfigError(f"{words},bandwidth={each.value}: must be whole MiB a second")
    for (hierarchy, data_type), group in said.grouped():
        words = f"-numa hmat-lb,hierarchy={hierarchy},data-type={data_type}"
        pairs = [(each.initiator, each.target) for each in group]
        if len({*pairs}) < len(pairs):
            raise ConfigError(f"{words}: the same initiator and target are there twice")
        if max(each.value for each in group) // unit(group) > _MOST:
            raise ConfigError(f"{words}: these differ by more than {_MOST} times their common unit; round them")
    _check_caches(said, count)


def _check_caches(said: Hmat, count: int) -> None:
    known: dict[tuple[int, int], int] = {}
    for cache in sorted(said.caches, key=lambda cache: (cache.node, cache.level)):
        words = f"-numa hmat-cache,node-id={cache.node},level={cache.level}"
        _check_words(cache, {"associativity": ASSOCIATIVITIES, "policy": POLICIES})
        _check_numbers(cache, {"size": _MOST_SIZE, "line": _MOST_LINE})
        if not 0 <= cache.node < count:
            raise ConfigError(f"{words}: there is no node {cache.node}; nodes are 0 to {count - 1}")
        about = {each.is_latency for each in said.localities if each.target == cache.node and each.value}
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
