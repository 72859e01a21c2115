"""The published schema of reports, and stricter: no key that it does not name."""

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

PATH = Path(__file__).parents[2] / "docs" / "schemas" / "report.schema.json"

PUBLISHED: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    stricter = {key: _strict(value) for key, value in schema.items()}
    return stricter | ({"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {})


_VALIDATOR = Draft202012Validator(_strict(PUBLISHED))


def check_report(report: Any) -> None:
    """Assert that a report, as it comes out of JSON, is what the schema says."""
    _VALIDATOR.validate(report)
