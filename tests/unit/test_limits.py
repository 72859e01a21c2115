"""The README's table of what firmware takes says what `vmm sweep` found: its tables are in docs/limits.md."""

import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]

SECTIONS = {"reserved entries of the memory map": "Entries of the memory map", "SSDTs beside our tables": "Tables"}


def table(text: str) -> list[list[str]]:
    """The cells of the first table in a document, without the line below its head."""
    lines = re.search(r"^\|.*(?:\n\|.*)+", text, re.MULTILINE)
    assert lines
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()]
    return [rows[0], *rows[2:]]


def most(rows: list[list[str]], column: int) -> str:
    """The last value of which all arrived before one of which not all did, and what is worse than that."""
    arrived = [row[column].startswith("all ") for row in rows]
    if all(arrived):
        return f"{rows[-1][0]} or more"
    first_lost = arrived.index(False)
    best = rows[first_lost - 1][0]
    silent = rows[first_lost][column] == "no report"
    return ("none" if best == "0" else best) + (", then no report" if silent else "")


@pytest.mark.parametrize("row", SECTIONS)
def test_the_readme_says_what_the_sweep_found(row: str) -> None:
    limits = (TOP / "docs/limits.md").read_text("utf-8")
    _, section = limits.split(f"\n## {SECTIONS[row]}\n")
    head, *rows = table(section)
    readme = (TOP / "README.md").read_text("utf-8")
    shown_head, *shown = table(readme[readme.index("\n| the most of which") :])
    assert shown_head[1:] == head[1:]
    assert {line[0]: line[1:] for line in shown}[row] == [most(rows, column) for column in range(1, len(head))]
    assert {line[0] for line in shown} == SECTIONS.keys()


def test_the_readme_is_short() -> None:
    assert len((TOP / "README.md").read_text("utf-8").splitlines()) < 200
