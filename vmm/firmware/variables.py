"""The user's VARS file while a machine keeps the guest's variables in it.

The guest never sees the file itself: it has a copy, and what it changes is written into the file. So a file that
somebody else truncates, or a disk that is full, is an error with a name, where a shared mapping would end this process.

The file is locked as QEMU locks its disks, so that two machines, ours or QEMU's, do not write into one variable store.
"""

import fcntl
import mmap
import os
import struct
from contextlib import suppress
from errno import EAGAIN, EINVAL, ENOLCK, EOPNOTSUPP
from pathlib import Path
from typing import Final, NoReturn

from vmm.errors import ConfigError, HostError

_BLOCK: Final = 4096

_HELD, _DENIED = 100, 200
"""Bytes of the file that QEMU locks: 100 + n says that its owner has a permission, 200 + n that others may not have it
(RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE in QEMU's block/file-posix.c)."""

_READ, _WRITE, _RESIZE = 0, 1, 3
"""The permissions: BLK_PERM_CONSISTENT_READ, BLK_PERM_WRITE and BLK_PERM_RESIZE in QEMU's block-common.h, as bits."""

_FLOCK: Final = struct.Struct("hhqqi4x")
"""struct flock of fcntl.h, on x86-64: type, whence, start, length, pid."""


class VariableFile:
    """A VARS file, open, locked and read.

    Args:
        path: the file; the store begins at its first byte.
        size: of the store, in bytes.

    Attributes:
        contents: what the flash holds; changing it changes no file.

    Raises:
        ConfigError: it cannot be written, is shorter, or another machine keeps its variables there.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._failed = self._unsynced = False
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"{path}: cannot write the variable store: {_reason(error)}") from None
        try:
            _lock(self._fd, path)
            _reserve(self._fd, path, size)
            self._stored = _read(self._fd, path, size)
        except BaseException:
            os.close(self._fd)
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
                done += os.pwrite(self._fd, new[done:], first + done)
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
                os.fdatasync(self._fd)
        except OSError as error:
            self._fail(_reason(error))
        finally:
            os.close(self._fd)

    def _check_unchanged(self, first: int, end: int) -> None:
        """Check that no program that ignores locks has changed the part of the file that is about to be written."""
        there = os.fstat(self._fd)
        if there.st_nlink == 0:
            self._fail("the file was removed or replaced while the machine ran")
        if there.st_size < len(self._stored) or os.pread(self._fd, end - first, first) != self._stored[first:end]:
            self._fail("another process changed the file while the machine ran")

    def _fail(self, why: str) -> NoReturn:
        self._failed = True
        raise HostError(f"{self._path}: cannot write the guest's variables: {why}; {self._rescue()}")

    def _rescue(self) -> str:
        """Save what the guest has beside the file; say where."""
        copy = self._path.with_name(f"{self._path.name}.rescued-{os.urandom(4).hex()}")
        try:
            copy.write_bytes(self.contents)
        except OSError as error:
            with suppress(OSError):
                copy.unlink()
            return f"they could not be saved in {copy} either: {_reason(error)}"
        return f"they are in {copy}"


def _lock(fd: int, path: Path) -> None:
    """Take the locks of a writer that lets nobody else write.

    Raises:
        ConfigError: somebody else has a lock that excludes this.
    """
    try:
        for byte in (_HELD + _READ, _HELD + _WRITE, _DENIED + _WRITE, _DENIED + _RESIZE):
            _control(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, byte)
        excluding = (_DENIED + _READ, _DENIED + _WRITE, _HELD + _WRITE, _HELD + _RESIZE)
        taken = any(_control(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, byte) != fcntl.F_UNLCK for byte in excluding)
    except OSError as error:
        # A file system without locks; QEMU goes on without, too.
        if error.errno in {ENOLCK, EOPNOTSUPP, EINVAL}:
            return
        if error.errno != EAGAIN:
            raise
        taken = True
    if taken:
        raise ConfigError(
            f"{path}: {_owner(fd)} keeps its variables there; end it first, or give this machine a copy of the file, "
            "or a private one: readonly=on behind -drive, persist=False in Python"
        )


def _control(fd: int, command: int, kind: int, byte: int) -> int:
    """One fcntl about the lock of one byte; returns the kind of lock that comes back."""
    answer = fcntl.fcntl(fd, command, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
    return int(_FLOCK.unpack(answer)[0])


def _owner(fd: int) -> str:
    """Name the processes that hold a lock on the file: the kernel names no owner of these locks."""
    there, own = os.fstat(fd), str(os.getpid())
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and _has_locked(process, there, but=str(fd) if process.name == own else ""):
            name = (process / "comm").read_text().strip()
            return "another machine of this process" if process.name == own else f"process {process.name} ({name})"
    return "another process"


def _has_locked(process: Path, there: os.stat_result, *, but: str) -> bool:
    with suppress(OSError):  # somebody else's process, or one that has just ended
        for info in (process / "fdinfo").iterdir():
            with suppress(OSError):
                same = info.name != but and os.path.samestat((process / "fd" / info.name).stat(), there)
                if same and "lock:" in info.read_text():
                    return True
    return False


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
