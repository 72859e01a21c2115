"""``vmm run``: run a UEFI application under OVMF to its end; its console is stdout, its EFI_STATUS the exit status."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vmm import inputs
from vmm.cli import say
from vmm.cli.machine_arguments import add_machine_arguments
from vmm.cli.machine_config import config_from
from vmm.cli.parser import Parser
from vmm.config.outputs import Outputs
from vmm.config.parts import Sandboxing
from vmm.errors import ConfigError, ExitStatus, HostError
from vmm.options import parse_seconds

if TYPE_CHECKING:
    from vmm.machine import Machine

DESCRIPTION = """\
Run a UEFI application, an .efi file for x86-64, under OVMF to its end. What it prints on its console goes to stdout
(through a pipe without terminal escapes and carriage returns), what firmware prints before does not. On a terminal, its
keyboard is this one; Ctrl-A X ends the machine.

The application is on a disk with an EFI system partition (FAT32), alone, or with --esp DIR among the folder's files;
the disk is a copy, and gone in the end. It needs mtools. What stands behind APP is the application's: it gets the words
as load options, as the UEFI shell hands them over, and as arguments of a shell application.

Options of the machine stand before APP, and are those of vmm boot.
"""

EPILOG = """
examples:
  vmm run app.efi                              until it returns
  vmm run --timeout 60 tests.efi --only=acpi   as a test: its words are its own
  vmm run -smp 4 -m 1G --esp build/ build/tools/app.efi
                                               with the folder's files, as fs0: of the UEFI shell
  vmm run app.efi > output.txt                 what it printed, as text

exit status:
  0       it returned EFI_SUCCESS, or powered the machine off
  1       it crashed, reset the machine, or could not be started; a run with --replay was not the recorded one; stderr
          says why
  2       wrong usage or bad input: no UEFI application for x86-64, a folder that FAT cannot hold
  3       the deadline of --timeout passed first
  4       the host lacks something: /dev/kvm, mtools, OVMF
  32 + n  it returned the warning n: 34 is EFI_WARN_DELETE_FAILURE
  64 + n  it returned the error n: 65 is EFI_LOAD_ERROR, 78 EFI_NOT_FOUND, 85 EFI_ABORTED
  127     it returned something else; stderr has it
  130     interrupted (Ctrl-C, SIGTERM, SIGHUP)
"""


def parser() -> Parser:
    """Return the command's options."""
    made = Parser("run", "[OPTION ...] APP [ARG ...]", DESCRIPTION, EPILOG)
    add_machine_arguments(made)
    add = made.add_argument_group("run").add_argument
    add("--timeout", metavar="SECONDS", help="end with status 3 after this long (default: never)")
    add("-q", "--quiet", action="store_true", help="no word about how it ended; the exit status tells")
    return made


def run(words: list[str]) -> int:
    """Run the application that a command line names; return the exit status."""
    arguments = parser().parse(words, "application", rest="words")
    deadline = None if arguments.timeout is None else parse_seconds(arguments.timeout, "--timeout")
    if arguments.application is None:
        raise ConfigError("run: which application? APP is an .efi file (vmm run --help tells more)")
    if arguments.serial == "none":
        raise ConfigError("-serial none: the serial port is the application's console; >/dev/null throws it away")
    typed = arguments.serial == "stdio" and arguments.replay is None
    arguments.firmware, arguments.serial = None, arguments.serial or "stdio"
    arguments.debugcon = arguments.debugcon or "none"
    # Slow to load: what is wrong so far is said without it.
    from vmm.efi.run import Application, partition_of

    with inputs.patience(deadline):
        path, arguments.esp = partition_of(Path(arguments.application), arguments.esp)
        config = config_from(arguments)
    config = config._replace(reboot=bool(config.reboot))  # or what resets the machine would run again
    application = Application(path, arguments.words, config)
    from vmm.run.terminal import unblocking_stdout

    with Outputs(config) as outputs, unblocking_stdout() as out:
        from vmm.cli.interrupts import Interrupts
        from vmm.machine import Machine
        from vmm.run.outcome import Reason

        if config.sandbox is Sandboxing.WHOLE:
            outputs.separate()
        if not arguments.quiet:
            for note in (*arguments.notes, *config.firmware.notes, *config.warnings):
                say(f"vmm: {note}")
        with (
            Interrupts(outputs.hurry) as interrupts,
            Machine(config, customize=application.customize, outputs=outputs) as machine,
        ):
            if machine.debugger is not None and not arguments.quiet:
                say(f"vmm: gdb finds the machine by 'target remote {machine.debugger.address}'")
            console = _Console(machine, out, typed=typed)
            application.attach(machine, console.write)

            def on_poll(machine: Machine) -> None:
                interrupts.check()
                application.poll(machine)
                console.terminal.poll()

            with console.terminal:
                outcome = machine.run(deadline=deadline, on_poll=on_poll)
                if outcome.reason is Reason.INTERRUPTED:
                    console.terminal.hurry()
            ended = application.ended(machine, outcome)
        strays = False
        if config.replay is not None:
            from vmm.cli.ended import strays_from_replay

            strays = strays_from_replay(machine, outcome)
    message = ended.message(application.name)
    if message and not arguments.quiet:
        say(f"vmm: {message}")
    if console.terminal.lost and outcome.reason is not Reason.INTERRUPTED:
        raise HostError(console.terminal.lost)
    for line in outputs.lost:
        say(f"vmm: {line}")
    if outputs.failed and not ended.exit_status:
        return ExitStatus.HOST_LACKS
    return ended.exit_status or (ExitStatus.GUEST_FAILED if strays else ExitStatus.OK)


class _Console:
    """Stdout and stdin as the application's console.

    Args:
        machine: whose serial port it is.
        out: see `vmm.run.terminal.unblocking_stdout`.
        typed: stdin is for the application though it is no terminal.

    Attributes:
        terminal: passes on what `write` got, and what is typed.
    """

    def __init__(self, machine: Machine, out: int, *, typed: bool) -> None:
        from vmm.run.console import Stream, split_escapes
        from vmm.run.terminal import Terminal, is_foreground_terminal

        self._stream = Stream("application")
        self._split = None if os.isatty(1) else split_escapes
        self._begun = b""
        given = machine.config.replay is not None
        keys = machine.send if typed or (is_foreground_terminal() and not given) else None
        self.terminal = Terminal([self._stream], keys, machine.stop, say, machine.power_button, out)

    def write(self, data: bytes) -> None:
        """Show what was printed: to a terminal as it is, else as text."""
        if self._split is not None:
            data, self._begun = self._split(self._begun + data)
            data = data.replace(b"\r", b"")
        self._stream.write(data)
