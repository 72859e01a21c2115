"""Whose interrupt controllers the software CPU has in a test."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from softcpu_rig import SoftcpuRig

BUSY = "while True: pass"


@pytest.fixture(params=[False, True], ids=["beside-kvm", "alone"])
def both_kinds_of_chips(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test beside KVM, and without it."""
    monkeypatch.setattr(SoftcpuRig, "alone", request.param)


@pytest.fixture(params=["beside-kvm", "alone", "virtual-time"])
def all_kinds_of_turns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test with a thread for each CPU, beside KVM and without it, and with one for all, in virtual time."""
    monkeypatch.setattr(SoftcpuRig, "alone", request.param == "alone")
    monkeypatch.setattr(SoftcpuRig, "always_virtual", request.param == "virtual-time")


@pytest.fixture
def without_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test's machines do without KVM, with chips of our own."""
    monkeypatch.setattr(SoftcpuRig, "alone", True)


@pytest.fixture
def busy_host() -> Iterator[None]:
    """As many processes that do nothing but compute as the host has CPUs for us, and one more."""
    count = len(os.sched_getaffinity(0)) + 1
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    yield
    for process in processes:
        process.kill()
        process.wait()
