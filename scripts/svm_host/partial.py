"""JUnit XML of a run that did not come to its end, from what pytest had printed by then (`pytest -v`)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from pathlib import Path

_STARTED = re.compile(r"^(?P<file>tests/\S+?)\.py::(?P<name>\w+(?:\[.*?\](?=\s))?)", re.MULTILINE)
_VERDICT = re.compile(r"(?<=\s)(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
"""Not always in the line of the test: the kernel prints on the same console."""


def write_junit(console: Path, output: Path, why: str) -> None:
    """Write what is known: tests that ended by their verdict, the one that was running as an error.

    Args:
        console: what the emulated host printed.
        output: the file to write.
        why: there is no better one.
    """
    text = console.read_text(encoding="utf-8", errors="replace")
    started = list(_STARTED.finditer(text))
    suite = ET.Element("testsuite", name="pytest")
    counts = {"tests": len(started), "failures": 0, "errors": 0, "skipped": 0}
    ends = [*(test.start() for test in started), len(text)][1:]
    for test, end in zip(started, ends, strict=True):
        case = ET.SubElement(suite, "testcase", classname=test["file"].replace("/", "."), name=test["name"])
        verdict = _VERDICT.search(text, test.end(), end)
        if verdict is None:
            ET.SubElement(case, "error", message=f"was running when there was an end: {why}")
            counts["errors"] += 1
        elif verdict[1] in {"FAILED", "ERROR"}:
            ET.SubElement(case, "failure", message="see console.txt")
            counts["failures"] += 1
        elif verdict[1] == "SKIPPED":
            ET.SubElement(case, "skipped")
            counts["skipped"] += 1
    for name, count in counts.items():
        suite.set(name, str(count))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.ElementTree(root).write(output, encoding="utf-8", xml_declaration=True)
