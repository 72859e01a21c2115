"""fw_cfg's ports answered by Python instead of C: what ``--dispatch python`` runs, to show what that costs.

The same items, from the same published table, with the same counters; only what serves the registers differs. Not
here: the access log, which is C's, and the rules stated one by one, which is `tests/support/fw_cfg_model.py`.

Source: docs/specs/fw_cfg.rst in QEMU's tree. Odd widths and alignments follow hw/nvram/fw_cfg.c there.
"""

import struct
import time
from typing import TYPE_CHECKING, Any

from vmm._native import ffi, lib
from vmm.bus import Device

if TYPE_CHECKING:
    from vmm.devices.fw_cfg import FwCfg

SELECTOR, DATA, DMA_HIGH, DMA_LOW = 0, 1, 4, 8
"""Registers, as offsets in ports 0x510-0x51b."""

DMA_SIGNATURE = b"QEMU CFG"
"""What the DMA register reads as."""

DMA_ERROR, DMA_READ, DMA_SKIP, DMA_SELECT, DMA_WRITE = 1, 2, 4, 8, 16
"""Bits of a descriptor's control word."""

DESCRIPTOR = struct.Struct(">IIQ")
"""Control, length, address; big-endian."""

_WRITE_CHANNEL = 0x4000
_NO_KEY = 0xFFFF
_ADDRESS_MASK = (1 << 64) - 1


