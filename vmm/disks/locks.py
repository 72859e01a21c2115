"""The locks by which QEMU keeps two machines from writing into one file; ours are the same.

A process that uses a file holds a shared lock on a byte for each permission that it has, and on another for each that
it does not grant to others, and asks whether somebody has a lock that contradicts this (QEMU, block/file-posix.c).
"""

import fcntl
import os
import struct
from contextlib import suppress
from errno import EAGAIN, EINVAL, ENOLCK, EOPNOTSUPP
from pathlib import Path
from typing import Final

_HELD, _DENIED = 100, 200
"""Bytes of the file that QEMU locks: 100 + n says that its owner has a permission, 200 + n that others may not have it
(RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE)."""

_READ, _WRITE, _RESIZE = 0, 1, 3
"""The permissions: BLK_PERM_CONSISTENT_READ, BLK_PERM_WRITE and BLK_PERM_RESIZE in QEMU's block-common.h, as bits."""

_FLOCK: Final = struct.Struct("hhqqi4x")
"""struct flock of fcntl.h, on x86-64: type, whence, start, length, pid."""


def lock(fd: int, *, writes: bool) -> str | None:
    """Take the locks of who lets nobody else write, until ``fd`` is closed.

    Args:
        fd: the file, open for reading at least.
        writes: whether we do.

    Returns:
        None; or who has a lock that excludes this, for a message.

    Raises:
        OSError: the file system failed. One that has no locks is taken as it is, as by QEMU.
    """
    held = (_READ, _WRITE) if writes else (_READ,)
    denied = (_WRITE, _RESIZE)
    excluding = (*(_DENIED + permission for permission in held), *(_HELD + permission for permission in denied))
    try:
        for byte in (*(_HELD + permission for permission in held), *(_DENIED + permission for permission in denied)):
            _control(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, byte)
        taken = any(_control(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, byte) != fcntl.F_UNLCK for byte in excluding)
    except OSError as error:
        if error.errno in {ENOLCK, EOPNOTSUPP, EINVAL}:
            return None
        if error.errno != EAGAIN:
            raise
        taken = True
    return _owner(fd) if taken else None


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
