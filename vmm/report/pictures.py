"""What the page of a run draws, computed from its report: places in pictures, not markup, which is the template's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.report.text import seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.report.schema import Report

WIDTH = 960
"""Units of a picture; the page scales it."""

_LEFT, _RIGHT = 80, 12
_LANE = 26
_CPU_LANE = 44
_AXIS = 26
_MOST_TICKS = 8

_MARKED_STARTS = 16
"""vCPUs beyond which marks would hide the staircase."""

_VCPU = "vCPU "
_FIRST_OUTPUT = "first output on "
_FWCTL = "fwctl "

SPARK_WIDTH, SPARK_HEIGHT = 160, 18
_SPARK_BAR = 2.2
_SPARK_LEAST = 1.5
"""Units that a single measurement among thousands is high: it is seldom, not absent."""

MERGED_STARTS = 4
"""So many vCPUs that start in a row, and more, are one line of the list of events."""


@dataclass(frozen=True)
class Mark:
    """An event in its lane; ``label`` stands beside it, ``tip`` shows under the pointer."""

    x: float
    tip: str
    label: str = ""
    anchor: str = "start"


@dataclass(frozen=True)
class Lane:
    """A row of the timeline.

    Attributes:
        y: of its lower end.
        height: of its marks.
        note: a second line of its name.
        area: corners of what grows in it, as SVG's ``points``; empty where it has marks alone.
    """

    name: str
    y: float
    height: float
    marks: tuple[Mark, ...]
    note: str = ""
    area: str = ""


@dataclass(frozen=True)
class Timeline:
    """A picture of events along an axis; ``ticks`` are (x, words)."""

    lanes: tuple[Lane, ...]
    ticks: tuple[tuple[float, str], ...]
    height: float
    axis: float


def timeline(report: Report) -> Timeline:
    """Place what happened along an axis that begins with the first run and ends with the last."""
    events = [(event["t_s"], event["event"]) for event in report["timeline"]]
    end: float = max([report["outcome"]["elapsed_s"], *(t_s for t_s, _ in events), 1e-6])
    scale = (WIDTH - _LEFT - _RIGHT) / end

    def place(t_s: float) -> float:
        return round(_LEFT + max(t_s, 0.0) * scale, 2)

    def mark(t_s: float, tip: str, label: str = "") -> Mark:
        x = place(t_s)
        return Mark(x, f"{seconds(t_s)}: {tip}", label, "start" if x < WIDTH * 0.7 else "end")

    starts = [(t_s, what) for t_s, what in events if what.startswith(_VCPU)]
    y = _CPU_LANE
    requested = report["cpus"]["requested"]
    area = _growth([place(t_s) for t_s, _ in starts], place(end), y, requested)
    marks = [mark(t_s, what) for t_s, what in starts] if len(starts) <= _MARKED_STARTS else []
    lanes = [Lane("vCPUs", y, _CPU_LANE - 8, tuple(marks), f"{len(starts)} of {requested}", area)]
    for t_s, what in events:
        if what.startswith(_FIRST_OUTPUT):
            y += _LANE
            shown = mark(t_s, what, f"first output, {seconds(t_s)}")
            lanes.append(Lane(what.removeprefix(_FIRST_OUTPUT), y, _LANE - 8, (shown,)))
    requests = [mark(t_s, what) for t_s, what in events if what.startswith(_FWCTL)]
    if requests:
        y += _LANE
        lanes.append(Lane("fwctl", y, _LANE - 8, tuple(requests)))
    rest = [event for event in events if not event[1].startswith((_VCPU, _FIRST_OUTPUT, _FWCTL))]
    if rest:
        y += _LANE
        marks = [mark(t_s, what) for t_s, what in rest[:-1]]
        t_s, what = rest[-1]
        marks.append(mark(t_s, what, f"{what}, {seconds(t_s)}"))
        lanes.append(Lane("end", y, _LANE - 8, tuple(marks)))
    return Timeline(tuple(lanes), tuple((place(t_s), words) for t_s, words in ticks(end)), y + _AXIS, y + 6)


def _growth(xs: Sequence[float], end: float, y: float, most: int) -> str:
    """Return the corners of a staircase that rises by one at each x."""
    if not xs:
        return ""
    corners = [(xs[0], y)]
    for number, x in enumerate(xs):
        corners += [(x, corners[-1][1]), (x, y - (_CPU_LANE - 8) * (number + 1) / most)]
    corners += [(end, corners[-1][1]), (end, y)]
    return " ".join(f"{x:g},{y:.2f}" for x, y in corners)


def ticks(end: float) -> list[tuple[float, str]]:
    """Return places of an axis from 0 to ``end`` seconds, at 1, 2 or 5 times a power of ten, with words."""
    power = 10.0 ** math.floor(math.log10(end / _MOST_TICKS))
    step = next(factor * power for factor in (1, 2, 5, 10) if end / (factor * power) <= _MOST_TICKS)
    unit, name = (1.0, "s") if end >= 1 else (1e-3, "ms") if end >= 1e-3 else (1e-6, "µs")
    return [(number * step, f"{number * step / unit:.4g} {name}") for number in range(int(end / step * (1 + 1e-9)) + 1)]


def events(report: Report) -> list[tuple[float, str]]:
    """Return the list of events for reading: vCPUs that start in a row are one line, fwctl's requests are elsewhere."""
    lines: list[tuple[float, str]] = []
    starts: list[tuple[float, str]] = []

    def take_starts() -> None:
        if len(starts) < MERGED_STARTS:
            lines.extend(starts)
        else:
            (_, first), (t_s, last) = starts[0], starts[-1]
            names = [name.removeprefix(_VCPU).removesuffix(" started") for name in (first, last)]
            words = f"{len(starts)} vCPUs started, number {names[0]} first, {names[1]} last at {seconds(t_s)}"
            lines.append((starts[0][0], words))
        starts.clear()

    for event in report["timeline"]:
        if event["event"].startswith(_VCPU):
            starts.append((event["t_s"], event["event"]))
        elif not event["event"].startswith(_FWCTL):
            take_starts()
            lines.append((event["t_s"], event["event"]))
    take_starts()
    return lines


