"""One line on a terminal that tells what a booting guest is doing: seconds, what it read, what it said."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from vmm.cli import standard_error
from vmm.legible import legible

if TYPE_CHECKING:
    from vmm.machine import Machine

INTERVAL_S = 0.1

WIDTH = 78


class Progress:
    """Draws the line again some times a second."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._next = self._began + INTERVAL_S
        self._drawn = False

    def update(self, machine: Machine) -> None:
        """Draw the line if it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + INTERVAL_S
        if not standard_error.ready():
            return
        line = legible(f"{now - self._began:6.1f} s  {phase(machine)}")
        sys.stderr.write(f"\r\x1b[K{line[:WIDTH]}")
        sys.stderr.flush()
        self._drawn = True

    def clear(self) -> None:
        """Take the line away."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False


def phase(machine: Machine) -> str:
    """Return in a few words how far the guest is: what it asked of fw_cfg or fwctl, the last line it printed."""
    if machine.fw_cfg is not None:
        asked = f"{sum(1 for item in machine.fw_cfg.items() if item.selects)} fw_cfg items read"
    else:
        asked = f"{machine.fwctl.request_count if machine.fwctl is not None else 0} fwctl requests"
    last = machine.serial.last_line() or machine.debugcon.last_line()
    return f"{asked}{f': {last}' if last else ''}"
