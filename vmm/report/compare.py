"""Two runs, or two series of runs of the same thing, compared by their reports: what differs, and what took longer.

Everything but time is compared as it is: a value that is not the same in all runs of one side is left out there, for it
says nothing. Times and counts of accesses differ from run to run; with several runs a side, a ratio of the medians has
an interval, and is called noise if that contains 1.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm.report.phases import phases
from vmm.statistics import CONFIDENCE, MIN_ROUNDS, RESAMPLES, median, percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vmm.report.schema import Report

NOTHING = "nothing"
INSTRUCTIONS = "instructions"


class Difference(NamedTuple):
    """A fact that is another one on the other side.

    Attributes:
        subject: what it is about: ``outcome``, ``item``, ...
        name: which of these.
        before: in the first series, for people.
        after: in the second.
    """

    subject: str
    name: str
    before: str
    after: str


class Change(NamedTuple):
    """A number that differs from run to run.

    Attributes:
        name: of the phase, or of the device.
        unit: ``s``, ``accesses``, or ``instructions``, which are exact.
        before: median in the first series.
        after: median in the second.
        interval: of the ratio of the medians, by bootstrap; None: there are too few runs.
    """

    name: str
    unit: str
    before: float
    after: float
    interval: tuple[float, float] | None

    @property
    def ratio(self) -> float:
        """How many times as much."""
        return self.after / self.before

    @property
    def verdict(self) -> str:
        """``noise``, ``less``, ``more``, ``equal``, or ``not known`` where there are too few runs."""
        if self.before == self.after and self.unit != "s":
            return "equal"
        if self.unit == INSTRUCTIONS:
            return "less" if self.after < self.before else "more"
        if self.interval is None:
            return "not known"
        low, high = self.interval
        return "noise" if low <= 1 <= high else "less" if high < 1 else "more"


def differences(before: Sequence[Report], after: Sequence[Report]) -> list[Difference]:
    """Return what is not the same, in the order of the report."""
    found = []
    sides = (_common(before), _common(after))
    for subject, name in dict.fromkeys([*sides[0], *sides[1]]):
        values = [side.get((subject, name), NOTHING) for side in sides]
        if values[0] != values[1] and "" not in values:
            found.append(Difference(subject, name, *values))
    return found


def changes(before: Sequence[Report], after: Sequence[Report]) -> list[Change]:
    """Return how long both took, as a whole and by phase, what they executed, if counted exactly, and accessed."""
    found = []
    for unit, numbers in (("s", _seconds), (INSTRUCTIONS, _instructions), ("accesses", _accesses)):
        sides = [[numbers(report) for report in series] for series in (before, after)]
        names = [name for name in sides[0][0] if all(name in values for side in sides for values in side)]
        for name in names:
            first, second = ([values[name] for values in side] for side in sides)
            if median(first):
                found.append(Change(name, unit, median(first), median(second), _interval(first, second)))
    return found


def _interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float] | None:
    """Return the percentile bootstrap's interval of the ratio of two medians, of runs that are no pairs."""
    if min(len(before), len(after)) < MIN_ROUNDS or not all(before):
        return None
    chance = random.Random(1)  # noqa: S311  # no secret

    def drawn(values: Sequence[float]) -> float:
        return median(chance.choices(values, k=len(values)))

    ratios = sorted(drawn(after) / drawn(before) for _ in range(RESAMPLES))
    tail = (1 - CONFIDENCE) / 2 * 100
    return percentile(ratios, tail), percentile(ratios, 100 - tail)


def _seconds(report: Report) -> dict[str, float]:
    found = phases(report)
    end = report["outcome"]["elapsed_s"]
    starts = [phase.t_s for phase in found]
    spans = zip(starts, [*starts[1:], end], strict=True) if found else ()
    return {"the whole": end} | {
        phase.name: max(following - start, 0.0) for phase, (start, following) in zip(found, spans, strict=False)
    }


def _instructions(report: Report) -> dict[str, float]:
    told = report.get("virtual_time")
    if told is None:
        return {}
    counts = {phase["name"]: float(phase["instructions"]) for phase in told["phases"]}
    return {"the whole": float(told["instructions"])} | counts


def _accesses(report: Report) -> dict[str, float]:
    found: dict[str, float] = {}
    for area in report["exits"]["by_device"]:
        found[area["name"]] = found.get(area["name"], 0) + area["reads"] + area["writes"]
    return found


