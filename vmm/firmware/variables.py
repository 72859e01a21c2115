"""The user's VARS file while a machine keeps the guest's variables in it.

The guest never sees the file itself: it has a copy, and what it changes is written into the file. So a file that
somebody else truncates, or a disk that is full, is an error with a name, where a shared mapping would end this process.

The file is locked as QEMU locks its disks, so that two machines, ours or QEMU's, do not write into one variable store.
"""

import mmap
import os
import time
from contextlib import suppress
from errno import EINVAL, EOPNOTSUPP
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from vmm.disks import locks
from vmm.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Callable

_PATIENCE_S: Final = 0.5
"""How long a lock is waited for: what writes files for a VMM that was killed ends with it, but a moment later."""

_BLOCK: Final = 4096


class VariableFile:
    """A VARS file, open, locked and read.

    Args:
        path: the file; the store begins at its first byte.
        size: of the store, in bytes.

    Attributes:
        contents: what the flash holds; changing it changes no file.
        fd: the file.
        put: writes what the guest has into another file, should this one fail, or raises `OSError`.

    Raises:
        ConfigError: it cannot be written, is shorter, or another machine keeps its variables there.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._copy = path.with_name(f"{path.name}.rescued-{os.urandom(4).hex()}")
        self.put: Callable[[bytes], None] = partial(_write, self._copy)
        self._failed = self._unsynced = False
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"{path}: cannot write the variable store: {_reason(error)}") from None
        try:
            _lock(self.fd, path)
            _reserve(self.fd, path, size)
            self._stored = _read(self.fd, path, size)
        except BaseException:
            os.close(self.fd)
            raise
        self.contents = mmap.mmap(-1, size)
        self.contents[:] = self._stored

    def store(self, first: int, end: int) -> None:
        """Write what changed from ``first`` to before ``end`` into the file; after a failure, nothing any more.

        The kernel has it then: it survives this process, and is on the disk with `close` at the latest.

        Raises:
            HostError: it cannot be written, or somebody else changed the file; a copy of the store is beside it.
        """
        if self._failed:
            return
        first -= first % _BLOCK
        end = min(end + -end % _BLOCK, len(self._stored))
        try:
            self._check_unchanged(first, end)
            new = self.contents[first:end]
            done = 0
            while done < len(new):
                done += os.pwrite(self.fd, new[done:], first + done)
        except OSError as error:
            self._fail(_reason(error))
        self._stored[first:end] = new
        self._unsynced = True

    def close(self) -> None:
        """Bring everything to the disk, and give up the lock.

        Raises:
            HostError: the disk failed.
        """
        try:
            if self._unsynced and not self._failed:
                os.fdatasync(self.fd)
        except OSError as error:
            self._fail(_reason(error))
        finally:
            os.close(self.fd)

    def _check_unchanged(self, first: int, end: int) -> None:
        """Check that no program that ignores locks has changed the part of the file that is about to be written."""
        there = os.fstat(self.fd)
        if there.st_nlink == 0:
            self._fail("the file was removed or replaced while the machine ran")
        if there.st_size < len(self._stored) or os.pread(self.fd, end - first, first) != self._stored[first:end]:
            self._fail("another process changed the file while the machine ran")

    def _fail(self, why: str) -> NoReturn:
        self._failed = True
        raise HostError(f"{self._path}: cannot write the guest's variables: {why}; {self._rescue()}")

    def _rescue(self) -> str:
        """Save what the guest has beside the file; say where."""
        try:
            self.put(self.contents[:])
        except OSError as error:
            return f"they could not be saved in {self._copy} either: {_reason(error)}"
        return f"they are in {self._copy}"


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError:
        with suppress(OSError):
            path.unlink()
        raise


def _lock(fd: int, path: Path) -> None:
    """Let nobody else write, as long as the file is open.

    Raises:
        ConfigError: somebody else does.
    """
    until = time.monotonic() + _PATIENCE_S
    while (owner := locks.lock(fd, writes=True)) is not None:
        if time.monotonic() >= until:
            raise ConfigError(
                f"{path}: {owner} keeps its variables there; end it first, or give this machine a copy of the file, "
                "or a private one: readonly=on behind -drive, persist=False in Python"
            )
        time.sleep(0.02)


def _read(fd: int, path: Path, size: int) -> bytearray:
    data = bytearray(os.pread(fd, size, 0))
    if len(data) != size:
        raise ConfigError(f"{path}: {len(data)} bytes; it had {size} a moment ago")
    return data


def _reserve(fd: int, path: Path, size: int) -> None:
    """Make sure that a disk which fills up later has room for the store.

    Raises:
        ConfigError: it has none now.
    """
    try:
        if os.fstat(fd).st_size >= size:
            os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in {EOPNOTSUPP, EINVAL}:
            raise ConfigError(f"{path}: no room for the variable store: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
