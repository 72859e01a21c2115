"""Sweeps of real machines: a small one, one that is interrupted, one whose worker on another "host" is killed."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pexpect
import pytest
from command_line import VMM, vmm

from vmm.sweep import cell

pytestmark = pytest.mark.needs_kvm

SWEEP = ["sweep", "--firmware", "seabios"]


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of results."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_sweep_finds_where_seabios_gives_up(tmp_path: Path) -> None:
    results, page = tmp_path / "r.jsonl", tmp_path / "page.html"
    ended = vmm(*SWEEP, "-smp", "1,2", "--e820", "0,8,512", "--results", results, "--html", page, "--markdown", "-")
    assert ended.returncode == 1, ended.stderr
    outcomes = {(one["axes"]["smp"], one["axes"]["e820"]): one["outcome"] for one in lines(results)}
    assert outcomes == {
        (smp, e820): "altered" if e820 == "512" else "arrived" for smp in "12" for e820 in ("0", "8", "512")
    }
    assert ended.stdout.startswith("**firmware seabios**\n\n| e820 \\ smp | 1 | 2 |\n")
    assert "memory map" in ended.stdout
    assert re.search("SeaBIOS has room for (32|128) entries", page.read_text())
    again = vmm(*SWEEP, "-smp", "1,2", "--e820", "0,8", "--results", results, "--json", "-", "--executor", "no:such")
    assert (again.returncode, again.stdout) == (0, "")  # all of it has results


def test_a_terminal_shows_how_far_it_is(tmp_path: Path) -> None:
    words = [*VMM, *SWEEP, "-smp", "1,2", "--jobs", "1", "--results", str(tmp_path / "r.jsonl")]
    # rich draws no bar on what calls itself a dumb terminal.
    environment = os.environ | {"TERM": "xterm"}
    with pexpect.spawn(
        words[0], words[1:], env=environment, encoding="utf-8", timeout=120, dimensions=(25, 120)
    ) as terminal:
        terminal.expect("2/2.*seabios 2: arrived")
        terminal.expect("2 cells: 2 arrived")
        terminal.expect(pexpect.EOF)
    assert terminal.exitstatus == 0


def test_any_executor_runs_cells_and_what_never_reports_is_a_result(tmp_path: Path) -> None:
    words = ["-smp", "1,2", "--timeout", "0.01", "--executor", "concurrent.futures:ProcessPoolExecutor"]
    ended = vmm(*SWEEP, *words, "--results", tmp_path / "r.jsonl", "--json", "-")
    assert ended.returncode == 1, ended.stderr
    assert [json.loads(line)["outcome"] for line in ended.stdout.splitlines()] == ["no report"] * 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    results = tmp_path / "r.jsonl"
    words = [*SWEEP, "-smp", "1,2,3", "-m", "64M,96M,128M", "--jobs", "1", "--results", str(results)]
    with subprocess.Popen([*VMM, *words], stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: len(lines(results)) >= 2)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"interrupted; run the same again to go on from {results}" in said
    before = lines(results)
    assert len(before) < 9
    ended = vmm(*words)
    assert ended.returncode == 0, ended.stderr
    assert lines(results)[: len(before)] == before
    assert len(lines(results)) == 9
    assert ended.stdout == "9 cells: 9 arrived\n"


def test_a_killed_process_is_one_cells_result() -> None:
    def kill() -> None:
        wait_for(lambda: bool(cell._running))
        next(iter(cell._running)).kill()

    killer = threading.Thread(target=kill)
    killer.start()
    result = cell.run_cell({"m": "64M"}, ["seabios", "-m", "64M"], 60)
    killer.join()
    assert (result["outcome"], result["why"]) == ("died", "by signal 9, Killed")


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """The address of a scheduler on loopback, and its two workers, each a process."""
    pytest.importorskip("distributed", reason="distributed is not installed: pip install 'firmware-vmm[dask]'")
    file = tmp_path / "scheduler.json"
    common = ["--scheduler-file", str(file), "--host", "127.0.0.1", "--no-dashboard"]
    started: list[subprocess.Popen[bytes]] = []

    def start(what: str, *words: str) -> None:
        log = (tmp_path / f"{what}{len(started)}.log").open("wb")
        command = [sys.executable, "-m", f"distributed.cli.{what}", *common, *words]
        with log:
            started.append(
                subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"MALLOC_TRIM_THRESHOLD_": "0"})
            )

    try:
        start("dask_scheduler", "--port", "0")
        wait_for(file.exists)
        for _ in range(2):
            start("dask_worker", "--no-nanny", "--nthreads", "1", "--local-directory", str(tmp_path))
        yield json.loads(file.read_text())["address"].removeprefix("tcp://"), started[1:]
    finally:
        for process in started:
            process.kill()
            process.wait()


def stop_in_a_cell(worker: subprocess.Popen[bytes]) -> tuple[int, list[str]] | None:
    """Stop a worker that runs a cell, and return that cell's process and its words; one that runs none goes on."""
    worker.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, worker.pid, os.WSTOPPED)
    for children in Path(f"/proc/{worker.pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")  # of one that has ended, none
            if "verify" in words:
                return child, words[words.index("verify") + 1 : words.index("--timeout")]
    worker.send_signal(signal.SIGCONT)
    return None


@pytest.mark.timeout(300)
def test_dasks_workers_run_cells_and_one_may_die(
    tmp_path: Path, dask: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    """In the middle of a cell, which the other one then runs."""
    address, workers = dask
    results = tmp_path / "r.jsonl"
    words = [*SWEEP, "-smp", "1,2,3", "-m", "64M,96M", "--jobs", "6", "--executor", f"dask://{address}"]
    with subprocess.Popen([*VMM, *words, "--results", str(results)], stdout=subprocess.PIPE, text=True) as process:
        lost: list[list[str]] = []

        def kill_one() -> bool:
            for worker in workers:
                if not lost and (found := stop_in_a_cell(worker)) is not None:
                    cell, cell_words = found
                    lost.append(cell_words)
                    worker.kill()
                    with suppress(ProcessLookupError):  # as where its host dies
                        os.killpg(cell, signal.SIGKILL)
            return bool(lost)

        wait_for(kill_one, 120)
        assert lost[0] not in [one["words"] for one in lines(results)]
        out, _ = process.communicate(timeout=120)
    assert len(lines(results)) == 6
    assert lost[0] in [one["words"] for one in lines(results)]
    assert out == "6 cells: 6 arrived\n"
    assert process.returncode == 0
