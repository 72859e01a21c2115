"""A snapshot in a file.

A header: magic number, version of the format, sizes, and a checksum of all the rest. Then the description (JSON), the
bytes that it refers to, and the memory: only what is no zeros. All numbers are little-endian.
"""

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vmm.errors import ConfigError, HostError
from vmm.run import snapshot_plain
from vmm.run.snapshot_memory import SnapshotMemory

MAGIC = b"vmm-snapshot\n\x1a\0\0"
"""16 bytes; the control characters show what took the file for text."""

VERSION = 1
"""Of the format, and of what the states in it mean that are not some device's."""

_HEADER = struct.Struct("<16sIIQQQ32s")
"""MAGIC, version, zero, bytes of the description, bytes it refers to, bytes of memory, SHA-256 of these three."""

_CHUNK = 4 << 20


class _Contents(NamedTuple):
    config: Any
    state: dict[str, Any]
    memory: SnapshotMemory


def place_of(path: Path) -> Path:
    """Where a snapshot goes that is to be in ``path``, links resolved.

    Raises:
        ConfigError: what is there is no file that another one could take the place of.
    """
    place = Path(os.path.realpath(path))
    if place.exists() and not place.is_file():
        raise ConfigError(f"{path}: no regular file, and a snapshot takes the place of what is there")
    return place


def write(path: Path, config: Any, state: dict[str, Any], memory: SnapshotMemory) -> None:
    """Write a snapshot beside ``path``, and move it there as a whole.

    Raises:
        HostError: the file cannot be written.
        ConfigError: the configuration has something in it that a file cannot have, or see `place_of`.
    """
    place = place_of(path)
    extents = [[offset, size] for offset, size in memory.extents()]
    sizes = {name: size for name, (_, size) in memory.parts.items()}
    text, blobs = snapshot_plain.encode({"config": config, "state": state, "sizes": sizes, "extents": extents})
    beside = place.with_name(f".vmm-{os.urandom(6).hex()}")
    try:
        with beside.open("xb") as file:
            file.write(bytes(_HEADER.size))
            digest = hashlib.sha256()
            for described in (*_cut(text), *_cut(blobs)):
                digest.update(described)
                file.write(described)
            total = 0
            for piece in _pieces(memory, extents):
                digest.update(piece)
                total += file.write(piece)
            file.seek(0)
            file.write(_HEADER.pack(MAGIC, VERSION, 0, len(text), len(blobs), total, digest.digest()))
        beside.replace(place)
    except OSError as error:
        raise HostError(f"{path}: cannot write the snapshot: {_reason(error)}") from None
    finally:
        beside.unlink(missing_ok=True)


def _cut(data: bytes) -> Iterator[memoryview]:
    """What is done at once: an interrupt waits for no more."""
    view = memoryview(data)
    return (view[at : at + _CHUNK] for at in range(0, len(view), _CHUNK))


def _pieces(memory: SnapshotMemory, extents: list[list[int]]) -> Iterator[bytes]:
    for offset, size in extents:
        for at in range(offset, offset + size, _CHUNK):
            yield os.pread(memory.fd, min(_CHUNK, offset + size - at), at)


def read(path: Path) -> _Contents:
    """Read a snapshot, and check it.

    Raises:
        ConfigError: it cannot be read, is none, of another version, or damaged.
        HostError: there is no memory for it.
    """
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the snapshot: {_reason(error)}") from None


def _read(path: Path, file: Any) -> _Contents:
    header = file.read(_HEADER.size)
    if len(header) != _HEADER.size or not header.startswith(MAGIC):
        raise ConfigError(f"{path}: not a snapshot of vmm")
    _, version, _, text_size, blobs_size, memory_size, checksum = _HEADER.unpack(header)
    if version != VERSION:
        raise ConfigError(f"{path}: a snapshot of format {version}, and this vmm has {VERSION}; take it again")
    there = os.fstat(file.fileno()).st_size
    expected = _HEADER.size + text_size + blobs_size + memory_size
    if there != expected:
        raise ConfigError(f"{path}: {there} bytes instead of {expected}: not all of the snapshot; take it again")
    try:
        return _parse(file, text_size, blobs_size, memory_size, checksum)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, ConfigError):
        raise ConfigError(f"{path}: the snapshot is damaged; take it again") from None


def _parse(file: Any, text_size: int, blobs_size: int, memory_size: int, checksum: bytes) -> _Contents:
    digest = hashlib.sha256()
    text, blobs = file.read(text_size), file.read(blobs_size)
    digest.update(text)
    digest.update(blobs)
    described = snapshot_plain.decode(text, blobs)
    extents = described["extents"]
    if sum(size for _, size in extents) != memory_size or any(size <= 0 for size in described["sizes"].values()):
        raise ValueError("sizes that do not fit")
    memory = SnapshotMemory(described["sizes"])
    try:
        for offset, size in extents:
            _read_extent(file, memory, offset, size, digest)
        _check_equal(digest.digest(), checksum)
        memory.seal()
    except BaseException:
        memory.close()
        raise
    return _Contents(described["config"], described["state"], memory)


def _read_extent(file: Any, memory: SnapshotMemory, offset: int, size: int, digest: Any) -> None:
    if not 0 <= offset <= offset + size <= memory.size:
        raise ValueError("memory outside of the machine's")
    for at in range(offset, offset + size, _CHUNK):
        piece = file.read(min(_CHUNK, offset + size - at))
        digest.update(piece)
        os.pwrite(memory.fd, piece, at)


def _check_equal(digest: bytes, checksum: bytes) -> None:
    if digest != checksum:
        raise ValueError("another checksum")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
