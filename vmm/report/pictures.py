"""What the page of a run draws, computed from its report: places in pictures, not markup, which is the template's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.report.phases import phases
from vmm.report.text import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm.report.phases import Phase
    from vmm.report.schema import EventReport, Report, TimesReport

_MOST_TICKS = 8

_MARKED_STARTS = 16
"""vCPUs beyond which marks would hide the staircase."""

DRAWN_ITEMS = 40
"""Items of fw_cfg that have lanes; the list has the others."""

_TURNS = 70.0
"""Percent of the width from which on a mark's label stands left of it."""

SPARK_WIDTH, SPARK_HEIGHT = 160, 18
_SPARK_BAR = 2.2
_SPARK_LEAST = 1.5
"""Units that a single measurement among thousands is high: it is seldom, not absent."""

MERGED_STARTS = 4
"""So many vCPUs that start in a row, and more, are one line of the list of events."""


@dataclass(frozen=True)
class Mark:
    """An event in its lane, at ``x`` percent; ``label`` stands beside it, ``tip`` shows under the pointer."""

    x: float
    tip: str
    label: str = ""

    @property
    def is_late(self) -> bool:
        """Whether there is room for the label only on the left."""
        return self.x >= _TURNS


@dataclass(frozen=True)
class Span:
    """A part of a lane, in percent."""

    x: float
    width: float
    name: str
    tip: str


@dataclass(frozen=True)
class Lane:
    """A row of the timeline.

    Attributes:
        kind: "phases", "cpus", "console", "item", "fwctl" or "end".
        note: a second line of its name.
        area: corners of what grows in it, as SVG's ``points`` in a square of 100; empty where it has only marks.
        lines: places of marks too many to tell anything one by one.
    """

    kind: str
    name: str
    marks: tuple[Mark, ...] = ()
    note: str = ""
    area: str = ""
    spans: tuple[Span, ...] = ()
    lines: tuple[float, ...] = ()


@dataclass(frozen=True)
class Timeline:
    """A picture of events along an axis; ``ticks`` are (percent, words), ``step`` percent apart.

    Attributes:
        undrawn: items of fw_cfg that have no lane.
    """

    lanes: tuple[Lane, ...]
    ticks: tuple[tuple[float, str], ...]
    step: float
    undrawn: int


class _Axis:
    """From the first run's begin to the last one's end."""

    def __init__(self, end: float) -> None:
        self._end = end

    def place(self, t_s: float) -> float:
        return round(100 * max(t_s, 0.0) / self._end, 3)

    def mark(self, event: EventReport, label: str = "", *, timed: bool = True) -> Mark:
        at = seconds(event["t_s"])
        words = f"{label}, {at}" if label else at if timed else ""
        return Mark(self.place(event["t_s"]), f"{at}: {event['event']}", words)


def timeline(report: Report) -> Timeline:
    """Place what happened along an axis that begins with the first run and ends with the last."""
    events = report["timeline"]
    end: float = max([report["outcome"]["elapsed_s"], *(event["t_s"] for event in events), 1e-6])
    axis = _Axis(end)
    items = [event for event in events if event["kind"] == "fw-cfg-item"]
    lanes = [*_phase_lane(phases(report), axis), _cpu_lane(report, axis), *_console_lanes(events, axis)]
    lanes += [Lane("item", str(event["subject"]), (axis.mark(event),)) for event in items[:DRAWN_ITEMS]]
    requests = [axis.mark(event, timed=False) for event in events if event["kind"] == "fwctl-request"]
    if requests:
        lanes.append(Lane("fwctl", "fwctl", tuple(requests)))
    resets = [axis.mark(event, timed=False) for event in events if event["kind"] == "reset"]
    if resets:
        lanes.append(Lane("end", "resets", tuple(resets)))
    ends = [event for event in events if event["kind"] == "end"]
    if ends:
        *earlier, last = ends
        marks = [*(axis.mark(event, timed=False) for event in earlier), axis.mark(last, last["event"])]
        lanes.append(Lane("end", "end", tuple(marks)))
    places = ticks(end)
    return Timeline(
        tuple(lanes),
        tuple((axis.place(t_s), words) for t_s, words in places),
        axis.place(places[1][0]) if len(places) > 1 else 100.0,
        max(0, len(items) - DRAWN_ITEMS),
    )


def _phase_lane(found: Sequence[Phase], axis: _Axis) -> Iterator[Lane]:
    if not found:
        return
    begins = [axis.place(phase.t_s) for phase in found]
    spans = (
        Span(x, round(after - x, 3), phase.name, f"{phase.name} by {seconds(phase.t_s)}: {phase.sign}")
        for phase, x, after in zip(found, begins, [*begins[1:], 100.0], strict=True)
    )
    yield Lane("phases", "firmware", spans=tuple(spans))


def _cpu_lane(report: Report, axis: _Axis) -> Lane:
    events = report["timeline"]
    starts = [event for event in events if event["kind"] == "vcpu-started"]
    reset_s = max((event["t_s"] for event in events if event["kind"] == "reset"), default=-1.0)
    last = [event for event in starts if event["t_s"] >= reset_s]
    requested = report["cpus"]["requested"]
    marks = [axis.mark(event, timed=False) for event in starts] if len(starts) <= _MARKED_STARTS else []
    area = _growth([axis.place(event["t_s"]) for event in last], requested)
    return Lane("cpus", "vCPUs", tuple(marks), f"{len(last)} of {requested}", area)


def _console_lanes(events: Sequence[EventReport], axis: _Axis) -> Iterator[Lane]:
    for first in events:
        if first["kind"] == "first-output":
            mine = [
                event for event in events if event["kind"] == "console-line" and event["subject"] == first["subject"]
            ]
            # Many lines arrive at a time: one mark.
            lines = dict.fromkeys(round(axis.place(event["t_s"]), 1) for event in mine)
            yield Lane("console", str(first["subject"]), (axis.mark(first, "first output"),), lines=tuple(lines))


def _growth(xs: Sequence[float], most: int) -> str:
    """Return the corners of a staircase that rises by one at each x."""
    if not xs:
        return ""
    corners = [(xs[0], 100.0)]
    for number, x in enumerate(xs):
        corners += [(x, corners[-1][1]), (x, 100 - 100 * (number + 1) / most)]
    corners += [(100.0, corners[-1][1]), (100.0, 100.0)]
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
            named = event["kind"] in {"console-line", "reset"}
            lines.append((event["t_s"], f"{event['subject']}: {event['event']}" if named else event["event"]))
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
        rows.append(MemoryRow(first, last, kind, height(last - first + 1)))
    return rows[::-1]


def height(size: int) -> float:
    """Return how high a range of addresses is drawn, in rem: not to scale, but what is larger is higher."""
    return round(1.4 + max(0.0, math.log2(size / 4096)) * 0.09, 2)


def bar(value: int, most: int) -> float:
    """Return how long a bar is in percent of the longest one, on a logarithmic scale that begins at 1."""
    return round(100 * math.log1p(value) / math.log1p(most), 1) if most else 0.0


@dataclass(frozen=True)
class Sparks:
    """Histograms on one logarithmic axis, from ``low_ns`` to ``high_ns``; for each its bars (x, logarithmic height)."""

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
                round(_SPARK_LEAST + (SPARK_HEIGHT - _SPARK_LEAST) * bar(count, most) / 100, 2),
            )
            for start, count in row["buckets"]
        )

    return Sparks(low, high, tuple(bars(row) for row in times))
