"""A machine's memory at one moment, in a file that exists in memory alone, and from which machines map it privately."""

import errno
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl
from typing import TYPE_CHECKING, ClassVar, Self

from vmm._native import ffi, lib
from vmm.errors import HostError

if TYPE_CHECKING:
    from typing_extensions import Buffer

PAGE_SIZE: int = lib.PAGES_SIZE

_ALIGNMENT = 2 << 20
"""Of the parts: of a huge page."""

_CHUNK = 64 << 20
"""How much memory is looked through at a time."""

_MAP_NORESERVE = 0x4000
"""<asm-generic/mman-common.h>; Python names it from 3.13 on."""

_PAGEMAP = "/proc/self/pagemap"

_THERE = (1 << 63).to_bytes(8, "little")
"""Its entry of a page that is present."""


class SnapshotMemory:
    """The parts of a memory by name, one behind the other.

    Args:
        sizes: bytes of each part, whole pages.

    Attributes:
        parts: where each begins, and its size.
        size: of the whole.

    Raises:
        HostError: the kernel gives no such file.
    """

    given: ClassVar[int] = -1
    """Of a process that can make no file: the one that it has, for one snapshot at a time (see `room`); -1: none."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.parts, self.size = _divided(sizes)
        self._fd = -1
        try:
            self._fd = _new_file(self.size) if self.given < 0 else os.dup(self.given)
        except OSError as error:
            self.close()
            raise HostError(f"no memory for a snapshot of {self.size >> 20} MiB: {error.strerror}") from None
        if self.given >= 0 and self.size > (room := os.fstat(self._fd).st_size):
            self.close()
            raise HostError(f"a snapshot of {self.size >> 20} MiB, and its process was given room for {room >> 20} MiB")

    @classmethod
    def around(cls, fd: int, sizes: Mapping[str, int]) -> Self:
        """The memory that is in a file; ``sizes`` as they were when it was stored there."""
        self = cls.__new__(cls)
        self.parts, self.size = _divided(sizes)
        self._fd = fd
        return self

    @staticmethod
    def room(size: int) -> int:
        """A file of this size, which cannot get another one, for another process to store a snapshot in.

        Raises:
            HostError: the kernel gives no such file.
        """
        try:
            fd = _new_file(size)
        except OSError as error:
            raise HostError(f"no memory for a snapshot of {size >> 20} MiB: {error.strerror}") from None
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
        return fd

    @classmethod
    def copied(cls, room: int, sizes: Mapping[str, int]) -> Self:
        """What another process has stored in a file that `room` made, which is empty again afterwards.

        Raises:
            HostError: there is not enough memory.
            ValueError: the sizes are more than there was room for.
        """
        most = os.fstat(room).st_size
        stored = cls.around(os.dup(room), sizes)
        if stored.size > most or any(size <= 0 for size in sizes.values()):
            raise ValueError("sizes that do not fit")
        memory = cls(sizes)
        try:
            for at, size in stored.extents():
                for begin in range(at, at + size, _CHUNK):
                    piece = os.pread(room, min(_CHUNK, at + size - begin), begin)
                    os.pwrite(memory.fd, piece, begin)
            with mmap.mmap(room, most) as all_of_it:
                all_of_it.madvise(mmap.MADV_REMOVE)
            memory.seal()
        except OSError as error:
            memory.close()
            raise HostError(f"no memory for a snapshot: {error.strerror}") from None
        except BaseException:
            memory.close()
            raise
        return memory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    @property
    def fd(self) -> int:
        """The file.

        Raises:
            ValueError: it is closed.
        """
        if self._fd < 0:
            raise ValueError("the snapshot is closed")
        return self._fd

    def close(self) -> None:
        """Give the file back; machines that were restored from it keep what they have mapped."""
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)

    def store(self, name: str, contents: "Buffer", filled: Sequence[tuple[int, int]] | None = None) -> int:
        """Copy the contents of a part; zeros take no room.

        Args:
            name: of the part.
            contents: as many bytes, page-aligned.
            filled: offsets and sizes of what needs a look even where this process has not touched it; None: all.

        Returns:
            How many bytes it took.

        Raises:
            HostError: there is not enough memory.
        """
        offset, size = self.parts[name]
        pagemap = None if filled is None else _open_pagemap()
        total = 0
        try:
            with ffi.from_buffer("uint8_t[]", contents) as pin:
                address = int(ffi.cast("uintptr_t", pin))
                for at in range(0, size, _CHUNK):
                    length = min(_CHUNK, size - at)
                    pages = ffi.NULL
                    if pagemap is not None:
                        there = _read_pagemap(pagemap, address + at, length)
                        _mark_filled(there, at, filled or ())
                        pages = ffi.from_buffer("uint64_t[]", there)
                    stored = lib.pages_store(self.fd, offset + at, pin + at, length, pages)
                    if stored < 0:
                        raise HostError(f"no memory for the snapshot: {os.strerror(-stored)}")
                    total += stored
        finally:
            if pagemap is not None:
                os.close(pagemap)
        return total

    def store_file(self, name: str, fd: int) -> None:
        """Copy the contents of a part from a file.

        Args:
            name: of the part.
            fd: the file, not larger than the part; its holes take no room.

        Raises:
            HostError: there is not enough memory.
        """
        offset, _ = self.parts[name]
        try:
            for at, size in _extents(fd, os.fstat(fd).st_size):
                _copy(fd, at, self.fd, offset + at, size)
        except OSError as error:
            raise HostError(f"no memory for the snapshot: {error.strerror}") from None

    def copy_to(self, name: str, fd: int) -> None:
        """Copy a part into a file, which is empty and may be smaller: then it gets what fits.

        Raises:
            OSError: there is no room.
        """
        offset, _ = self.parts[name]
        most = os.fstat(fd).st_size
        for at, size in self.filled(name):
            _copy(self.fd, offset + at, fd, at, min(size, most - at))

    def seal(self) -> None:
        """Let nobody change it any more; whose file it is in the end does that."""
        if self.given >= 0:
            return
        fcntl(self.fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

    def map(self, name: str) -> mmap.mmap:
        """A part as memory of one's own: what is written there is written nowhere else.

        Raises:
            ValueError: it is closed.
            HostError: there is no address space.
        """
        offset, size = self.parts[name]
        try:
            return mmap.mmap(self.fd, size, flags=mmap.MAP_PRIVATE | _MAP_NORESERVE, offset=offset)
        except OSError as error:
            raise HostError(f"cannot map {size >> 20} MiB of a snapshot: {error.strerror}") from None

    def filled(self, name: str) -> list[tuple[int, int]]:
        """Where a part holds anything: offsets in the part and sizes."""
        offset, size = self.parts[name]
        ends = ((max(at, offset), min(at + length, offset + size)) for at, length in self.extents())
        return [(begin - offset, end - begin) for begin, end in ends if begin < end]

    def extents(self) -> Iterator[tuple[int, int]]:
        """Where the file holds anything: offset and size, by rising offset."""
        return _extents(self.fd, self.size)


def _extents(fd: int, end: int) -> Iterator[tuple[int, int]]:
    """Where a file holds anything up to ``end``."""
    at = 0
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        hole = os.lseek(fd, at, os.SEEK_HOLE)
        yield at, hole - at
        at = hole


def _copy(source: int, at: int, target: int, to: int, size: int) -> None:
    for done in range(0, size, _CHUNK):
        os.pwrite(target, os.pread(source, min(_CHUNK, size - done), at + done), to + done)


def _divided(sizes: Mapping[str, int]) -> tuple[dict[str, tuple[int, int]], int]:
    parts: dict[str, tuple[int, int]] = {}
    at = 0
    for name, size in sizes.items():
        parts[name] = at, size
        at += size + -size % _ALIGNMENT
    return parts, at


def _new_file(size: int) -> int:
    fd = os.memfd_create("vmm-snapshot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.truncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


def _open_pagemap() -> int | None:
    with suppress(OSError):  # a sandbox may hide it, and then all pages are looked at
        return os.open(_PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
    return None


def _mark_filled(pagemap: bytearray, start: int, filled: Sequence[tuple[int, int]]) -> None:
    """Let a piece of the page map, that of the memory from ``start`` on, say of these pages that they are there."""
    pages = len(pagemap) // 8
    for offset, size in filled:
        first = max(0, (offset - start) // PAGE_SIZE)
        end = min(pages, (offset + size - start) // PAGE_SIZE)
        if first < end:
            pagemap[first * 8 : end * 8] = _THERE * (end - first)


def _read_pagemap(fd: int, address: int, size: int) -> bytearray:
    wanted = size // PAGE_SIZE * 8
    data = bytearray(os.pread(fd, wanted, address // PAGE_SIZE * 8))
    if len(data) != wanted:
        raise HostError(f"{_PAGEMAP}: {len(data)} bytes instead of {wanted}")
    return data
