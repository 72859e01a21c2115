"""The flame graph of a page: what was executed, by phase, module and function, as wide as it was seen often."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm.report.schema import ProfileReport, StackReport

_LEAST_PERCENT = 0.2
"""Of the width: what is narrower is drawn together."""

OTHERS = "others"


class Box(NamedTuple):
    """A phase, module or function: places in percent of the width, and in levels from the top."""

    x: float
    width: float
    level: int
    name: str
    tip: str


def boxes(profile: ProfileReport) -> list[Box]:
    """Place everything; phases in their order, the others by size."""
    if not profile["samples"]:
        return []
    whole = profile["samples"]
    found: list[Box] = []
    x = 0.0
    for phase in profile["phases"]:
        if not phase["samples"]:
            continue
        width = 100 * phase["samples"] / whole
        found.append(Box(round(x, 3), round(width, 3), 0, phase["name"], _tip(phase["name"], phase["samples"], whole)))
        stacks = [stack for stack in profile["stacks"] if stack["phase"] == phase["name"]]
        found += _row(stacks, ("module", "function"), x, whole, 1)
        x += width
    return found


def _row(stacks: Sequence[StackReport], keys: Sequence[str], x: float, whole: int, level: int) -> Iterator[Box]:
    sizes: Counter[str] = Counter()
    for stack in stacks:
        sizes[_name(stack, keys[0])] += stack["samples"]
    narrow = 0
    for name, samples in sizes.most_common():
        width = 100 * samples / whole
        if width < _LEAST_PERCENT:
            narrow += samples
            continue
        if name:
            yield Box(round(x, 3), round(width, 3), level, name, _tip(name, samples, whole))
            if len(keys) > 1:
                inner = [stack for stack in stacks if _name(stack, keys[0]) == name]
                yield from _row(inner, keys[1:], x, whole, level + 1)
        x += width
    if narrow:
        yield Box(round(x, 3), round(100 * narrow / whole, 3), level, OTHERS, _tip(OTHERS, narrow, whole))


def _name(stack: StackReport, key: str) -> str:
    return stack["module"] if key == "module" else stack["function"]


def _tip(name: str, samples: int, whole: int) -> str:
    return f"{name}: {samples:,} samples, {100 * samples / whole:.1f} %"
