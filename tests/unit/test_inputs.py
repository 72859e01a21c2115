"""The reader of all files that users name: types, limits, pipes, and time."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vmm import inputs
from vmm.errors import ConfigError, ExitStatus, TimeoutExpired
from vmm.firmware.images import WINDOW_SIZE, read_image
from vmm.inputs import load_file, read_file
from vmm.tables.acpi_user import UserTable
from vmm.tables.smbios_options import SmbiosOption

SPARSE = 64 << 30


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        read()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status is ExitStatus.USAGE
    return str(caught.value)


def test_a_file_of_exactly_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_file(path, "-x", limit=5) == b"12345"
    assert refused(lambda: read_file(path, "-x", limit=4)) == f"-x: {path} has 5 bytes; the most here is 4"


def test_files_without_a_size_are_read_to_their_end() -> None:
    assert read_file(Path("/proc/self/status"), "-x", limit=1 << 20).startswith(b"Name:")
    assert "brings more than 10 bytes" in refused(lambda: read_file(Path("/proc/self/status"), "-x", limit=10))


def test_the_null_device_is_an_empty_file_and_other_devices_are_none() -> None:
    assert load_file(Path("/dev/null"), "-x").data == b""
    assert "/dev/zero is a character device; give a file or a pipe" in refused(lambda: read_image(Path("/dev/zero")))
    assert "/ is a directory" in refused(lambda: load_file(Path("/"), "-x"))


def test_paths_that_are_nothing(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert refused(lambda: load_file(missing, "-x")) == f"-x: cannot read {missing}: no such file or directory"
    assert "null" in refused(lambda: load_file(Path("a\0b"), "-x"))  # "byte", in newer Pythons "character"


@pytest.mark.parametrize(
    "read",
    [
        lambda path: UserTable.parse(f"file={path}"),
        lambda path: SmbiosOption.parse(f"file={path}"),
        lambda path: SmbiosOption.parse(f"type=11,path={path}"),
        read_image,
        lambda path: load_file(path, "-initrd"),
    ],
    ids=["acpitable", "smbios-file", "smbios-path", "firmware", "initrd"],
)
def test_a_file_larger_than_memory_is_refused_unread(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(SPARSE)
    assert f"{path} has {SPARSE} bytes; the most here is " in refused(lambda: read(path))


def pipe_with(data: bytes) -> tuple[int, threading.Thread]:
    reader, writer = os.pipe()

    def write() -> None:
        with os.fdopen(writer, "wb") as file:
            for start in range(0, len(data), 30000):
                file.write(data[start : start + 30000])

    thread = threading.Thread(target=write)
    thread.start()
    return reader, thread


def test_a_pipe_is_read_to_its_end() -> None:
    data = os.urandom(3 << 20)
    reader, thread = pipe_with(data)
    try:
        assert load_file(Path(f"/dev/fd/{reader}"), "-initrd").data == data
    finally:
        thread.join()
        os.close(reader)


def test_a_pipe_without_end_ends_at_the_limit() -> None:
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as endless:
        assert endless.stdout is not None
        path = Path(f"/dev/fd/{endless.stdout.fileno()}")
        assert f"brings more than {WINDOW_SIZE} bytes" in refused(lambda: read_image(path))
        endless.kill()


def test_a_fifo_waits_for_its_writer(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def write() -> None:
        time.sleep(0.1)
        fifo.write_bytes(b"late")

    thread = threading.Thread(target=write)
    thread.start()
    assert read_file(fifo, "-x", limit=10) == b"late"
    thread.join()


def test_a_fifo_that_nobody_writes_into_ends_with_patience(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with inputs.patience(0.05), pytest.raises(TimeoutExpired, match=re.escape(f"the pipe {fifo}")) as caught:
        read_file(fifo, "-x", limit=10)
    assert caught.value.exit_status is ExitStatus.TIMEOUT


@pytest.mark.parametrize("size", [inputs.LARGE - 1, inputs.LARGE, (2 << 20) + 12345, (17 << 20) + 1])
def test_a_file_that_is_shortened_later_has_been_read_whole(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    data = os.urandom(size)
    path.write_bytes(data)
    found = load_file(path, "-initrd").data
    os.truncate(path, 0)
    assert bytes(found) == data  # of a mapped file, this would be a SIGBUS


def test_a_file_that_is_shortened_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(20 << 20))
    readv = os.readv

    def shortening(fd: int, buffers: list[memoryview]) -> int:
        count = readv(fd, buffers)
        os.truncate(path, 1 << 20)
        return count

    monkeypatch.setattr(os, "readv", shortening)
    assert refused(lambda: load_file(path, "-initrd")).endswith(f" of its {20 << 20} bytes; does somebody write to it?")


def test_what_is_read_is_not_shown_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(5000))
    assert repr(load_file(path, "-x")) == f"InputFile('{path}', 5000 bytes)"


def test_a_terminal_is_no_file() -> None:
    leader, follower = os.openpty()
    try:
        assert "is a character device" in refused(lambda: load_file(Path(os.ttyname(follower)), "-kernel"))
    finally:
        os.close(leader)
        os.close(follower)


def test_reading_does_not_change_the_pipe_for_others() -> None:
    reader, writer = os.pipe()
    try:
        program = "from pathlib import Path; from vmm.inputs import read_file; "
        program += "print(read_file(Path('/dev/stdin'), '-x', limit=9))"
        with subprocess.Popen([sys.executable, "-c", program], stdin=reader, stdout=subprocess.PIPE) as process:
            os.write(writer, b"text")
            os.close(writer)
            assert process.communicate()[0] == b"b'text'\n"
        assert os.get_blocking(reader)
    finally:
        os.close(reader)
