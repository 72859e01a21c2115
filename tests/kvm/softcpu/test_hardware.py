"""Where the CPU has VMX or SVM, guests run in plain KVM, and the software CPU stays on the disk.

Every test here uses ``-accel auto``, each in a process of its own. scripts/test-svm-host runs them where no machine
with such a CPU is at hand.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vmm.config.machine import MachineConfig
from vmm.softcpu.decision import has_hardware_virtualization
from vmm.verify import linux_guest

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.hw,
    pytest.mark.skipif(
        not has_hardware_virtualization(), reason="this host's CPU has neither VMX nor SVM in /proc/cpuinfo"
    ),
]

RUN = """
import json, sys
from vmm import Machine
firmware, fields, until, *typed = json.loads(sys.argv[1])
with Machine(firmware, memory="256M", **fields) as machine:
    outcome = machine.run(until=until, send=[typed] if typed else [], deadline=250)
    assert outcome.reached, f"{outcome.message}\\n{outcome.details}\\n{machine.serial.text()}"
    assert all(seconds is not None for seconds in machine.started_s()), machine.started_s()
    assert machine.exit_counts()["io"] > 20, machine.exit_counts()
    assert machine.accelerator.name == "kvm", machine.accelerator
    print(outcome.reason.value)
    print(machine.serial.text())
loaded = {"vmm._softcpu", "unicorn"} & sys.modules.keys()
assert not loaded, loaded
"""


def run(firmware: str, until: str | None = None, typed: Sequence[str] = (), **fields: Any) -> str:
    """Run a machine; return how it ended, and what it printed."""
    arguments = json.dumps([firmware, fields, until, *typed], default=str)
    done = subprocess.run(
        [sys.executable, "-c", RUN, arguments], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("cpus", [1, 4])
def test_probe(cpus: int) -> None:
    run("probe", cpus=cpus)


def test_seabios_comes_to_its_end() -> None:
    run("seabios", "No bootable device")


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A variable store that stays from boot to boot, as a user's: the first one writes most of it, in 30,000 exits."""
    template = MachineConfig.create("ovmf").firmware.variables
    assert template is not None
    store = tmp_path_factory.mktemp("ovmf") / "variables.fd"
    store.write_bytes(template.data)
    return store


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_ovmf_reaches_its_shell(variables: Path, cpus: int) -> None:
    run("ovmf", "Shell>", ["any other key to continue", "\r"], cpus=cpus, variables=variables, persist=True)


def test_linux_powers_off() -> None:
    """Without its report, which is some 30,000 characters on a serial port: that is for the long matrix."""
    command = "/bin/busybox uname -r; /bin/busybox poweroff -f"
    with linux_guest.options(f'rdinit=/bin/busybox -- sh -c "{command}"') as kernel:
        printed = run("none", direct=True, cpus=2, machine="pc", **kernel)
    assert printed.startswith("power-off\n")
    assert re.search(r"^\S*\b\d+\.\d+\.\S+-cloud-amd64\r?$", printed, re.MULTILINE), printed


def test_verify_ovmf() -> None:
    done = subprocess.run([sys.executable, "-m", "vmm", "verify", "ovmf"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "arrived" in done.stdout.splitlines()[-1]


def test_the_software_cpu_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vmm", "boot", "probe", "-accel", "kvm+softcpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert "this host's CPU has hardware virtualization" in done.stderr
    assert done.stderr.count("\n") == 1
