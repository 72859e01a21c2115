"""Rivals are processes: none is left behind."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from vmm.bench.contenders import Contender, run, started

COMMAND = ["sleep", "1000"]


def in_a_run() -> None:
    run(Contender("a", "A"), COMMAND, 1000)


def in_a_dialogue() -> None:
    with started(COMMAND, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.wait()


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGINT does what it does in a program that was started in the foreground."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("use", [in_a_run, in_a_dialogue])
def test_an_interrupt_while_a_rival_starts_ends_it(use: Callable[[], None]) -> None:
    rivals: list[int] = []

    def interrupt(frame: FrameType, event: str, _: object) -> None:
        """The process is there, and nobody but Popen knows."""
        if event == "return" and frame.f_code is subprocess.Popen._execute_child.__code__:  # type: ignore[attr-defined]
            rivals.append(frame.f_locals["self"].pid)
            signal.raise_signal(signal.SIGINT)

    sys.setprofile(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            use()
    finally:
        sys.setprofile(None)
    (rival,) = rivals
    assert not Path(f"/proc/{rival}").exists()


def test_a_rival_that_ignores_its_end_is_gone_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmm.bench.contenders.GRACE_S", 0.1)
    command = ["sh", "-c", "trap '' TERM; echo ready; exec sleep 1000"]  # what is ignored stays so
    with started(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    assert process.returncode == -signal.SIGKILL
