"""The process that writes whole files for one that may not open any."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
from pathlib import Path
from vmm.config.scribe import Scribe

def fail(data):
    raise OSError(28, "no space")

scribe = Scribe([Path(sys.argv[1]).write_bytes, fail])
"""


def run(code: str, path: Path) -> str:
    """Run a program with a scribe; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + code, path], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_it_writes_what_it_is_sent(tmp_path: Path) -> None:
    run(
        "scribe.write(0, b'x' * 3_000_000); scribe.write(0, b'y' * 2_000_000 + b'z'); scribe.close()", tmp_path / "file"
    )
    assert (tmp_path / "file").read_bytes() == b"y" * 2_000_000 + b"z"


def test_what_fails_fails_here(tmp_path: Path) -> None:
    code = """
for attempt in range(2):
    try:
        scribe.write(1, b"")
    except OSError as error:
        print(error.errno)
scribe.write(0, b"")
"""
    assert run(code, tmp_path / "file") == "28\n28\n"
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("asked", ["2, b''", "0, range(1 << 40)"])
def test_what_vmm_never_sends_ends_it(tmp_path: Path, asked: str) -> None:
    code = f"""
import struct
from vmm.config import scribe as module
place, data = {asked}
os.write(scribe.descriptors[0], struct.pack("<IQ", place, len(data)))
os.waitpid(scribe._pid, 0)
try:
    scribe.write(0, b"later")
except OSError as error:
    print(error.errno)
"""
    assert run(code, tmp_path / "file") == f"{errno.EIO}\n"
    assert not (tmp_path / "file").exists()


def test_it_ends_with_the_process_that_it_writes_for(tmp_path: Path) -> None:
    # Nobody waits for the copies that it has of stdout and stderr: the pipe's end comes with the first process.
    code = "print(scribe._pid, flush=True); os.kill(os.getpid(), 9)"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + code, tmp_path / "file"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    pid = int(done.stdout)
    assert done.returncode == -9
    for _ in range(1000):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[2]:
            break
        os.sched_yield()
        subprocess.run(["sleep", "0.01"], check=True)
    else:
        pytest.fail("it goes on")


def test_a_host_that_gives_no_process_is_told() -> None:
    """Whose limit of processes does not count for root."""
    program = """
import os, resource
from vmm.config.scribe import Scribe
from vmm.errors import HostError

resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
before = os.dup(0)
try:
    Scribe([print])
except HostError as error:
    print(error)
print(os.dup(0) == before + 1)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    refused, closed = run.stdout.splitlines()
    assert refused.startswith("no process that writes reports: "), run.stderr
    assert "(ulimit -u)" in refused
    assert closed == "True"
