"""Who reads stderr, a console's pipe or a log slowly, or not at all, holds up neither Ctrl-C nor --timeout."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from accelerators import PLAIN
from real_mode_rom import RESET, image

pytestmark = pytest.mark.needs_kvm

GENEROUS = 60.0
"""Seconds; a busy machine must not fail a test."""

SPINS = "eb fe"
PRINTS_FOR_EVER = "ba 02 04 b0 78 ee eb fd"  # mov dx, 0x402; mov al, 'x'; out dx, al; jmp
PRINTS_320_KIB = "ba 02 04 bb 05 00 b9 ff ff 31 f6 f3 6e 4b 75 f6" + RESET  # bx times: mov cx, 0xffff; rep outsb


def fill(writer: int) -> None:
    """Leave no room in a pipe or a terminal; its other writers may still wait."""
    own = os.open(f"/proc/self/fd/{writer}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    for size in (4096, 1):
        try:
            while True:
                os.write(own, b"." * size)
        except BlockingIOError:
            continue
    os.close(own)


@contextmanager
def unread(kind: str) -> Iterator[int]:
    """A pipe or a terminal that is full, and that nobody reads."""
    reader, writer = os.pipe() if kind == "pipe" else os.openpty()
    fill(writer)
    try:
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


@contextmanager
def fifo(path: Path) -> Iterator[int]:
    """A named pipe that somebody has open and does not read."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        yield reader
    finally:
        os.close(reader)


def boot(*words: str) -> list[str]:
    """Return the command line of a boot."""
    return [sys.executable, "-m", "vmm", "boot", *words, "-accel", PLAIN, "-serial", "none"]


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
@pytest.mark.parametrize("quiet", [[], ["-q"]], ids=["says", "quiet"])
def test_a_stderr_that_nobody_reads_keeps_no_deadline_from_ending_the_run(
    tmp_path: Path, kind: str, quiet: list[str]
) -> None:
    (tmp_path / "rom").write_bytes(image(SPINS))
    command = boot(str(tmp_path / "rom"), "-debugcon", "none", "--timeout", "0.5", *quiet)
    with unread(kind) as stderr:
        assert subprocess.call(command, stdin=subprocess.DEVNULL, stderr=stderr, timeout=GENEROUS) == 3


def test_a_log_on_a_stderr_that_nobody_reads_keeps_no_guest_from_its_end() -> None:
    command = boot("probe", "-debugcon", "none", "--trace", "-", "-q")
    with unread("pipe") as stderr:
        assert subprocess.call(command, stdin=subprocess.DEVNULL, stderr=stderr, timeout=GENEROUS) == 0


def test_a_log_that_nobody_reads_keeps_no_guest_from_its_end(tmp_path: Path) -> None:
    with fifo(tmp_path / "log") as log:
        fill(log)
        command = boot("probe", "-debugcon", "none", "--trace", str(tmp_path / "log"), "-q")
        done = subprocess.run(command, capture_output=True, text=True, timeout=GENEROUS, check=False)
    assert done.returncode == 4
    assert "bytes were not written, for nobody read what came before" in done.stderr


def test_ctrl_c_ends_a_guest_that_prints_what_nobody_reads(tmp_path: Path) -> None:
    (tmp_path / "rom").write_bytes(image(PRINTS_FOR_EVER))
    with fifo(tmp_path / "console") as console:
        command = boot(str(tmp_path / "rom"), "-debugcon", f"file:{tmp_path / 'console'}", "-q")
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            began = time.monotonic()
            while select.select([], [console], [], 0)[1]:
                assert time.monotonic() - began < GENEROUS
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=GENEROUS)
    assert process.returncode == 130
    assert re.fullmatch(r"vmm: interrupted\n(vmm: -debugcon file:.*: \d+ bytes were not written, .*\n)?", told)


def test_a_slow_reader_gets_all_that_a_guest_printed(tmp_path: Path) -> None:
    (tmp_path / "rom").write_bytes(image(PRINTS_320_KIB))
    with fifo(tmp_path / "console") as console:
        command = boot(str(tmp_path / "rom"), "-debugcon", f"file:{tmp_path / 'console'}", "-q", "-no-reboot")
        read = b""
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None or select.select([console], [], [], 0)[0]:
                full = not select.select([], [console], [], 0)[1]
                if full or process.poll() is not None:
                    read += os.read(console, 1 << 15)
                else:
                    time.sleep(0.005)
    assert process.returncode == 1  # it reset the machine, to end
    assert len(read) == 5 * 0xFFFF


def test_what_stderr_lacks_is_counted() -> None:
    program = r"""
import os, sys
from vmm.cli import standard_error

standard_error.DRAIN_SECONDS = 1000
standard_error.unblock()
for _ in range(2000):
    sys.stderr.write("x" * 999 + "\n")
print("said", flush=True)
standard_error.drain(hurried=False)
os._exit(0)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "said\n"
        _, told = process.communicate(timeout=GENEROUS)
    *lines, blank, last = told.split("\n")[:-1]
    assert set(lines) == {"x" * 999}
    assert (blank, last) == (
        "",
        f"vmm: {(2000 - len(lines)) * 1000} bytes are missing here: stderr was not read fast enough",
    )
