"""The beginning of a file on a FAT volume, for a report that says what is wrong with it; and the names in a folder.

The volume is the guest's, or made for it: whatever it has in it, nothing is raised, and no more than a bound is read.

Source: Microsoft's FAT specification 1.03, 3 (boot sector), 4 (FAT) and 6 and 7 (directories).
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

Read = Callable[[int, int], bytes]
"""Gives so many bytes from an offset in the volume; fewer where it ends."""

_BOOT_SECTOR: Final = struct.Struct("<11xHBHBHHxHxxxxxxxxIIxxxxI")
_ENTRY: Final = 32
_MOST_CLUSTERS: Final = 4096
"""Of a directory or a file that are followed."""
_DIRECTORY_BYTES: Final = 2 << 20
"""The most that a directory may have (6.1: 65536 entries)."""

_LONG_NAME, _VOLUME_LABEL, _DIRECTORY = 0x0F, 0x08, 0x10
_FAT12_CLUSTERS, _FAT16_CLUSTERS = 4085, 65525


def head_of_file(read: Read, path: Sequence[str], size: int) -> bytes | None:
    """Return the first bytes of a file, or all if it has fewer; None where there is none, or no FAT volume.

    Args:
        read: the volume.
        path: the names of its folders and its own.
        size: the most that is returned.
    """
    try:
        return _Volume(read).head(path, size)
    except (struct.error, ValueError, ZeroDivisionError):
        return None


def long_names(read: Read, path: Sequence[str]) -> set[str]:
    """Return the long names that are in a folder; none where there is no such folder, or no FAT volume.

    Args:
        read: the volume.
        path: the names of the folders that lead there, and its own; empty for the root.
    """
    try:
        return {long for _, long, _ in _named(_Volume(read).folder(path) or b"")} - {""}
    except (struct.error, ValueError, ZeroDivisionError):
        return set()


class _Volume:
    def __init__(self, read: Read) -> None:
        self._read = read
        fields = _BOOT_SECTOR.unpack_from(read(0, 512))
        sector, per_cluster, reserved, copies, root_entries, sectors16, fat16, sectors32, fat32, root = fields
        if sector not in {512, 1024, 2048, 4096}:
            raise ValueError
        fat = fat16 or fat32
        self._fat = reserved * sector
        self._root_at = self._fat + copies * fat * sector
        self._root_bytes = root_entries * _ENTRY
        self._root = 0 if fat16 else root
        self._data = self._root_at + -(-self._root_bytes // sector) * sector
        self._cluster = per_cluster * sector
        clusters = ((sectors16 or sectors32) * sector - self._data) // self._cluster
        self._bits = 12 if clusters < _FAT12_CLUSTERS else 16 if clusters < _FAT16_CLUSTERS else 32

    def head(self, path: Sequence[str], size: int) -> bytes | None:
        entries = self.folder(path[:-1])
        found = None if entries is None or not path else self._found(entries, path[-1], 0)
        return None if found is None else self._contents(found[0], min(found[1], size))

    def folder(self, path: Sequence[str]) -> bytes | None:
        """Return a folder's entries; None: there is no such one."""
        entries = self._contents(self._root, _DIRECTORY_BYTES)
        for name in path:
            found = self._found(entries, name, _DIRECTORY)
            if found is None:
                return None
            entries = self._contents(found[0], _DIRECTORY_BYTES)
        return entries

    def _found(self, entries: bytes, name: str, kind: int) -> tuple[int, int] | None:
        """Return the first cluster and the bytes of what has a name, if it is of that kind."""
        wanted = name.lower()
        entry = next((entry for short, long, entry in _named(entries) if wanted in {short, long.lower()} - {""}), None)
        if entry is None or entry[11] & _DIRECTORY != kind:
            return None
        high, low, length = struct.unpack_from("<20xH4xHI", entry)
        return low | (high << 16 if self._bits == 32 else 0), length

    def _contents(self, start: int, size: int) -> bytes:
        if start == 0:
            return self._read(self._root_at, self._root_bytes)
        data = bytearray()
        for cluster in islice(self._chain(start), _MOST_CLUSTERS):
            if len(data) >= size:
                break
            data += self._read(self._data + (cluster - 2) * self._cluster, self._cluster)
        return bytes(data[:size])

    def _chain(self, cluster: int) -> Iterator[int]:
        last = {12: 0xFF7, 16: 0xFFF7, 32: 0x0FFF_FFF7}[self._bits]
        while 2 <= cluster < last:
            yield cluster
            at = cluster * self._bits // 8
            value = int.from_bytes(self._read(self._fat + at, 4 if self._bits == 32 else 2), "little")
            if self._bits == 12:
                value = value >> 4 if cluster & 1 else value & 0xFFF
            cluster = value & 0x0FFF_FFFF


def _named(entries: bytes) -> Iterator[tuple[str, str, bytes]]:
    """Each entry that is a file or a folder: its short name, in lower case, its long one, if it has one, and itself."""
    long = b""
    for at in range(0, len(entries) - _ENTRY + 1, _ENTRY):
        entry = entries[at : at + _ENTRY]
        if entry[0] == 0:
            return
        if entry[0] != 0xE5 and entry[11] & 0x3F == _LONG_NAME:
            long = entry[1:11] + entry[14:26] + entry[28:32] + long
            continue
        if entry[0] != 0xE5 and not entry[11] & _VOLUME_LABEL:
            stem, suffix = (part.decode("cp437").rstrip(" ").lower() for part in (entry[:8], entry[8:11]))
            whole = long.decode("utf-16-le", "replace").partition("\0")[0]
            yield f"{stem}.{suffix}" if suffix else stem, whole, entry
        long = b""
