"""``vmm boot --script``: a dialogue with the guest, one step a line."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vmm.config.parts import parse_choice
from vmm.errors import ConfigError
from vmm.inputs import read_file
from vmm.options import parse_int, parse_seconds
from vmm.run.expect import compile_pattern, encode
from vmm.run.expected import SendError
from vmm.run.keys import TerminalType, check_keys
from vmm.run.outcome import Reason

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from vmm.machine import Machine
    from vmm.run.outcome import Outcome

_LIMIT = 1 << 20
"""Bytes of a script."""

_WORDS = (
    "expect",
    "send",
    "send-line",
    "keys",
    "snapshot",
    "timeout",
    "suspend",
    "wakeup",
    "power-button",
    "plug-cpu",
    "unplug-cpu",
)

_WAITS = "expect, suspend or power-off"

_ESCAPES = {"r": "\r", "n": "\n", "t": "\t", "e": "\x1b", "\\": "\\"}


class Step(NamedTuple):
    """One line.

    Attributes:
        place: FILE:LINE.
        wait: a regular expression; None: the guest's end; only if nothing is done.
        typed: what is sent; None: it is a wait, keys, a snapshot, waking up, the power button, or a CPU.
        keys: the names of keys that are pressed.
        snapshot: a file that the machine is kept in.
        deadline: seconds that the wait may take; None: any.
        end: the end that is waited for: the power-off, or that the guest suspends the machine.
        wakes: the machine is woken up.
        presses: the power button is pressed.
        plugs: a CPU is plugged in.
        unplugs: a CPU that the guest is asked to let go of.
        cpu: which one is plugged in; None: the first that is not there.
    """

    place: str
    wait: str | None = None
    typed: bytes | None = None
    keys: tuple[str, ...] = ()
    deadline: float | None = None
    snapshot: str | None = None
    end: Reason = Reason.POWER_OFF
    wakes: bool = False
    presses: bool = False
    plugs: bool = False
    unplugs: int | None = None
    cpu: int | None = None

    @property
    def types(self) -> bool:
        """Whether it is something that only a later wait shows the effect of."""
        changes = self.wakes or self.presses or self.plugs or self.unplugs is not None
        return self.typed is not None or bool(self.keys) or changes

    @property
    def awaited(self) -> str:
        """What it waits for, as it was written."""
        if self.wait is not None:
            return f"expect {self.wait}"
        return "suspend" if self.end is Reason.SUSPENDED else "power-off"


def read_script(path: str, terminal: str = "auto") -> list[Step]:
    """Read a script.

    Args:
        path: of the file.
        terminal: as `run_script` takes it; keys that it has not are found now.

    Raises:
        ConfigError: the file cannot be read, or a line makes no sense: it is named.
    """
    chosen = parse_choice(TerminalType, terminal, "--terminal")
    text = read_file(Path(path), "--script", limit=_LIMIT)
    lines = text.decode("utf-8", "surrogateescape").splitlines()
    steps: list[Step] = []
    deadline: float | None = None
    for number, line in enumerate(lines, 1):
        word, _, rest = line.strip().partition(" ")
        if not word or word.startswith("#"):
            continue
        place = f"{path}:{number}"
        try:
            if word == "timeout":
                deadline = parse_seconds(rest, "its time")
            else:
                steps.append(_step(word, rest.lstrip() if word != "send" else rest, place, deadline, chosen))
        except ConfigError as error:
            raise ConfigError(f"--script {place}: {word}: {error}") from None
    if not steps:
        raise ConfigError(f"--script {path}: there is no step in it")
    if steps[-1].types:
        raise ConfigError(f"--script {steps[-1].place}: nobody would read this; the last step is {_WAITS}")
    if all(step.types or step.snapshot is not None for step in steps):
        raise ConfigError(f"--script {path}: nothing is waited for; a step is to be {_WAITS}")
    for before, step in zip([None, *steps], steps, strict=False):
        if step.wakes and (before is None or before.end is not Reason.SUSPENDED):
            raise ConfigError(f"--script {step.place}: wakeup: the step before it is suspend, and waits for that")
    return steps


def run_script(
    machine: Machine,
    steps: list[Step],
    deadline: float | None,
    on_poll: Callable[[Machine], None],
    at_once: Callable[[], AbstractContextManager[None]],
    terminal: str = "auto",
) -> Outcome:
    """Take one step after the other; how the last one ended.

    Args:
        machine: not run yet.
        steps: at least one, the last a wait.
        deadline: seconds for all together.
        on_poll: as `Machine.run` takes it.
        at_once: as `vmm.cli.snapshots.keep` takes it.
        terminal: as `Machine.send_keys` takes it.

    Raises:
        ConfigError: firmware's terminal has no such key, or is not known yet; or no CPU can be plugged in.
    """
    for step in steps:
        if step.wakes:
            machine.wakeup()
            continue
        if step.types:
            # A guest that has ended is what the next wait tells.
            with suppress(SendError):
                _type(machine, step, terminal)
            continue
        if step.snapshot is not None:
            from vmm.cli.snapshots import keep

            if (interrupted := keep(machine, step.snapshot, at_once)) is not None:
                return interrupted
            continue
        left = [] if deadline is None else [max(0.0, deadline - machine.elapsed_s)]
        limits = [*left, *([] if step.deadline is None else [step.deadline])]
        outcome = machine.run(step.wait, min(limits, default=None), on_poll=on_poll)
        if outcome.reason is not (step.end if step.wait is None else Reason.UNTIL):
            message = f"{step.place}: {step.awaited}: {outcome.message}"
            outcome = outcome._replace(message=message, missed_until=outcome.missed_until or step.awaited)
            break
    return outcome._replace(elapsed_s=machine.elapsed_s)


def _type(machine: Machine, step: Step, terminal: str) -> None:
    if step.presses:
        machine.power_button()
        return
    if step.typed is not None:
        machine.send(step.typed)
        return
    try:
        if step.plugs:
            machine.plug_cpu(step.cpu)
            return
        if step.unplugs is not None:
            machine.unplug_cpu(step.unplugs)
            return
        machine.send_keys(*step.keys, terminal=terminal)
    except ConfigError as error:
        raise ConfigError(f"--script {step.place}: {error}") from None


def unescape(text: str) -> str:
    r"""Text with \r, \n, \t, \e, \xNN and \\ replaced.

    Raises:
        ConfigError: a backslash before something else.
    """

    def replace(match: re.Match[str]) -> str:
        word = match[1]
        if word.startswith("x") and len(word) == 3:
            return bytes.fromhex(word[1:]).decode("ascii", "surrogateescape")
        if word in _ESCAPES:
            return _ESCAPES[word]
        raise ConfigError(rf"unknown escape \{word}; known are \r \n \t \e \xNN \\")

    return re.sub(r"\\(x[0-9a-fA-F]{2}|.|$)", replace, text, flags=re.DOTALL)


def _step(word: str, rest: str, place: str, deadline: float | None, terminal: TerminalType) -> Step:
    match word:
        case "expect" if rest:
            compile_pattern(rest)
            return Step(place, wait=rest, deadline=deadline)
        case "power-off" if not rest:
            return Step(place, deadline=deadline)
        case "suspend" if not rest:
            return Step(place, deadline=deadline, end=Reason.SUSPENDED)
        case "wakeup" if not rest:
            return Step(place, wakes=True)
        case "power-button" if not rest:
            return Step(place, presses=True)
        case "plug-cpu":
            return Step(place, plugs=True, cpu=parse_int(rest, "its index") if rest else None)
        case "unplug-cpu" if rest:
            return Step(place, unplugs=parse_int(rest, "its index"))
        case "send" if rest:
            return Step(place, typed=encode(unescape(rest)))
        case "snapshot" if rest:
            return Step(place, snapshot=rest)
        case "send-line":
            return Step(place, typed=encode(unescape(rest)) + b"\r")
        case "keys" if rest:
            check_keys(rest.split(), terminal)
            return Step(place, keys=tuple(rest.split()))
        case "power-off" | "suspend" | "wakeup" | "power-button":
            raise ConfigError(f"takes nothing behind it, not {rest}")
        case "expect" | "send" | "keys" | "snapshot" | "unplug-cpu":
            raise ConfigError("its argument is missing")
    raise ConfigError(f"no such step; known are {', '.join(_WORDS)} and power-off")
