"""A 16550A UART (National Semiconductor PC16550D): FIFOs, interrupts, loopback; characters take no time.

What is printed goes to the sink at once, so the transmitter is always empty. What is typed waits in a queue of any
length and moves on as the guest drains the receive FIFO: there is no overrun. As on the real chip, resetting the
receive FIFO drops what is in it (16 characters at most).
"""

from __future__ import annotations

from collections import deque

from vmm.bus import Device
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any

    from vmm.devices.signals import Irq, Sink

_DATA, _IER, _IIR, _LCR, _MCR, _LSR, _MSR, _SCRATCH = range(8)
"""Register offsets; with LCR's DLAB set, the first two are the divisor latch."""

_IER_RECEIVED, _IER_TRANSMITTER_EMPTY, _IER_MODEM = 0x01, 0x02, 0x08
_IER_BITS = 0x0F

_IIR_NONE = 0x01
_IIR_MODEM = 0x00
_IIR_TRANSMITTER_EMPTY = 0x02
_IIR_RECEIVED = 0x04
_IIR_TIMEOUT = 0x0C
_IIR_FIFOS = 0xC0

_FCR_ENABLE, _FCR_RESET_RECEIVE = 0x01, 0x02
_FIFO_SIZE = 16
_TRIGGER_LEVELS = (1, 4, 8, 14)

_LCR_DLAB = 0x80

_MCR_BITS = 0x1F
_MCR_OUT2 = 0x08
_MCR_LOOPBACK = 0x10

_LSR_DATA_READY = 0x01
_LSR_TRANSMITTER_EMPTY = 0x60

_MSR_CONNECTED = 0xB0
"""DCD, DSR and CTS: the other end listens."""

_LOOPBACK_WIRES = ((0x02, 0x10), (0x01, 0x20), (0x04, 0x40), (0x08, 0x80))
"""MCR bit to MSR bit: RTS-CTS, DTR-DSR, OUT1-RI, OUT2-DCD."""

_MSR_RI = 0x40


