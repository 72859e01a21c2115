"""The statistics on distributions whose answers are known."""

import random

import pytest

from vmm.statistics import MIN_ROUNDS, compare, fit_growth, median, percentile, summarize


def test_percentiles_of_a_known_sequence() -> None:
    values = [float(n) for n in range(101)]
    assert [percentile(values, p) for p in (0, 25, 50, 90, 99, 100)] == [0, 25, 50, 90, 99, 100]
    assert percentile([1.0, 2.0], 50) == 1.5
    assert percentile([7.0], 99) == 7.0


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        median([])
    with pytest.raises(ValueError, match="no values"):
        summarize([])


def test_summary_of_a_distribution_with_one_outlier() -> None:
    found = summarize([10.0] * 50 + [11.0] * 49 + [1e9])
    assert (found.count, found.minimum, found.maximum) == (100, 10.0, 1e9)
    assert found.median == 10.5
    assert found.p90 == 11.0
    assert found.iqr == 1.0
    assert found.mad == 0.5
    assert found.spread == pytest.approx(1 / 10.5)


def test_a_ratio_is_found_through_noise_that_both_share() -> None:
    chance = random.Random(3)
    shared = [chance.uniform(1, 20) for _ in range(40)]
    slower = [1.1 * noise * chance.gauss(1, 0.01) for noise in shared]
    faster = [noise * chance.gauss(1, 0.01) for noise in shared]
    ratio = compare(slower, faster, seed=1)
    assert ratio.low < 1.1 < ratio.high
    assert ratio.high - ratio.low < 0.02
    assert ratio.verdict == "more"
    assert compare(faster, slower, seed=1).verdict == "less"


def test_equal_contenders_tie() -> None:
    chance = random.Random(5)
    ratio = compare([chance.gauss(100, 5) for _ in range(60)], [chance.gauss(100, 5) for _ in range(60)], seed=1)
    assert ratio.low <= 1 <= ratio.high
    assert ratio.verdict == "tie"


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    chance = random.Random(11)
    held = 0
    for trial in range(100):
        rounds = [chance.lognormvariate(0, 0.1) for _ in range(25)]
        ratio = compare(rounds, [1.0] * 25, seed=trial)
        held += ratio.low <= 1 <= ratio.high
    # The percentile bootstrap of a median of 25 is a little off 95 %, either way.
    assert 87 <= held <= 100


def test_too_few_rounds_say_so_and_pairs_must_be_pairs() -> None:
    few = [1.0] * (MIN_ROUNDS - 1)
    assert compare([2 * n for n in few], few, seed=1).verdict == "too few rounds"
    with pytest.raises(ValueError, match="pairs"):
        compare([1.0], [1.0, 2.0], seed=1)
    with pytest.raises(ValueError, match="denominator"):
        compare([1.0], [0.0], seed=1)


def test_the_same_seed_gives_the_same_interval() -> None:
    chance = random.Random(2)
    a, b = ([chance.uniform(1, 2) for _ in range(20)] for _ in range(2))
    assert compare(a, b, seed=9) == compare(a, b, seed=9)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5, 2.0])
def test_a_power_above_a_base_is_recovered(exponent: float) -> None:
    xs = [float(2**n) for n in range(8)]
    found = fit_growth(xs, [100 + 3 * x**exponent for x in xs])
    assert found.exponent == pytest.approx(exponent, abs=0.02)
    assert found.base == pytest.approx(100, rel=0.02)
    assert found.factor == pytest.approx(3, rel=0.1)
    assert found.residual < 0.005
    assert found.at(16.0) == pytest.approx(100 + 3 * 16**exponent, rel=0.01)


def test_noise_alone_does_not_grow() -> None:
    chance = random.Random(4)
    xs = [float(2**n) for n in range(8)]
    found = fit_growth(xs, [100 * chance.gauss(1, 0.02) for _ in xs])
    assert found.factor == 0
    assert found.base == pytest.approx(100, rel=0.03)


def test_a_curve_needs_three_positive_points() -> None:
    with pytest.raises(ValueError, match="three points"):
        fit_growth([1, 2], [1, 2])
    with pytest.raises(ValueError, match="positive"):
        fit_growth([1, 2, 3], [1, 0, 2])
