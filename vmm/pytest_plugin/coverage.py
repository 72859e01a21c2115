"""Which lines of source the machines of a session reached: kept, and written at its end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vmm.config.machine import Accelerator, MachineConfig
from vmm.errors import HostError
from vmm.machine import Machine
from vmm.run.coverage import Covered, Lines, add, lcov

if TYPE_CHECKING:
    from pathlib import Path

OPTION = "--vmm-coverage"


class SessionCoverage:
    """What the machines of one session reached together.

    Args:
        path: of the tracefile; that of a worker of pytest-xdist's has its name in front of the suffix.
    """

    def __init__(self, path: Path) -> None:
        worker = os.environ.get("PYTEST_XDIST_WORKER")
        self.path = path if worker is None else path.with_suffix(f".{worker}{path.suffix}")
        self.lines: Lines = {}
        self.machines = 0
        self.notes: dict[str, None] = {}

    def take(self, covered: Covered) -> None:
        """Add what a machine reached."""
        self.machines += 1
        add(self.lines, covered.lines)
        self.notes.update(dict.fromkeys(covered.notes))

    def write(self) -> None:
        """Write the tracefile.

        Raises:
            HostError: that is not possible.
        """
        try:
            self.path.write_text(lcov(self.lines), encoding="utf-8")
        except OSError as error:
            raise HostError(f"{OPTION} {self.path}: {(error.strerror or str(error)).lower()}") from None


def with_coverage(config: MachineConfig) -> MachineConfig:
    """The machine with the software CPU and coverage; one that is to be KVM's has none."""
    if config.accel is Accelerator.KVM:
        return config
    return config._replace(accel=Accelerator.KVM_SOFTCPU, coverage=True)


class CoveredMachine(Machine):
    """A `Machine` that tells what it reached when it closes.

    Args:
        session: what is told; None: nobody wants to know.
        config: as `Machine` takes it, and so are ``options``.

    Raises:
        ConfigError: see `Machine`.
        HostError: see `Machine`.
    """

    def __init__(self, session: SessionCoverage | None, config: MachineConfig | str, /, **options: Any) -> None:
        if session is not None:
            own = {
                name: options.pop(name) for name in ("customize", "alter", "outputs", "resumption") if name in options
            }
            if not isinstance(config, MachineConfig):
                config, options = MachineConfig.create(config, **options), {}
            config, options = with_coverage(config), options | own
        super().__init__(config, **options)
        if session is not None and self._coverage is not None:
            self._coverage.on_close = session.take
