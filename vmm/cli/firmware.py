"""``vmm firmware``: what an image is, and which of fw_cfg and fwctl it can speak, with the evidence."""

from __future__ import annotations

import json
from pathlib import Path

from vmm.cli import EXIT_STATUSES
from vmm.cli.parser import Parser

DESCRIPTION = """\
Print what a firmware image contains: volumes and their compression, code or variable store, the clients of fw_cfg and
fwctl found in its executables, with the evidence for each, and what fwcfg=auto makes of it. Needs no /dev/kvm.
"""


def run(words: list[str]) -> int:
    """Look into the image that a command line names; return the exit status."""
    parser = Parser("firmware", "IMAGE [--json]", DESCRIPTION, EXIT_STATUSES)
    parser.add_argument(
        "image", metavar="IMAGE", help="a path, or ovmf, seabios, bhyve, probe: the file that `vmm boot` would take"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of text")
    arguments = parser.parse_args(words)
    from vmm.firmware_clients import analyze  # noqa: PLC0415  # --help needs none of it

    analysis = analyze(_path(arguments.image))
    print(json.dumps(analysis.as_dict(), indent=2) if arguments.json else analysis.text(), end="")
    if arguments.json:
        print()
    return 0


def _path(image: str) -> Path:
    if image == "probe":
        from vmm import guests  # noqa: PLC0415  # builds the guest if needed

        return guests.path(image)
    from vmm.firmware_search import NAMES, locate  # noqa: PLC0415

    return locate(image).code if image in NAMES else Path(image)
