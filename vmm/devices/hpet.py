"""The High Precision Event Timer (IA-PC HPET specification 1.0a): a 100 MHz counter and three comparators.

Each comparator can be one-shot or periodic, 32 or 64 bits wide, and interrupt through the IOAPIC (edge or level) or by
message (FSB delivery). Not there: legacy replacement routing, which would have to silence the in-kernel PIT; the
capability register says so. A one-shot comparator that is already past fires at once, as in QEMU, instead of after
the counter's wrap-around.

Reads are C's (`native/hpet.c`), from registers that are kept here as they read.
"""

from __future__ import annotations

from vmm._native import ffi, lib
from vmm.bus import Device, Front
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from vmm.devices.signals import Msi
    from vmm.devices.timer import TimerService

COMPARATORS = 3
"""The fewest that the specification allows (2.3.4, NUM_TIM_CAP)."""

_TICK_NS: int = lib.HPET_TICK_NS

PERIOD_FS = _TICK_NS * 1_000_000
"""Femtoseconds of a tick: 100 MHz; the specification wants at least 10 MHz."""

_VENDOR = 0x8086
_REVISION = 0x01
_COUNTER_64_BITS = 1 << 13

BLOCK_ID = _VENDOR << 16 | _COUNTER_64_BITS | (COMPARATORS - 1) << 8 | _REVISION
"""Low half of the capability register, which ACPI's HPET table repeats."""

_CAPABILITIES, _CONFIGURATION, _STATUS, _COUNTER = 0x00, 0x10, 0x20, 0xF0
_FIRST_TIMER, _TIMER_STRIDE = 0x100, 0x20
_TIMER_CONFIG, _TIMER_COMPARATOR, _TIMER_ROUTE = 0x00, 0x08, 0x10
"""2.3.3: register map; every register is 64 bits."""

_ENABLE = 0x1

_LEVEL = 1 << 1
_INTERRUPT = 1 << 2
_PERIODIC = 1 << 3
_PERIODIC_CAPABLE = 1 << 4
_64_BITS_CAPABLE = 1 << 5
_SET_ACCUMULATOR = 1 << 6
_32_BITS = 1 << 8
_GSI_SHIFT, _GSI_MASK = 9, 0x1F
_MESSAGE = 1 << 14
_MESSAGE_CAPABLE = 1 << 15
_CONFIG_WRITABLE = _LEVEL | _INTERRUPT | _PERIODIC | _SET_ACCUMULATOR | _32_BITS | _GSI_MASK << _GSI_SHIFT | _MESSAGE
"""2.3.8, timer N configuration."""

ALLOWED_GSIS = 0x00F0_0000
"""IOAPIC inputs 20 to 23, as bhyve's (sys/amd64/vmm/io/vhpet.c): no PC device shares them."""

_FASTEST_INTERRUPT_NS = 50_000
"""Between two interrupts of a comparator: a guest cannot make the host do more."""

MINIMUM_TICKS = _FASTEST_INTERRUPT_NS // _TICK_NS
"""The shortest period at which no interrupt is lost; ACPI's HPET table repeats it."""

_MASK_32 = (1 << 32) - 1
_MASK_64 = (1 << 64) - 1


