"""A profile by phase, module and function: for the report, for speedscope, and as folded stacks for flame graphs.

speedscope's file format is described by https://www.speedscope.app/file-format-schema.json; folded stacks, one a line
with frames separated by semicolons and the number of samples behind them, are what Brendan Gregg's flamegraph.pl reads.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, NamedTuple

from vmm.legible import legible
from vmm.report.phases import Phase, phases
from vmm.run.profile import INTERVAL_NS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.report.schema import ProfilePhaseReport, ProfileReport, Report
    from vmm.run.profile import Place, Profile, Sample

HOT_PLACES = 40
"""Addresses that the report names."""

UNKNOWN = "?"


class _Span(NamedTuple):
    """A phase, and when it was: CLOCK_MONOTONIC in ns."""

    phase: Phase
    start_ns: int
    end_ns: int


class _Named(NamedTuple):
    """A sample, and what it belongs to."""

    sample: Sample
    phase: str
    place: Place

    @property
    def stack(self) -> tuple[str, str, str]:
        """Phase, module, function; the last is "" where it is not known."""
        return self.phase, self.module, legible(self.place.function)

    @property
    def module(self) -> str:
        return legible(self.place.module) or UNKNOWN

    @property
    def leaf(self) -> str:
        """The function, or else the address in the image."""
        where = f"{self.module}+{self.place.offset:#x}" if self.place.module else f"{self.place.offset:#x}"
        return legible(self.place.function) or where


class NamedProfile:
    """A profile beside the report of the same run.

    Args:
        profile: of the machine.
        report: of the run; it says when which phase was.
        started_ns: CLOCK_MONOTONIC when the first run began.
    """

    def __init__(self, profile: Profile, report: Report, started_ns: int) -> None:
        self._profile = profile
        self._spans = list(_spans(report, started_ns))
        self._named = [
            _Named(sample, span.phase.name, profile.place(sample))
            for span in self._spans
            for sample in profile.within(span.start_ns, span.end_ns)
        ]

    def report(self) -> ProfileReport:
        """What the report of the run says of it."""
        stacks = Counter(named.stack for named in self._named)
        places = Counter((named.module, named.place.offset, named.stack[2]) for named in self._named)
        return {
            "interval_ns": INTERVAL_NS,
            "samples": len(self._named),
            "lost": self._profile.lost,
            "phases": [self._phase(span) for span in self._spans],
            "stacks": [
                {"phase": phase, "module": module, "function": function, "samples": samples}
                for (phase, module, function), samples in stacks.most_common()
            ],
            "hottest": [
                {"module": module, "offset": offset, "function": function, "samples": samples}
                for (module, offset, function), samples in places.most_common(HOT_PLACES)
            ],
        }

    def _phase(self, span: _Span) -> ProfilePhaseReport:
        counts = self._profile.between(span.start_ns, span.end_ns)
        return {
            "name": span.phase.name,
            "t_s": span.phase.t_s,
            "seconds": round((span.end_ns - span.start_ns) / 1e9, 6),
            "samples": sum(1 for _ in self._profile.within(span.start_ns, span.end_ns)),
            "instructions": counts.instructions or None,
            "accesses": counts.accesses,
            "fw_cfg_bytes": counts.fw_cfg_bytes,
        }

    def folded(self) -> str:
        """Folded stacks: phase, module, function or address."""
        stacks = Counter((named.phase, named.module, named.leaf) for named in self._named)
        return "".join(
            f"{';'.join(frame.replace(';', ',') for frame in stack)} {samples}\n"
            for stack, samples in sorted(stacks.items())
        )

    def speedscope(self) -> str:
        """A file for speedscope: a profile a vCPU, in order of time."""
        frames: dict[str, int] = {}
        profiles = []
        by_vcpu = sorted(self._named, key=lambda named: (named.sample.vcpu, named.sample.time_ns))
        for vcpu, group in groupby(by_vcpu, key=lambda named: named.sample.vcpu):
            stacks: list[list[int]] = []
            weights: list[int] = []
            for named in group:
                names = (named.phase, named.module, named.leaf)
                stack = [frames.setdefault(name, len(frames)) for name in names]
                if stacks and stacks[-1] == stack:
                    weights[-1] += INTERVAL_NS
                else:
                    stacks.append(stack)
                    weights.append(INTERVAL_NS)
            profiles.append(
                {
                    "type": "sampled",
                    "name": f"vCPU {vcpu}",
                    "unit": "nanoseconds",
                    "startValue": 0,
                    "endValue": sum(weights),
                    "samples": stacks,
                    "weights": weights,
                }
            )
        return json.dumps(
            {
                "$schema": "https://www.speedscope.app/file-format-schema.json",
                "exporter": "vmm",
                "shared": {"frames": [{"name": name} for name in frames]},
                "profiles": profiles,
            }
        )


def _spans(report: Report, started_ns: int) -> Iterator[_Span]:
    found = phases(report) or [Phase("run", 0.0, "")]
    # What comes before the first sign of the first phase is part of it.
    found[0] = found[0]._replace(t_s=0.0)
    end = max([report["outcome"]["elapsed_s"], *(event["t_s"] for event in report["timeline"])])
    for phase, following in pairwise([*found, Phase("the end", end, "")]):
        yield _Span(phase, *(started_ns + round(at.t_s * 1e9) for at in (phase, following)))
