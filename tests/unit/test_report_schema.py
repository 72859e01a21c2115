"""The schema that is published for reports is made of the types that make them."""

import subprocess
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError
from report_schema import PATH, PUBLISHED, check_report

from vmm.report.collect import SCHEMA

SCRIPT = Path(__file__).parents[2] / "scripts" / "report-schema"


def test_the_published_schema_is_up_to_date() -> None:
    made = subprocess.run([SCRIPT], capture_output=True, text=True, timeout=60, check=True).stdout
    assert PATH.read_text(encoding="utf-8") == made, "run scripts/report-schema >docs/schemas/report.schema.json"


def test_it_is_a_schema_that_says_what_everything_means() -> None:
    Draft202012Validator.check_schema(PUBLISHED)
    assert PUBLISHED["title"] == SCHEMA
    assert all(part["description"] for part in PUBLISHED["$defs"].values())
    assert PUBLISHED["$defs"]["AreaReport"]["required"] == ["name", "first", "last", "reads", "writes"]
    assert "halts" not in PUBLISHED["$defs"]["AcceleratorReport"]["required"]


@pytest.mark.parametrize("report", [{}, {"schema": "vmm-report/1"}, []])
def test_what_is_no_report_is_found(report: object) -> None:
    with pytest.raises(ValidationError):
        check_report(report)
