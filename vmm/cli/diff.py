"""``vmm diff``: what is different between two runs, by their reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.cli.parser import Parser
from vmm.config.outputs import Outputs
from vmm.errors import ConfigError, ExitStatus
from vmm.legible import legible

if TYPE_CHECKING:
    from vmm.report.schema import Report

DESCRIPTION = """\
Compare two runs by the reports that vmm boot --json wrote: what was booted, how it ended, what the guest read, which
phases and images it came to, how often it accessed which device, and how long it all took. A and B may be folders of
reports of the same thing: what differs within one is left out, and of times and counts it is said what is noise.
"""

EXAMPLES = """
examples:
  vmm boot ovmf --until 'Shell>' --json a.json; vmm boot new.fd --until 'Shell>' --json b.json; vmm diff a.json b.json
  for i in $(seq 8); do vmm boot old.fd -q --until 'Shell>' --json old/$i.json; ...; done; vmm diff old new

exit status: 0 the same but for time, 1 something is different, 2 wrong usage, or a file that is no report
"""


def parser() -> Parser:
    """Return the command's options."""
    made = Parser("diff", "[OPTION ...] A B", DESCRIPTION, EXAMPLES)
    made.add_argument(
        "--json", metavar="PATH", help="write the comparison as a JSON object; - is stdout, without the text"
    )
    return made


def run(words: list[str]) -> int:
    """Compare what a command line names; return the exit status."""
    arguments = parser().parse(words, "before", "others")
    if arguments.before is None or len(arguments.others) != 1:
        raise ConfigError("vmm diff compares two: vmm diff A.json B.json (options come first)")
    with Outputs(None, {"--json": arguments.json}) as outputs:
        before, after = _read(arguments.before), _read(arguments.others[0])
        from vmm.report import compare

        found = compare.as_dict(before, after)
        if arguments.json != "-":
            for line in compare.text(before, after, legible):
                print(line)
        outputs.write({"--json": lambda: json.dumps(found, indent=2) + "\n"})
    return ExitStatus.GUEST_FAILED if found["differences"] else ExitStatus.OK


def _read(name: str) -> list[Report]:
    """Return the report in a file, or those in a folder."""
    place = Path(name)
    paths = sorted(place.glob("*.json")) if place.is_dir() else [place]
    if not paths:
        raise ConfigError(f"{name}: no report (*.json) is in this folder")
    return [_report(path) for path in paths]


def _report(path: Path) -> Report:
    from vmm.report import compare
    from vmm.report.collect import SCHEMA

    try:
        report: Report = json.loads(path.read_bytes())
        if report["schema"] != SCHEMA:
            raise ConfigError(f"{path}: {legible(str(report['schema']))} is no report of vmm boot ({SCHEMA})")
        compare.as_dict([report], [report])
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or '').lower()}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ConfigError(f"{path}: this is no report; vmm boot --json writes one") from None
    return report
