"""``vmm boot``: run firmware until it shows something, ends, or the time is up; then say what happened."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from functools import partial

from vmm import inputs
from vmm.cli import EXIT_STATUSES, say
from vmm.cli.machine_arguments import FIRMWARE_HELP, add_machine_arguments
from vmm.cli.machine_config import config_from
from vmm.cli.parser import Parser
from vmm.config.outputs import Outputs
from vmm.config.parts import Accelerator, Clock, Sandboxing, TargetKind
from vmm.errors import ConfigError, ExitStatus, HostError
from vmm.firmware.images import FirmwareKind
from vmm.options import parse_seconds
from vmm.run.expect import check_pattern
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from vmm.cli.interrupts import Interrupts
    from vmm.cli.progress import Progress
    from vmm.cli.script import Step
    from vmm.cli.snapshots import SnapshotAt
    from vmm.config.machine import MachineConfig
    from vmm.machine import Machine
    from vmm.run.outcome import Outcome
    from vmm.run.terminal import Terminal

DESCRIPTION = """\
Boot firmware on /dev/kvm and report what it did. What the guest prints goes to stdout, everything else to stderr.
On a terminal, the serial port is interactive; Ctrl-A X ends the machine, Ctrl-A P presses its
power button, Ctrl-A W wakes it up from S3.
"""

EXAMPLES = r"""
examples:
  vmm boot                                       OVMF, one CPU, its console on this terminal
  vmm boot ovmf -smp 4 --until 'Shell>' --send 'any other key to continue=\r' --timeout 60
                                                 until the UEFI shell is there, without its countdown
  vmm boot ovmf --script dialogue.txt            the same, and what is to happen there, step by step
  vmm boot seabios -debugcon file:log.txt --until 'No bootable device'
  vmm boot probe -smp 8 -fw_cfg opt/org.example/greeting,string=hello
                                                 our own guest: prints what it finds in fw_cfg
  vmm boot -m 1G -drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd \
                 -drive if=pflash,format=raw,file=my_vars.fd
                                                 UEFI variables are kept in my_vars.fd
  vmm boot -c 4 -l bootrom,BHYVE.fd,fwcfg=bhyve  the same in bhyve's words
  vmm boot ovmf --json report.json -serial none  for a script
  vmm boot ovmf --send 'any other key to continue=\r' --snapshot-at 'Shell>=shell.snap'
  vmm boot --from shell.snap                     the UEFI shell at once, from now on
  vmm boot seabios --exit-times --until 'No bootable' --html report.html
                                                 what the boot did, to look at and to pass on

"""

SCRIPT = r"""
script:
  one step a line; # begins a comment
  expect REGEX     wait until a console shows this; what was shown before is not looked at again
  send TEXT        type TEXT into the serial port; it knows \r \n \t \e (escape), \xNN and \\
  send-line [TEXT] the same, and Enter
  snapshot FILE    keep the machine in FILE, for --from
  keys NAME ...    press keys: up, F2, esc, page-down, enter, ctrl-x ...
  timeout SECONDS  how long each wait below may take
  suspend          wait until the guest suspends the machine to RAM (S3)
  power-button     press the power button; most systems power themselves off then
  plug-cpu [INDEX] plug a CPU in, for which -smp ...,maxcpus=N leaves room
  unplug-cpu INDEX ask the guest's system to let go of a CPU
  wakeup           wake it up again; the step before is suspend
  power-off        wait until the guest powers itself off
