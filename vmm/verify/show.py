"""A verification as text for people, as an object for JSON, and as one HTML file."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from vmm.legible import legible
from vmm.report import html
from vmm.report.text import size
from vmm.verify import picture
from vmm.verify.values import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm.report.schema import OriginReport
    from vmm.verify.result import Row, Subject, Verification

SCHEMA = "vmm-verify/1"
"""Names what ``--json`` prints; changes when a key goes or means something else."""

COLUMNS = ("offered", "found", "true", "taken")
"""Fields of a row that it compares; a page's table has those that one of its rows knows."""

WIDTH = 118
_WIDEST = 38
_GAP = "  "
_INDENT = "      "


def as_object(verification: Verification, origin: OriginReport | None = None) -> dict[str, Any]:
    """Return what ``--json`` prints; for ``origin`` see `vmm.report.origin`."""
    return {
        "schema": SCHEMA,
        "origin": origin,
        "ok": verification.ok,
        "firmware": verification.firmware,
        "machine": verification.machine,
        "elapsed_s": round(verification.elapsed_s, 6),
        "subjects": [
            {
                "name": subject.name,
                "ok": subject.ok,
                "rows": [asdict(row) | {"verdict": row.verdict.value} for row in subject.rows],
            }
            for subject in verification.subjects
        ],
    }


def as_text(verification: Verification, width: int = WIDTH) -> str:
    """Return one table for each subject, of so many columns if that is fewer than `WIDTH`."""
    head = f"{verification.firmware} on {verification.machine}: {verification.elapsed_s:.2f} s"
    lines = [head] if width >= WIDTH else textwrap.wrap(head, width, break_long_words=False, break_on_hyphens=False)
    for subject in verification.subjects:
        lines += ["", *_table(subject, width)]
    lines += ["", *_summary(verification)]
    return legible("\n".join(lines), keep="\n")


def _summary(verification: Verification) -> list[str]:
    verdicts = [row.verdict for subject in verification.subjects for row in subject.rows]
    wrong, untrue = sum(not verdict.ok for verdict in verdicts), verdicts.count(Verdict.UNTRUE)
    lines = []
    if wrong > untrue:
        lines.append(f"{wrong - untrue} of {len(verdicts)} did not arrive as offered")
    if untrue:
        lines.append(f"{untrue} of {len(verdicts)} are not true")
    return lines or [f"all {len(verdicts)} arrived and are true"]


def _table(subject: Subject, width: int) -> Iterator[str]:
    columns = _columns(subject.rows)
    cells = [("", subject.name, *columns)]
    cells += [(row.verdict.value, row.name, *(getattr(row, name) for name in columns)) for row in subject.rows]
    told = 1 + len(columns)
    widest = _WIDEST if width >= WIDTH else max(11, (width - len(Verdict.EXTRA) - told * len(_GAP)) // told)
    widths = [min(widest, max(len(cell[column]) for cell in cells)) for column in range(len(cells[0]))]
    for number, cell in enumerate(cells):
        wrapped = [
            [text] if width >= WIDTH or len(text) <= most else textwrap.wrap(text, most)
            for text, most in zip(cell, widths, strict=True)
        ]
        for line in zip_longest(*wrapped, fillvalue=""):
            yield _GAP.join(text.ljust(most) for text, most in zip(line, widths, strict=True)).rstrip()
        if number:
            yield from _details(subject.rows[number - 1], width)


def _details(row: Row, width: int) -> Iterator[str]:
    for label, text in (("", row.difference), ("because: ", row.reason)):
        if text:
            yield from textwrap.wrap(label + text, width, initial_indent=_INDENT, subsequent_indent=_INDENT + "  ")


def as_html(verification: Verification, origin: OriginReport | None = None) -> str:
    """Return a page that needs nothing beside itself.

    Args:
        verification: what it says.
        origin: see `vmm.report.origin`.

    Raises:
        HostError: jinja2 is not installed.
    """
    return html.render(
        "verify/report.html.j2",
        {"hex": hex, "size": size, "columns": _columns},
        command="verify",
        origin=origin,
        verification=verification,
        summary="; ".join(_summary(verification)),
        wrong=[(subject, row) for subject in verification.subjects for row in subject.rows if not row.verdict.ok],
        memory=picture.rows(verification.maps),
    )


def _columns(rows: Sequence[Row]) -> list[str]:
    return [name for name in COLUMNS if any(getattr(row, name) for row in rows)]
