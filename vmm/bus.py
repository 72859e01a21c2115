"""The machine's two buses, ports and MMIO: which device owns which range.

The table itself is C's (`native/io_table.c`) and serves KVM exits and the
software CPU alike. This module puts Python devices and native handlers into
it, refuses overlaps by name, and keeps a device's exception away from the
run loop.

Locks: the machine's io_lock is held during every device access. A Python
thread may hold the GIL when it takes io_lock, for the call gives the GIL up.
"""

from __future__ import annotations

from vmm._native import ffi, lib
from vmm.errors import ConfigError
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Self

_ALL_ONES = b"\xff"
_LOW_64 = (1 << 64) - 1


class Front(NamedTuple):
    """C code that sees a device's accesses first.

    Attributes:
        handler: a C ``io_handler *``.
        state: what it is called with: a struct that begins with a ``struct io_behind``, filled in by the bus.
    """

    handler: Any
    state: Any


class Device:
    """What answers a range. It sees offsets, not addresses, and does not know where it lives.

    An access is 1 to 8 bytes wide; every width must be answered. Values are
    little-endian; the bus cuts what `read` returns to the width asked for.
    """

    front: Front | None = None
    """Serves in C what would cost too much in Python."""

    def read(self, offset: int, size: int) -> int:
        """The value of ``size`` bytes at ``offset``."""
        raise NotImplementedError

    def write(self, offset: int, size: int, value: int) -> None:
        """Store ``value``, ``size`` bytes wide, at ``offset``."""
        raise NotImplementedError

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        """`REP INS`: ``count`` elements of ``size`` bytes, all from ``offset``."""
        mask = (1 << (8 * size)) - 1
        return b"".join((self.read(offset, size) & mask).to_bytes(size, "little") for _ in range(count))

    def write_string(self, offset: int, size: int, count: int, data: bytes) -> None:
        """`REP OUTS`: ``data`` holds ``count`` elements of ``size`` bytes, all for ``offset``."""
        for at in range(0, size * count, size):
            self.write(offset, size, int.from_bytes(data[at : at + size], "little"))

    def reset(self) -> None:
        """Go back to the state after power-on, as at a reset of the machine."""

    is_part = False
    """Belongs to another device, which gives the state of both."""

    state_version = 1
    """To be raised when `state` changes its meaning: `restore` never sees what another version gave."""

    def state(self) -> dict[str, Any]:
        """All that the guest can find out about the device, as plain data, for `restore`; io_lock is held.

        Plain are None, bool, int, str, bytes, and lists and dicts (of str) of these. Times are the guest clock's.

        Raises:
            NotImplementedError: the device cannot be part of a snapshot.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no state")

    def restore(self, state: dict[str, Any]) -> None:
        """Be, right after it was made, what the device was that gave ``state``; drives its lines; io_lock is held."""
        raise NotImplementedError(f"{type(self).__name__} takes no state")


class IoLock:
    """The recursive io_lock of a machine, as a context manager: for threads that drive devices from outside a vCPU.

    Args:
        core: the C core's ``struct vmm_vm``.
    """

    def __init__(self, core: Any) -> None:
        self._core = core

    def __enter__(self) -> Self:
        try:
            lib.vmm_io_lock(self._core)
        except BaseException:
            # Python raises what a signal's handler raised when the call returns, that is, with the lock.
            lib.vmm_io_unlock(self._core)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lib.vmm_io_unlock(self._core)


class BusRange(NamedTuple):
    """One range of a bus: addresses first to last (inclusive), and accesses so far."""

    name: str
    first: int
    last: int
    reads: int
    writes: int


class _Entry(NamedTuple):
    """A row of the table as Python knows it; opaque and keep keep alive what C's pointers lead to."""

    name: str
    first: int
    last: int
    opaque: Any
    keep: Any = None
    device: Device | None = None


class _Binding:
    """What C's opaque pointer of a Python device leads to."""

    __slots__ = ("bus", "device", "name")

    def __init__(self, bus: Bus, device: Device, name: str) -> None:
        self.bus = bus
        self.device = device
        self.name = name


