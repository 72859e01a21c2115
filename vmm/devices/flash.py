"""Parallel NOR flash with Intel's command set (CFI primary command set 1; JESD68, Intel StrataFlash data sheets).

A byte-wide chip with 4 KiB sectors, as QEMU's PCs have it (hw/block/pflash_cfi01.c): OVMF's and bhyve's drivers are
written for that one, so where it differs from a real chip it is followed. A program operation stores the byte as it
is (a real chip only clears bits), and "clear status" clears the ready bit, too, which OVMF's probe looks for.

While the chip is in read-array mode, its contents are mapped read-only into the guest: reads cost nothing, stores
come here. The first command takes the mapping away, "read array" puts it back. Drivers write whole blocks of
program commands before they return to read-array, so changes of the memory slots are rare. Such a block, from its
second byte on, is C's (`native/flash.c`).

While nothing is mapped, reads come here, too, so that KVM may keep stores until then (`native/coalesced.c`): they were
up to nine of ten exits of a boot. "Read array" may be among them; the first read after it brings the mapping back, once
no store waits.

Where the contents are kept somewhere, what changed is written back when the guest returns to read-array, which is when
a driver has finished, and `WRITE_BACK_NS` after the first change at the latest.
"""

import mmap
from collections.abc import Callable
from typing import Any

from vmm._native import ffi, lib
from vmm.bus import Device, Front, IoLock
from vmm.devices.signals import MemoryMapper
from vmm.devices.timer import TimerService
from vmm.pin import Pinned

SECTOR_SIZE = 4096

_READ_ARRAY = (0xFF, 0x00)
_PROGRAM = (0x10, 0x40)
_ERASE = 0x20
_CONFIRM = 0xD0
_CLEAR_STATUS = 0x50
_LOCK = 0x60
_READ_STATUS = 0x70
_READ_ID = 0x90
_READ_CFI = 0x98
_BUFFERED_PROGRAM = 0xE8

_READY = 0x80
_ERASE_ERROR = 0x20
_PROGRAM_ERROR = 0x10

_MANUFACTURER = 0x89
_DEVICE_ID = 0x18

BUFFER_SIZE = 256
"""Bytes of the write buffer."""


WRITE_BACK_NS = 50_000_000
"""How long a change may wait where the guest does not return to read-array."""


class WriteBack:
    """Brings what changes in a chip to where it is kept.

    Args:
        store: writes from one byte of the contents to before another.
        timers: say when, where the guest does not.
        lock: the machine's io_lock.
    """

    def __init__(self, store: Callable[[int, int], object], timers: TimerService, lock: IoLock) -> None:
        self.lock = lock
        self._store = store
        self._clock = timers.clock
        self._timer = timers.timer(self._on_deadline)
        self._loop: Any = None

    def watch(self, loop: Any) -> None:
        """Take the C struct that says what changed in the chip."""
        self._loop = loop

    def begin(self) -> None:
        """Something changed: it may not wait for ever. C does not report what it programs after that."""
        if not self._timer.armed:
            self._timer.arm(self._clock() + WRITE_BACK_NS)

    def write(self) -> None:
        """Write what changed, now."""
        first, end = self._loop.changed_first, self._loop.changed_end
        if end:
            self._timer.cancel()
            self._loop.changed_end = 0
            self._store(first, end)

    def _on_deadline(self) -> None:
        self.write()
        if self._loop.active:
            self.begin()


