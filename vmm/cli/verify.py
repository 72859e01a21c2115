"""``vmm verify``: did the guest get my tables?"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from vmm import inputs
from vmm.cli import say
from vmm.cli.machine_arguments import FIRMWARE_HELP, add_machine_arguments
from vmm.cli.machine_config import config_from
from vmm.cli.parser import Parser, columns
from vmm.config.outputs import STANDARD, Outputs
from vmm.config.parts import Sandboxing
from vmm.errors import ConfigError, ExitStatus
from vmm.options import parse_seconds

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from vmm.config.machine import MachineConfig
    from vmm.report.schema import OriginReport
    from vmm.verify.result import Verification

LINUX = "linux"
"""The word in front of FIRMWARE that makes Linux the report guest."""

DESCRIPTION = """\
Boot OVMF or SeaBIOS with a report guest of ours, and compare what fw_cfg offered with what the guest found: the memory
map, every ACPI table byte by byte, SMBIOS, processors, boot order, and the items. What is missing or altered gets its
reason, from evidence.

With the word linux in front, the guest is Debian's kernel (vmm fetch-linux gets it once): what Linux found in dmesg
and /sys/firmware, what it says about our tables, its vmcoreinfo note, and whether it can power the machine off. It
starts through OVMF or SeaBIOS, or with -direct without firmware. For more than 128 CPUs, RAM is more than 256M by
default: 1M for each, and 128.
"""

EPILOG = """
examples:
  vmm verify                                                       OVMF, one CPU
  vmm verify seabios -smp 3 -m 6G -e820 base=0xfd000000,size=1M,type=reserved
  vmm verify linux -direct -smp 4
  vmm verify linux seabios
  vmm verify ovmf -acpitable file=my-ssdt.aml -smbios type=1,serial=42 --html report.html

exit status:
  0  everything arrived
  1  something did not, or the guest never reported
  2  wrong usage or bad input
  4  the host lacks something
"""


def parser() -> Parser:
    """Return the command's options."""
    options = Parser("verify", "[linux] [FIRMWARE] [OPTION ...]", f"{DESCRIPTION}\n{FIRMWARE_HELP}", EPILOG)
    add_machine_arguments(options, Sandboxing.THREADS)
    add = options.add_argument_group("run").add_argument
    add("--timeout", metavar="SECONDS", help="give up after this long (default 120)")
    add("--json", metavar="PATH", help="write the result as a JSON object; - is stdout, instead of the tables")
    add("--html", metavar="PATH", help="write the result as one HTML file")
    add("-q", "--quiet", action="store_true", help="print nothing")
    return options


def run(words: list[str]) -> int:
    """Verify what a command line describes; return 0 only if everything arrived."""
    with_linux = words[:1] == [LINUX]
    arguments = parser().parse(words[with_linux:], "firmware")
    from vmm.verify.collect import DEADLINE

    deadline = DEADLINE if arguments.timeout is None else parse_seconds(arguments.timeout, "--timeout")
    arguments.serial = arguments.serial or "none"
    arguments.debugcon = arguments.debugcon or "none"
    from vmm.report import html  # what is wrong so far should be said at once
    from vmm.verify import show

    if arguments.html is not None:
        html.require()
    with ExitStack() as closers:
        if with_linux:
            closers.enter_context(_linux(arguments))
        with inputs.patience(deadline):
            config = config_from(arguments)
        if with_linux and arguments.m is None and config.numa is None:
            from vmm.verify import linux_guest

            config = config._replace(memory=linux_guest.memory_for(config.max_cpus))
        if config.drives:
            from vmm.verify.taken import leave_disks

            config = leave_disks(config)
        outputs = closers.enter_context(Outputs(config, {"--json": arguments.json, "--html": arguments.html}))
        result = _verify(config, arguments.notes, deadline, outputs, with_linux=with_linux)
        origin = _origin(config, words) if outputs.documents else None
        documents = {
            "--json": lambda: json.dumps(show.as_object(result, origin), indent=2) + "\n",
            "--html": lambda: show.as_html(result, origin),
        }
        try:
            if not arguments.quiet and arguments.json != STANDARD:
                print(show.as_text(result, columns(sys.stdout, show.WIDTH)), flush=True)
        finally:
            outputs.write(documents)
    if outputs.failed:
        return ExitStatus.HOST_LACKS
    return ExitStatus.OK if result.ok else ExitStatus.GUEST_FAILED


@contextmanager
def _linux(arguments: argparse.Namespace) -> Iterator[None]:
    """Make Linux the machine's kernel, and give it the device that it writes to."""
    from vmm.verify import linux_guest

    if arguments.kernel is not None or arguments.initrd is not None:
        raise ConfigError("verify linux: brings its own kernel and RAM disk; leave out -kernel and -initrd")
    if "vmcoreinfo" not in arguments.device:
        arguments.device.append("vmcoreinfo")
    with linux_guest.options(arguments.append) as options:
        vars(arguments).update(options)
        yield


def _verify(
    config: MachineConfig, notes: list[str], deadline: float, outputs: Outputs, *, with_linux: bool
) -> Verification:
    from vmm.verify.run import verify  # what is wrong so far should be said without KVM

    for note in (*notes, *config.warnings):
        say(f"vmm: {note}")
    return verify(config, deadline=deadline, with_linux=with_linux, outputs=outputs)


def _origin(config: MachineConfig, words: list[str]) -> OriginReport:
    from vmm.report.origin import images_of_machine, origin  # only for documents

    return origin(["verify", *words], images_of_machine(config))
