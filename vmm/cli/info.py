"""``vmm info``: what this host offers, on stdout."""

from __future__ import annotations

import json
import sys

from vmm import info
from vmm.cli.parser import MAX_HELP_WIDTH, Parser, columns
from vmm.errors import ExitStatus

EPILOG = """\
exit status:
  0  this host can run machines: a small one has just run
  4  it can't, and the lines "machine" and "KVM" say why and what to do
"""


def parser() -> Parser:
    """Return the command's options."""
    options = Parser("info", "[--json]", "What this host offers: KVM, processor, software CPU, firmware.", EPILOG)
    options.add_argument("--json", action="store_true", help="one JSON object, with all capabilities and CPUID leaves")
    return options


def run(words: list[str]) -> int:
    """Print what the host offers; return 4 if no machine runs on it."""
    arguments = parser().parse_args(words)
    found = info.collect()
    # In a pipe, where grep may look at it, each line stays one.
    width = columns(sys.stdout, MAX_HELP_WIDTH) if sys.stdout.isatty() else None
    print(json.dumps(found, indent=2) if arguments.json else info.text(found, width))
    return ExitStatus.OK if found["machine"]["runs"] else ExitStatus.HOST_LACKS
