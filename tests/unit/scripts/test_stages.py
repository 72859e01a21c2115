"""How scripts/test runs its stages."""

import os
import signal
import subprocess
from pathlib import Path

STAGES = Path(__file__).parents[3] / "scripts" / "stages.sh"


def started(directory: Path, script: str) -> subprocess.Popen[str]:
    whole = f"set -euo pipefail\n. '{STAGES}'\nnproc() {{ echo 2; }}\n{script}"
    file = directory / "script"
    file.write_text(whole, encoding="ascii")
    return subprocess.Popen(["bash", str(file)], cwd=directory, stdout=subprocess.PIPE, text=True)


def ended(directory: Path, script: str) -> tuple[int, list[str]]:
    with started(directory, script) as process:
        printed, _ = process.communicate(timeout=60)
    return process.returncode, printed.splitlines()


def test_what_is_shown_last_comes_last_however_early_it_ends(tmp_path: Path) -> None:
    status, lines = ended(
        tmp_path,
        """
        shown_last tests echo '3 passed'
        stage lint bash -c 'echo one; echo two'
        finish
        """,
    )
    assert status == 0
    assert [line.partition(" (")[0] for line in lines] == [
        *("", "== lint: passed", "one", "two"),
        *("", "== tests: passed", "3 passed"),
    ]
    assert (tmp_path / "build/test/lint.log").read_text(encoding="ascii") == "one\ntwo\n"


def test_stages_run_side_by_side(tmp_path: Path) -> None:
    """Each waits for the other's file."""
    status, _ = ended(
        tmp_path,
        """
        meet() { touch "$1"; until [ -e "$2" ]; do sleep 0.01; done; }
        stage one meet a b
        stage other meet b a
        finish
        """,
    )
    assert status == 0


def test_failures_stop_nothing_and_are_named_at_the_end(tmp_path: Path) -> None:
    status, lines = ended(
        tmp_path,
        """
        broken() { echo before; false; echo after; }
        stage 'a function' broken
        stage 'a command' bash -c 'exit 7'
        stage 'a signal' bash -c 'kill -KILL $$'
        stage good true
        finish
        """,
    )
    assert status == 1
    assert "before" in lines
    assert "after" not in lines
    assert {
        "== a function: FAILED, status 1",
        "== a command: FAILED, status 7",
        "== a signal: FAILED, status 137",
        "== good: passed",
    } <= {line.partition(" (")[0] for line in lines}
    assert set(lines[-1].removeprefix("== failed: ").removesuffix(";").split("; ")) == {
        "a function",
        "a command",
        "a signal",
    }


def test_what_the_host_lacks_is_no_failure(tmp_path: Path) -> None:
    status, lines = ended(
        tmp_path,
        """
        stage lacking where_possible bash -c 'echo no namespaces; exit 4'
        stage broken where_possible bash -c 'exit 1'
        stage good where_possible true
        finish
        """,
    )
    assert status == 1
    assert lines[-1] == "== failed: broken;"
    at = [line.partition(" (")[0] for line in lines].index("== lacking: passed")
    assert lines[at + 1 : at + 3] == ["no namespaces", "skipped"]


def test_the_tests_that_failed_come_last_of_all(tmp_path: Path) -> None:
    status, lines = ended(
        tmp_path,
        """
        shown_last tests bash -c 'echo "3 passed"'
        stage 'emulated host' bash -c 'echo "npt-0: FAILED a.py::b - why"; echo "npt-0: 1 failed"; exit 1'
        finish
        """,
    )
    assert status == 1
    assert lines[-2:] == ["== failed: emulated host;", "npt-0: FAILED a.py::b - why"]


def test_nothing_starts_where_the_first_fails(tmp_path: Path) -> None:
    status, lines = ended(tmp_path, "first setup bash -c 'echo why; exit 4'\nstage tests touch started\nfinish")
    assert (status, lines) == (4, ["== setup", "why", "", "== failed: setup"])
    assert not (tmp_path / "started").exists()


def test_an_interrupt_ends_all_that_was_started(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ready")
    os.mkfifo(tmp_path / "lives")
    # The grandchild holds "lives" open for as long as it lives.
    script = """
        stage tests bash -c 'sleep 1000 >lives & echo >ready; wait'
        finish
        """
    with started(tmp_path, script) as process:
        with (tmp_path / "lives").open(encoding="ascii") as lives:
            (tmp_path / "ready").read_text(encoding="ascii")
            process.send_signal(signal.SIGINT)
            assert lives.read() == ""
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "== interrupted: tests" in printed
