"""Numbers from a noisy machine: order statistics, ratios of pairs with bootstrap intervals, fitted growth.

Medians and percentiles throughout: one interrupt of ten milliseconds would own any mean. Seeded, so that a result
can be computed again from its samples.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIDENCE = 0.95
RESAMPLES = 2000
"""Bootstrap resamples: the ends of a 95 % interval then rest on 50 values each."""

MIN_ROUNDS = 6
"""Pairs below which no interval is given: six agreeing signs are the first that chance makes rarer than 1 in 20."""


@dataclass(frozen=True)
class Summary:
    """A distribution in a few numbers, all in the unit of the samples.

    Attributes:
        iqr: distance of the quartiles.
        mad: median distance from the median; not scaled.
    """

    count: int
    minimum: float
    median: float
    p90: float
    p99: float
    maximum: float
    iqr: float
    mad: float

    @property
    def spread(self) -> float:
        """The quartiles' distance as a part of the median; 0 for a median of 0."""
        return self.iqr / self.median if self.median else 0.0


@dataclass(frozen=True)
class Ratio:
    """How one contender compares with another, from pairs measured in the same round.

    Attributes:
        median: of the rounds' ratios.
        low: lower end of the confidence interval of that median.
        high: its upper end.
        rounds: pairs.
    """

    median: float
    low: float
    high: float
    rounds: int

    @property
    def verdict(self) -> str:
        """``tie`` if the interval contains 1, ``too few rounds`` if there are not enough, else ``less`` or ``more``."""
        if self.rounds < MIN_ROUNDS:
            return "too few rounds"
        if self.low <= 1 <= self.high:
            return "tie"
        return "less" if self.high < 1 else "more"


@dataclass(frozen=True)
class Growth:
    """``base + factor * x ** exponent``, fitted.

    Attributes:
        exponent: of the part that grows; 0 where nothing grows beyond the noise.
        residual: typical relative distance of the points from the curve.
    """

    base: float
    factor: float
    exponent: float
    residual: float

    def at(self, x: float) -> float:
        """Return the curve's value."""
        return self.base + self.factor * math.pow(x, self.exponent)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return a percentile of sorted values, between neighbours in proportion (Hyndman and Fan's type 7).

    Raises:
        ValueError: there are no values.
    """
    if not ordered:
        raise ValueError("no values")
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def median(values: Sequence[float]) -> float:
    """Return the median of values in any order.

    Raises:
        ValueError: there are none.
    """
    return percentile(sorted(values), 50)


def summarize(values: Sequence[float]) -> Summary:
    """Describe values in any order.

    Raises:
        ValueError: there are none.
    """
    ordered = sorted(values)
    middle = percentile(ordered, 50)
    return Summary(
        count=len(ordered),
        minimum=ordered[0] if ordered else middle,
        median=middle,
        p90=percentile(ordered, 90),
        p99=percentile(ordered, 99),
        maximum=ordered[-1],
        iqr=percentile(ordered, 75) - percentile(ordered, 25),
        mad=median([abs(value - middle) for value in ordered]),
    )


def compare(numerators: Sequence[float], denominators: Sequence[float], seed: int) -> Ratio:
    """Compare two contenders by the values that they had in the same rounds.

    The interval is the percentile bootstrap's: of the medians of ratios drawn with replacement. Pairing takes out what
    both suffered from in a round; that is why rounds are short.

    Raises:
        ValueError: the rounds are not as many on both sides, there are none, or a denominator is 0.
    """
    if len(numerators) != len(denominators) or not numerators:
        raise ValueError("ratios need pairs")
    if not all(denominators):
        raise ValueError("a denominator is 0")
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    chance = random.Random(seed)  # noqa: S311  # no secret
    medians = sorted(median(chance.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    tail = (1 - CONFIDENCE) / 2 * 100
    return Ratio(median(ratios), percentile(medians, tail), percentile(medians, 100 - tail), len(ratios))


def fit_growth(xs: Sequence[float], ys: Sequence[float]) -> Growth:
    """Fit ``base + factor * x ** exponent`` to positive points, by relative error, base and factor not negative.

    Raises:
        ValueError: fewer than three points, or one that is not positive.
    """
    if len(xs) != len(ys) or len(xs) < 3 or min(*xs, *ys) <= 0:
        raise ValueError("a curve needs three points, all positive")
    flat = _weighted_mean(ys)
    best = Growth(flat, 0.0, 0.0, _residual(ys, [flat] * len(ys)))
    # 0.05 up: below, a power of x and a constant are the same thing.
    for hundredths in range(5, 301):
        exponent = hundredths / 100
        base, factor = _fit_line([x**exponent for x in xs], ys)
        curve = Growth(base, factor, exponent, _residual(ys, [base + factor * x**exponent for x in xs]))
        # A curve has to earn its two more parameters.
        if factor > 0 and curve.residual < best.residual * (1.0 if best.factor else 0.7):
            best = curve
    return best


def _weighted_mean(ys: Sequence[float]) -> float:
    return sum(1 / y for y in ys) / sum(1 / y**2 for y in ys)


def _fit_line(us: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Least squares of relative errors; a negative base or factor is set to 0 and the other one fitted alone."""
    weights = [1 / y**2 for y in ys]
    total = sum(weights)
    mean_u = sum(w * u for w, u in zip(weights, us, strict=True)) / total
    mean_y = sum(w * y for w, y in zip(weights, ys, strict=True)) / total
    variance = sum(w * (u - mean_u) ** 2 for w, u in zip(weights, us, strict=True))
    if variance == 0:
        return mean_y, 0.0
    factor = sum(w * (u - mean_u) * (y - mean_y) for w, u, y in zip(weights, us, ys, strict=True)) / variance
    base = mean_y - factor * mean_u
    if factor < 0:
        return mean_y, 0.0
    if base < 0:
        products = sum(w * u * y for w, u, y in zip(weights, us, ys, strict=True))
        return 0.0, products / sum(w * u * u for w, u in zip(weights, us, strict=True))
    return base, factor


def _residual(ys: Sequence[float], fitted: Sequence[float]) -> float:
    return math.sqrt(sum(((a - b) / a) ** 2 for a, b in zip(ys, fitted, strict=True)) / len(ys))
