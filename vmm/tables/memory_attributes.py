"""How fast memory of NUMA nodes is, and what caches it has on its side: what the HMAT says (ACPI 6.5, 5.2.28)."""

from __future__ import annotations

from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
