"""fw_cfg once more, as plainly as possible: the model that `native/fw_cfg.c` is compared with.

Every rule of the device in one place, in Python, without regard to speed.
Nothing of a running machine uses it; tests drive it and C with the same
operations and compare answers, offsets and memory.

Source: docs/specs/fw_cfg.rst in QEMU, and what QEMU 7.2 was measured to do
where the specification is silent. Differences from QEMU are those that
`native/include/vmm/fw_cfg.h` lists.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from vmm.devices.fw_cfg_format import ARCH_LOCAL, INDEX_MASK

KEY_INVALID = 0xFFFF
"""What is selected after a key that does not exist."""

DMA_ERROR = 1 << 0
DMA_READ = 1 << 1
DMA_SKIP = 1 << 2
DMA_SELECT = 1 << 3
DMA_WRITE = 1 << 4

DESCRIPTOR = struct.Struct(">IIQ")
"""control, length, address; big-endian."""

DMA_SIGNATURE = b"QEMU CFG"
"""What the DMA register reads as."""


@dataclass
class ModelRegion:
    """A piece of guest memory."""

    gpa: int
    data: bytearray
    read_only: bool = False


@dataclass
class ModelMemory:
    """Guest memory, byte by byte; addresses continue at 0 behind 2^64 for stores, as on a bus."""

    regions: list[ModelRegion]

    def region(self, gpa: int) -> ModelRegion | None:
        """The region that holds the byte at ``gpa``."""
        for region in self.regions:
            if region.gpa <= gpa < region.gpa + len(region.data):
                return region
        return None

    def read(self, gpa: int, size: int) -> bytes | None:
        """``size`` bytes, or None if one of them is nowhere or beyond 2^64."""
        result = bytearray()
        for address in range(gpa, gpa + size):
            region = self.region(address)
            if region is None:
                return None
            result.append(region.data[address - region.gpa])
        return bytes(result)

    def write(self, gpa: int, data: bytes) -> bool:
        """Store what there is writable memory for; whether that was all."""
        complete = True
        for at, byte in enumerate(data):
            address = (gpa + at) % (1 << 64)
            region = self.region(address)
            if region is None or region.read_only:
                complete = False
            else:
                region.data[address - region.gpa] = byte
        return complete


@dataclass
class ModelItem:
    """One key's contents."""

    data: bytearray
    writable: bool = False
    on_select: Callable[[], None] | None = None
    on_write: Callable[[int, int], None] | None = None


@dataclass
class FwCfgModel:
    """The device; ports are given as offsets from 0x510."""

    items: dict[int, ModelItem]
    """By key; bit 15 tells the architecture's own table."""
    memory: ModelMemory
    dma: bool = True
    key: int = 0
    offset: int = 0
    dma_address: int = 0
    initial: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.initial = {key: bytes(item.data) for key, item in self.items.items() if item.writable}

    # -- the registers ----------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> bytes:
        """IN of ``size`` bytes."""
        result = b""
        while len(result) < size:
            piece = self._piece(offset + len(result), size - len(result))
            result += self._read_piece(offset + len(result), piece)
        return result

    def write(self, offset: int, data: bytes) -> None:
        """OUT of ``data``."""
        done = 0
        while done < len(data):
            piece = self._piece(offset + done, len(data) - done)
            self._write_piece(offset + done, data[done : done + piece])
            done += piece

    def reset(self) -> None:
        """Select the signature; writable items get their first contents back."""
        self.key, self.offset, self.dma_address = 0, 0, 0
        for key, data in self.initial.items():
            self.items[key].data[:] = data

    @staticmethod
    def _piece(offset: int, size: int) -> int:
        """How much of an access arrives at ``offset`` as one: what is aligned in its block (0-3 or 4-11)."""
        block = offset - 4 if offset >= 4 else offset
        return max(piece for piece in (1, 2, 4) if piece <= size and block % piece == 0)

    def _read_piece(self, offset: int, size: int) -> bytes:
        if offset in {0, 1}:
            # The data port answers bytes, at the selector's address as well; the selector cannot be read.
            return self._data(1) if size == 1 else bytes(size)
        if offset in {2, 3} or not self.dma:
            return b"\xff" * size
        return DMA_SIGNATURE[offset - 4 : offset - 4 + size]

    def _write_piece(self, offset: int, data: bytes) -> None:
        if offset == 0 and len(data) == 2:
            self.select(int.from_bytes(data, "little"))
        elif offset == 4 and len(data) == 4 and self.dma:
            self.dma_address = int.from_bytes(data, "big") << 32
        elif offset == 8 and len(data) == 4 and self.dma:
            address = self.dma_address | int.from_bytes(data, "big")
            self.dma_address = 0
            self._transfer(address)

    # -- selector and data ------------------------------------------------------------------------------------------

    def select(self, selector: int) -> None:
        """Choose an item; bit 14 of the selector means nothing."""
        key = selector & (ARCH_LOCAL | INDEX_MASK)
        self.key = key if key in self.items else KEY_INVALID
        self.offset = 0
        item = self.items.get(self.key)
        if item is not None and item.on_select is not None:
            item.on_select()

    def _left(self) -> int:
        item = self.items.get(self.key)
        return len(item.data) - self.offset if item is not None else 0

    def _data(self, length: int) -> bytes:
        """The next bytes; zeros behind the end, where the offset stays."""
        moved = min(length, self._left())
        data = bytes(self.items[self.key].data[self.offset : self.offset + moved]) if moved else b""
        self.offset += moved
        return data.ljust(length, b"\0")

    # -- DMA --------------------------------------------------------------------------------------------------------

    def _transfer(self, address: int) -> None:
        raw = self.memory.read(address, DESCRIPTOR.size)
        if raw is None:
            self.memory.write(address, DMA_ERROR.to_bytes(4, "big"))
            return
        control, length, buffer = DESCRIPTOR.unpack(raw)
        if control & DMA_SELECT:
            self.select(control >> 16)
        answer = True
        if control & DMA_READ:
            answer = self._dma_read(buffer, length)
        elif control & DMA_WRITE:
            answer = self._dma_write(buffer, length)
        elif control & DMA_SKIP:
            self.offset += min(length, self._left())
        self.memory.write(address, (0 if answer else DMA_ERROR).to_bytes(4, "big"))

    def _dma_read(self, buffer: int, length: int) -> bool:
        moved = min(length, self._left())
        if not self.memory.write(buffer, self._data(moved)):
            return False
        return self.memory.write(buffer + moved, bytes(length - moved))

    def _dma_write(self, buffer: int, length: int) -> bool:
        if length == 0:
            return True
        left = self._left()
        if left == 0:
            return False
        item, start = self.items[self.key], self.offset
        self.offset += min(length, left)
        data = self.memory.read(buffer, length) if item.writable and length <= left else None
        if data is None:
            return False
        item.data[start : start + length] = data
        if item.on_write is not None:
            item.on_write(start, length)
        return True
