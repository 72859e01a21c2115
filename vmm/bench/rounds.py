"""Rounds: every contender once, in random order, until the time is up.

What disturbs the machine for seconds disturbs a whole round, and so all contenders of a pair; what disturbs it for
milliseconds is one round of many. A contender that fails drops out, with its last words, and the others go on.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from vmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Runner(Protocol):
    """What takes part in rounds: a contender, or one with something to do."""

    @property
    def key(self) -> str:
        """Its name in results."""

    @property
    def name(self) -> str:
        """Its name for people."""

    def missing(self) -> str | None:
        """Say why it can't take part; None if it can."""


Value = TypeVar("Value")
AnyRunner = TypeVar("AnyRunner", bound=Runner)


@dataclass(frozen=True)
class Goal:
    """When to stop.

    Attributes:
        seconds: before so many are over; of a share, no further round begins after them.
        rounds: after so many at the latest.
        first_round: seconds that the first round may take, where the others may have less.
    """

    seconds: float = math.inf
    rounds: int | None = None
    first_round: float = 0.0

    def share(self, seconds: float, whole: float) -> Goal:
        """Return the same for a share of the time; the first round may have all that is left of it."""
        return Goal(seconds, self.rounds, whole)


@dataclass
class Rounds(Generic[Value]):
    """What came out.

    Attributes:
        values: for each contender that took part in all rounds, one value a round.
        failed: last words of those that dropped out, or that there was no time for.
    """

    values: dict[str, list[Value]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    elapsed_s: float = 0.0

    @property
    def count(self) -> int:
        """Rounds."""
        return max((len(values) for values in self.values.values()), default=0)


def run_rounds(
    contenders: Sequence[AnyRunner],
    measure: Callable[[AnyRunner, float], Value],
    goal: Goal,
    seed: int,
    progress: Callable[[str, float, int], None],
    clock: Callable[[], float] = time.monotonic,
) -> Rounds[Value]:
    """Measure all contenders, round after round; a round that the time ends does not count, but for the first.

    Args:
        contenders: those that take part.
        measure: runs one of them once, for so many seconds at the most.
        goal: when to stop.
        seed: of the random order.
        progress: told before each run.
        clock: seconds.
    """
    chance = random.Random(seed)  # noqa: S311  # no secret
    result: Rounds[Value] = Rounds()
    for contender in contenders:
        if (why := contender.missing()) is not None:
            result.failed[contender.key] = why
    taking_part = [contender for contender in contenders if contender.key not in result.failed]
    longest: dict[str, float] = {}
    began, rounds, in_time = clock(), 0, True
    while taking_part and in_time and (goal.rounds is None or rounds < goal.rounds):
        order = list(taking_part)
        chance.shuffle(order)
        for contender in order:
            started = clock()
            left = began + (max(goal.seconds, goal.first_round) if rounds == 0 else goal.seconds) - started
            if left <= longest.get(contender.key, 0.0):
                in_time = False
                break
            progress(contender.name, _part_done(goal, started - began, rounds), rounds)
            # How long it takes is not known in the first round: something is left for the others.
            limit = left / 2 if rounds == 0 and len(order) > 1 else left
            try:
                result.values.setdefault(contender.key, []).append(measure(contender, limit))
            except HostError as error:
                if clock() - started < limit:
                    result.failed[contender.key] = str(error)
                elif rounds == 0:
                    result.failed[contender.key] = not_done(limit)
                else:
                    in_time = False
                    break
                result.values.pop(contender.key, None)
                taking_part.remove(contender)
            longest[contender.key] = max(longest.get(contender.key, 0.0), clock() - started)
        else:
            rounds += 1
    for contender in taking_part:
        if contender.key not in result.values:
            result.failed[contender.key] = "there was no time for it; give --seconds more"
    result.elapsed_s = clock() - began
    whole = max(1, rounds)
    result.values = {c.key: result.values[c.key][:whole] for c in contenders if c.key in result.values}
    return result


def not_done(limit_s: float) -> str:
    """Return what to say of something that took too long."""
    return f"not done in {limit_s:.2g} s; give --seconds more"


def _part_done(goal: Goal, elapsed_s: float, rounds: int) -> float:
    return min(1.0, max(elapsed_s / goal.seconds, rounds / goal.rounds if goal.rounds else 0.0))
