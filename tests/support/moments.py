"""A run that ends at its deadline, and a host too busy to give the guest its turn before."""

import time
from collections.abc import Callable

from vmm.machine import Machine
from vmm.run.outcome import Outcome

MOMENT = 0.3
PATIENCE = 120.0
"""Seconds."""


def run_in_moments(machine: Machine, enough: Callable[[Outcome], object]) -> Outcome:
    """Run it for a moment at a time until enough has happened, or patience ends; return the last moment's outcome."""
    until = time.monotonic() + PATIENCE
    while True:
        outcome = machine.run(deadline=MOMENT)
        if enough(outcome) or time.monotonic() > until:
            return outcome
