"""``vmm fetch-linux``: get what ``vmm verify linux`` boots."""

from __future__ import annotations

from vmm.cli import say
from vmm.cli.parser import Parser
from vmm.errors import ExitStatus

DESCRIPTION = """\
Fetch Debian's cloud kernel and a static busybox, without installing them, into a cache: what `vmm verify linux` boots.
Needs apt and its lists, but not root. Does nothing when they are there already.
"""

EPILOG = """\
The cache is $XDG_CACHE_HOME/vmm/linux, or ~/.cache/vmm/linux: vmlinuz, qemu_fw_cfg.ko, busybox, and packages, which
names the packages that they come from.

exit status:
  0  they are there
  2  wrong usage
  4  the host lacks something, or Debian's archive cannot be reached
"""


def parser() -> Parser:
    """Return the command's options."""
    options = Parser("fetch-linux", "[--again]", DESCRIPTION, EPILOG)
    options.add_argument("--again", action="store_true", help="fetch what Debian has by now")
    return options


def run(words: list[str]) -> int:
    """Fetch them unless they are there; return 0."""
    arguments = parser().parse_args(words)
    from vmm.verify import fetch_linux  # what is wrong so far should be said at once

    fetch_linux.fetch(again=arguments.again, say=lambda line: say(f"fetch-linux: {line}"))
    return ExitStatus.OK
