"""The plugin in a pytest of its own: what --vmm-artifacts keeps, and of whom."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from report_schema import check_report
from waiting_guest import write_waiting_guest

pytestmark = pytest.mark.needs_kvm

TESTS = """
import pytest

from vmm import MachineConfig


def test_passes(vmm_machine):
    assert vmm_machine("probe").run(deadline=60).reached


def test_fails(vmm_machine):
    assert not vmm_machine(cpus=2, fw_cfg={"opt/a": b"x"}).run(deadline=60).reached


def test_fails_twice_over(vmm_machine):
    with vmm_machine(MachineConfig.create("probe", fwcfg="bhyve")) as machine:
        machine.run(deadline=60)
    vmm_machine("exit")
    raise AssertionError


@pytest.mark.parametrize("name", ["a/b", "a_b", "long" * 60])
def test_parameters(vmm_machine, name):
    vmm_machine(fw_cfg={f"opt/{name}"[:40]: b"x"}).run(deadline=60)
    raise AssertionError
"""


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plugin")
    (directory / "test_machines.py").write_text(TESTS)
    options = ["--vmm-firmware", "probe", "--vmm-artifacts", "kept"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_machines.py"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "5 failed, 1 passed" in run.stdout, run.stdout + run.stderr
    return directory / "kept"


def test_a_directory_that_nothing_can_be_kept_in_is_told_before_a_test_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "test_it.py").write_text("def test_it(): raise AssertionError")
    options = ["-q", "-p", "no:cacheprovider", "--vmm-artifacts", "file"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 4
    assert "--vmm-artifacts file: cannot write: file exists" in run.stderr
    assert "AssertionError" not in run.stdout


def test_one_folder_for_each_machine_of_a_failed_test(artifacts: Path) -> None:
    assert sorted(path.name for path in artifacts.iterdir() if "parameters" not in path.name) == [
        "test_machines.py_test_fails",
        "test_machines.py_test_fails_twice_over",
        "test_machines.py_test_fails_twice_over-1",
    ]


def test_parameters_that_look_alike_have_folders_of_their_own(artifacts: Path) -> None:
    kept = [path / "trace.jsonl" for path in artifacts.iterdir() if "test_parameters" in path.name]
    last = [json.loads(trace.read_text().splitlines()[-1]) for trace in kept]
    names = {name for line in last for name in line["never_read"] if name.startswith("opt/")}
    assert names == {"opt/a/b", "opt/a_b", "opt/" + "long" * 9}


def test_consoles_trace_and_report_are_kept(artifacts: Path) -> None:
    kept = artifacts / "test_machines.py_test_fails"
    assert "cpus started: 2" in (kept / "debugcon.txt").read_text()
    assert (kept / "serial.txt").read_text() == ""
    report = json.loads((kept / "report.json").read_text())
    check_report(report)
    assert report["outcome"]["reason"] == "power-off"
    assert report["exits"]["by_device"]
    assert "2 asked for, 2 started" in (kept / "report.txt").read_text()
    trace = [json.loads(line) for line in (kept / "trace.jsonl").read_text().splitlines()]
    assert any(line["event"] == "access" and line["item"] == "etc/e820" for line in trace)
    assert "opt/a" in trace[-1]["never_read"]


def test_a_machine_that_the_test_closed_and_one_that_never_ran(artifacts: Path) -> None:
    closed = artifacts / "test_machines.py_test_fails_twice_over"
    assert json.loads((closed / "report.json").read_text())["exits"]["by_device"]
    assert '"event": "request"' in (closed / "trace.jsonl").read_text()
    idle = artifacts / "test_machines.py_test_fails_twice_over-1"
    assert not (idle / "report.json").exists()


IN_THE_WAY = """
from pathlib import Path


def test_fails(vmm_machine):
    Path("kept/test_it.py_test_fails/serial.txt/x").mkdir(parents=True)
    vmm_machine("exit").run(deadline=60)
    raise AssertionError
"""


def test_what_cannot_be_kept_is_told_in_one_line_and_the_rest_is_kept(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(IN_THE_WAY)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--vmm-artifacts", "kept"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "1 failed" in run.stdout, run.stdout + run.stderr
    told = {line.partition("serial.txt")[2] for line in run.stdout.splitlines() if line.startswith("--vmm-artifacts")}
    assert told == {": cannot write: is a directory"}
    kept = {path.name for path in (tmp_path / "kept" / "test_it.py_test_fails").iterdir()}
    assert kept == {"serial.txt", "debugcon.txt", "trace.jsonl", "report.json", "report.txt"}


SANDBOXED = """
import os

from vmm import MachineConfig
from vmm.bus import Device


def kind(machine):
    assert machine.run(deadline=60).reached
    return machine.sandbox.kind


def test_nothing_of_the_tests_runs_there(vmm_machine):
    print("plain", kind(vmm_machine("exit")))
    print("off", kind(vmm_machine("exit", sandbox="off")))
    print("config", kind(vmm_machine(MachineConfig.create("exit"))))
    print("process", vmm_machine("exit", sandbox="process").pid != os.getpid())