The last step is a wait; the exit status is 0 if every wait got what it waits for.
"""


def parser() -> Parser:
    """The parser of the command line; the manual page is made of it, too."""
    made = Parser(
        "boot", "[FIRMWARE] [OPTION ...]", f"{DESCRIPTION}\n{FIRMWARE_HELP}", f"{SCRIPT}{EXAMPLES}{EXIT_STATUSES}"
    )
    add_machine_arguments(made, Sandboxing.WHOLE)
    add = made.add_argument_group("run").add_argument
    add(
        "--until",
        metavar="REGEX",
        help="end with status 0 once the serial port or debugcon shows this (terminal escapes are taken out first)",
    )
    add(
        "--send",
        metavar="REGEX=TEXT",
        action="append",
        default=[],
        help=r"type TEXT into the serial port once the consoles show REGEX; may be repeated, then one after the other; "
        r"a guest that ends before has failed. With --from, what was read before the snapshot is not looked at again: "
        r"a --script that begins with send types at once. "
        r"TEXT knows \r, \n, \t, \e (escape), \xNN and \\; in REGEX, write \x3d for =",
    )
    add("--script", metavar="FILE", help="hold the dialogue with the guest that FILE describes; see below")
    add(
        "--terminal",
        metavar="TYPE",
        help="the terminal as which a script's keys are sent: what firmware says (auto, the default), pcansi, vt100, "
        "vt100plus, vtutf8, ttyterm, linux, xtermr6, vt400 or sco",
    )
    add("--timeout", metavar="SECONDS", help="end with status 3 after this long (default: never)")
    add("--json", metavar="PATH", help="write the report as a JSON object; - is stdout")
    add("--html", metavar="PATH", help="write the report as one self-contained page with pictures, for people")
    add(
        "--profile",
        metavar="PATH",
        help="look at what the vCPUs execute a thousand times a second, and write that by phase, image and function: a "
        "file for speedscope, and beside it folded stacks in one that ends in .folded; - is the former on stdout. The "
        "reports have the phases and what was hot",
    )
    add(
        "--coverage",
        metavar="PATH",
        help="write which lines of source the guest's code reached, as a tracefile of lcov's, which lcov -a adds to "
        "others and genhtml shows; of images whose files with line numbers --symbols has, and of our guests. On the "
        "software CPU alone, at its usual speed",
    )
    add("-q", "--quiet", action="store_true", help="no progress and no report; errors are still told")
    _add_snapshots(made)
    return made


def _add_snapshots(parser: Parser) -> None:
    add = parser.add_argument_group("snapshots").add_argument
    add(
        "--snapshot-at",
        metavar="REGEX=FILE",
        help="once a console shows REGEX, keep the machine in FILE; then the run ends, or goes on until what --until "
        r"names is shown behind it. In REGEX, write \x3d for =",
    )
    add(
        "--from",
        dest="from_",
        metavar="FILE[,KEY=...]",
        help="go on from such a file instead of booting; the machine is the one in it, but for its consoles and for "
        "-fw_cfg items below opt/. time=now moves its clocks to now (default: they go on from where they stopped), "
        "generation=auto|UUID gives it a new VM generation id and tells it so",
    )


def run(words: list[str]) -> int:
    """Boot what a command line describes; return the exit status."""
    arguments = parser().parse(words, "firmware")
    send = [_parse_send(text) for text in arguments.send]
    deadline = None if arguments.timeout is None else parse_seconds(arguments.timeout, "--timeout")
    if arguments.until is not None:
        check_pattern(arguments.until, "--until")
    with inputs.patience(deadline):
        steps = _read_script(arguments)
        resumption = None
        if arguments.from_ is not None:
            from vmm.cli.snapshots import resumption_from

            resumption = resumption_from(arguments, _machine_parser)
        config = config_from(arguments) if resumption is None else resumption.config
    config = config._replace(profile=arguments.profile is not None, coverage=arguments.coverage is not None)
    at = _snapshot_at(arguments)
    if config.sandbox is Sandboxing.WHOLE and (at is not None or any(step.snapshot is not None for step in steps)):
        # A process that may open no file can write none; the threads that serve the guest need not.
        config = config._replace(sandbox=Sandboxing.THREADS)
    _check_page(arguments)
    _check_clock(config, arguments, steps, at)
    copy_disk = None if resumption is None else resumption.snapshot.copy_disk
    with Outputs(config, _documents(arguments), copy_disk) as outputs, contextlib.ExitStack() as closers:
        if at is not None:
            at.check(outputs)
        if config.sandbox is Sandboxing.WHOLE:
            outputs.separate()
        ahead = None
        # A kernel without firmware counts the ticks of the PIT as soon as it has programmed it.
        if config.accel is not Accelerator.SOFTCPU and config.firmware.kind is not FirmwareKind.NONE:
            from vmm.kvm.ahead import VmAhead

            if (ahead := VmAhead.begun()) is not None:
                closers.enter_context(ahead)
        out = 1
        if os.isatty(out):
            from vmm.run.terminal import unblocking_stdout

            out = closers.enter_context(unblocking_stdout())
        # Slow to load: what is wrong so far is said without it.
        from vmm.cli.interrupts import Interrupts
        from vmm.machine import Machine
        from vmm.run.outcome import Reason
        from vmm.sandbox import refused

        if not arguments.quiet:
            for note in (*arguments.notes, *config.firmware.notes, *config.warnings):
                say(f"vmm: {note}")
        with (
            Interrupts(outputs.hurry) as interrupts,
            Machine(config, outputs=outputs, resumption=resumption, ahead=ahead) as machine,
        ):
            if resumption is not None:
                resumption.snapshot.close()
            if machine.sandbox.missing and not arguments.quiet:
                lacking = " and ".join(machine.sandbox.missing)
                say(f"vmm: this kernel does not offer {lacking}: the sandbox is without it (--sandbox off: none)")
            if machine.debugger is not None and not arguments.quiet:
                say(f"vmm: gdb finds the machine by 'target remote {machine.debugger.address}'")
            outcome, lost = _run(machine, interrupts, arguments, send, steps, deadline, at, out)
            findings = None
            if not arguments.quiet or outputs.documents:
                from vmm.cli.ended import Findings

                findings = Findings(machine, outcome, ["boot", *words], outputs)
        if arguments.quiet and outcome.exit_status:
            say(f"vmm: {outcome.message}")
        strays = False
        if config.replay is not None:
            from vmm.cli.ended import strays_from_replay

            strays = strays_from_replay(machine, outcome)
        if findings is not None:
            findings.write(quiet=arguments.quiet)
        if lost and outcome.reason is Reason.INTERRUPTED:
            say(f"vmm: {lost}")
        elif lost:
            raise HostError(lost)
    for line in outputs.lost:
        say(f"vmm: {line}")
    if outputs.failed and not outcome.exit_status:
        return ExitStatus.HOST_LACKS
    if outcome.reason is not Reason.REFUSED and (call := refused()):
        say(f"vmm: the sandbox refused {call}, outside of the guest's threads; the report may lack something")
        return outcome.exit_status or ExitStatus.GUEST_FAILED
    return outcome.exit_status or (ExitStatus.GUEST_FAILED if strays else ExitStatus.OK)


def _documents(arguments: argparse.Namespace) -> dict[str, str | None]:
    """Return what is written once the run is over: paths by option."""
    paths = {"--json": arguments.json, "--html": arguments.html, "--profile": arguments.profile}
    if arguments.profile not in {None, "-"}:
        from pathlib import Path

        from vmm.cli.ended import FOLDED_STACKS

        paths[FOLDED_STACKS] = str(Path(arguments.profile).with_suffix(".folded"))
    return paths | {"--coverage": arguments.coverage}


def _run(
    machine: Machine,
    interrupts: Interrupts,
    arguments: argparse.Namespace,
    send: list[tuple[str, str]],
    steps: list[Step],
    deadline: float | None,
    at: SnapshotAt | None,
    out: int,
) -> tuple[Outcome, str]:
    """Return how the run ended, and what stdout lacks of what the guest printed; "" if nothing."""
    from vmm.run.outcome import Reason

    terminal = _terminal(machine, arguments, out)
    taken = terminal is not None and terminal.shows_on_terminal
    with terminal or contextlib.nullcontext():
        progress: Progress | None = None
        if not arguments.quiet and sys.stderr.isatty() and not taken:
            from vmm.cli.progress import Progress

            progress = Progress()

        def on_poll(machine: Machine) -> None:
            interrupts.check()
            if terminal is not None:
                terminal.poll()
            if progress is not None:
                progress.update(machine)

        if steps:
            from vmm.cli.script import run_script

            outcome = run_script(machine, steps, deadline, on_poll, interrupts.at_once, arguments.terminal or "auto")
        elif at is not None:
            from vmm.cli.snapshots import run_with_snapshot

            outcome = run_with_snapshot(
                machine, at, arguments.until, deadline, deque(send), on_poll, interrupts.at_once
            )
        else:
            answers = deque(send)
            outcome = machine.run(arguments.until, deadline, answers, on_poll)
            while outcome.reason is Reason.SUSPENDED and terminal and terminal.asks_to_wake(partial(on_poll, machine)):
                machine.wakeup()
                left = None if deadline is None else max(0.0, deadline - machine.elapsed_s)
                outcome = machine.run(arguments.until, left, answers, on_poll)
                outcome = outcome._replace(elapsed_s=machine.elapsed_s)
        if progress is not None:
            progress.clear()
        if terminal is not None and outcome.reason is Reason.INTERRUPTED:
            terminal.hurry()
    return outcome, terminal.lost if terminal is not None else ""


def _terminal(machine: Machine, arguments: argparse.Namespace, out: int) -> Terminal | None:
    config = machine.config
    streams = [
        stream
        for stream, target in ((machine.serial, config.serial), (machine.debugcon, config.debugcon))
        if target.kind is TargetKind.STDIO
    ]
    if not streams:
        return None
    from vmm.run.terminal import Terminal, is_foreground_terminal

    # Asked for by name, the serial port takes what stdin has, a pipe too; by default only what a person types.
    typed = machine.serial in streams and (arguments.serial is not None or is_foreground_terminal())
    typed = typed and config.replay is None
    return Terminal(streams, machine.send if typed else None, machine.stop, say, machine.power_button, out)


def _machine_parser() -> Parser:
    """The parser of the machine's options alone."""
    made = Parser("boot", "", "", "")
    add_machine_arguments(made)
    return made


