"""Memory maps side by side, as rows of a picture."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from vmm.report.pictures import height
from vmm.tables.e820 import type_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm.tables.e820 import E820Entry


class MapRow(NamedTuple):
    """A range of addresses in which no map changes.

    Attributes:
        last: the last address of it.
        kinds: what it is in each map: "ram", "reserved", …; "" where that says nothing.
        height: in rem.
    """

    first: int
    last: int
    kinds: tuple[str, ...]
    height: float


def rows(maps: Mapping[str, Sequence[E820Entry]]) -> list[MapRow]:
    """Return the ranges, highest first; neighbours in which all maps say the same are one."""
    edges = sorted({edge for entries in maps.values() for entry in entries for edge in (entry.base, entry.end)})
    found: list[MapRow] = []
    for first, end in pairwise(edges):
        kinds = tuple(_kind(entries, first) for entries in maps.values())
        if found and found[-1].kinds == kinds:
            first = found.pop().first  # noqa: PLW2901  # the two are one
        found.append(MapRow(first, end - 1, kinds, height(end - first)))
    return found[::-1]


def _kind(entries: Sequence[E820Entry], address: int) -> str:
    return next((type_name(entry.type) for entry in entries if entry.base <= address < entry.end), "")
