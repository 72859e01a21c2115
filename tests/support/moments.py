"""A run that ends at its deadline, and a host too busy to give the guest its turn before."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


@contextmanager
def once_it_runs(machine: Machine, act: Callable[[], object]) -> Iterator[None]:
    """Do something from another thread as soon as the guest executes, which it has not yet."""
    gc.collect()  # an interrupt that comes while a finalizer of earlier garbage runs is lost

    def wait() -> None:
        until = time.monotonic() + PATIENCE
        while machine.started_s()[0] is None and time.monotonic() < until:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()
