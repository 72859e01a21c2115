"""Every script says how it is used, without setting anything up."""

import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"

OF_VMM = {"fetch-linux", "vmm"}
"""Their help is a command's of vmm, which needs the environment."""

HAVE_HELP = sorted(
    file.name for file in SCRIPTS.iterdir() if file.is_file() and not file.suffix and file.name not in OF_VMM
)

PASS_ON = {"bench", "boot", "test", "test-anywhere", "test-sanitized", "test-svm-host", "test-without-kvm"}
"""What these do not know is for the program that they start."""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPTS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", timeout=60)


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("script", HAVE_HELP)
def test_help(script: str, option: str) -> None:
    ended = run(script, option)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"usage: scripts/{script}" in ended.stdout or f"usage: {script}" in ended.stdout
    assert "#" not in ended.stdout.splitlines()[0]


@pytest.mark.parametrize("script", [script for script in HAVE_HELP if script not in PASS_ON])
def test_an_unknown_option_is_wrong_usage(script: str) -> None:
    ended = run(script, "--no-such-option")
    assert ended.returncode == 2
    assert f"usage: scripts/{script}" in ended.stderr or f"usage: {script}" in ended.stderr
    assert ended.stdout == ""


def test_a_number_of_seconds_to_fuzz() -> None:
    ended = run("fuzz", "soon")
    assert ended.returncode == 2
    assert ended.stderr.startswith("fuzz: soon: not a number of seconds\nusage: scripts/fuzz [")
