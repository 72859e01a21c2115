"""What a sweep found: as text, as tables in Markdown for a document, and as one page with heat maps."""

from __future__ import annotations

import itertools
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm.legible import counted, legible, shortened
from vmm.report import html
from vmm.sweep.cell import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm.report.schema import OriginReport
    from vmm.sweep.matrix import Cell, Matrix

    Result = dict[str, Any]
    Found = Sequence[tuple[Cell, Result | None]]

WIDTH = 118

_MOST_TOLD = 40
"""Cells that text lists; the file and the page have all."""

_MISSING = "not run"


class Square(NamedTuple):
    """A cell in a picture.

    Attributes:
        title: the axes' values.
        outcome: `Outcome`, or that it was not run.
        share: how much of all that was offered arrived, 0 to 1.
        words: in a few words, what became of it.
        why: the first reason.
        subjects: of each, how many rows are right, and how many there are.
        wrong: the rows that are not.
    """

    title: str
    outcome: str
    share: float
    words: str
    why: str
    subjects: dict[str, list[int]]
    wrong: list[dict[str, str]]


class Grid(NamedTuple):
    """Cells in rows and columns.

    Attributes:
        title: what all of them have in common; "" where that is nothing.
        row: the name of the axis that has a row for each value.
        column: likewise; "" where there is one column.
        columns: labels.
        rows: a label each, and its cells.
    """

    title: str
    row: str
    column: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Square, ...]], ...]


def square(cell: Cell, result: Result | None) -> Square:
    """What to show of a cell."""
    if result is None:
        return Square(cell.title, _MISSING, 0.0, _MISSING, "", {}, [])
    outcome, subjects = result["outcome"], result.get("subjects", {})
    right, whole = (sum(count[index] for count in subjects.values()) for index in (0, 1))
    words = outcome
    if outcome == Outcome.ARRIVED:
        words = f"all {whole}"
    elif outcome == Outcome.ALTERED:
        words = f"{right} of {whole}"
    share = right / whole if whole and outcome in {Outcome.ARRIVED, Outcome.ALTERED} else 0.0
    why = legible(result.get("why", ""))
    return Square(cell.title, outcome, share, words, why, subjects, result.get("wrong", []))


def grids(matrix: Matrix, found: Found) -> Iterator[Grid]:
    """Lay the cells out: the axis with most values makes the rows, the next one the columns, the others make grids."""
    squares = {tuple(cell.axes.values()): square(cell, result) for cell, result in found}
    axes = matrix.axes
    varied = sorted((at for at, axis in enumerate(axes) if len(axis.values) > 1), key=lambda at: len(axes[at].values))
    row = varied[-1] if varied else len(axes) - 1
    column = varied[-2] if len(varied) > 1 else None
    labels = [tuple(value.label for value in axis.values) for axis in axes]
    others = [at for at in range(len(axes)) if at not in {row, column}]
    for values in itertools.product(*(labels[at] for at in others)):
        fixed = dict(zip(others, values, strict=True))
        across: list[dict[int, str]] = [{}] if column is None else [{column: label} for label in labels[column]]
        rows = [
            (label, tuple(squares[_key(fixed | {row: label} | place, len(axes))] for place in across))
            for label in labels[row]
        ]
        yield Grid(
            title=", ".join(f"{axes[at].name} {label or '-'}" for at, label in fixed.items()),
            row=axes[row].name,
            column="" if column is None else axes[column].name,
            columns=("",) if column is None else labels[column],
            rows=tuple(rows),
        )


def _key(place: dict[int, str], count: int) -> tuple[str, ...]:
    return tuple(place[number] for number in range(count))


def summary(found: Found) -> str:
    """How many cells there are of each outcome, in one line."""
    counts = Counter(_MISSING if result is None else result["outcome"] for _, result in found)
    names = [*(outcome.value for outcome in Outcome), _MISSING]
    told = [f"{counts[name]} {name}" for name in names if counts[name]]
    return f"{counted(len(found), 'cell')}: {', '.join(told)}"


def as_text(found: Found, width: int = WIDTH) -> str:
    """Return the summary, and each cell that has no success, with its first reason."""
    lines = [summary(found)]
    bad = [square(cell, result) for cell, result in found if result is None or result["outcome"] != Outcome.ARRIVED]
    for one in bad[:_MOST_TOLD]:
        if one.outcome == _MISSING:
            continue
        lines.append(shortened(f"  {one.words:12} {one.title}", width))
        if one.why:
            lines.append(textwrap.indent(shortened(one.why, width - 15), " " * 15))
    if len(bad) > _MOST_TOLD:
        lines.append(f"  … and {len(bad) - _MOST_TOLD} more, in the file of results")
    return "\n".join(lines)


def as_markdown(matrix: Matrix, found: Found) -> str:
    """Return a table for each grid, as a document may have it."""
    parts = []
    for grid in grids(matrix, found):
        named = [label or "-" for label in grid.columns] if grid.column else ["result"]
        head = [f"{grid.row} \\ {grid.column}" if grid.column else grid.row, *named]
        lines = [f"**{grid.title}**", ""] if grid.title else []
        lines += [_row(head), "|---" * len(head) + "|"]
        lines += [_row([label or "-", *map(_marked, squares)]) for label, squares in grid.rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def _marked(one: Square) -> str:
    if one.outcome != Outcome.ALTERED:
        return one.words
    bad = [name for name, (right, whole) in one.subjects.items() if right < whole]
    return f"{one.words} ({', '.join(bad)})"


def as_html(matrix: Matrix, found: Found, origin: OriginReport | None = None) -> str:
    """Return a page that needs nothing beside itself.

    Args:
        matrix: the axes.
        found: its cells, with their results.
        origin: see `vmm.report.origin`.

    Raises:
        HostError: jinja2 is not installed.
    """
    squares = [square(cell, result) for cell, result in found]
    subjects = list(dict.fromkeys(name for one in squares for name in one.subjects))
    return html.render(
        "sweep/page.html.j2",
        command="sweep",
        origin=origin,
        summary=summary(found),
        ok=all(one.outcome == Outcome.ARRIVED for one in squares),
        grids=list(grids(matrix, found)),
        subjects=subjects,
        squares=squares,
        wrong=[one for one in squares if one.wrong or one.why],
    )
