"""HMAT: how fast memory is from where, and what caches it has on its side (ACPI 6.5, 5.2.28)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vmm.tables.acpi_tables import table
from vmm.tables.memory_attributes import ASSOCIATIVITIES, DATA_TYPES, HIERARCHIES, POLICIES, unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.tables.acpi_tables import AcpiDescription
    from vmm.tables.memory_attributes import Hmat, Locality, SideCache

_REVISION = 2
_PROXIMITY, _LOCALITY, _CACHE = 0, 1, 2
_INITIATOR_VALID = 1
_PICOSECONDS, _MIB = 1000, 1 << 20


def hmat(machine: AcpiDescription, said: Hmat) -> bytes:
    """Build the HMAT: of each node its initiator, then latencies and bandwidths, then caches, as QEMU orders them."""
    count = len(machine.node_memory)
    own = sorted({*machine.cpu_nodes})
    entries = b""
    for node in range(count):
        initiator = node if node in own else machine.node_initiators[node]
        flags = 0 if initiator is None else _INITIATOR_VALID
        # Where there is none, QEMU says how many nodes a machine may have.
        entries += struct.pack("<HxxIHxxII20x", _PROXIMITY, 40, flags, 128 if initiator is None else initiator, node)
    for _, group in said.grouped():
        entries += _localities(group, own, count)
    for cache in sorted(said.caches, key=lambda cache: (cache.node, cache.level)):
        entries += _cache(cache, sum(each.node == cache.node for each in said.caches))
    return table("HMAT", _REVISION, bytes(4) + entries, machine.oem)


def _localities(group: Sequence[Locality], initiators: list[int], targets: int) -> bytes:
    first, base = group[0], unit(group)
    values = [0] * (len(initiators) * targets)
    for each in group:
        values[initiators.index(each.initiator) * targets + each.target] = each.value // base
    length = 32 + 4 * len(initiators) + 4 * targets + 2 * len(values)
    hierarchy, data_type = HIERARCHIES.index(first.hierarchy), DATA_TYPES.index(first.data_type)
    scaled = base * _PICOSECONDS if first.is_latency else base // _MIB
    head = struct.pack("<HxxIBBxxII4xQ", _LOCALITY, length, hierarchy, data_type, len(initiators), targets, scaled)
    domains = struct.pack(f"<{len(initiators) + targets}I", *initiators, *range(targets))
    return head + domains + struct.pack(f"<{len(values)}H", *values)


def _cache(cache: SideCache, levels: int) -> bytes:
    attributes = (
        levels
        | cache.level << 4
        | ASSOCIATIVITIES.index(cache.associativity) << 8
        | POLICIES.index(cache.policy) << 12
        | cache.line << 16
    )
    return struct.pack("<HxxII4xQIxxH", _CACHE, 32, cache.node, cache.size, attributes, 0)
