"""``vmm boot --snapshot-at``, ``--from``, and the step ``snapshot`` of a script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting_guest import DONE, READY, write_waiting_guest

pytestmark = pytest.mark.needs_kvm


def boot(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vmm", "boot", "--timeout", "100", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which waits.snap is a guest that waits for a key."""
    directory = tmp_path_factory.mktemp("snapshots")
    image = write_waiting_guest(directory)
    run = boot(directory, image, "-smp", "2", "--snapshot-at", f"{READY}=waits.snap")
    assert run.returncode == 0, run.stderr
    assert "the machine is in waits.snap" in run.stderr
    return directory


@pytest.mark.hw
def test_a_machine_goes_on_from_a_file(kept: Path) -> None:
    (kept / "dialogue").write_text(f"send x\nexpect {DONE}\n")
    run = boot(kept, "waits.fd", "--from", "waits.snap,time=now", "--script", "dialogue", "--json", "report.json")
    assert run.returncode == 0, run.stderr
    report = json.loads((kept / "report.json").read_text())
    assert report["outcome"]["reason"] == "until"
    assert report["cpus"]["requested"] == 2


def test_a_debugger_finds_a_machine_that_goes_on(kept: Path) -> None:
    run = boot(kept, "--from", "waits.snap", "-gdb", "tcp::0", "--timeout", "0.1")
    assert run.returncode == 3, run.stderr
    assert "gdb finds the machine by 'target remote 127.0.0.1:" in run.stderr


def test_a_run_may_go_on_behind_its_snapshot(kept: Path) -> None:
    run = boot(kept, "waits.fd", "--send", f"{READY}=x", "--snapshot-at", f"{READY}=p.snap", "--until", DONE, "-q")
    assert run.returncode == 0, run.stderr
    again = boot(kept, "--from", "p.snap", "--until", READY, "-q", "--timeout", "1")
    assert again.returncode == 3, "that was read before the snapshot was taken"


INTERRUPTED = """
import signal, sys
from vmm.cli import main
from vmm.run import snapshot_file

write = snapshot_file._cut

def interrupt(data):
    signal.raise_signal(signal.SIGINT)
    return write(data)

snapshot_file._cut = interrupt
sys.exit(main())
"""


@pytest.mark.parametrize("by", ["--snapshot-at", "--script"])
@pytest.mark.parametrize("name", ["new.snap", "old.snap"])
def test_ctrl_c_ends_the_writing_of_a_snapshot_and_leaves_what_was_there(tmp_path: Path, by: str, name: str) -> None:
    image = write_waiting_guest(tmp_path)
    (tmp_path / "old.snap").write_text("old")
    (tmp_path / "dialogue").write_text(f"expect {READY}\nsnapshot {name}\nexpect never\n")
    words = ["boot", image, "-q", by, "dialogue" if by == "--script" else f"{READY}={name}", "--json", "report.json"]
    before = set(tmp_path.iterdir())
    command = [sys.executable, "-c", INTERRUPTED, *words, "--timeout", "100"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert (run.returncode, run.stderr) == (130, f"vmm: interrupted before {name} was written\n")
    assert set(tmp_path.iterdir()) - before == {tmp_path / "report.json"}
    assert (tmp_path / "old.snap").read_text() == "old"
    assert json.loads((tmp_path / "report.json").read_text())["outcome"]["reason"] == "interrupted"


def test_a_script_keeps_the_machine(kept: Path) -> None:
    (kept / "first").write_text(f"expect {READY}\nsend xx\nexpect {DONE}\nsnapshot s.snap\n")
    (kept / "second").write_text(f"send x\nexpect {DONE}\nexpect {DONE}\n")
    assert boot(kept, "waits.fd", "--script", "first", "-q").returncode == 0
    assert boot(kept, "--from", "s.snap", "--script", "second", "-q").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "waits.snap", "-m", "1G"], "-m: the machine is the one in waits.snap"),
        (["--from", "waits.snap", "-S"], "-S lets the machine wait for a debugger; give it a place too"),
        (["--from", "waits.snap", "-smp", "2"], "-smp: the machine is the one in waits.snap"),
        (["seabios", "--from", "waits.snap"], "a snapshot of another firmware than"),
        (["--from", "waits.snap", "-fw_cfg", "etc/e820,string=x"], "below opt/ alone"),
        (["--from", "waits.snap,generation=auto"], "has no VM generation id"),
        (["--from", "waits.snap,time=tomorrow"], "known are stopped, now"),
        (["--from", "waits.snap,place=x"], "place"),
        (["--from", "nothing"], "nothing: cannot read the snapshot: no such file"),
        (["--from", "damaged"], "damaged: the snapshot is damaged"),
        (["probe", "--snapshot-at", "x"], "the form is REGEX=FILE"),
        (["probe", "--snapshot-at", "(=x"], "not a regular expression"),
        (["probe", "--snapshot-at", "x=/nowhere/x"], "cannot write: no such file or directory"),
        (["probe", "--snapshot-at", "x=x", "--script", "script"], "write 'snapshot FILE' into it"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(kept: Path, arguments: list[str], message: str) -> None:
    whole = bytearray((kept / "waits.snap").read_bytes())
    whole[len(whole) // 2] ^= 1
    (kept / "damaged").write_bytes(whole)
    (kept / "script").write_text("power-off\n")
    run = boot(kept, *arguments, "-q")
    assert run.returncode == 2
    assert message in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_a_snapshot_for_a_pipe_is_refused_before_the_guest_runs(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    run = boot(tmp_path, "probe", "--snapshot-at", "probe=pipe", "-q")
    os.close(reader)
    assert run.returncode == 2
    assert run.stderr == "vmm: pipe: no regular file, and a snapshot takes the place of what is there\n"
    assert run.stdout == ""
    assert pipe.is_fifo()


def test_a_snapshot_that_never_comes_is_no_success(tmp_path: Path) -> None:
    run = boot(tmp_path, "probe", "--snapshot-at", "never shown=p.snap", "-q")
    assert run.returncode == 1
    assert list(tmp_path.iterdir()) == []