def cfi_table(size: int) -> bytes:
    """The answer to a CFI query, by offset, for a chip of ``size`` bytes (JESD68.01, 4.3)."""
    table = bytearray(0x40)
    table[0x10:0x13] = b"QRY"
    table[0x13:0x17] = bytes((0x01, 0x00, 0x31, 0x00))  # primary command set 1, its table at 0x31
    table[0x1B:0x1D] = bytes((0x45, 0x55))  # Vcc 4.5 to 5.5 V, binary-coded
    table[0x1F:0x27] = bytes((7, 7, 10, 0, 4, 4, 4, 0))  # log2 of times: byte 128 us, buffer 128 us, erase 1 s
    table[0x27] = (size - 1).bit_length()
    table[0x28:0x2A] = bytes((0x00, 0x00))  # x8 only
    table[0x2A:0x2C] = (BUFFER_SIZE.bit_length() - 1).to_bytes(2, "little")
    table[0x2C] = 1  # one region of equal sectors
    table[0x2D:0x2F] = (size // SECTOR_SIZE - 1).to_bytes(2, "little")
    table[0x2F:0x31] = (SECTOR_SIZE // 256).to_bytes(2, "little")
    table[0x31:0x36] = b"PRI10"
    return bytes(table)


class Flash(Device):
    """One chip.

    Args:
        memory: shows the contents to the guest.
        gpa: where the chip is.
        contents: the array, whole sectors of page-aligned memory.
        read_only: programming and erasing fail with the chip's error bits.
        write_back: where changes go; None: they are kept nowhere.
        secure: only vCPUs in system management mode reach the chip; the others read its contents.
        coalesce: has KVM keep stores to the chip until somebody looks, or not any more, and tells whether none waits;
            None: each comes at once.
    """

    def __init__(
        self,
        memory: MemoryMapper,
        gpa: int,
        contents: mmap.mmap | memoryview,
        *,
        read_only: bool,
        write_back: WriteBack | None = None,
        secure: bool = False,
        coalesce: Callable[[bool], bool] | None = None,
    ) -> None:
        self._coalesce = None if secure else coalesce  # whose store it was, KVM does not say
        self._memory = memory
        self._gpa = gpa
        self._contents = memoryview(contents)
        self._read_only = read_only
        self._cfi = cfi_table(len(self._contents))
        self._status = _READY
        self._mapped = False
        self._command: Callable[[int, int, int], None] = self._first_cycle
        self._answer: Callable[[int], int] = self._read_array
        self._buffer: dict[int, int] = {}
        self._buffer_left = 0
        self._programs = 0
        self.erases = 0
        # C's pointer into the contents, and what C does with it: see close.
        address, size, self._pin = Pinned.of(contents, writable=not read_only)
        self._loop = ffi.new(
            "struct flash_loop *", {"contents": ffi.cast("uint8_t *", address), "size": size, "secure": secure}
        )
        self._write_back = write_back
        if write_back is not None:
            write_back.watch(self._loop)
        self.front = Front(ffi.addressof(lib, "flash_loop_access"), self._loop)
        self._show()

    def __len__(self) -> int:
        return len(self._contents)

    @property
    def programs(self) -> int:
        """Program operations so far; a buffered one counts each of its bytes."""
        return self._programs + int(self._loop.programs)

    def contents(self) -> bytes:
        """A copy of the array, whatever the chip's mode."""
        return bytes(self._contents)

    def read(self, offset: int, size: int) -> int:
        """Bytes of the array, the status, the ID or the CFI table, by mode."""
        if self._answer == self._read_array:
            self._show()
        value = 0
        for i in range(size):
            value |= self._answer(offset + i) << (8 * i)
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """One command cycle; commands are the low byte, data is as wide as the access."""
        self._command(offset, size, value)

    def reset(self) -> None:
        """Read-array mode; contents stay."""
        self._status = _READY
        self._loop.active = self._loop.data_next = False
        self._to_read_array()

    def state(self) -> dict[str, Any]:
        """Where the chip is in its command sequence; the contents are memory."""
        return {
            "status": self._status,
            "command": self._command.__name__,
            "answer": self._answer.__name__,
            "buffer": [[at, byte] for at, byte in self._buffer.items()],
            "buffer_left": self._buffer_left,
            "programs": self.programs,
            "erases": self.erases,
            "active": bool(self._loop.active),
            "data_next": bool(self._loop.data_next),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `state` gave it; the contents are there already."""
        answers = (self._read_array, self._read_status, self._read_id, self._read_cfi)
        answer = next(method for method in answers if method.__name__ == state["answer"])
        if answer != self._read_array:
            self._leave_read_array(answer)
        first = (self._first_cycle, self._program, self._erase, self._lock)
        buffered = (self._buffer_count, self._buffer_data, self._buffer_confirm)
        self._command = next(method for method in first + buffered if method.__name__ == state["command"])
        self._status = state["status"]
        self._buffer = dict(state["buffer"])
        self._buffer_left = state["buffer_left"]
        self._programs = state["programs"]
        self.erases = state["erases"]
        self._loop.active = state["active"]
        self._loop.data_next = state["data_next"]

    def flush(self) -> None:
        """Write back what changed; for when no vCPU runs any more."""
        if self._write_back is not None:
            with self._write_back.lock:
                self._write_back.write()

    def close(self) -> None:
        """Let go of the contents; nothing may read or write the chip afterwards."""
        if self._mapped:
            self._memory.unmap(self._gpa)
            self._mapped = False
        self._loop.active = False
        ffi.release(self._pin)
        self._contents.release()

    # What reads give.

    def _read_array(self, offset: int) -> int:
        return self._contents[offset] if offset < len(self._contents) else 0xFF

    def _read_status(self, offset: int) -> int:
        return self._status

    def _read_id(self, offset: int) -> int:
        return {0: _MANUFACTURER, 1: _DEVICE_ID}.get(offset & 0xFF, 0)

    def _read_cfi(self, offset: int) -> int:
        at = offset & 0xFF
        return self._cfi[at] if at < len(self._cfi) else 0

    # What writes do: one method per state of the command sequence.

    def _first_cycle(self, offset: int, size: int, value: int) -> None:
        command = value & 0xFF
        if command in _PROGRAM:
            self._begin(self._program)
        elif command in _READ_ARRAY:
            self._to_read_array()
        elif command == _ERASE:
            self._begin(self._erase)
        elif command == _READ_STATUS:
            self._leave_read_array(self._read_status)
        elif command == _CLEAR_STATUS:
            self._status = 0
            self._to_read_array()
        elif command == _READ_ID:
            self._leave_read_array(self._read_id)
        elif command == _READ_CFI:
            self._leave_read_array(self._read_cfi)
        elif command == _BUFFERED_PROGRAM:
            self._status |= _READY
            self._buffer.clear()
            self._begin(self._buffer_count)
        elif command == _LOCK:
            self._begin(self._lock)
        else:
            self._to_read_array()

    def _program(self, offset: int, size: int, value: int) -> None:
        self._command = self._first_cycle
        if self._read_only:
            self._status |= _READY | _PROGRAM_ERROR
            return
        self._store(offset, value.to_bytes(size, "little"))
        self._status |= _READY
        self._loop.active = True

    def _erase(self, offset: int, size: int, value: int) -> None:
        self._command = self._first_cycle
        if value & 0xFF in _READ_ARRAY:
            self._to_read_array()
        elif value & 0xFF != _CONFIRM:
            self._status |= _READY | _ERASE_ERROR | _PROGRAM_ERROR
        elif self._read_only:
            self._status |= _READY | _ERASE_ERROR
        else:
            start = offset & -SECTOR_SIZE
            self._change(start, b"\xff" * len(self._contents[start : start + SECTOR_SIZE]))
            self.erases += 1
            self._status |= _READY

    def _lock(self, offset: int, size: int, value: int) -> None:
        # Lock bits are accepted and have no effect, as in QEMU.
        self._command = self._first_cycle
        self._status |= _READY
        if value & 0xFF in _READ_ARRAY:
            self._to_read_array()

    def _buffer_count(self, offset: int, size: int, value: int) -> None:
        self._buffer_left = (value & 0xFF) + 1
        self._command = self._buffer_data

    def _buffer_data(self, offset: int, size: int, value: int) -> None:
        for i in range(size):
            self._buffer[offset + i] = value >> (8 * i) & 0xFF
        self._buffer_left -= size
        if self._buffer_left <= 0:
            self._command = self._buffer_confirm

    def _buffer_confirm(self, offset: int, size: int, value: int) -> None:
        self._command = self._first_cycle
        self._status |= _READY
        if value & 0xFF != _CONFIRM:
            self._status |= _ERASE_ERROR | _PROGRAM_ERROR
        elif self._read_only:
            self._status |= _PROGRAM_ERROR
        else:
            for at, byte in self._buffer.items():
                self._store(at, bytes((byte,)))

    def _store(self, offset: int, data: bytes) -> None:
        end = min(offset + len(data), len(self._contents))
        self._change(offset, data[: max(0, end - offset)])
        self._programs += 1

    def _change(self, offset: int, data: bytes) -> None:
        self._contents[offset : offset + len(data)] = data
        lib.flash_changed(self._loop, offset, len(data))
        if self._write_back is not None:
            self._write_back.begin()

    # Modes.

    def _begin(self, next_cycle: Callable[[int, int, int], None]) -> None:
        self._leave_read_array(self._read_status)
        self._command = next_cycle

    def _leave_read_array(self, answer: Callable[[int], int]) -> None:
        self._answer = answer
        self._command = self._first_cycle
        if self._mapped:
            self._memory.unmap(self._gpa)
            self._mapped = False
            if self._coalesce is not None:
                self._coalesce(True)

    def _show(self) -> None:
        if self._mapped:
            return
        if self._coalesce is not None and not self._coalesce(False):
            return  # another vCPU's, which came meanwhile, may be a command
        self._memory.map_rom(self._gpa, self._contents)
        self._mapped = True

    def _to_read_array(self) -> None:
        self._answer = self._read_array
        self._command = self._first_cycle
        if self._coalesce is None:
            self._show()
        if self._write_back is not None:
            self._write_back.write()
