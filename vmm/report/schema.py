"""The report of a run as an object."""

from __future__ import annotations

from typing import Any

Report = dict[str, Any]
"""The object that ``--json`` prints."""


def as_json(report: Report) -> str:
    """Return the report as a JSON object, with its last newline."""
    import json  # noqa: PLC0415  # few runs ask

    return json.dumps(report, indent=2) + "\n"