class Serial(Device):
    """Eight ports.

    Args:
        irq: the interrupt line; MCR's OUT2 gates it, as on a PC's card.
        sink: gets what the guest prints, string instructions in one piece.
        lock: the machine's io_lock, for `feed`.
    """

    def __init__(self, irq: Irq, sink: Sink, lock: AbstractContextManager[object]) -> None:
        self._irq = irq
        self._sink = sink
        self._lock = lock
        self._typed: deque[int] = deque()
        self._line = False
        self._power_on()

    def feed(self, data: bytes) -> None:
        """Type ``data``; any thread may."""
        with self._lock:
            self._typed.extend(data)
            self._refill()
            self._update_irq()

    @property
    def unread(self) -> int:
        """Characters typed that the guest has not read yet."""
        return len(self._typed) + len(self._fifo)

    def reset(self) -> None:
        """Registers as at power-on; what is typed stays queued."""
        self._power_on()
        self._update_irq()

    def read(self, offset: int, size: int) -> int:
        """Read registers from ``offset`` on."""
        value = 0
        for i in range(size):
            value |= self._read_register(offset + i) << (8 * i)
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Write registers from ``offset`` on."""
        for i in range(size):
            self._write_register(offset + i, value >> (8 * i) & 0xFF)

    def write_string(self, offset: int, size: int, count: int, data: bytes) -> None:
        """Print it all in one piece, if that is what it is."""
        if offset == _DATA and size == 1 and not self._lcr & _LCR_DLAB and not self._mcr & _MCR_LOOPBACK:
            self._transmit(data)
        else:
            super().write_string(offset, size, count, data)

    def _power_on(self) -> None:
        self._ier = 0
        self._fcr = 0
        self._lcr = 0
        self._mcr = 0
        self._scratch = 0
        self._divisor = [12, 0]
        self._modem = _MSR_CONNECTED
        self._modem_changes = 0
        self._transmitter_event = False
        self._fifo: deque[int] = deque()

    def state(self) -> dict[str, Any]:
        """Registers, FIFO, and what is typed and not read yet."""
        return {
            "ier": self._ier,
            "fcr": self._fcr,
            "lcr": self._lcr,
            "mcr": self._mcr,
            "scratch": self._scratch,
            "divisor": list(self._divisor),
            "modem": self._modem,
            "modem_changes": self._modem_changes,
            "transmitter_event": self._transmitter_event,
            "fifo": bytes(self._fifo),
            "typed": bytes(self._typed),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `state` gave it."""
        self._ier = state["ier"]
        self._fcr = state["fcr"]
        self._lcr = state["lcr"]
        self._mcr = state["mcr"]
        self._scratch = state["scratch"]
        self._divisor = list(state["divisor"])
        self._modem = state["modem"]
        self._modem_changes = state["modem_changes"]
        self._transmitter_event = state["transmitter_event"]
        self._fifo = deque(state["fifo"])
        self._typed = deque(state["typed"])
        self._update_irq()

    def _read_register(self, at: int) -> int:
        if at < 2 and self._lcr & _LCR_DLAB:
            return self._divisor[at]
        match at:
            case 0:
                return self._receive()
            case 1:
                return self._ier
            case 2:
                return self._identify()
            case 3:
                return self._lcr
            case 4:
                return self._mcr
            case 5:
                self._refill()
                return _LSR_TRANSMITTER_EMPTY | (_LSR_DATA_READY if self._fifo else 0)
            case 6:
                return self._modem_status()
            case _:
                return self._scratch

    def _write_register(self, at: int, byte: int) -> None:
        if at < 2 and self._lcr & _LCR_DLAB:
            self._divisor[at] = byte
            return
        match at:
            case 0 if self._mcr & _MCR_LOOPBACK:
                self._loop_back(byte)
            case 0:
                self._transmit(bytes((byte,)))
            case 1:
                # Enabling the transmitter's interrupt while it is empty raises it; Linux tests for that.
                if byte & ~self._ier & _IER_TRANSMITTER_EMPTY:
                    self._transmitter_event = True
                self._ier = byte & _IER_BITS
            case 2:
                if byte & _FCR_RESET_RECEIVE or (byte ^ self._fcr) & _FCR_ENABLE:
                    self._fifo.clear()
                self._fcr = byte
            case 3:
                self._lcr = byte
            case 4:
                self._mcr = byte & _MCR_BITS
                self._update_modem()
            case 7:
                self._scratch = byte
            case _:
                pass
        self._refill()
        self._update_irq()

    def _transmit(self, data: bytes) -> None:
        # Not empty for a moment: the line drops, and the next interrupt is an edge again.
        self._transmitter_event = False
        self._update_irq()
        self._sink(data)
        self._transmitter_event = True
        self._update_irq()

    def _loop_back(self, byte: int) -> None:
        if len(self._fifo) < self._fifo_size():
            self._fifo.append(byte)
        self._transmitter_event = True

    def _receive(self) -> int:
        self._refill()
        byte = self._fifo.popleft() if self._fifo else 0
        self._refill()
        self._update_irq()
        return byte

    def _fifo_size(self) -> int:
        return _FIFO_SIZE if self._fcr & _FCR_ENABLE else 1

    def _refill(self) -> None:
        if self._mcr & _MCR_LOOPBACK:
            return
        while self._typed and len(self._fifo) < self._fifo_size():
            self._fifo.append(self._typed.popleft())

    def _cause(self) -> int:
        if self._ier & _IER_RECEIVED and self._fifo:
            trigger = _TRIGGER_LEVELS[self._fcr >> 6] if self._fcr & _FCR_ENABLE else 1
            # Below the trigger level the chip waits four character times, and a character takes no time here.
            return _IIR_RECEIVED if len(self._fifo) >= trigger else _IIR_TIMEOUT
        if self._ier & _IER_TRANSMITTER_EMPTY and self._transmitter_event:
            return _IIR_TRANSMITTER_EMPTY
        if self._ier & _IER_MODEM and self._modem_changes:
            return _IIR_MODEM
        return _IIR_NONE

    def _identify(self) -> int:
        cause = self._cause()
        if cause == _IIR_TRANSMITTER_EMPTY:
            self._transmitter_event = False
            self._update_irq()
        return cause | (_IIR_FIFOS if self._fcr & _FCR_ENABLE else 0)

    def _update_modem(self) -> None:
        if self._mcr & _MCR_LOOPBACK:
            now = sum(status for control, status in _LOOPBACK_WIRES if self._mcr & control)
        else:
            now = _MSR_CONNECTED
        changed = now ^ self._modem
        # The ring indicator counts only when it ends (trailing edge).
        if not self._modem & _MSR_RI:
            changed &= ~_MSR_RI
        self._modem = now
        self._modem_changes |= changed >> 4

    def _modem_status(self) -> int:
        value = self._modem | self._modem_changes
        self._modem_changes = 0
        self._update_irq()
        return value

    def _update_irq(self) -> None:
        gate = self._mcr & (_MCR_OUT2 | _MCR_LOOPBACK) == _MCR_OUT2
        line = gate and self._cause() != _IIR_NONE
        if line != self._line:
            self._line = line
            self._irq(line)
