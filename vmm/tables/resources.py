"""Resource descriptors for ``_CRS``, as ACPI specification 6.5 section 6.4 encodes them."""

from __future__ import annotations

import struct

from vmm.tables import aml

_MEMORY, _IO, _BUS = 0, 1, 2
_FIXED_BOTH_ENDS = 0x0C  # general flags: minimum and maximum are fixed
_CONSUMER = 0x01  # general flags: the device uses the range itself
_READ_WRITE = 0x01
_CACHEABLE = 0x02
_ENTIRE_IO_RANGE = 0x03
_LEVEL_HIGH_SHARED = 0x09  # interrupt vector flags: consumer, level, active high, shared

INTERRUPT_NUMBER = 5
"""Where the first number is in `interrupts`: behind tag, length, flags and count."""


def template(*descriptors: bytes) -> bytes:
    """Encode ``ResourceTemplate () {descriptors}``; the end tag's checksum 0 means none."""
    return aml.buffer(b"".join(descriptors) + b"\x79\x00")


def io(base: int, length: int) -> bytes:
    """Encode a fixed I/O port range of up to 255 ports, 16-bit decode."""
    return struct.pack("<BBHHBB", 0x47, 1, base, base, 1, length)


def irq(number: int) -> bytes:
    """Encode an edge-triggered, active-high, exclusive ISA interrupt, 0 to 15."""
    return struct.pack("<BH", 0x22, 1 << number)


def interrupts(*numbers: int) -> bytes:
    """Encode ``Interrupt (ResourceConsumer, Level, ActiveHigh, Shared)``: one interrupt, or a choice of several."""
    body = struct.pack(f"<BB{len(numbers)}I", _LEVEL_HIGH_SHARED, len(numbers), *numbers)
    return struct.pack("<BH", 0x89, len(body)) + body


def memory32(base: int, length: int, *, writable: bool = True) -> bytes:
    """Encode ``Memory32Fixed``: base and length in bytes below 4 GiB."""
    return struct.pack("<BHBII", 0x86, 9, int(writable), base, length)


def bus_numbers(first: int, last: int) -> bytes:
    """Encode ``WordBusNumber``: the PCI buses that a root produces."""
    return _address(_BUS, 0, first, last, size=2)


def io_window(first: int, last: int) -> bytes:
    """Encode ``WordIO``: I/O ports that a root passes on, both ends included."""
    return _address(_IO, _ENTIRE_IO_RANGE, first, last, size=2)


def memory64(base: int, length: int) -> bytes:
    """Encode a fixed range of memory that a device uses, anywhere: ``QWordMemory`` (ResourceConsumer)."""
    return _address(_MEMORY, _READ_WRITE, base, base + length - 1, size=8, flags=_FIXED_BOTH_ENDS | _CONSUMER)


def memory_window(first: int, last: int, *, cacheable: bool = False) -> bytes:
    """Encode ``DWordMemory``, or ``QWordMemory`` for a range that needs 64 bits."""
    flags = _READ_WRITE | (_CACHEABLE if cacheable else 0)
    return _address(_MEMORY, flags, first, last, size=4 if last < 1 << 32 else 8)


def _address(kind: int, specific: int, first: int, last: int, *, size: int, flags: int = _FIXED_BOTH_ENDS) -> bytes:
    """Encode a word, double word or quad word address space descriptor."""
    tag, letter = {2: (0x88, "H"), 4: (0x87, "I"), 8: (0x8A, "Q")}[size]
    body = struct.pack(f"<BBB5{letter}", kind, flags, specific, 0, first, last, 0, last - first + 1)
    return struct.pack("<BH", tag, len(body)) + body
