"""Virtual time: the same instructions in every run, whatever else the host does meanwhile."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vmm import Machine
from vmm.report.collect import collect
from vmm.report.schema import VirtualTimeReport
from vmm.run.outcome import Reason
from vmm.softcpu import engine

pytestmark = pytest.mark.skipif(not engine.is_built(), reason="the software CPU is not built")

BUSY = "while True: pass"

Told = VirtualTimeReport


@pytest.fixture
def busy_host() -> Iterator[None]:
    """As many processes that do nothing but compute as the host has CPUs for us, and one more."""
    count = len(os.sched_getaffinity(0)) + 1
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    yield
    for process in processes:
        process.kill()
        process.wait()


def told(firmware: str, until: str | None = None, reason: Reason = Reason.UNTIL, **options: Any) -> Told:
    with Machine(firmware, clock="virtual", **options) as machine:
        outcome = machine.run(until, deadline=240)
        assert outcome.reason is reason, outcome.message
        return collect(machine, outcome)["virtual_time"]


def test_each_run_executes_the_same(request: pytest.FixtureRequest) -> None:
    runs: dict[str, Callable[[], Told]] = {
        "probe": lambda: told("probe", reason=Reason.POWER_OFF),
        "seabios": lambda: told("seabios", "No bootable device"),
        "ovmf": lambda: told("ovmf", "Shell>"),
    }
    quiet = {name: run() for name, run in runs.items()}
    assert [phase["name"] for phase in quiet["ovmf"]["phases"]] == ["SEC", "PEI", "DXE", "BDS", "shell"]
    assert all(phase["instructions"] > 0 for phase in quiet["ovmf"]["phases"])
    assert quiet["probe"]["instructions"] > 10_000
    request.getfixturevalue("busy_host")
    assert {name: run() for name, run in runs.items()} == quiet
    assert {name: runs[name]() for name in ("probe", "seabios")} == {name: quiet[name] for name in ("probe", "seabios")}
