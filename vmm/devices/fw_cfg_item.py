"""The items of fw_cfg: what each contains, what its use calls back, and what the guest did with it.

And how they are found: by C in a table, by the guest in the directory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping

from vmm._native import ffi, lib
from vmm.devices.fw_cfg_format import DIRECTORY_ENTRY, INDEX_MASK, Buffer, Key
from vmm.errors import ConfigError
from vmm.pin import Pinned
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

COUNTERS = ("selects", "reads", "bytes_read", "writes", "ends")
"""Of ``struct fw_cfg_item``."""

OnSelect = Callable[[], None]
"""Called before the guest can read the item's first byte."""

BuildFiles = Callable[[], Mapping[str, Buffer]]
"""Gives the contents of files by name."""

OnWrite = Callable[[int, bytes], None]
"""Called with (offset, the stored bytes) after a guest's DMA write."""


class ItemStatistics(NamedTuple):
    """One item and what the guest did with it so far; sizes in bytes."""

    name: str
    key: int
    size: int
    selects: int
    reads: int
    """Port accesses (a string instruction's batch is one) and DMA transfers that delivered bytes of the item."""
    bytes_read: int
    writes: int
    read_to_end: bool


class Item(NamedTuple):
    """An item as it is registered; files have the key -1 until they get theirs."""

    name: str
    key: int
    contents: Any
    """Owned ``uint8_t[]`` if writable, else the caller's buffer."""
    pin: Any
    """Keeps the contents in place."""
    size: int
    writable: bool
    initial: bytes | None
    on_select: OnSelect | None
    on_write: OnWrite | None

    @property
    def pointer(self) -> Any:
        """What C reads the contents from: a ``uint8_t *``, NULL where there are none."""
        return ffi.cast("uint8_t *", self.contents) if self.size else ffi.NULL

    def statistics(self, row: Any) -> ItemStatistics:
        """What the guest did with it, by its row of `table`."""
        return ItemStatistics(
            name=self.name,
            key=self.key,
            size=self.size,
            selects=row.selects,
            reads=row.reads,
            bytes_read=row.bytes_read,
            writes=row.writes,
            read_to_end=row.ends > 0 or (self.size == 0 and row.selects > 0),
        )


class LateFiles:
    """Files that `vmm.devices.fw_cfg.FwCfg.add_late_files` added."""

    def __init__(self, names: Iterable[str], build: BuildFiles, *, built: bool, follow_guest: bool) -> None:
        self.names = tuple(names)
        self.build = build
        self.built = built
        self.selected = False  # by the guest, since power-on or reset
        self._follow_guest = follow_guest

    @property
    def stale(self) -> bool:
        """Whether the contents are not there yet, or not yet what the guest should see."""
        return not self.built or (self._follow_guest and not self.selected)


def new_item(
    name: str, key: int, data: Buffer, writable: bool, on_select: OnSelect | None, on_write: OnWrite | None
) -> Item:
    """Take contents in: in place, or as a copy of our own if the guest may write them.

    Raises:
        ConfigError: they are larger than an item can be.
    """
    address, size, pin = Pinned.of(data)
    if size > 0xFFFFFFFF:
        raise ConfigError(f"fw_cfg item {name}: {size} bytes; an item holds 4294967295 at the most")
    given = ffi.cast("uint8_t *", address)
    if not writable:
        return Item(name, key, given, pin, size, False, None, on_select, on_write)
    initial = bytes(ffi.buffer(given, size))
    own = ffi.new("uint8_t[]", size)
    ffi.buffer(own)[:] = initial
    return Item(name, key, own, own, size, True, initial, on_select, on_write)


def directory(files: Iterable[Item]) -> bytes:
    """The bytes of the directory: a big-endian count, and one entry per file, by their keys."""
    entries = [
        DIRECTORY_ENTRY.pack(item.size, item.key, 0, item.name.encode("ascii"))
        for item in sorted(files, key=lambda item: item.key)
    ]
    return struct.pack(">I", len(entries)) + b"".join(entries)


def table(items: Mapping[int, Item]) -> Any:
    """The ``struct fw_cfg_item`` rows of items by their keys, all generic or all of the architecture."""
    size = max((key & INDEX_MASK for key in items), default=-1) + 1
    rows = ffi.new("struct fw_cfg_item[]", size)
    for key, item in items.items():
        row = rows[key & INDEX_MASK]
        row.data = item.pointer
        row.length = item.size
        if item.writable and key != Key.FILE_DIR:
            row.flags |= lib.FW_CFG_WRITABLE
        if item.on_select is not None:
            row.flags |= lib.FW_CFG_NOTIFY_SELECT
        if item.on_write is not None:
            row.flags |= lib.FW_CFG_NOTIFY_WRITE
    return rows