def _snapshot_at(arguments: argparse.Namespace) -> SnapshotAt | None:
    if arguments.snapshot_at is None:
        return None
    if arguments.script is not None:
        raise ConfigError("--script says what happens when; write 'snapshot FILE' into it instead of --snapshot-at")
    from vmm.cli.snapshots import SnapshotAt

    return SnapshotAt.parse(arguments.snapshot_at)


def _check_clock(
    config: MachineConfig, arguments: argparse.Namespace, steps: list[Step], at: SnapshotAt | None
) -> None:
    """Refuse, before the guest runs, what virtual time cannot have."""
    if config.clock is Clock.VIRTUAL and (at is not None or any(step.snapshot is not None for step in steps)):
        raise ConfigError("--clock virtual: no snapshot of a guest whose instructions are counted from power-on")
    if config.replay is not None and (arguments.send or steps):
        raise ConfigError("--replay has what was typed already; leave --send and --script out")


def _check_page(arguments: argparse.Namespace) -> None:
    """Refuse, before the guest runs, a page that could not be made."""
    if arguments.html is None:
        return
    if arguments.html == "-":
        raise ConfigError("--html -: a page goes to a file; give its path")
    from vmm.report import html

    html.require()


def _read_script(arguments: argparse.Namespace) -> list[Step]:
    if arguments.script is None:
        if arguments.terminal is not None:
            raise ConfigError("--terminal says how the keys of a --script are sent, and there is no script")
        return []
    if arguments.until is not None or arguments.send:
        raise ConfigError("--script says what is waited for and sent; put what --until and --send say into it")
    from vmm.cli.script import read_script

    return read_script(arguments.script, arguments.terminal or "auto")


def _parse_send(text: str) -> tuple[str, str]:
    pattern, separator, typed = text.partition("=")
    if not separator or not pattern or not typed:
        raise ConfigError(f"--send {text}: the form is REGEX=TEXT")
    check_pattern(pattern, "--send")
    from vmm.cli.script import unescape

    try:
        return pattern, unescape(typed)
    except ConfigError as error:
        raise ConfigError(f"--send {text}: {error}") from None
