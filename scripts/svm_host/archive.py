"""Initial RAM file systems: cpio archives in the "newc" format, which the kernel unpacks one after the other.

Written here, rather than by cpio, so that files need no staging tree: each gets its name in the archive as it goes in.
"""

from __future__ import annotations

import os
import shutil
import stat
from typing import TYPE_CHECKING, BinaryIO

from vmm.verify import initramfs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Archive:
    """One archive, written to ``output`` in a single pass; everything in it belongs to root."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._names = {""}

    def add(self, source: Path, name: str) -> None:
        """Add a file, or a symbolic link as such, under an absolute name; the first of a name counts."""
        status = source.lstat()
        if stat.S_ISLNK(status.st_mode):
            self.link(name, str(source.readlink()))
        elif stat.S_ISREG(status.st_mode) and self._is_new(name):
            self._header(name, status.st_mode, status.st_size, int(status.st_mtime))
            with source.open("rb") as file:
                shutil.copyfileobj(file, self._output, 1 << 20)
            self._pad(status.st_size)

    def add_tree(self, source: Path, name: str, keep: Callable[[Path], bool] = lambda _: True) -> None:
        """Add a directory with all below it that ``keep`` wants; a directory that it refuses is not entered."""
        self.directory(name)
        for entry in sorted(source.iterdir()):
            if not keep(entry):
                continue
            if entry.is_dir() and not entry.is_symlink():
                self.add_tree(entry, f"{name}/{entry.name}", keep)
            else:
                self.add(entry, f"{name}/{entry.name}")

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Add a directory, and those above it."""
        if self._is_new(name):
            self._header(name, stat.S_IFDIR | mode, 0)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        if self._is_new(name):
            content = os.fsencode(target)
            self._header(name, stat.S_IFLNK | 0o777, len(content))
            self._output.write(content)
            self._pad(len(content))

    def text(self, name: str, content: str, mode: int = 0o644) -> None:
        """Add a file that exists nowhere else."""
        if self._is_new(name):
            encoded = content.encode()
            self._header(name, stat.S_IFREG | mode, len(encoded))
            self._output.write(encoded)
            self._pad(len(encoded))

    def end(self) -> None:
        """Write the archive's last record."""
        self._header(initramfs.TRAILER, 0, 0)

    def _is_new(self, name: str) -> bool:
        relative = name.strip("/")
        if relative in self._names:
            return False
        self._names.add(relative)
        self.directory(os.path.dirname(relative))  # noqa: PTH120 - a name in the archive, no path here
        return True

    def _header(self, name: str, mode: int, size: int, modified: int = 0) -> None:
        self._output.write(initramfs.header(name.strip("/"), mode, size, modified=modified))

    def _pad(self, length: int) -> None:
        self._output.write(initramfs.padding(length))
