"""The debug console: a port that prints what is written (Bochs's 0xe9, QEMU's isa-debugcon at 0x402)."""

from vmm.bus import Device
from vmm.devices.signals import Sink

_SIGNATURE = 0xE9
"""What a read gives, by which firmware finds out that the port is there (QEMU, hw/char/debugcon.c)."""


class DebugConsole(Device):
    """One byte-wide port.

    Args:
        sink: gets every byte written, string instructions in one piece.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def read(self, offset: int, size: int) -> int:
        """The signature."""
        return _SIGNATURE

    def write(self, offset: int, size: int, value: int) -> None:
        """Print the low byte."""
        self._sink(bytes((value & 0xFF,)))

    def write_string(self, offset: int, size: int, count: int, data: bytes) -> None:
        """Print the low byte of each element."""
        self._sink(data[::size])