class PythonFwCfg(Device):
    """The registers of a published `vmm.devices.fw_cfg.FwCfg`.

    Args:
        fw_cfg: what the items are taken from.
        core: the C core's ``struct vmm_vm``.
    """

    is_part = True

    def __init__(self, fw_cfg: "FwCfg", core: Any) -> None:
        self._fw_cfg = fw_cfg
        self._memory = ffi.addressof(core, "memory")
        self._dma = bool(fw_cfg.native.dma)
        self._dma_address = 0
        self._key = _NO_KEY
        self._item: Any = None
        self._offset = 0
        self.reset()

    def reset(self) -> None:
        """Go back to the state after power-on: key 0 is selected."""
        self._set_selection(0)
        self._dma_address = 0

    def state(self) -> dict[str, Any]:
        """The registers."""
        return {"key": self._key, "offset": self._offset, "dma_address": self._dma_address}

    def restore(self, state: dict[str, Any]) -> None:
        """The registers."""
        self._set_selection(state["key"])
        self._offset = min(state["offset"], 0 if self._item is None else int(self._item.length))
        self._dma_address = state["dma_address"]

    def read(self, offset: int, size: int) -> int:
        """One access, by pieces that the registers know."""
        if size == 1 and offset <= DATA:
            return self._bytes(1)[0]
        return int.from_bytes(b"".join(self._read_piece(*piece) for piece in _pieces(offset, size)), "little")

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        """`REP INSB` from the data port is one read of many bytes."""
        if size == 1 and offset <= DATA:
            return self._bytes(count)
        return super().read_string(offset, size, count)

    def write(self, offset: int, size: int, value: int) -> None:
        """One access, by pieces that the registers know."""
        data = value.to_bytes(size, "little")
        for at, length in _pieces(offset, size):
            self._write_piece(at, data[at - offset : at - offset + length])

    def _read_piece(self, offset: int, size: int) -> bytes:
        if offset <= DATA:
            return self._bytes(1) if size == 1 else bytes(size)
        if offset < DMA_HIGH or not self._dma:
            return b"\xff" * size
        return DMA_SIGNATURE[offset - DMA_HIGH : offset - DMA_HIGH + size]

    def _write_piece(self, offset: int, data: bytes) -> None:
        if offset == SELECTOR and len(data) == 2:
            self._select(int.from_bytes(data, "little"))
        elif self._dma and len(data) == 4 and offset == DMA_HIGH:
            self._dma_address = int.from_bytes(data, "big") << 32
        elif self._dma and len(data) == 4 and offset == DMA_LOW:
            gpa, self._dma_address = self._dma_address | int.from_bytes(data, "big"), 0
            self._transfer(gpa)

    # -- items ------------------------------------------------------------------------------------------------------

    def _set_selection(self, key: int) -> None:
        self._item = self._fw_cfg.row(key)
        self._key = _NO_KEY if self._item is None else key & ~_WRITE_CHANNEL
        self._offset = 0

    def _select(self, key: int) -> None:
        self._set_selection(key)
        if self._item is not None:
            if not self._item.selects:
                self._item.first_ns = time.monotonic_ns()
                self._item.first_instructions = self._fw_cfg.instructions
            self._item.selects += 1
            if self._item.flags & lib.FW_CFG_NOTIFY_SELECT:
                self._fw_cfg.notify(lib.FW_CFG_EVENT_SELECT, self._key, 0, 0)

    @property
    def _left(self) -> int:
        item = self._item
        return 0 if item is None or item.data == ffi.NULL else int(item.length) - self._offset

    def _advance(self, moved: int) -> None:
        item = self._item
        self._offset += moved
        item.reads += 1
        item.bytes_read += moved
        item.ends += self._offset == item.length

    def _bytes(self, length: int) -> bytes:
        """Successive bytes of the selected item; zeros behind its end."""
        moved = min(length, self._left)
        if not moved:
            return bytes(length)
        data = bytes(ffi.buffer(self._item.data + self._offset, moved))
        self._advance(moved)
        return data.ljust(length, b"\0")

    # -- DMA --------------------------------------------------------------------------------------------------------

    def _transfer(self, gpa: int) -> None:
        descriptor = bytearray(DESCRIPTOR.size)
        got = lib.guest_memory_read(self._memory, gpa, ffi.from_buffer(descriptor), len(descriptor))
        if got != len(descriptor):
            self._answer(gpa, DMA_ERROR)
            return
        control, length, address = DESCRIPTOR.unpack(descriptor)
        if control & DMA_SELECT:
            self._select(control >> 16)
        done = True
        if control & DMA_READ:
            done = self._dma_read(address, length)
        elif control & DMA_WRITE:
            done = self._dma_write(address, length)
        elif control & DMA_SKIP:
            self._offset += min(length, self._left)
        self._answer(gpa, 0 if done else DMA_ERROR)

    def _answer(self, gpa: int, control: int) -> None:
        lib.guest_memory_store32(self._memory, gpa, int.from_bytes(control.to_bytes(4, "big"), "little"))

    def _dma_read(self, gpa: int, length: int) -> bool:
        moved = min(length, self._left)
        stored = ffi.new("uint64_t *")
        if moved:
            data = self._item.data + self._offset
            self._advance(moved)
            lib.guest_memory_scatter(self._memory, gpa, data, moved, moved, stored)
            if stored[0] != moved:
                return False
        zeros = length - moved
        lib.guest_memory_scatter(self._memory, (gpa + moved) & _ADDRESS_MASK, ffi.NULL, zeros, zeros, stored)
        return bool(stored[0] == length)

    def _dma_write(self, gpa: int, length: int) -> bool:
        item, offset, left = self._item, self._offset, self._left
        if length == 0:
            return True
        if left == 0:
            return False
        self._offset += min(length, left)
        if not item.flags & lib.FW_CFG_WRITABLE or length > left:
            return False
        if not lib.guest_memory_readable(self._memory, gpa, length):
            return False
        lib.guest_memory_read(self._memory, gpa, item.data + offset, length)
        item.writes += 1
        if item.flags & lib.FW_CFG_NOTIFY_WRITE:
            self._fw_cfg.notify(lib.FW_CFG_EVENT_WRITE, self._key, offset, length)
        return True


def _pieces(offset: int, size: int) -> list[tuple[int, int]]:
    """How an access arrives: (offset, size) with sizes 1, 2 or 4, naturally aligned in the register block.

    The selector's block is at its start aligned to anything, even to a width that reaches beyond it.
    """
    pieces = []
    end = offset + size
    while offset < end:
        block = offset - DMA_HIGH if offset >= DMA_HIGH else offset
        aligned = block & -block if block else 4
        piece = next(n for n in (4, 2, 1) if n <= end - offset and n <= aligned)
        pieces.append((offset, piece))
        offset += piece
    return pieces
