"""How a file is written: as a document or as a stream.

A document (a report) is written beside its place and moved there as a whole, so that the file of an earlier run stays
until then. A stream (a console, the access log) grows while the machine runs.
"""

from __future__ import annotations

import os
import stat
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


class GrowingFile:
    """A file that grows while the machine runs.

    Attributes:
        name: what messages call it: the option and the path.
        fd: the file, open for writing.
        failed: whether a write failed.
    """

    def __init__(self, name: str, fd: int, *, begins_empty: bool) -> None:
        self.name = name
        self.failed = False
        self.fd = fd
        self._begins_empty = begins_empty

    def begin(self) -> None:
        """Drop what an earlier run wrote.

        Raises:
            ConfigError: that is not possible.
        """
        if self._begins_empty:
            with refusing(self.name):
                os.ftruncate(self.fd, 0)

    def write(self, data: bytes) -> None:
        """Append all of ``data``.

        Raises:
            HostError: that is not possible any more.
        """
        try:
            _write_all(self.fd, data)
        except OSError as error:
            self.failed = True
            raise HostError(f"{self.name}: {_reason(error)}") from None


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
