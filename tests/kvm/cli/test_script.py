"""``vmm boot --script`` with real firmware, and a run whose output nobody takes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
import real_mode_rom
from accelerators import PLAIN

from vmm.firmware import guests

pytestmark = pytest.mark.needs_kvm


def vmm(*arguments: str | Path, stdout: IO[bytes] | int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vmm", "boot", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=200, check=False)


DIALOGUE = r"""
expect any other key to continue
keys esc
expect Shell>
send-line echo one
expect ^one
expect Shell>
send echo t\x77o\r
expect ^two
send-line reset -s
power-off
"""


def test_a_dialogue_with_the_uefi_shell(tmp_path: Path) -> None:
    script, report = tmp_path / "dialogue", tmp_path / "report.json"
    script.write_text(DIALOGUE)
    run = vmm("ovmf", "--script", script, "-serial", "none", "--timeout", "150", "--json", report)
    assert run.returncode == 0, run.stderr
    outcome = json.loads(report.read_text())["outcome"]
    assert (outcome["reason"], outcome["exit_status"]) == ("power-off", 0)


@pytest.mark.hw
@pytest.mark.parametrize(
    ("guest", "script", "status", "message"),
    [
        ("probe", "expect vmm probe\nexpect status: 0\npower-off\n", 0, ""),
        ("probe", "expect vmm probe\nexpect vmm probe\n", 1, "2: expect vmm probe: the guest powered the machine off"),
        ("hang", "timeout 0.2\nexpect x\n", 3, "2: expect x: 0.2 s passed and the guest never showed 'x'"),
        ("triple-fault", "# now\npower-off\n", 1, "2: power-off: triple fault"),
        ("probe", "expect [\n", 2, "1: expect: [: not a regular expression"),
    ],
)
def test_how_a_script_ends(tmp_path: Path, guest: str, script: str, status: int, message: str) -> None:
    path = tmp_path / "script"
    path.write_text(script)
    run = vmm(guests.path(guest), "-accel", PLAIN, "--script", path, "-q", "-serial", "none", "--timeout", "60")
    assert run.returncode == status, run.stderr
    assert (f"{path}:{message}" if message else "") in run.stderr


def test_keys_are_those_of_the_terminal_that_was_chosen(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("keys up F11\npower-off\n")
    for words, status, said in (
        (
            ["--terminal", "vt100"],
            2,
            f"{script}:1: keys: key F11: firmware knows no such key of a terminal of type vt1",
        ),
        (["--terminal", "vt52"], 2, "--terminal vt52: not known; known are auto, pcansi, vt100, "),
        (["--terminal", "vtutf8"], 0, ""),
        ([], 0, ""),
    ):
        run = vmm("probe", "-q", "-debugcon", "none", "-accel", PLAIN, "--script", script, *words)
        assert (run.returncode, said in run.stderr) == (status, True), run.stderr
    run = vmm("ovmf", "-q", "--script", script, "-serial", "none")
    assert (run.returncode, "firmware has not said that yet" in run.stderr) == (2, True)
    run = vmm("probe", "--terminal", "vt100")
    assert (run.returncode, "there is no script" in run.stderr) == (2, True)


def test_a_script_and_until_do_not_mix() -> None:
    run = vmm("exit", "--script", "x", "--until", "y")
    assert (run.returncode, "put what --until and --send say into it" in run.stderr) == (2, True)


def test_a_run_whose_output_nobody_takes_has_not_reached_what_it_waited_for() -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        run = vmm("seabios", "-debugcon", "stdio", "--until", "never", "-accel", PLAIN, stdout=full)
    assert run.returncode not in {0, 3}
    piped = f"{sys.executable} -m vmm boot seabios -debugcon stdio --until never -accel kvm --timeout 100 -q"
    shell = subprocess.run(
        ["bash", "-c", f"{piped} | head -1; exit ${{PIPESTATUS[0]}}"], capture_output=True, timeout=200, check=False
    )
    assert shell.returncode not in {0, 3}


@pytest.mark.parametrize(
    ("script", "status", "message"),
    [
        ("suspend\nwakeup\nexpect awake\npower-off\n", 0, ""),
        ("suspend\n", 0, ""),
        ("power-off\n", 1, "1: power-off: the guest suspended the machine to RAM"),
        ("suspend\nwakeup\nsuspend\n", 1, "3: suspend: the guest powered the machine off"),
    ],
)
def test_a_script_wakes_a_machine_up(tmp_path: Path, script: str, status: int, message: str) -> None:
    path, rom = tmp_path / "script", tmp_path / "suspends.rom"
    path.write_text(script)
    rom.write_bytes(real_mode_rom.image(real_mode_rom.SUSPENDS))
    run = vmm(rom, "-machine", "pc,s3=on", "--script", path, "-q", "-debugcon", "none", "--timeout", "60")
    assert run.returncode == status, run.stderr
    assert (f"{path}:{message}" if message else "") in run.stderr
