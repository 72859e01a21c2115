"""Records of cpio archives in the "newc" format, of which the kernel unpacks an initial RAM file system.

Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import os

ALIGNMENT = 4
TRAILER = "TRAILER!!!"
"""Name of an archive's last record."""


def header(name: str, mode: int, size: int = 0, *, modified: int = 0, device: tuple[int, int] = (0, 0)) -> bytes:
    """Return what stands before a file's content; the content is padded, too (`padding`).

    Args:
        name: in the archive, without a leading slash.
        mode: type and permissions, as stat(2) has them.
        size: bytes of the content.
        modified: when it was, in seconds since 1970.
        device: major and minor number of a device node.
    """
    encoded = os.fsencode(name) + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device, device of a node (major and minor each), name, checksum
    fields = (0, mode, 0, 0, 1, modified, size, 0, 0, *device, len(encoded), 0)
    record = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return record + padding(len(record))


def padding(length: int) -> bytes:
    """Return what follows ``length`` bytes of an archive."""
    return bytes(-length % ALIGNMENT)