class _Comparator:
    """One timer: its registers, and the deadline that follows from them."""

    def __init__(self, number: int, hpet: Hpet, timers: TimerService) -> None:
        self.bit = 1 << number
        self._first = _FIRST_TIMER + number * _TIMER_STRIDE
        self._hpet = hpet
        self._timer = timers.timer(self._on_deadline)
        self._clock = timers.clock
        self.reset()

    def reset(self) -> None:
        self.config = 0
        self._comparator = _MASK_64
        self._period = 0
        self._route = 0
        self._timer.cancel()
        self._show()

    def state(self) -> dict[str, Any]:
        return {
            "config": self.config,
            "comparator": self._comparator,
            "period": self._period,
            "route": self._route,
            "deadline_ns": self._timer.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.config = state["config"]
        self._comparator = state["comparator"]
        self._period = state["period"]
        self._route = state["route"]
        self._timer.restore(state["deadline_ns"])

    @property
    def gsi(self) -> int:
        return self.config >> _GSI_SHIFT & _GSI_MASK

    @property
    def asserts_line(self) -> bool:
        """Level-triggered through the IOAPIC: the status bit is the line."""
        wanted = _LEVEL | _INTERRUPT
        return self.config & (wanted | _MESSAGE) == wanted

    @property
    def _mask(self) -> int:
        return _MASK_32 if self.config & _32_BITS else _MASK_64

    def _show(self) -> None:
        capabilities = _PERIODIC_CAPABLE | _64_BITS_CAPABLE | _MESSAGE_CAPABLE
        self._hpet.show(self._first + _TIMER_CONFIG, ALLOWED_GSIS << 32 | capabilities | self.config)
        self._hpet.show(self._first + _TIMER_COMPARATOR, self._comparator & self._mask)
        self._hpet.show(self._first + _TIMER_ROUTE, self._route)

    def write(self, register: int, value: int) -> None:
        if register == _TIMER_CONFIG:
            self.config = value & _CONFIG_WRITABLE
        elif register == _TIMER_COMPARATOR:
            if not self.config & _PERIODIC or self.config & _SET_ACCUMULATOR:
                self._comparator = value & self._mask
            if self.config & _PERIODIC:
                self._period = value & self._mask
            self.config &= ~_SET_ACCUMULATOR
        elif register == _TIMER_ROUTE:
            self._route = value
        self._show()
        self.arm()

    def arm(self) -> None:
        """Follow the registers: set the deadline, or none."""
        self._timer.cancel()
        if not self._hpet.enabled or not self.config & _INTERRUPT:
            return
        if self._comparator == _MASK_64 and not self.config & _PERIODIC:
            return  # The value after reset: the guest has set none.
        mask = self._mask
        ahead = (self._comparator - self._hpet.counter) & mask
        if ahead > mask >> 1:
            ahead = 0
        self._timer.arm(self._clock() + ahead * _TICK_NS)

    def _on_deadline(self) -> None:
        if self.config & _PERIODIC and self._period:
            late = (self._hpet.counter - self._comparator) & self._mask
            self._comparator = (self._comparator + (late // self._period + 1) * self._period) & self._mask
            self._show()
            ahead = (self._comparator - self._hpet.counter) & self._mask
            self._timer.arm(self._clock() + max(ahead * _TICK_NS, _FASTEST_INTERRUPT_NS))
        if self.config & _MESSAGE:
            self._hpet.send(self._route >> 32, self._route & _MASK_32)
        else:
            self._hpet.interrupt(self)


class Hpet(Device):
    """One block of 1 KiB.

    Args:
        irq: drives an IOAPIC input: GSI, level.
        msi: sends a message: address, data.
        timers: for deadlines; its clock drives the counter.
    """

    def __init__(self, irq: Callable[[int, bool], None], msi: Msi, timers: TimerService) -> None:
        self._irq = irq
        self.send = msi
        self._clock = timers.clock
        self._core = ffi.new("struct hpet *", {"clock": timers.clock.core})
        self.front = Front(ffi.addressof(lib, "hpet_access"), self._core)
        self.show(
            _CAPABILITIES,
            PERIOD_FS << 32 | BLOCK_ID,
        )
        self._asserted: set[int] = set()
        self._comparators = [_Comparator(number, self, timers) for number in range(COMPARATORS)]

    @property
    def enabled(self) -> bool:
        """Whether the main counter runs."""
        return bool(self._core.running)

    @property
    def counter(self) -> int:
        """The main counter now."""
        return int(lib.hpet_counter(self._core))

    def show(self, register: int, value: int) -> None:
        """Let a 64-bit register read as ``value``."""
        self._core.registers[register >> 3] = value

    def write(self, offset: int, size: int, value: int) -> None:
        """Any bytes: what the access leaves out of a 64-bit register keeps its value."""
        end = offset + size
        for register in range(offset & ~7, end, 8):
            start, stop = max(offset, register), min(end, register + 8)
            mask = ((1 << 8 * (stop - start)) - 1) << (8 * (start - register))
            part = value >> (8 * (start - offset)) << (8 * (start - register)) & mask
            self._write_register(register, part, mask)

    def state(self) -> dict[str, Any]:
        """The registers as they read, the time since when the counter runs, and the comparators."""
        return {
            "registers": list(self._core.registers),
            "since_ns": int(self._core.since_ns),
            "running": self.enabled,
            "comparators": [comparator.state() for comparator in self._comparators],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `state` gave it."""
        self._core.registers = state["registers"]
        self._core.since_ns = state["since_ns"]
        self._core.running = state["running"]
        for comparator, its in zip(self._comparators, state["comparators"], strict=True):
            comparator.restore(its)
        self._update_lines()

    def reset(self) -> None:
        """Counter halted at 0, comparators off."""
        self._core.running = False
        for register in (_CONFIGURATION, _STATUS, _COUNTER):
            self.show(register, 0)
        for comparator in self._comparators:
            comparator.reset()
        self._update_lines()

    def interrupt(self, comparator: _Comparator) -> None:
        """A comparator matched and is routed to the IOAPIC."""
        if comparator.config & _LEVEL:
            self.show(_STATUS, self._read(_STATUS) | comparator.bit)
            self._update_lines()
        elif ALLOWED_GSIS >> comparator.gsi & 1:
            self._irq(comparator.gsi, True)
            self._irq(comparator.gsi, comparator.gsi in self._asserted)

    def _read(self, register: int) -> int:
        return int(self._core.registers[register >> 3])

    def _write_register(self, register: int, part: int, mask: int) -> None:
        if register == _STATUS:
            self.show(_STATUS, self._read(_STATUS) & ~part)
        elif register == _CONFIGURATION:
            if mask & _ENABLE:
                self._enable(bool(part & _ENABLE))
        elif register == _COUNTER:
            if not self.enabled:
                self.show(_COUNTER, self._read(_COUNTER) & ~mask | part)
        else:
            number, at = divmod(register - _FIRST_TIMER, _TIMER_STRIDE)
            if 0 <= number < COMPARATORS:
                self._comparators[number].write(at, self._read(register) & ~mask | part)
        self._update_lines()

    def _enable(self, wanted: bool) -> None:
        if wanted != self.enabled:
            self.show(_COUNTER, self.counter)
            self._core.since_ns = self._clock()
            self._core.running = wanted
            self.show(_CONFIGURATION, _ENABLE if wanted else 0)
            for comparator in self._comparators:
                comparator.arm()

    def _update_lines(self) -> None:
        status = self._read(_STATUS)
        wanted = {
            comparator.gsi
            for comparator in self._comparators
            if status & comparator.bit and comparator.asserts_line and ALLOWED_GSIS >> comparator.gsi & 1
        }
        for gsi in self._asserted - wanted:
            self._irq(gsi, False)
        for gsi in wanted - self._asserted:
            self._irq(gsi, True)
        self._asserted = wanted
