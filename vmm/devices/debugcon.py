"""The debug console: a port that prints what is written (Bochs's 0xe9, QEMU's isa-debugcon at 0x402).

What is printed after a pause goes out at once; what follows is collected by C (`native/debugcon.c`) for some
milliseconds at a time, for many a firmware prints by single bytes.
"""

from __future__ import annotations

from vmm._native import ffi, lib
from vmm.bus import Device, Front, IoLock
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from vmm.devices.signals import Sink
    from vmm.devices.timer import TimerService

COLLECT_NS = 4_000_000
"""How long a byte may wait: as long as between two looks at the consoles (`vmm.run.runner.POLL_SECONDS`)."""

BUFFER_SIZE: int = lib.DEBUGCON_BUFFER
"""Bytes that do not wait any longer once they are so many."""


class DebugConsole(Device):
    """One byte-wide port.

    Args:
        sink: gets every byte written, in order.
        timers: say when to fetch what was collected.
        lock: the machine's io_lock.
    """

    def __init__(self, sink: Sink, timers: TimerService, lock: IoLock) -> None:
        self._sink = sink
        self._lock = lock
        self._clock = timers.clock
        self._timer = timers.timer(self._on_deadline)
        self._core = ffi.new("struct debugcon *")
        self.front = Front(ffi.addressof(lib, "debugcon_access"), self._core)

    def write(self, offset: int, size: int, value: int) -> None:
        """Print the low byte."""
        self._print(bytes((value & 0xFF,)))

    def write_string(self, offset: int, size: int, count: int, data: bytes) -> None:
        """Print the low byte of each element."""
        self._print(data[::size])

    def flush(self) -> None:
        """Print what was collected, now; for when no vCPU runs any more."""
        with self._lock:
            self._fetch()

    def state(self) -> dict[str, Any]:
        """Nothing, once all is printed that was collected."""
        self._fetch()
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing: the next byte goes out at once."""

    def _print(self, data: bytes) -> None:
        if not self._core.collecting:
            self._core.collecting = True
            self._timer.arm(self._clock() + COLLECT_NS)
        self._sink(data)

    def _fetch(self) -> bool:
        """Print what was collected; whether there was anything."""
        data = bytes(ffi.buffer(self._core.buffer, self._core.used))
        self._core.used = 0
        if data:
            self._sink(data)
        return bool(data)

    def _on_deadline(self) -> None:
        self._core.collecting = self._fetch()
        if self._core.collecting:
            self._timer.arm(self._clock() + COLLECT_NS)
