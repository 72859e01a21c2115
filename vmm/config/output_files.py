"""How a file is written: as a document or as a stream.

A document (a report) is written beside its place and moved there as a whole, so that the file of an earlier run stays
until then. A stream (a console, the access log) grows while the machine runs.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import contextmanager
from errno import EACCES, EBUSY, EPERM, EROFS
from functools import partial

from vmm.errors import ConfigError, HostError
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final

_NOT_BESIDE: Final = {EACCES, EBUSY, EPERM, EROFS}
"""Why a file cannot be replaced that can be written: its directory is closed to us, or it is a mount point itself."""

PATIENCE_SECONDS: Final = 2.0
"""How long a reader may pause once the machine has been stopped before what it has not read is dropped."""

HURRIED_SECONDS: Final = 0.05
"""How long after an interrupt."""

_AGAIN_SECONDS: Final = 0.001
"""Until the next try to write what a pipe or terminal has no room for."""

_PIECE: Final = 1 << 16
"""Bytes written at once."""


class GrowingFile:
    """A file that grows while the machine runs.

    A pipe or a terminal that nobody reads keeps who writes to it waiting, but not from being stopped.

    Attributes:
        name: what messages call it: the option and the path.
        fd: the file, open for writing; a pipe's or a terminal's is one that does not block.
        failed: whether a write failed.
        lost: bytes that nobody read in time.
        leaving: whether the machine has been asked to stop, which ends a long wait for a reader.
        patience: how long it may be then, in seconds.
    """

    def __init__(self, name: str, fd: int, *, begins_empty: bool) -> None:
        self.name = name
        self.failed = False
        self.lost = 0
        self.leaving: Callable[[], bool] = lambda: False
        self.patience = PATIENCE_SECONDS
        self.fd = fd
        self._begins_empty = begins_empty
        self._pending = b""
        self._began_to_leave = 0.0

    @property
    def behind(self) -> bool:
        """Whether something that was written waits for its reader."""
        return bool(self._pending)

    def begin(self) -> None:
        """Drop what an earlier run wrote.

        Raises:
            ConfigError: that is not possible.
        """
        if self._begins_empty:
            with refusing(self.name):
                os.ftruncate(self.fd, 0)

    def write(self, data: bytes, *, wait: bool = True) -> None:
        """Append all of ``data``.

        Args:
            data: what comes next.
            wait: for a reader who is slow; False: what it leaves is kept until the next call.

        Raises:
            HostError: that is not possible any more.
        """
        rest = memoryview(self._pending + data if self._pending else data)
        try:
            while rest:
                try:
                    done = os.write(self.fd, rest[:_PIECE])
                except BlockingIOError:
                    if not wait or not self._reader_may_come():
                        break
                else:
                    rest, self._began_to_leave = rest[done:], 0.0
        except OSError as error:
            self.failed = True
            raise HostError(f"{self.name}: {_reason(error)}") from None
        if wait and rest:
            self.failed = True
            self.lost += len(rest)
            rest = rest[:0]
        self._pending = bytes(rest)

    def _reader_may_come(self) -> bool:
        """Wait a moment; False: it has been long enough."""
        if self.leaving():
            now = time.monotonic()
            self._began_to_leave = self._began_to_leave or now
            if now > self._began_to_leave + self.patience:
                return False
        time.sleep(_AGAIN_SECONDS)
        return True


class Document:
    """A file that is written once, as a whole.

    Args:
        name: what messages call it: the option and the path.
        path: where it goes, links resolved.
        fd: the file that is there, open for writing; None: there is none yet.
        replaced: a regular file, which a new one takes the place of; others are written as they are.

    Attributes:
        opens: whether a file has to be opened to write it.
        put: writes it, or raises `OSError`.
    """

    def __init__(self, name: str, path: str, fd: int | None, *, replaced: bool) -> None:
        self.name = name
        self.opens = replaced
        self.put: Callable[[bytes], None] = partial(_put, path, fd, replaced=replaced)

    def write(self, text: str) -> None:
        """Put the document in its place.

        Raises:
            HostError: that is not possible; a file that was to be replaced is as it was.
        """
        try:
            self.put(text.encode("utf-8", "surrogateescape"))
        except OSError as error:
            raise HostError(f"{self.name}: {_reason(error)}") from None


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Let an `OSError` be a line for the user.

    Args:
        name: what the message calls the file: the option and the path.

    Raises:
        ConfigError: instead of it.
    """
    try:
        yield
    except OSError as error:
        if name.endswith("''"):
            raise ConfigError(f"{name}: the path is empty; is a variable unset?") from None
        raise ConfigError(f"{name}: cannot write: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _put(path: str, fd: int | None, data: bytes, *, replaced: bool) -> None:
    if not replaced and fd is not None:
        _write_all(fd, data)
        return
    try:
        _replace(path, data, fd)
    except OSError as error:
        if fd is None or error.errno not in _NOT_BESIDE:
            raise
        os.ftruncate(fd, 0)
        _write_all(fd, data)


def _replace(path: str, data: bytes, old: int | None) -> None:
    """Write a file beside ``path``, and move it there."""
    beside = os.path.join(os.path.dirname(path), f".vmm-{os.urandom(6).hex()}")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            if old is not None:
                was, now = os.fstat(old), os.fstat(fd)
                if (was.st_uid, was.st_gid) != (now.st_uid, now.st_gid):
                    os.fchown(fd, was.st_uid, was.st_gid)
                os.fchmod(fd, stat.S_IMODE(was.st_mode))
            _write_all(fd, data)
        finally:
            os.close(fd)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