def test_something_of_the_tests_does(vmm_machine):
    machine = vmm_machine("exit")
    machine.ports.add(0x580, 0x580, Device(), "vmm's own")
    machine.mmio.add(0xD0000000, 0xD0000000, type("Own", (Device,), {"__module__": __name__})(), "own")
    print("device", kind(machine))
    print("customize", kind(vmm_machine("exit", customize=lambda fw_cfg: fw_cfg.add_file("opt/a", b"x"))))
"""


@pytest.mark.parametrize(
    ("options", "kinds"), [([], "plain threads\noff off\n"), (["--vmm-sandbox", "off"], "plain off\n")]
)
def test_the_sandbox_is_on_unless_a_test_needs_it_off(tmp_path: Path, options: list[str], kinds: str) -> None:
    (tmp_path / "test_it.py").write_text(SANDBOXED)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *options, "test_it.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert kinds in run.stdout
    for told in ("config off", "process True", "device off", "customize off"):
        assert told in run.stdout


DYING = """
import os
import signal

import pytest

from vmm.bus import Device


def test_dies(vmm_machine):
    machine = vmm_machine("hang", accel="auto")
    os.kill(machine.pid, signal.SIGKILL)
    machine.run(deadline=60)


def test_goes_on(vmm_machine):
    assert vmm_machine("exit").run(deadline=60).reached


def test_has_functions(vmm_machine):
    assert vmm_machine("exit", customize=lambda fw_cfg: fw_cfg.add_file("opt/a", b"x")).run(deadline=60).reached


def test_booted(vmm_booted):
    machine = vmm_booted("waits.fd", until="ready", accel="auto")
    machine.send("x")
    machine.expect("done", deadline=60)
    print("booted in", machine.pid != os.getpid())
"""


def test_a_machine_that_dies_in_its_process_fails_its_test_alone(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(DYING)
    write_waiting_guest(tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "--vmm-sandbox", "process"]
    run = subprocess.run(
        [*command, "test_it.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert "1 failed, 3 passed" in run.stdout, run.stdout + run.stderr
    assert re.search(r"MachineDiedError: the machine's process \d+ was ended by signal 9", run.stdout)
    assert "booted in True" in run.stdout
    words = [*command, "--vmm-artifacts", "kept", "test_it.py"]
    run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 4
    assert "machines in other processes (--vmm-sandbox process) leave none" in run.stderr


BOOTED = """
import pytest

AT = {"until": "ready", "cpus": 2, "accel": "auto"}


@pytest.mark.parametrize("number", range(3))
def test_each_has_its_own(vmm_booted, number):
    machine = vmm_booted("waits.fd", **AT)
    assert machine.memory.read(0x1000, 4) != b"mine"
    machine.memory.write(0x1000, b"mine")
    machine.send("x")
    assert machine.expect(["ready", "done"], deadline=60).which == 1


def test_items(vmm_booted):
    machine = vmm_booted("waits.fd", items={"opt/org.example/a": b"x"}, **AT)
    assert machine.fw_cfg.contents("opt/org.example/a") == b"x"


def test_a_function_brings_it_there(vmm_booted):
    def there(machine):
        machine.expect("ready", deadline=60)
        machine.memory.write(0x1000, b"there")

    assert vmm_booted("waits.fd", until=there, accel="auto").memory.read(0x1000, 5) == b"there"


@pytest.fixture(scope="module")
def of_module(vmm_booted_module):
    return vmm_booted_module("waits.fd", **AT)


@pytest.fixture(scope="session")
def of_session(vmm_booted_session):
    return vmm_booted_session("waits.fd", **AT)


def test_scopes_first(of_module, of_session):
    assert of_module is not of_session
    of_module.memory.write(0x1000, b"kept")
    assert of_session.memory.read(0x1000, 4) != b"kept"


def test_scopes_second(of_module):
    assert of_module.memory.read(0x1000, 4) == b"kept"


def test_what_never_gets_there(vmm_booted):
    vmm_booted("probe", until="never shown", accel="auto")
"""


def test_machines_that_have_booted(tmp_path: Path) -> None:
    (tmp_path / "test_booted.py").write_text(BOOTED)
    write_waiting_guest(tmp_path)

    def run() -> list[tuple[str, int]]:
        options = ["-q", "-p", "no:cacheprovider", "--vmm-snapshots", "kept", "--vmm-artifacts", "artifacts"]
        command = [sys.executable, "-m", "pytest", *options, "test_booted.py"]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
        assert "1 failed, 7 passed" in ended.stdout, ended.stdout + ended.stderr
        assert "vmm_booted: the guest powered the machine off" in ended.stdout
        return sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "kept").glob("*.snapshot"))

    first = run()
    assert len(first) == 1
    assert run() == first, "the second session has found it"
    (tmp_path / "kept" / first[0][0]).write_bytes(b"damaged")
    third = run()
    assert [name for name, _ in third] == [name for name, _ in first]
    assert third != first, "what does not fit is taken again"