def _common(series: Sequence[Report]) -> dict[tuple[str, str], str]:
    """Return what is the same in all runs of a series; "" stands for what is not."""
    told = [dict(_facts(report)) for report in series]
    return {
        key: told[0].get(key, NOTHING)
        if all(each.get(key, NOTHING) == told[0].get(key, NOTHING) for each in told)
        else ""
        for key in dict.fromkeys(key for each in told for key in each)
    }


def _facts(report: Report) -> Iterator[tuple[tuple[str, str], str]]:
    """Return everything that is no number of a single run, in words."""
    outcome = report["outcome"]
    yield ("outcome", "reason"), outcome["reason"]
    yield ("outcome", "exit status"), str(outcome["exit_status"])
    yield from _origin(report)
    for name, value in _machine(report):
        yield ("machine", name), str(value)
    for phase in phases(report):
        yield ("phase", phase.name), "reached"
    if "virtual_time" in report:
        yield ("virtual time", "hash of accesses and interrupts"), report["virtual_time"]["trace_hash"]
    if "fw_cfg" in report:
        for item in report["fw_cfg"]["items"]:
            yield ("item", item["name"]), _item(item)
    if "fwctl" in report:
        for oid in report["fwctl"]["oids"]:
            yield ("oid", oid), "never asked" if oid in report["fwctl"]["never_asked"] else "asked"
    for disk in report.get("disks", ()):
        yield ("disk", str(disk["slot"])), f"{disk['size']} bytes, {'read' if disk['reads'] else 'never read'}"
    if "profile" in report:
        for module in sorted({stack["module"] for stack in report["profile"]["stacks"]}):
            yield ("image", module), "executed"


def _origin(report: Report) -> Iterator[tuple[tuple[str, str], str]]:
    if "origin" not in report:
        return
    origin = report["origin"]
    yield ("made by", "vmm"), origin["vmm"]
    yield ("made by", "host"), f"{origin['host']['cpu']}, Linux {origin['host']['kernel']}"
    for image in origin["images"]:
        yield ("file", image["role"]), f"{image['path']}, {image['size']} bytes, SHA-256 {image['sha256'][:12]}"


def _machine(report: Report) -> Iterator[tuple[str, object]]:
    cpus, madt = report["cpus"], report["cpus"]["madt"]
    yield "board", report["machine"]
    yield "interface", report["firmware"]["interface"]
    yield "accelerator", report["accelerator"]["name"]
    memory = report["memory"]
    yield "RAM", f"{memory['size']} bytes"
    yield "room for RAM", f"{memory['room']['max_memory']} bytes" if "room" in memory else NOTHING
    yield "CPUs asked for", cpus["requested"]
    yield "CPUs started", cpus["started"]
    yield "CPUs in the MADT", NOTHING if madt is None else len(madt["enabled"])
    yield "resets", report["resets"]["count"]


def _item(item: Mapping[str, Any]) -> str:
    if item["read_to_end"]:
        read = "read"
    else:
        read = "read in part" if item["reads"] else "selected" if item["selects"] else "never read"
    return f"{item['size']} bytes, {read}{', written' if item['writes'] else ''}"


def as_dict(before: Sequence[Report], after: Sequence[Report]) -> dict[str, object]:
    """Return the comparison as a JSON object."""
    return {
        "schema": "vmm-diff/1",
        "runs": [len(before), len(after)],
        "differences": [difference._asdict() for difference in differences(before, after)],
        "changes": [change._asdict() | {"verdict": change.verdict} for change in changes(before, after)],
    }


def text(before: Sequence[Report], after: Sequence[Report], show: Callable[[str], str]) -> Iterator[str]:
    """Return the comparison for a person, a line each; ``show`` makes what comes from a guest fit to be printed."""
    found = differences(before, after)
    for difference in found:
        yield show(f"{difference.subject} {difference.name}: {difference.before} -> {difference.after}")
    if not found:
        yield "no difference but in time"
    for change in changes(before, after):
        if change.verdict != "equal":
            yield show(_change_words(change))
    if min(len(before), len(after)) < MIN_ROUNDS:
        yield (
            "whether a number that is not counted exactly is another one or noise, so few runs cannot tell: give two "
            f"folders with {MIN_ROUNDS} reports each, or more"
        )


def _change_words(change: Change) -> str:
    def number(value: float) -> str:
        return f"{value:.3f} s" if change.unit == "s" else f"{value:,.0f} {change.unit}"

    words = f"{change.name}: {number(change.before)} -> {number(change.after)}, {change.ratio:.2f} of it"
    if change.interval is None:
        return words
    low, high = change.interval
    return f"{words} ({low:.2f} to {high:.2f}: {change.verdict})"
