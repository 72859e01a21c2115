"""One item of fw_cfg: what it contains, what its use calls back, and what the guest did with it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from vmm._native import ffi
from vmm.devices.fw_cfg_format import Buffer
from vmm.errors import ConfigError

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
    """Owned ``uint8_t[]`` if writable, else a cffi view that keeps the caller's buffer alive."""
    size: int
    writable: bool
    initial: bytes | None
    on_select: OnSelect | None
    on_write: OnWrite | None

    @property
    def pointer(self) -> Any:
        """What C reads the contents from: a ``uint8_t *``, NULL where there are none."""
        return ffi.cast("uint8_t *", self.contents) if self.size else ffi.NULL


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
    view = ffi.from_buffer(data)
    size = len(view)
    if size > 0xFFFFFFFF:
        raise ConfigError(f"fw_cfg item {name}: {size} bytes; an item holds 4294967295 at the most")
    if not writable:
        return Item(name, key, view, size, False, None, on_select, on_write)
    initial = bytes(ffi.buffer(view))
    own = ffi.new("uint8_t[]", size)
    ffi.buffer(own)[:] = initial
    return Item(name, key, own, size, True, initial, on_select, on_write)
