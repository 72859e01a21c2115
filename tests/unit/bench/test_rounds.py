"""Rounds: order, goals, and contenders that fail."""

import re
import time
from dataclasses import dataclass

import pytest

from vmm.bench.contenders import Contender, ContenderFailedError, run
from vmm.bench.rounds import Goal, run_rounds


@dataclass(frozen=True)
class Absent(Contender):
    def missing(self) -> str | None:
        return "not installed"


A, B, C = (Contender(key, key.upper()) for key in "abc")


def quiet(what: str, part: float, rounds: int) -> None:
    assert what
    assert 0 <= part <= 1
    assert rounds >= 0


def test_every_contender_runs_once_a_round_in_changing_order() -> None:
    ran: list[str] = []

    def measure(contender: Contender, _limit_s: float) -> int:
        ran.append(contender.key)
        return len(ran)

    found = run_rounds([A, B, C], measure, Goal(rounds=20), 7, quiet)
    assert found.count == 20
    rounds = [tuple(ran[at : at + 3]) for at in range(0, 60, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 3
    assert list(found.values) == ["a", "b", "c"]


def test_the_same_seed_gives_the_same_order() -> None:
    orders = []
    for _ in range(2):
        ran: list[str] = []
        run_rounds([A, B, C], lambda contender, _limit_s, ran=ran: ran.append(contender.key), Goal(rounds=10), 3, quiet)  # type: ignore[misc]
        orders.append(ran)
    assert orders[0] == orders[1]


def test_a_contender_that_fails_drops_out_and_the_others_go_on() -> None:
    calls = 0

    def measure(contender: Contender, _limit_s: float) -> float:
        nonlocal calls
        calls += 1
        if contender is B and calls > 4:
            raise ContenderFailedError("B: it died")
        return 1.0

    found = run_rounds([A, B, Absent("x", "X")], measure, Goal(rounds=8), 1, quiet)
    assert found.failed == {"x": "not installed", "b": "B: it died"}
    assert list(found.values) == ["a"]
    assert len(found.values["a"]) == 8


class Clock:
    """Time that passes only while something is measured."""

    def __init__(self, costs: dict[str, float]) -> None:
        self.now = 0.0
        self.costs = costs

    def __call__(self) -> float:
        return self.now

    def measure(self, contender: Contender, limit_s: float) -> float:
        cost = self.costs[contender.key]
        self.now += min(cost, limit_s)
        if cost > limit_s:
            raise ContenderFailedError(f"{contender.name}: no end after {limit_s:.0f} s")
        return cost


def test_the_time_is_kept_and_rounds_are_whole() -> None:
    clock = Clock({"a": 2.0, "b": 1.0})
    found = run_rounds([A, B], clock.measure, Goal(10), 1, quiet, clock)
    assert found.values == {"a": [2.0] * 3, "b": [1.0] * 3}
    assert clock.now <= 10
    assert found.failed == {}


def test_the_fewer_rounds_and_the_shorter_time_count() -> None:
    assert run_rounds([A], (clock := Clock({"a": 2.0})).measure, Goal(1e9, rounds=3), 1, quiet, clock).count == 3
    assert run_rounds([A], (clock := Clock({"a": 2.0})).measure, Goal(5, rounds=3), 1, quiet, clock).count == 2


@pytest.mark.parametrize("seed", range(8))
def test_what_there_was_no_time_for_is_said_and_the_others_are_measured(seed: int) -> None:
    clock = Clock({"a": 0.5, "b": 1000.0, "c": 0.5})
    found = run_rounds([A, B, C], clock.measure, Goal(10), seed, quiet, clock)
    assert clock.now <= 10
    assert found.count >= 3
    assert list(found.values) == ["a", "c"]
    assert re.fullmatch(r"not done in [\d.]+ s; give --seconds more|no end after .*", found.failed["b"])


def test_of_a_share_that_is_too_small_there_is_one_round() -> None:
    clock = Clock({"a": 2.0, "b": 2.0})
    found = run_rounds([A, B], clock.measure, Goal(60).share(1.0, 50.0), 1, quiet, clock)
    assert found.values == {"a": [2.0], "b": [2.0]}


def test_no_time_at_all_measures_nothing_and_says_so() -> None:
    clock = Clock({"a": 1.0, "b": 1.0})
    found = run_rounds([A, B], clock.measure, Goal(-1), 1, quiet, clock)
    assert found.values == {}
    assert found.failed == dict.fromkeys("ab", "there was no time for it; give --seconds more")


def test_a_process_without_end_is_ended_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(ContenderFailedError, match="A: no end after 0 s"):
        run(A, ["sleep", "1000"], 0.2)
    assert time.monotonic() - began < 100


def test_a_guest_that_hangs_is_quoted() -> None:
    with pytest.raises(ContenderFailedError, match=r"A: no end after 3 s; its last line was 'last'$"):
        run(A, ["sh", "-c", "echo first; echo last; exec sleep 1000"], 3.0)
