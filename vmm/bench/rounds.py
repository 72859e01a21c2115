"""Rounds: every contender once, in random order, until the time is up.

What disturbs the machine for seconds disturbs a whole round, and so all contenders of a pair; what disturbs it for
milliseconds is one round of many. A contender that fails drops out, with its last words, and the others go on.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from vmm.bench.contenders import Contender, ContenderFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Value = TypeVar("Value")


@dataclass(frozen=True)
class Goal:
    """When to stop: after ``seconds``, but not before ``least`` rounds, nor after more than ``most``."""

    seconds: float
    least: int = 1
    most: int | None = None

    def done(self, elapsed_s: float, rounds: int) -> bool:
        """Is it time to stop?"""
        if self.most is not None and rounds >= self.most:
            return True
        return elapsed_s >= self.seconds and rounds >= self.least


@dataclass
class Rounds(Generic[Value]):
    """What came out.

    Attributes:
        values: for each contender that took part in all rounds, one value a round.
        failed: last words of those that dropped out.
    """

    values: dict[str, list[Value]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    elapsed_s: float = 0.0

    @property
    def count(self) -> int:
        """Rounds."""
        return max((len(values) for values in self.values.values()), default=0)


def run_rounds(
    contenders: Sequence[Contender],
    measure: Callable[[Contender], Value],
    goal: Goal,
    seed: int,
    progress: Callable[[str, float, int], None],
    clock: Callable[[], float] = time.monotonic,
) -> Rounds[Value]:
    """Measure all contenders, round after round.

    Args:
        contenders: who takes part.
        measure: runs one of them once.
        goal: when to stop.
        seed: of the random order.
        progress: told before each run.
        clock: seconds.
    """
    chance = random.Random(seed)  # noqa: S311  # no secret
    result: Rounds[Value] = Rounds()
    taking_part = list(contenders)
    for contender in taking_part:
        if (why := contender.missing()) is not None:
            result.failed[contender.key] = why
    taking_part = [contender for contender in taking_part if contender.key not in result.failed]
    began = clock()
    rounds = 0
    while taking_part and not goal.done(result.elapsed_s, rounds):
        order = list(taking_part)
        chance.shuffle(order)
        for contender in order:
            progress(contender.name, _part_done(goal, clock() - began, rounds), rounds)
            try:
                result.values.setdefault(contender.key, []).append(measure(contender))
            except ContenderFailedError as error:
                result.failed[contender.key] = str(error)
                result.values.pop(contender.key, None)
                taking_part.remove(contender)
        rounds += 1
        result.elapsed_s = clock() - began
    result.values = {c.key: result.values[c.key] for c in contenders if c.key in result.values}
    return result


def _part_done(goal: Goal, elapsed_s: float, rounds: int) -> float:
    part = min(elapsed_s / goal.seconds if goal.seconds else 1.0, rounds / goal.least if goal.least else 1.0)
    if goal.most is not None:
        part = max(part, rounds / goal.most)
    return min(part, 1.0)
