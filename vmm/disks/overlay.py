"""An empty qcow2 image, for what is written over another: in a file without a name, gone with its last descriptor."""

import os
import struct
import tempfile
from typing import Final

from vmm.errors import ConfigError

_CLUSTER_BITS: Final = 16
_CLUSTER: Final = 1 << _CLUSTER_BITS
_REFCOUNT_TABLE, _REFCOUNTS, _L1 = _CLUSTER, 2 * _CLUSTER, 3 * _CLUSTER
"""Where they are; the header is in the first cluster."""

_L1_REACH: Final = _CLUSTER // 8 * _CLUSTER
"""Bytes of the disk that one entry of the L1 table is for."""

_LARGEST: Final = 1 << 51
"""Bytes of a disk: QEMU takes an L1 table of up to 32 MiB, of which each 8 are for so much (block/qcow2.h)."""

_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQQQQII")
"""QEMU, docs/interop/qcow2.txt: magic, version, backing file's offset and length, cluster bits, size, encryption, L1
entries and offset, refcount table's offset and clusters, snapshots and their offset, three masks of features, refcount
order and header length. Big-endian."""


def create(size: int, option: str) -> int:
    """Return the descriptor of an image of a disk of so many bytes that holds nothing of it.

    Args:
        size: of the disk.
        option: what messages call it.

    Raises:
        ConfigError: it is too large, or there is no room.
    """
    if size > _LARGEST:
        raise ConfigError(
            f"{option}: says that it has {size >> 40} TiB; a qcow2 image has {_LARGEST >> 40} at the most"
        )
    entries = -(-size // _L1_REACH)
    clusters = 3 + max(1, -(-8 * entries // _CLUSTER))
    header = _HEADER.pack(
        b"QFI\xfb", 3, 0, 0, _CLUSTER_BITS, size, 0, entries, _L1, _REFCOUNT_TABLE, 1, 0, 0, 0, 0, 0, 4, _HEADER.size
    )
    try:
        with tempfile.TemporaryFile(prefix="vmm-", buffering=0) as file:
            os.ftruncate(file.fileno(), clusters * _CLUSTER)
            for data, at in (
                (header, 0),
                (_REFCOUNTS.to_bytes(8, "big"), _REFCOUNT_TABLE),
                ((1).to_bytes(2, "big") * clusters, _REFCOUNTS),
            ):
                os.pwrite(file.fileno(), data, at)
            return os.dup(file.fileno())
    except OSError as error:
        raise ConfigError(
            f"{option}: no room in {tempfile.gettempdir()} for what the guest writes: "
            f"{(error.strerror or str(error)).lower()}; TMPDIR names another place"
        ) from None
