"""The one reader of the files that a user names: of which type, how large, and read once.

Pipes are taken as files are (``<(command)``, /dev/stdin), and so are files that do not know their size (/proc).
Everything has a limit, so that no input can fill the host's memory, and waiting for a pipe ends with Ctrl-C, or after
the time that :func:`patience` allows.
"""

import mmap
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from vmm.errors import ConfigError, TimeoutExpired

ITEM_LIMIT = 0xFFFFFFFF
"""Bytes that an fw_cfg item can have (docs/specs/fw_cfg.rst in QEMU: the directory's size field has 32 bits)."""

TABLE_LIMIT = 1 << 24
"""Bytes of an ACPI table, or of SMBIOS structures in a file: far more than firmware has room for."""

PIPE_LIMIT = 1 << 30
"""Bytes that may come through a pipe, because they stay in memory; a file is mapped."""

MAP_THRESHOLD = 1 << 20
"""Files from this size on are mapped where that is allowed, smaller ones read."""

_CHUNK = 1 << 16
_NULL_DEVICE = os.makedev(1, 3)
"""/dev/null: an empty file (Linux, Documentation/admin-guide/devices.txt)."""


Contents = bytes | mmap.mmap
"""What was in a file: read, or mapped."""


class InputFile(NamedTuple):
    """What was in a file, and where that was."""

    path: Path
    data: Contents

    def __repr__(self) -> str:
        """Leave the contents out, which may be megabytes."""
        return f"InputFile({str(self.path)!r}, {len(self.data)} bytes)"


def is_file(path: Path) -> bool:
    """Whether there is a file that we may see; a directory that we may not look into has none."""
    return os.path.isfile(path)  # noqa: PTH113  # Path.is_file raises there


_gives_up_at: float | None = None


@contextmanager
def patience(seconds: float | None) -> Iterator[None]:
    """Let all reading of pipes inside the block end after this long; None waits as long as it takes."""
    global _gives_up_at  # noqa: PLW0603  # a deadline of the whole process, as signal.alarm is one
    before, _gives_up_at = _gives_up_at, None if seconds is None else time.monotonic() + seconds
    try:
        yield
    finally:
        _gives_up_at = before


def read_file(path: Path, what: str, *, limit: int) -> bytes:
    """Return what a file or a pipe holds.

    Args:
        path: as the user wrote it.
        what: the option that names it, for the error.
        limit: bytes that make sense.

    Raises:
        ConfigError: it can't be read, is of another type, or larger.
        TimeoutExpired: nobody wrote into the pipe, see :func:`patience`.
    """
    return bytes(_open(path, what, limit, may_map=False))


def map_file(path: Path, what: str, *, limit: int = ITEM_LIMIT) -> InputFile:
    """Return what a file or a pipe holds; a large file is mapped, and must not shrink while it is used.

    Raises:
        ConfigError: as :func:`read_file`.
        TimeoutExpired: likewise.
    """
    return InputFile(path, _open(path, what, limit, may_map=True))


def _open(path: Path, what: str, limit: int, *, may_map: bool) -> Contents:
    try:
        # Not blocking: a FIFO's open() would wait for a writer, for ever and without a deadline.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if stat.S_ISFIFO(status.st_mode):
                return _drain(fd, path, what, min(limit, PIPE_LIMIT), pipe=True)
            if not stat.S_ISREG(status.st_mode) and status.st_rdev != _NULL_DEVICE:
                raise ConfigError(f"{what}: {path} is {_kind(status.st_mode)}; give a file or a pipe")
            if status.st_size > limit:
                raise ConfigError(f"{what}: {path} has {status.st_size} bytes; {_at_most(limit)}")
            if may_map and status.st_size >= MAP_THRESHOLD:
                return mmap.mmap(fd, status.st_size, access=mmap.ACCESS_READ)
            return _drain(fd, path, what, limit, expected=status.st_size)
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(f"{what}: cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"{what}: cannot read {str(path)!r}: {error}") from None


def _drain(fd: int, path: Path, what: str, limit: int, *, pipe: bool = False, expected: int = 0) -> bytes:
    chunks: list[bytes] = []
    total = 0
    while total <= limit:
        if pipe:
            _wait(fd, path, what)
        chunk = os.read(fd, max(_CHUNK, expected))
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
        total += len(chunk)
    raise ConfigError(f"{what}: {path} brings more than {limit} bytes; {_at_most(limit)}")


def _wait(fd: int, path: Path, what: str) -> None:
    """Return once a pipe has something to read, or its writers have come and gone."""
    import select

    poll = select.poll()
    poll.register(fd, select.POLLIN)
    left_ms = None if _gives_up_at is None else max(0.0, _gives_up_at - time.monotonic()) * 1000
    if not poll.poll(left_ms):
        raise TimeoutExpired(f"{what}: the time was up before all of the pipe {path} was there; is its writer running?")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFCHR: "a character device", stat.S_IFBLK: "a block device"}
    return kinds.get(stat.S_IFMT(mode), "no file")


def _at_most(limit: int) -> str:
    return f"the most here is {limit}" + (f" ({limit >> 20} MiB)" if limit >= 1 << 20 else "")