class Bus:
    """One bus: a view of a C ``struct io_table``.

    Args:
        kind: "port" or "MMIO", for texts.
        table: pointer to the ``struct io_table``.
        lock: the machine's io_lock.
        on_failure: called once, with the exception, when a device raises: should stop the machine.

    Attributes:
        failure: that exception.
        foreign: whether a device was added that is none of vmm's.
    """

    def __init__(
        self, kind: str, table: Any, lock: IoLock, on_failure: Callable[[BaseException], None] | None = None
    ) -> None:
        self.kind = kind
        self.lock = lock
        self.failure: BaseException | None = None
        self.foreign = False
        self._table = table
        self._on_failure = on_failure
        self._entries: dict[int, _Entry] = {}
        self._past: dict[str, tuple[int, int]] = {}

    def __repr__(self) -> str:
        return f"<Bus of {self.kind} addresses, {len(self._entries)} ranges; ranges() has them>"

    def add(self, first: int, last: int, device: Device, name: str) -> None:
        """Give addresses ``first`` to ``last`` (inclusive) to ``device``; allowed at run time.

        Raises:
            ConfigError: the range is empty, overlaps another (both are named), or the table is full.
        """
        self.foreign |= not type(device).__module__.startswith("vmm.")
        handle = ffi.new_handle(_Binding(self, device, name))
        handler = ffi.addressof(lib, "python_device_access")
        if device.front is None:
            self._insert(_Entry(name, first, last, handle, device=device), handler)
        else:
            behind = ffi.cast("struct io_behind *", device.front.state)
            behind.handler, behind.opaque = handler, handle
            self._insert(_Entry(name, first, last, device.front.state, handle, device), device.front.handler)

    def add_native(self, first: int, last: int, handler: Any, opaque: Any, name: str) -> None:
        """Give a range to ``handler``, a C ``io_handler *`` that is called with ``opaque``, which is kept alive.

        Raises:
            ConfigError: as `add`.
        """
        self._insert(_Entry(name, first, last, opaque), handler)

    def remove(self, first: int) -> None:
        """Take away the range that starts at ``first``; its counters stay with its name.

        Raises:
            KeyError: no range starts there.
        """
        with self.lock:
            entry = self._entries.pop(first)
            for row in self._rows():
                if row.first == first:
                    reads, writes = self._past.get(entry.name, (0, 0))
                    self._past[entry.name] = (reads + row.reads, writes + row.writes)
            lib.io_table_remove(self._table, first)

    def ranges(self) -> list[BusRange]:
        """Every range, by rising address, with its counters (those of earlier ranges of the same name included)."""
        with self.lock:
            result = []
            for row in self._rows():
                name = self._entries[row.first].name
                reads, writes = self._past.get(name, (0, 0))
                result.append(BusRange(name, row.first, row.last, reads + row.reads, writes + row.writes))
            return result

    def name_at(self, address: int) -> str:
        """Who owns an address now; "" if nobody does. For who holds `lock`."""
        return next((entry.name for entry in self._entries.values() if entry.first <= address <= entry.last), "")

    def accesses(self) -> int:
        """How often the guest read or wrote, of all ranges together; for who holds `lock`."""
        past = sum(reads + writes for reads, writes in self._past.values())
        return past + sum(int(row.reads + row.writes) for row in self._rows())

    def devices(self) -> list[tuple[str, Device]]:
        """Every Python device with the name of its range, by rising address; one with several ranges comes as often."""
        with self.lock:
            entries = [self._entries[first] for first in sorted(self._entries)]
        return [(entry.name, entry.device) for entry in entries if entry.device is not None]

    def fail(self, error: BaseException) -> None:
        """Keep the first failure of a device and stop the machine."""
        if self.failure is None:
            self.failure = error
            if self._on_failure is not None:
                self._on_failure(error)

    def _rows(self) -> list[Any]:
        return [self._table.ranges[i] for i in range(self._table.count)]

    def _insert(self, entry: _Entry, handler: Any) -> None:
        span = f"{self.kind} {entry.first:#x}-{entry.last:#x} ({entry.name})"
        with self.lock:
            if not 0 <= entry.first <= entry.last:
                raise ConfigError(f"{span} is empty")
            for other in self._entries.values():
                if other.first <= entry.last and entry.first <= other.last:
                    raise ConfigError(f"{span} overlaps {other.first:#x}-{other.last:#x} ({other.name})")
            opaque = ffi.cast("void *", entry.opaque)
            if lib.io_table_add(self._table, entry.first, entry.last, handler, opaque) != 0:
                raise ConfigError(f"{span}: no room for more than {lib.IO_TABLE_MAX_RANGES} ranges")
            self._entries[entry.first] = entry


# Nothing that a device raises may unwind through C: it stops the machine, and the guest reads ones.


def _failed(binding: _Binding, offset: int, error: BaseException) -> None:
    error.add_note(f"in {binding.bus.kind} device {binding.name}, offset {offset:#x}")
    binding.bus.fail(error)


@ffi.def_extern()  # type: ignore[untyped-decorator]
def vmm_python_read(handle: Any, offset: int, size: int) -> int:
    """C's way to a device: one element; C takes the low ``size`` bytes."""
    binding: _Binding = ffi.from_handle(handle)
    try:
        return binding.device.read(offset, size) & _LOW_64
    except BaseException as error:  # noqa: BLE001 - see above
        _failed(binding, offset, error)
        return _LOW_64


@ffi.def_extern()  # type: ignore[untyped-decorator]
def vmm_python_write(handle: Any, offset: int, size: int, value: int) -> None:
    """C's way to a device: one element."""
    binding: _Binding = ffi.from_handle(handle)
    try:
        binding.device.write(offset, size, value)
    except BaseException as error:  # noqa: BLE001 - see above
        _failed(binding, offset, error)


@ffi.def_extern()  # type: ignore[untyped-decorator]
def vmm_python_string(handle: Any, access: Any) -> None:
    """C's way to a device: the batch of a string instruction."""
    binding: _Binding = ffi.from_handle(handle)
    device, offset, size, count = binding.device, access.offset, access.size, access.count
    data = ffi.buffer(access.data, size * count)
    try:
        if access.is_write:
            device.write_string(offset, size, count, bytes(data))
        else:
            data[:] = device.read_string(offset, size, count)
    except BaseException as error:  # noqa: BLE001 - see above
        if not access.is_write:
            data[:] = _ALL_ONES * len(data)
        _failed(binding, offset, error)
