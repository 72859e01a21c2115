"""What the page of a run draws, computed from its report: places in pictures, not markup, which is the template's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.report.text import seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.report.schema import EventReport, Report, TimesReport

WIDTH = 960
"""Units of a picture; the page scales it."""

_LEFT, _RIGHT = 80, 12
_LANE = 26
_CPU_LANE = 44
_AXIS = 26
_MOST_TICKS = 8

_MARKED_STARTS = 16
"""vCPUs beyond which marks would hide the staircase."""

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
        area: corners of what grows in it, as SVG's ``points``; empty where it has only marks.
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
    events = report["timeline"]
    end: float = max([report["outcome"]["elapsed_s"], *(event["t_s"] for event in events), 1e-6])
    scale = (WIDTH - _LEFT - _RIGHT) / end

    def place(t_s: float) -> float:
        return round(_LEFT + max(t_s, 0.0) * scale, 2)

    def mark(event: EventReport, label: str = "") -> Mark:
        x = place(event["t_s"])
        words = f"{label}, {seconds(event['t_s'])}" if label else ""
        return Mark(x, f"{seconds(event['t_s'])}: {event['event']}", words, "start" if x < WIDTH * 0.7 else "end")

    starts = [event for event in events if event["kind"] == "vcpu-started"]
    y = _CPU_LANE
    requested = report["cpus"]["requested"]
    area = _growth([place(event["t_s"]) for event in starts], place(end), y, requested)
    marks = list(map(mark, starts)) if len(starts) <= _MARKED_STARTS else []
    lanes = [Lane("vCPUs", y, _CPU_LANE - 8, tuple(marks), f"{len(starts)} of {requested}", area)]
    for event in events:
        if event["kind"] == "first-output":
            y += _LANE
            lanes.append(Lane(str(event["subject"]), y, _LANE - 8, (mark(event, "first output"),)))
    requests = [mark(event) for event in events if event["kind"] == "fwctl-request"]
    if requests:
        y += _LANE
        lanes.append(Lane("fwctl", y, _LANE - 8, tuple(requests)))
    ends = [event for event in events if event["kind"] == "end"]
    if ends:
        y += _LANE
        marks = [*map(mark, ends[:-1]), mark(ends[-1], ends[-1]["event"])]
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
    starts: list[EventReport] = []

    def take_starts() -> None:
        if len(starts) < MERGED_STARTS:
            lines.extend((event["t_s"], event["event"]) for event in starts)
        else:
            first, last = starts[0], starts[-1]
            words = f"number {first['subject']} first, {last['subject']} last at {seconds(last['t_s'])}"
            lines.append((first["t_s"], f"{len(starts)} vCPUs started, {words}"))
        starts.clear()

    for event in report["timeline"]:
        if event["kind"] == "vcpu-started":
            starts.append(event)
        elif event["kind"] != "fwctl-request":
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
        # Not to scale, which would show only RAM; but what is larger is higher.
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


def sparks(times: Sequence[TimesReport]) -> Sparks | None:
    """Place the buckets of all histograms; None if there is none."""
    starts = [max(start, 1) for row in times for start, _ in row["buckets"]]
    if not starts:
        return None
    low, high = min(starts), max(*starts, 2 * min(starts))
    scale = (SPARK_WIDTH - _SPARK_BAR) / math.log(high / low)

    def bars(row: TimesReport) -> tuple[tuple[float, float], ...]:
        most = max((count for _, count in row["buckets"]), default=1)
        return tuple(
            (
                round(math.log(max(start, 1) / low) * scale, 2),
                round(_SPARK_LEAST + (SPARK_HEIGHT - _SPARK_LEAST) * count / most, 2),
            )
            for start, count in row["buckets"]
        )

    return Sparks(low, high, tuple(bars(row) for row in times))