@dataclass(frozen=True)
class MemoryRow:
    """A range of guest physical addresses; ``kind`` is "ram", "protected" (RAM), "rom" or "gap"; ``height`` in rem."""

    first: int
    last: int
    kind: str
    height: float

    @property
    def size(self) -> int:
        """In bytes."""
        return self.last - self.first + 1


def memory(report: Report) -> list[MemoryRow]:
    """Return what is behind guest physical addresses, highest first, with the gaps; neighbours of a kind are one."""
    rows: list[MemoryRow] = []
    for region in report["memory"]["regions"]:
        kind = "protected" if region["kind"] == "ram" and region["read_only"] else region["kind"]
        first, last = region["gpa"], region["gpa"] + region["size"] - 1
        free = rows[-1].last + 1 if rows else 0
        if first > free:
            rows.append(MemoryRow(free, first - 1, "gap", 1.4))
        elif rows and rows[-1].kind == kind:
            first = rows.pop().first
        # Not to scale, for that would show RAM alone; but what is larger is higher.
        rows.append(MemoryRow(first, last, kind, round(1.4 + max(0.0, math.log2((last - first + 1) / 4096)) * 0.09, 2)))
    return rows[::-1]


@dataclass(frozen=True)
class Sparks:
    """Histograms on one logarithmic axis, from ``low_ns`` to ``high_ns``; for each its bars (x, height)."""

    low_ns: int
    high_ns: int
    bars: tuple[tuple[tuple[float, float], ...], ...]
    width = SPARK_WIDTH
    height = SPARK_HEIGHT
    bar = _SPARK_BAR


def sparks(times: Sequence[Report]) -> Sparks | None:
    """Place the buckets of all histograms; None if there is none."""
    starts = [max(start, 1) for row in times for start, _ in row["buckets"]]
    if not starts:
        return None
    low, high = min(starts), max(*starts, 2 * min(starts))
    scale = (SPARK_WIDTH - _SPARK_BAR) / math.log(high / low)

    def bars(row: Report) -> tuple[tuple[float, float], ...]:
        most = max((count for _, count in row["buckets"]), default=1)
        return tuple(
            (
                round(math.log(max(start, 1) / low) * scale, 2),
                round(_SPARK_LEAST + (SPARK_HEIGHT - _SPARK_LEAST) * count / most, 2),
            )
            for start, count in row["buckets"]
        )

    return Sparks(low, high, tuple(bars(row) for row in times))
