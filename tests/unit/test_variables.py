"""The user's VARS file: locked, never mapped, written with what changed."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mounts import own_mounts

from vmm.errors import ConfigError, HostError
from vmm.firmware.variables import VariableFile

SIZE = 0x84000
BLOCK = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "my_vars.fd"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


OPEN = """
import sys
from pathlib import Path
from vmm.firmware.variables import VariableFile
VariableFile(Path(sys.argv[1]), 1)
"""


def python(program: str, *words: str | Path) -> str:
    """What another process says on stderr."""
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stderr


def change(file: VariableFile, first: int, data: bytes) -> None:
    file.contents[first : first + len(data)] = data
    file.store(first, first + len(data))


def test_what_changed_is_in_the_file_at_once(path: Path) -> None:
    before = path.read_bytes()
    file = VariableFile(path, SIZE)
    assert file.contents[:] == before
    change(file, 0x1001, b"new")
    change(file, SIZE - 1, b"e")
    assert path.read_bytes() == before[:0x1001] + b"new" + before[0x1004:-1] + b"e"
    file.contents[0] = 0xAA
    assert path.read_bytes()[0] == 0, "what is not stored is not there"
    file.close()


def test_a_store_at_the_begin_of_a_larger_file_leaves_the_rest(path: Path) -> None:
    with path.open("ab") as image:
        image.write(b"code")
    file = VariableFile(path, SIZE)
    change(file, SIZE - 1, b"e")
    file.close()
    assert path.read_bytes()[-5:] == b"ecode"


def truncate(path: Path) -> None:
    os.truncate(path, 0)


def copy_over(path: Path) -> None:
    path.write_bytes(b"\xff" * SIZE)


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"\xff" * SIZE)
    other.replace(path)


@pytest.mark.parametrize(
    ("interfere", "why"),
    [
        (truncate, "another process changed the file while the machine ran"),
        (copy_over, "another process changed the file while the machine ran"),
        (replace, "the file was removed or replaced while the machine ran"),
        (Path.unlink, "the file was removed or replaced while the machine ran"),
    ],
)
def test_somebody_elses_change_is_told_and_nothing_is_lost(path: Path, interfere: object, why: str) -> None:
    file = VariableFile(path, SIZE)
    change(file, 0, b"first")
    interfere(path)  # type: ignore[operator]
    theirs = path.read_bytes() if path.exists() else None
    with pytest.raises(HostError) as caught:
        change(file, BLOCK, b"second")
    (copy,) = path.parent.glob("my_vars.fd.rescued-*")
    assert str(caught.value) == f"{path}: cannot write the guest's variables: {why}; they are in {copy}"
    assert copy.read_bytes() == file.contents[:]
    assert copy.read_bytes().startswith(b"first")
    change(file, BLOCK, b"third")  # told once
    file.close()
    assert (path.read_bytes() if path.exists() else None) == theirs


def test_a_disk_that_takes_nothing_more_is_told(path: Path) -> None:
    program = """
import resource, sys
from pathlib import Path
from vmm.firmware.variables import VariableFile
file = VariableFile(Path(sys.argv[1]), int(sys.argv[2]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
file.contents[5000] = 0xaa
try:
    file.store(5000, 5001)
finally:
    file.close()
"""
    before = path.read_bytes()
    message = f"{path}: cannot write the guest's variables: file too large; they could not be saved in"
    assert message in python(program, path, str(SIZE))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_told_before_anything_runs(path: Path) -> None:
    """The file has holes, and the disk no room for them."""
    program = """
import sys
from pathlib import Path
from vmm.firmware.variables import VariableFile
disk = Path(sys.argv[1])
vars, ballast = disk / "vars", disk / "ballast"
with vars.open("wb") as file:
    file.truncate(1 << 20)
try:
    with ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
except OSError:
    pass
VariableFile(vars, 1 << 20)
"""
    mount = 'mount -t tmpfs -o size=512k none "$2" && exec "$0" -c "$1" "$2"'
    command = [*own_mounts(), "sh", "-c", mount, sys.executable, program, str(path.parent)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.stderr.endswith("/vars: no room for the variable store: no space left on device\n"), run.stderr


def test_a_second_machine_is_refused_with_the_owner(path: Path) -> None:
    first = VariableFile(path, SIZE)
    with pytest.raises(ConfigError) as caught:
        VariableFile(path, SIZE)
    assert str(caught.value).startswith(f"{path}: another machine of this process keeps its variables there; ")
    assert "readonly=on" in str(caught.value)
    name = Path("/proc/self/comm").read_text().strip()
    assert f"{path}: process {os.getpid()} ({name}) keeps its variables there" in python(OPEN, path)
    first.close()
    VariableFile(path, SIZE).close()


def test_somebody_elses_write_lock_is_respected(path: Path) -> None:
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)  # the whole file, as a process that knows nothing of QEMU's bytes
        assert f"{path}: process {os.getpid()} (" in python(OPEN, path)


def test_a_file_that_shrank_since_it_was_looked_at(path: Path) -> None:
    os.truncate(path, BLOCK)
    files = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ConfigError, match=f"4096 bytes; it had {SIZE} a moment ago"):
        VariableFile(path, SIZE)
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    assert path.stat().st_size == BLOCK
