"""``vmm boot --from`` and ``--snapshot-at``: a boot that goes on where an earlier one was."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vmm.config.parts import Target
from vmm.errors import ConfigError
from vmm.options import parse_keys
from vmm.run.outcome import Outcome, Reason

if TYPE_CHECKING:
    import argparse
    from collections import deque
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from vmm.cli.parser import Parser
    from vmm.config.outputs import Outputs
    from vmm.machine import Machine
    from vmm.run.resumption import Resumption
    from vmm.run.snapshot import Snapshot

_MAY_DIFFER = frozenset(
    (
        *("-fw_cfg", "-f", "-serial", "-debugcon", "--trace", "--exit-times", "-bios", "--sandbox", "--user"),
        *("--symbols", "-gdb", "-s", "-S"),
    )
)
"""Options of a machine that one which goes on can have; the image is compared."""


class SnapshotAt(NamedTuple):
    """When a snapshot is taken, and where it goes."""

    pattern: str
    path: str

    @classmethod
    def parse(cls, text: str) -> SnapshotAt:
        """Read ``REGEX=FILE``.

        Raises:
            ConfigError: that is not its form.
        """
        from vmm.run.expect import check_pattern

        pattern, separator, path = text.partition("=")
        if not separator or not pattern or not path or path == "-":
            raise ConfigError(f"--snapshot-at {text}: the form is REGEX=FILE")
        check_pattern(pattern, "--snapshot-at")
        return cls(pattern, path)

    def check(self, outputs: Outputs) -> None:
        """See, before anything runs, that the file can be written.

        Raises:
            ConfigError: it cannot, or is another file of this run.
        """
        outputs.check("--snapshot-at", self.path)
        from vmm.run.snapshot_file import place_of

        place_of(Path(self.path))


def keep(machine: Machine, path: str, at_once: Callable[[], AbstractContextManager[None]]) -> Outcome | None:
    """Write the machine to a file, as a whole or not at all.

    Args:
        machine: not running.
        path: of the file.
        at_once: lets a signal end it; see `vmm.cli.interrupts.Interrupts.at_once`.

    Returns:
        How the run ended, if a signal did that.

    Raises:
        VmmError: as `Machine.snapshot` and `vmm.Snapshot.save`.
    """
    try:
        with at_once(), machine.snapshot() as snapshot:
            snapshot.save(path)
    except KeyboardInterrupt:
        return Outcome(Reason.INTERRUPTED, machine.elapsed_s, f"interrupted before {path} was written")
    return None


def run_with_snapshot(
    machine: Machine,
    at: SnapshotAt,
    until: str | None,
    deadline: float | None,
    send: deque[tuple[str, str]],
    on_poll: Callable[[Machine], None],
    at_once: Callable[[], AbstractContextManager[None]],
) -> Outcome:
    """Run, keep the machine on the way, and go on as far as ``until`` says.

    Args:
        machine: as for `keep`.
        at: when, and where.
        until: as `Machine.run` takes it, and so are deadline, send and on_poll.
        deadline: see there.
        send: see there.
        on_poll: see there.
        at_once: as for `keep`.

    Raises:
        VmmError: as `Machine.run`, `Machine.snapshot` and `vmm.Snapshot.save`.
    """
    outcome = machine.run(at.pattern, deadline, send, on_poll)
    if not outcome.reached:
        return outcome
    if (interrupted := keep(machine, at.path, at_once)) is not None:
        return interrupted
    if until is None:
        return outcome._replace(message=f"{outcome.message}; the machine is in {at.path}")
    left = None if deadline is None else max(0.0, deadline - machine.elapsed_s)
    outcome = machine.run(until, left, send, on_poll)
    return outcome._replace(elapsed_s=machine.elapsed_s)


def resumption_from(arguments: argparse.Namespace, machine_parser: Callable[[], Parser]) -> Resumption:
    """Return how the machine goes on that ``--from`` names.

    Args:
        arguments: the parsed command line.
        machine_parser: makes the parser of a machine's options alone.

    Raises:
        ConfigError: the file is no snapshot, or an option asks for another machine than it has.
    """
    from vmm.run.resumption import prepare
    from vmm.run.snapshot import Snapshot

    keys = parse_keys(arguments.from_, "--from", known=("file", "time", "generation"), implied="file")
    if "file" not in keys:
        raise ConfigError(f"--from {arguments.from_}: which file?")
    other = [option for option in machine_parser().given(arguments) if option not in _MAY_DIFFER]
    if other:
        raise ConfigError(f"{other[0]}: the machine is the one in {keys['file']}; leave it out, or boot without --from")
    snapshot = Snapshot.load(Path(keys["file"]))
    _check_image(snapshot, arguments, keys["file"])
    from vmm.cli.machine_config import items_from, sandboxing
    from vmm.config.machine import symbols_from

    resumption = prepare(snapshot, items_from(arguments), keys.get("generation"), keys.get("time", "stopped"))
    config = resumption.config._replace(
        serial=Target.parse("stdio" if arguments.serial is None else arguments.serial, "-serial"),
        debugcon=Target.parse("stdio" if arguments.debugcon is None else arguments.debugcon, "-debugcon"),
        trace=arguments.trace,
        exit_times=arguments.exit_times,
        sandbox=sandboxing(arguments.sandbox, arguments.widest_sandbox),
        user=arguments.user,
        symbols=symbols_from(arguments.symbols),
    )
    return resumption._replace(config=config).debugged(arguments.gdb, hold=arguments.hold)


def _check_image(snapshot: Snapshot, arguments: argparse.Namespace, file: str) -> None:
    """Refuse a snapshot whose firmware is not the one that the command line names, if it does."""
    from vmm.firmware.load import find

    name = arguments.firmware if arguments.bios is None else arguments.bios
    if name is None:
        return
    image, its = find(name, None, persist=False), snapshot.config.firmware
    if image.code != its.code:
        raise ConfigError(
            f"{file}: a snapshot of another firmware than {image.path} (it was {its.path}); take it again"
        )
