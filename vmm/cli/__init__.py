"""The command line: ``vmm COMMAND …``.

stdout carries data (the guest's consoles, JSON, ``info``), stderr everything that is said about it. A command's module
is imported only when it is asked for: a guest that exits at once is over before most of them would be loaded.
"""

import contextlib
import errno
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from vmm.errors import ExitStatus, VmmError
from vmm.legible import legible

COMMANDS = {
    "boot": "boot firmware on /dev/kvm, and report what it did",
    "run": "run a UEFI application under OVMF, and return its status",
    "firmware": "what an image is: volumes, and which of fw_cfg and fwctl it speaks",
    "vars": "what is in a VARS file: list, set and delete variables, enroll keys for Secure Boot",
    "bench": "what port I/O, DMA and a boot cost here, beside QEMU and a bare KVM_RUN loop",
    "verify": "did the guest get the tables that fw_cfg offered?",
    "sweep": "verify a matrix of machines: firmware, CPUs, memory, tables; here or on many hosts",
    "images": "what is loaded in a guest, and where: UEFI's modules, a kernel, a guest of ours",
    "diff": "what is different between two runs, by their reports",
    "fetch-linux": "get Debian's Linux, which verify linux boots, without installing it",
    "info": "what this host can do, and which firmware it has",
    "completion": "a script that makes bash, zsh or fish complete all this",
}
"""What each command is for."""

STARTS_PROCESSES = {"bench", "verify", "sweep", "fetch-linux"}
"""Commands that leave processes or files behind where a signal just ends them; what boots takes care of itself."""

EXIT_STATUSES = """\
exit status:
  0    the guest reached --until, or powered itself off where none was given
  1    the guest failed: triple fault, an instruction that KVM refused, a reset that nobody expected
  2    wrong usage or bad input: an option, a file, an image
  3    the deadline of --timeout passed first
  4    the host lacks something: /dev/kvm, a permission, a capability, room for all of the output or somebody who
       reads it; the message says what to do
  130  interrupted (Ctrl-C, SIGTERM, SIGHUP)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the process's exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
    except VmmError as error:
        with contextlib.suppress(OSError):
            sys.stdout.flush()  # what was printed before it
        _say_last(*str(error).splitlines())
        return error.exit_status
    except KeyboardInterrupt:
        _say_last("interrupted")
        return ExitStatus.INTERRUPTED
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            _say_last(f"{(error.strerror or '').lower()}; raise the limit of open files: ulimit -n")
            return ExitStatus.HOST_LACKS
        if error.errno == errno.EPERM and (call := _refused()):
            _say_last(f"the sandbox refused {call}: {error}; --sandbox off runs without it")
            return ExitStatus.GUEST_FAILED
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EPIPE, errno.EIO}:
            raise
        _say_last(f"cannot write all of the output: {error.strerror}")
        return ExitStatus.HOST_LACKS
    return status


def _say_last(*lines: str) -> None:
    """Say why it ends; the exit status tells it where stderr is full, or nobody reads that any more."""
    with contextlib.suppress(OSError):
        for line in lines:
            say(f"vmm: {line}")


def _refused() -> str | None:
    sandbox = sys.modules.get("vmm.sandbox")  # nothing was refused where it was not loaded
    return None if sandbox is None else sandbox.refused()


def say(line: str) -> None:
    """Print a line about what is going on, to stderr."""
    print(legible(line, keep="\n\t"), file=sys.stderr, flush=True)


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        print(usage(), file=sys.stderr)
        return ExitStatus.USAGE
    name, *rest = arguments
    if name == "help" and rest:
        name, rest = rest[0], ["--help"]
    if name in {"-h", "--help", "help"}:
        print(usage())
        return ExitStatus.OK
    if name == "--version":
        from vmm.installation import version

        print(f"vmm {version()}")
        return ExitStatus.OK
    if name not in COMMANDS:
        say(f"vmm: unknown command '{name}'; known are {', '.join(COMMANDS)} (vmm --help tells more)")
        return ExitStatus.USAGE
    command = module_of(name)
    if name not in STARTS_PROCESSES:
        return int(command.run(rest))
    from vmm.cli.interrupts import every_end_interrupts

    with every_end_interrupts():
        return int(command.run(rest))


def module_of(command: str) -> ModuleType:
    """Return a command's module, which has ``run(arguments: list[str]) -> int`` and ``parser() -> Parser``."""
    return import_module(f"{__name__}.{command.replace('-', '_')}")


def usage() -> str:
    """Return the text of ``vmm --help``."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items())
    from vmm.cli.parser import MAX_HELP_WIDTH, columns, fitted

    text = f"""\
usage: vmm COMMAND [ARGUMENT ...]

A KVM-backed mini virtual machine monitor: it boots real firmware and gives it QEMU's fw_cfg or bhyve's fwctl.

commands:
{commands}

  vmm COMMAND --help tells about one of them; vmm --version prints the version.

{EXIT_STATUSES}"""
    width = columns(sys.stdout, MAX_HELP_WIDTH)
    return text if width == MAX_HELP_WIDTH else fitted(text, width)
