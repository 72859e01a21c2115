"""The one reader of the files that a user names: of which type, how large, and read once.

Pipes are taken as files are (``<(command)``, /dev/stdin), and so are files that do not know their size (/proc).
Everything has a limit, so that no input can fill the host's memory, and waiting for a pipe ends with Ctrl-C, or after
the time that :func:`patience` allows.
"""

from __future__ import annotations

import mmap
import os
import stat
import time
from contextlib import contextmanager, suppress

from vmm.errors import ConfigError, TimeoutExpired
from vmm.legible import counted
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ITEM_LIMIT = 0xFFFFFFFF
"""Bytes that an fw_cfg item can have (docs/specs/fw_cfg.rst in QEMU: the directory's size field has 32 bits)."""

TABLE_LIMIT = 1 << 24
"""Bytes of an ACPI table, or of SMBIOS structures in a file: far more than firmware has room for."""

PIPE_LIMIT = 1 << 30
"""Bytes that may come through a pipe, whose size is not known before it ends."""

LARGE = 1 << 20
"""Files from this size on are read into pages of their own, see :func:`load_file`."""

_CHUNK = 1 << 16
_STEP = 1 << 24
"""Bytes of a file that are read at once: Ctrl-C waits for that."""

_NULL_DEVICE = os.makedev(1, 3)
"""/dev/null: an empty file (Linux, Documentation/admin-guide/devices.txt)."""


Contents = bytes | mmap.mmap
"""What was in a file. The mapping is of anonymous memory, never of the file."""


class InputFile(NamedTuple):
    """What was in a file, and where that was."""

    path: Path
    data: Contents

    def __repr__(self) -> str:
        """Leave the contents out, which may be megabytes."""
        return f"InputFile({str(self.path)!r}, {counted(len(self.data), 'byte')})"


def is_file(path: Path) -> bool:
    """Whether there is a file that we may see; there is none in a directory that we may not search."""
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


def as_path(text: str | Path) -> Path:
    """Return a path that a user wrote; who has none need not load `pathlib`."""
    from pathlib import Path

    return Path(text)


def read_file(path: str | Path, what: str, *, limit: int) -> bytes:
    """Return what a file or a pipe holds.

    Args:
        path: as the user wrote it.
        what: the option that names it, for the error.
        limit: bytes that make sense.

    Raises:
        ConfigError: it can't be read, is of another type, or larger.
        TimeoutExpired: nobody wrote into the pipe, see :func:`patience`.
    """
    return bytes(_open(path, what, limit, own_pages=False))


def load_file(path: str | Path, what: str, *, limit: int = ITEM_LIMIT) -> InputFile:
    """Return what a file or a pipe holds, however large.

    It is copied, not mapped: a mapped file that somebody shortens while the guest runs is a SIGBUS, MAP_PRIVATE or not,
    and one that somebody changes reaches the guest half old and half new.

    Raises:
        ConfigError: as :func:`read_file`; or the file has less than its size.
        TimeoutExpired: as :func:`read_file`.
    """
    from pathlib import Path

    return InputFile(Path(path), _open(path, what, limit, own_pages=True))


def _open(path: str | Path, what: str, limit: int, *, own_pages: bool) -> Contents:
    if not os.fspath(path):
        raise ConfigError(f"{what}: the path is empty; is a variable unset?")
    try:
        # Not blocking: a FIFO's open() would wait for a writer, for ever and without a deadline.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if stat.S_ISFIFO(status.st_mode):
                return _drain(fd, path, what, min(limit, PIPE_LIMIT), pipe=True)
            if stat.S_ISDIR(status.st_mode) and os.path.normpath(path) == ".":
                raise ConfigError(f"{what}: {path} is a directory, or the path is empty; is a variable unset?")
            if not stat.S_ISREG(status.st_mode) and status.st_rdev != _NULL_DEVICE:
                raise ConfigError(f"{what}: {path} is {_kind(status.st_mode)}; give a file or a pipe")
            if status.st_size > limit:
                raise ConfigError(f"{what}: {path} has {status.st_size} bytes; {_at_most(limit)}")
            if own_pages and status.st_size >= LARGE:
                return _load(fd, path, what, status.st_size)
            return _drain(fd, path, what, limit, expected=status.st_size)
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(f"{what}: cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"{what}: cannot read {str(path)!r}: {error}") from None


def _load(fd: int, path: str | Path, what: str, size: int) -> mmap.mmap:
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages; with them, this takes a third of the time
        pages.madvise(mmap.MADV_HUGEPAGE)
    with memoryview(pages) as whole:
        at = 0
        while at < size:
            count = os.readv(fd, [whole[at : at + _STEP]])
            if not count:
                raise ConfigError(f"{what}: {path} ended after {at} of its {size} bytes; does somebody write to it?")
            at += count
    return pages


def _drain(fd: int, path: str | Path, what: str, limit: int, *, pipe: bool = False, expected: int = 0) -> bytes:
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


def _wait(fd: int, path: str | Path, what: str) -> None:
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
