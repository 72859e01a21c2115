"""What a benchmark found, as one object: the samples, what they say, and what they were taken on.

`as_json` is the format of ``--json``; ``schema`` names its version.
"""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from vmm.statistics import Growth, Ratio, Summary, compare, fit_growth, median, summarize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.bench.contenders import Contender
    from vmm.bench.host import Noise
    from vmm.report.schema import OriginReport

SCHEMA = "vmm-bench/1"

TOO_FEW_ROUNDS = "too few rounds for intervals; give --seconds more"

KEPT_SAMPLES = 2000
"""Samples of a case and contender that the result keeps, drawn at random; its numbers come from all of them."""


@dataclass(frozen=True)
class Measured:
    """One contender's values for one case.

    Attributes:
        rounds: one value a round, for pairs.
        samples: single values; those of all rounds, or `KEPT_SAMPLES` of them.
        summary: of all single values.
    """

    rounds: list[float]
    samples: list[float]
    summary: Summary

    @classmethod
    def of(cls, rounds: Sequence[Sequence[float]], seed: int) -> Measured:
        """Make it from the single values of each round."""
        everything = [value for values in rounds for value in values]
        kept = everything
        if len(everything) > KEPT_SAMPLES:
            kept = random.Random(seed).sample(everything, KEPT_SAMPLES)  # noqa: S311  # no secret
        return cls([median(values) for values in rounds], sorted(kept), summarize(everything))


@dataclass(frozen=True)
class Target:
    """A claim: ``of`` needs at most ``limit`` times what ``to`` needs; without ``to``, ``limit`` in the case's unit."""

    case: str
    of: str
    to: str
    limit: float
    text: str


@dataclass(frozen=True)
class Pair:
    """A comparison that a result shows."""

    of: str
    to: str
    ratio: Ratio


@dataclass
class CaseResult:
    """One case: its contenders' values in ``unit``, and their comparisons."""

    key: str
    title: str
    unit: str
    measured: dict[str, Measured] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    bytes_moved: int = 0
    alone: dict[str, Ratio] = field(default_factory=dict)
    """Each contender's median of rounds, with its interval."""

    def compare(self, pairs: Sequence[tuple[str, str]], seed: int) -> None:
        """Add the comparisons that can be made."""
        for of, to in pairs:
            if of in self.measured and to in self.measured:
                a, b = self.measured[of].rounds, self.measured[to].rounds
                if len(a) == len(b) and all(b):
                    self.pairs.append(Pair(of, to, compare(a, b, seed)))

        for key, measured in self.measured.items():
            self.alone[key] = compare(measured.rounds, [1.0] * len(measured.rounds), seed)

    def pair(self, of: str, to: str) -> Ratio | None:
        """Return one comparison, if it was made; with nothing to compare with, the value itself and its interval."""
        if not to:
            return self.alone.get(of)
        return next((pair.ratio for pair in self.pairs if (pair.of, pair.to) == (of, to)), None)


MIN_GROWTH_ROUNDS = 3
"""A point of a curve needs fewer rounds than a ratio does: the others hold it in place."""


@dataclass
class Scale:
    """How the cost of one thing grows: points of (x, median ms), and the fitted curve of each contender.

    Attributes:
        no_growth: why there is no curve; "" where there are points enough for one.
    """

    key: str
    title: str
    x_unit: str
    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    spreads: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    growth: dict[str, Growth] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    rounds: int = 0
    no_growth: str = ""

    def fit(self) -> None:
        """Fit the curves, if there were rounds enough."""
        if self.rounds < MIN_GROWTH_ROUNDS:
            self.no_growth = f"fewer than {MIN_GROWTH_ROUNDS} rounds"
            return
        for key, points in self.points.items():
            if len(points) >= 3:
                self.growth[key] = fit_growth([x for x, _ in points], [y for _, y in points])

    def drop_growth(self, why: str) -> None:
        """Have no curves, because nobody should trust them."""
        self.growth.clear()
        self.no_growth = why


@dataclass
class Result:
    """A whole benchmark."""

    kind: str
    seed: int
    host: dict[str, Any]
    contenders: dict[str, str]
    cases: list[CaseResult] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    rounds: int = 0
    elapsed_s: float = 0.0
    noise: Noise | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    scales: list[Scale] = field(default_factory=list)
    timelines: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    vmm_times: list[dict[str, Any]] = field(default_factory=list)
    origin: OriginReport | None = None
    began: str = field(default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="seconds"))

    def case(self, key: str) -> CaseResult | None:
        """Return a case by its key."""
        return next((case for case in self.cases if case.key == key), None)

    def judge(self, target: Target) -> tuple[Ratio | None, str]:
        """Hold a claim against its ratio: ``reached`` or ``missed`` if the whole interval says so, else ``open``."""
        case = self.case(target.case)
        ratio = case.pair(target.of, target.to) if case is not None else None
        if ratio is None:
            return None, "not measured"
        if ratio.verdict == "too few rounds":
            return ratio, "open"
        if ratio.high <= target.limit:
            return ratio, "reached"
        return ratio, "missed" if ratio.low > target.limit else "open"

    @property
    def warnings(self) -> list[str]:
        """Why not to trust the numbers."""
        found = [] if self.noise is None else self.noise.warnings()
        return [*found, TOO_FEW_ROUNDS] if self.has_too_few_rounds else found

    @property
    def has_too_few_rounds(self) -> bool:
        """Whether a ratio has no interval for that."""
        return any(pair.ratio.verdict == "too few rounds" for case in self.cases for pair in case.pairs)

    def as_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` writes."""
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "origin": self.origin,
            "began": self.began,
            "elapsed_s": round(self.elapsed_s, 3),
            "seed": self.seed,
            "rounds": self.rounds,
            "settings": self.settings,
            "host": self.host,
            "noise": None if self.noise is None else asdict(self.noise),
            "warnings": self.warnings,
            "contenders": self.contenders,
            "failed": self.failed,
            "cases": [_case_json(case) for case in self.cases],
            "targets": [self._target_json(target) for target in self.targets],
            "scales": [asdict(scale) for scale in self.scales],
            "timelines": self.timelines,
            "vmm_times": self.vmm_times,
        }

    def _target_json(self, target: Target) -> dict[str, Any]:
        ratio, verdict = self.judge(target)
        return asdict(target) | {"ratio": None if ratio is None else asdict(ratio), "verdict": verdict}


def _case_json(case: CaseResult) -> dict[str, Any]:
    return {
        "key": case.key,
        "title": case.title,
        "unit": case.unit,
        "bytes": case.bytes_moved,
        "measured": {key: asdict(measured) for key, measured in case.measured.items()},
        "ratios": [asdict(pair) | {"verdict": pair.ratio.verdict} for pair in case.pairs],
    }


def names(contenders: Sequence[Contender]) -> dict[str, str]:
    """Return the contenders' names by key."""
    return {contender.key: contender.name for contender in contenders}
