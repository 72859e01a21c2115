"""``vmm images``: boot a guest for a while, and list what is loaded in it."""

from __future__ import annotations

import json

from vmm import inputs
from vmm.cli import EXIT_STATUSES, say
from vmm.cli.machine_arguments import FIRMWARE_HELP, add_machine_arguments
from vmm.cli.machine_config import config_from
from vmm.cli.parser import Parser
from vmm.config.outputs import Outputs
from vmm.errors import ExitStatus
from vmm.options import parse_seconds
from vmm.run.expect import check_pattern
from vmm.run.outcome import Reason

DEADLINE = 10.0
"""Seconds, where neither --until nor --timeout is given."""

SCHEMA = "vmm-images/1"
"""Names what --json prints; changes when a key goes or means something else."""

DESCRIPTION = """\
Boot a guest until it shows something, or for a time, and list what is loaded in its memory: UEFI's SEC, PEI and DXE
modules, a Linux kernel, a guest of ours. No help from the firmware is needed; names of files with symbols are shown
where its build left them. Addresses are those of RVA 0, for gdb's add-symbol-file.
"""

EXAMPLES = """
examples:
  vmm images ovmf --until 'Shell>'          all modules of a booted OVMF
  vmm images ovmf --timeout 0.3 --json -    what there is after a third of a second
  vmm images OVMF.fd --until 'Shell>' --symbols Build/OvmfX64/DEBUG_GCC5 --gdb-commands edk2.gdb
                                            and then: vmm boot OVMF.fd -s -S; gdb: source edk2.gdb, break DxeMain

"""


def parser() -> Parser:
    """Return the command's options."""
    made = Parser("images", "[FIRMWARE] [OPTION ...]", f"{DESCRIPTION}\n{FIRMWARE_HELP}", f"{EXAMPLES}{EXIT_STATUSES}")
    add_machine_arguments(made)
    add = made.add_argument_group("run").add_argument
    add("--until", metavar="REGEX", help="list them once the serial port or debugcon shows this")
    add(
        "--timeout",
        metavar="SECONDS",
        help="list them after this long; with --until the status is 3 then "
        f"(default: {DEADLINE:g}, or never with --until)",
    )
    add(
        "--gdb-commands",
        metavar="PATH",
        help="write commands for gdb's source that load the symbols of all that is found in --symbols, where it is",
    )
    add("--json", metavar="PATH", help="write them as a JSON object; - is stdout, instead of the table")
    return made


def run(words: list[str]) -> int:
    """Boot what a command line describes, and list what is loaded; return the exit status."""
    arguments = parser().parse(words, "firmware")
    arguments.serial = arguments.serial or "none"
    arguments.debugcon = arguments.debugcon or "none"
    deadline = _deadline(arguments.timeout, arguments.until)
    if arguments.until is not None:
        check_pattern(arguments.until, "--until")
    with inputs.patience(deadline):
        config = config_from(arguments)
    with Outputs(config, {"--json": arguments.json, "--gdb-commands": arguments.gdb_commands}) as outputs:
        from vmm.cli.interrupts import Interrupts
        from vmm.debug.gdb_file import gdb_commands
        from vmm.debug.images import table
        from vmm.machine import Machine

        for note in (*arguments.notes, *config.warnings):
            say(f"vmm: {note}")
        with Interrupts(outputs.hurry) as interrupts, Machine(config, outputs=outputs) as machine:
            outcome = machine.run(arguments.until, deadline, on_poll=lambda _: interrupts.check())
            images = machine.images()
        say(f"vmm: {outcome.message}")
        if "-" not in {arguments.json, arguments.gdb_commands}:
            print(table(images))
        if arguments.gdb_commands is not None and not any(image.symbols for image in images):
            say("vmm: --gdb-commands: no file with symbols was found; --symbols DIR says where they are")
        found = {"schema": SCHEMA, "reason": outcome.reason.value, "images": [image.as_dict() for image in images]}
        outputs.write(
            {"--json": lambda: json.dumps(found, indent=2) + "\n", "--gdb-commands": lambda: gdb_commands(images)}
        )
    if outcome.reason is Reason.TIMEOUT and arguments.until is None:
        return ExitStatus.OK
    return outcome.exit_status


def _deadline(text: str | None, until: str | None) -> float | None:
    if text is None:
        return None if until is not None else DEADLINE
    return parse_seconds(text, "--timeout")
