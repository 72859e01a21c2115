"""What is said and written once the guest of ``vmm boot`` or ``vmm run`` has ended; loaded where there is something."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vmm.cli import say
from vmm.cli.parser import columns

if TYPE_CHECKING:
    from vmm.config.outputs import Outputs
    from vmm.machine import Machine
    from vmm.run.outcome import Outcome

FOLDED_STACKS = "--profile (folded stacks)"
"""Of the files that are written, the one beside that of --profile."""


class Findings:
    """What a run found out, asked of the machine while that exists.

    Args:
        machine: what ran.
        outcome: how that ended.
        command: the command line's words, of which the documents tell.
        outputs: the documents that were asked for.
    """

    def __init__(self, machine: Machine, outcome: Outcome, command: list[str], outputs: Outputs) -> None:
        from vmm.report.collect import collect

        self._outputs = outputs
        origin = None
        if outputs.documents:
            from vmm.report.origin import images_of_machine
            from vmm.report.origin import origin as origin_of

            origin = origin_of(command, images_of_machine(machine.config))
        self._report = collect(machine, outcome, origin)
        self._profile = None
        if (profile := machine.profile()) is not None:
            from vmm.report.profile import NamedProfile

            self._profile = NamedProfile(profile, self._report, machine.started_ns)
            self._report["profile"] = self._profile.report()
        self._covered = machine.coverage()

    def write(self, *, quiet: bool) -> None:
        """Write the documents; then, unless it is to be quiet, the report for people, to stderr.

        Raises:
            HostError: as `Outputs.write`, after everything else is written.
        """
        from vmm.report import text

        makers = {"--json": self._json, "--html": self._page}
        if self._profile is not None:
            makers |= {"--profile": self._profile.speedscope, FOLDED_STACKS: self._profile.folded}
        if self._covered is not None:
            makers["--coverage"] = self._covered.lcov
            for note in self._covered.notes if not quiet else ():
                say(f"vmm: --coverage: {note}")
        try:
            self._outputs.write(makers)
        finally:
            if not quiet:
                say(text.text(self._report, columns(sys.stderr, text.WIDTH)))

    def _json(self) -> str:
        import json

        return json.dumps(self._report, indent=2) + "\n"

    def _page(self) -> str:
        from vmm.report import page

        return page.render(self._report)


def strays_from_replay(machine: Machine, outcome: Outcome) -> bool:
    """Say so where a run was not the recorded one; whether that is more than an --until which showed earlier."""
    replayed = None if machine.virtual_time is None else machine.virtual_time.replayed
    if replayed is None or replayed.same:
        return False
    say(f"vmm: --replay: {replayed}")
    from vmm.run.outcome import Reason

    return not (replayed.exact and outcome.reason is Reason.UNTIL)
