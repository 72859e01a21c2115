"""Machines that remember what a failed test is looked into with: consoles, access log, report."""

import json
from pathlib import Path
from shutil import move
from typing import TYPE_CHECKING, Any

from vmm.config.machine import MachineConfig
from vmm.config.outputs import Outputs
from vmm.errors import HostError, VmmError
from vmm.pytest_plugin.coverage import CoveredMachine, SessionCoverage
from vmm.report import text
from vmm.report.collect import collect
from vmm.report.origin import images_of_machine, origin

if TYPE_CHECKING:
    from vmm.report.schema import Report

_OPTION = "--vmm-artifacts"


class RecordedMachine(CoveredMachine):
    """A `Machine` whose accesses are logged, and whose report is taken before it closes.

    Args:
        session: as for `CoveredMachine`.
        log: where the access log goes while nobody knows whether the test fails; a log that the test itself asks for
            stays the test's.
        config: as `Machine` takes it, and so are ``options``.

    Raises:
        ConfigError: see `Machine`.
        HostError: see `Machine`.
    """

    def __init__(
        self, session: SessionCoverage | None, log: Path, config: MachineConfig | str, /, **options: Any
    ) -> None:
        own = {name: options.pop(name, None) for name in ("customize", "alter")}
        if not isinstance(config, MachineConfig):
            config, options = MachineConfig.create(config, **options), {}
        self._log = log
        self._report: Report | None = None
        config = config._replace(trace=config.trace or str(log))
        super().__init__(session, config, **own, **options)

    def close(self) -> None:
        """Give everything back, after a last look."""
        if self._report is None and self.outcome is not None:
            self._report = collect(self, self.outcome)
        super().close()

    def keep(self, directory: Path) -> None:
        """Close the machine; write its two consoles, ``trace.jsonl``, ``report.json`` and ``report.txt``.

        The reports are missing where the machine never ran. A file that cannot be written keeps no other from that.

        Raises:
            HostError: what could not be written, and why.
        """
        self.close()
        documents = {f"{stream.name}.txt": stream.text() for stream in (self.serial, self.debugcon)}
        if self._report is not None:
            self._report["origin"] = origin(None, images_of_machine(self.config))
            documents["report.json"] = json.dumps(self._report, indent=2) + "\n"
            documents["report.txt"] = text.text(self._report) + "\n"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if self._log.exists():
                move(self._log, directory / "trace.jsonl")
        except OSError as error:
            raise HostError(f"{_OPTION} {directory}: {(error.strerror or str(error)).lower()}") from None
        failures = [failure for each in documents.items() if (failure := _write(directory, *each))]
        if failures:
            raise HostError("; ".join(failures))


def _write(directory: Path, name: str, contents: str) -> str:
    """Write a document, replacing one that is there; returns why that is not possible, or nothing."""
    try:
        with Outputs(None, {_OPTION: str(directory / name)}) as outputs:
            outputs.write({_OPTION: lambda: contents})
    except VmmError as error:
        return str(error)
    return ""
