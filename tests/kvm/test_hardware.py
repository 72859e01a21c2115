"""Where the CPU has VMX or SVM, guests run in plain KVM, and the software CPU stays on the disk.

Every test here uses ``--assist auto``, each in a process of its own. scripts/test-svm-host runs them where no machine
with such a CPU is at hand.
"""

import subprocess
import sys

import pytest

from vmm import assist

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.hw,
    pytest.mark.skipif(
        not assist.has_hardware_virtualization(), reason="this host's CPU has neither VMX nor SVM in /proc/cpuinfo"
    ),
]

RUN = """
import sys
from vmm import Machine
firmware, cpus, until, *typed = sys.argv[1:]
with Machine(firmware, cpus=int(cpus), memory="256M") as machine:
    outcome = machine.run(until=until or None, send=[tuple(typed)] if typed else [], deadline=250)
    assert outcome.reached, f"{outcome.message}\\n{outcome.details}\\n{machine.serial.text()}"
    assert all(seconds is not None for seconds in machine.started_s()), machine.started_s()
    assert machine.exit_counts()["io"] > 100, machine.exit_counts()
    assert machine.assist_decision.use is False, machine.assist_decision
loaded = {"vmm._assist", "unicorn"} & sys.modules.keys()
assert not loaded, loaded
"""


def run(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("cpus", ["1", "4"])
def test_probe(cpus: str) -> None:
    run("probe", cpus, "")


def test_seabios_comes_to_its_end() -> None:
    run("seabios", "1", "No bootable device")


@pytest.mark.parametrize("cpus", ["1", "2", "4"])
def test_ovmf_reaches_its_shell(cpus: str) -> None:
    run("ovmf", cpus, "Shell>", "any other key to continue", "\r")


def test_the_software_cpu_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vmm", "boot", "probe", "--assist", "on"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert "this host's CPU has hardware virtualization" in done.stderr
    assert done.stderr.count("\n") == 1
