"""SRAT and SLIT: which CPUs and memory a node has, and how far nodes are from each other (ACPI 6.5, 5.2.16, 5.2.17)."""

from __future__ import annotations

import struct

from vmm import layout
from vmm.tables.acpi_tables import table
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.tables.acpi_tables import AcpiDescription

_LOCAL_APIC, _MEMORY, _LOCAL_X2APIC = 0, 1, 2
_ENABLED, _HOT_PLUGGABLE = 1, 2


def memory_ranges(sizes: tuple[int, ...], low: int, high_base: int) -> list[tuple[int, int, int]]:
    """Where the memory of nodes is: base, length, node; without the holes, which RAM of 640 KiB and more goes around.

    Args:
        sizes: bytes of each node.
        low: bytes of RAM below the PCI hole.
        high_base: where the rest begins.
    """
    ranges = []
    start = 0
    for node, size in enumerate(sizes):
        end = start + size
        parts = [
            (max(start, first), min(end, last), move)
            for first, last, move in (
                (0, layout.LEGACY_VIDEO.start, 0),
                (layout.LEGACY_END, low, 0),
                (low, max(end, low), high_base - low),
            )
        ]
        ranges += [(first + move, last - first, node) for first, last, move in parts if first < last]
        start = end
    return ranges


def srat(machine: AcpiDescription) -> bytes:
    """Build the SRAT: CPUs, memory, empty entries up to two more than there are nodes, where memory may be plugged in.

    The order, and the empty ones for guests of old, are QEMU's (build_srat in hw/i386/acpi-build.c); so is the node of
    the last, which Windows likes to be the highest.
    """
    entries = b""
    for index in range(machine.cpu_count):
        node, apic_id = machine.cpu_nodes[index], machine.apic_id(index)
        if apic_id < 255:
            entries += struct.pack("<BBBBIB3sI", _LOCAL_APIC, 16, node & 0xFF, apic_id, _ENABLED, 0, bytes(3), 0)
        else:
            entries += struct.pack("<BBHIIIII", _LOCAL_X2APIC, 24, 0, node, apic_id, _ENABLED, 0, 0)
    ranges = memory_ranges(machine.node_memory, machine.low_memory, machine.high_base)
    for base, length, node in ranges:
        entries += _memory(base, length, node, _ENABLED)
    entries += _memory(0, 0, 0, 0) * (len(machine.node_memory) + 2 - len(ranges))
    if machine.hotplug:
        flags = _ENABLED | _HOT_PLUGGABLE
        entries += _memory(machine.hotplug.start, len(machine.hotplug), len(machine.node_memory) - 1, flags)
    return table("SRAT", 1, struct.pack("<I8x", 1) + entries, machine.oem)


def _memory(base: int, length: int, node: int, flags: int) -> bytes:
    return struct.pack("<BBIHQQIIQ", _MEMORY, 40, node, 0, base, length, 0, flags, 0)


def slit(machine: AcpiDescription) -> bytes:
    """Build the SLIT: how many nodes, then of each the distance to each, a byte."""
    rows = machine.distances
    return table("SLIT", 1, struct.pack("<Q", len(rows)) + b"".join(map(bytes, rows)), machine.oem)
