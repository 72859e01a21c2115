"""``vmm firmware``: what an image is, and which of fw_cfg and fwctl it can speak, with the evidence."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vmm.cli import EXIT_STATUSES
from vmm.cli.parser import Parser
from vmm.inputs import patience
from vmm.legible import legible

if TYPE_CHECKING:
    from pathlib import Path

DESCRIPTION = """\
Print what a firmware image contains: volumes and their compression, code or variable store, the clients of fw_cfg and
fwctl found in its executables, with the evidence for each, and what fwcfg=auto makes of it. Needs no /dev/kvm.
"""


PIPE_SECONDS = 60.0
"""How long an image may take to come through a pipe."""


def parser() -> Parser:
    """Return the command's options."""
    options = Parser("firmware", "IMAGE [--json]", DESCRIPTION, EXIT_STATUSES)
    options.add_argument(
        "image",
        metavar="IMAGE",
        help="a path or a name (ovmf, seabios, bhyve, probe or another guest of ours): what `vmm boot` takes",
    )
    options.add_argument("--json", action="store_true", help="print a JSON object instead of text")
    return options


def run(words: list[str]) -> int:
    """Look into the image that a command line names; return the exit status."""
    arguments = parser().parse_args(words)
    from vmm.firmware.clients import analyze

    with patience(PIPE_SECONDS):
        analysis = analyze(_path(arguments.image))
    if arguments.json:
        print(json.dumps(analysis.as_dict(), indent=2))
    else:
        print(legible(analysis.text(), keep="\n"), end="")
    return 0


def _path(image: str) -> Path:
    from pathlib import Path

    from vmm.firmware.load import named_file
    from vmm.firmware.search import locate

    return Path(named_file(image) or locate(image).code)
