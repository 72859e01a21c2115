"""The results of a sweep as a file of JSON lines, which an interrupted sweep goes on with."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vmm.config.output_files import refusing
from vmm.errors import ConfigError, HostError
from vmm.sweep.cell import SCHEMA
from vmm.sweep.matrix import Cell

if TYPE_CHECKING:
    from vmm.sweep.matrix import Matrix


class Results:
    """The file, and what is in it; a context manager.

    A line is written whole, and reaches the disk before the next one. What a cut made of the last line is dropped.

    Args:
        path: of the file; it need not exist.
        again: forget what is in it.

    Attributes:
        by_key: results by the keys of their cells.

    Raises:
        ConfigError: the file is something else, or cannot be written.
    """

    def __init__(self, path: str, *, again: bool = False) -> None:
        self.path = path
        self.by_key: dict[str, dict[str, Any]] = {}
        with refusing(f"--results {path}"):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(self._fd, path)
            with refusing(f"--results {path}"):
                whole = 0 if again else self._read()
                os.ftruncate(self._fd, whole)
                os.lseek(self._fd, whole, os.SEEK_SET)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def add(self, result: dict[str, Any]) -> None:
        """Keep a result.

        Raises:
            HostError: the file cannot be written any more.
        """
        self.by_key[_key(result)] = result
        rest = memoryview(json.dumps(result).encode() + b"\n")
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            os.fsync(self._fd)
        except OSError as error:
            raise HostError(f"--results {self.path}: {(error.strerror or '').lower()}") from None

    def of(self, matrix: Matrix) -> list[tuple[Cell, dict[str, Any] | None]]:
        """Every cell of a matrix, with its result if there is one."""
        return [(cell, self.by_key.get(cell.key)) for cell in matrix.cells()]

    def _read(self) -> int:
        """Take what is there; return where the last whole line ends."""
        data = Path(self.path).read_bytes()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                result = _result(line)
                self.by_key[_key(result)] = result
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                raise ConfigError(
                    f"--results {self.path}: line {number} is no result of a sweep ({SCHEMA}); name another file, or "
                    "remove this one"
                ) from None
        if data and not whole and not data.startswith(b'{"schema": "vmm-sweep'[: len(data)]):
            raise ConfigError(f"--results {self.path}: this is no file of a sweep's results; name another one")
        return whole


def _result(line: bytes) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(line)
    if result["schema"] != SCHEMA:
        raise ValueError(result["schema"])
    return result


def _lock(fd: int, path: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"--results {path}: another sweep writes there") from None


def _key(result: dict[str, Any]) -> str:
    return Cell(dict(result["axes"]), tuple(result["words"])).key
