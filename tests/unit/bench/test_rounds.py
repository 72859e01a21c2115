"""Rounds: order, goals, and contenders that fail."""

from dataclasses import dataclass

from vmm.bench.contenders import Contender, ContenderFailedError
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

    def measure(contender: Contender) -> int:
        ran.append(contender.key)
        return len(ran)

    found = run_rounds([A, B, C], measure, Goal(1e9, most=20), 7, quiet)
    assert found.count == 20
    rounds = [tuple(ran[at : at + 3]) for at in range(0, 60, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 3
    assert list(found.values) == ["a", "b", "c"]


def test_the_same_seed_gives_the_same_order() -> None:
    orders = []
    for _ in range(2):
        ran: list[str] = []
        run_rounds([A, B, C], lambda contender, ran=ran: ran.append(contender.key), Goal(1e9, most=10), 3, quiet)  # type: ignore[misc]
        orders.append(ran)
    assert orders[0] == orders[1]


def test_a_contender_that_fails_drops_out_and_the_others_go_on() -> None:
    calls = 0

    def measure(contender: Contender) -> float:
        nonlocal calls
        calls += 1
        if contender is B and calls > 4:
            raise ContenderFailedError("B: it died")
        return 1.0

    found = run_rounds([A, B, Absent("x", "X")], measure, Goal(1e9, most=8), 1, quiet)
    assert found.failed == {"x": "not installed", "b": "B: it died"}
    assert list(found.values) == ["a"]
    assert len(found.values["a"]) == 8


def test_time_and_least_rounds() -> None:
    now = 0.0

    def clock() -> float:
        return now

    def measure(_: Contender) -> None:
        nonlocal now
        now += 2.0

    assert run_rounds([A], measure, Goal(10, least=1), 1, quiet, clock).count == 5
    assert run_rounds([A], measure, Goal(10, least=9), 1, quiet, clock).count == 9
    assert run_rounds([A], measure, Goal(1e9, least=1, most=3), 1, quiet, clock).count == 3
