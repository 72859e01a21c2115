"""Motorola MC146818 real-time clock with 128 bytes of CMOS RAM, at ports 0x70 and 0x71.

The clock shows the host's UTC, plus what the guest set it off by. Flags of register C (periodic, alarm, update) are
worked out when somebody looks; only if their interrupt is enabled does a timer run. Periodic interrupts that came while
one waited for its read of register C are made up for there, one by one, as by QEMU's ``-rtc driftfix=slew``: on a busy
host it is the host that is late. Not there: square wave, daylight saving, and dividers other than 32,768 Hz (any other
stops the clock's update flag, not the clock).
"""

from __future__ import annotations

import time

from vmm import late
from vmm.bus import Device
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from vmm.devices.signals import Irq
    from vmm.devices.timer import TimerService

_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR = 0, 2, 4, 6, 7, 8, 9
_ALARM_SECONDS, _ALARM_MINUTES, _ALARM_HOURS = 1, 3, 5
_A, _B, _C, _D = 0xA, 0xB, 0xC, 0xD
_CENTURY = 0x32
"""IBM AT; QEMU's FADT names it too."""
_PS2_CENTURY = 0x37
"""IBM PS/2: the same register at another place, as QEMU's clock has it."""

_TIME_REGISTERS = (_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, _CENTURY)

_A_UPDATING = 0x80
_A_DIVIDER = 0x70
_A_DIVIDER_32768 = 0x20
_B_SET, _B_SQUARE_WAVE, _B_BINARY, _B_24_HOURS = 0x80, 0x08, 0x04, 0x02
_FLAG_PERIODIC, _FLAG_ALARM, _FLAG_UPDATE = 0x40, 0x20, 0x10
"""In C: what happened; in B: which of it interrupts."""
_C_INTERRUPT = 0x80
_D_VALID = 0x80
_PM = 0x80
_ALARM_ANY = 0xC0

_A_POWER_ON = 0x26
"""32,768 Hz, 1,024 Hz periodic rate: what a BIOS leaves."""

_SECOND = 1_000_000_000
_UPDATE_LEAD = 244_000
"""Nanoseconds for which UIP is set before an update (MC146818A data sheet, t_UIP)."""

_MISSED_TICKS = 1000
"""Made up for at the most. Who has not read register C for longer does not listen, and is owed none."""
_MADE_UP_AT_ONCE = 20
"""Between two ticks; some handlers read register C until it says nothing (as QEMU's RTC_REINJECT_ON_ACK_COUNT)."""

_LAST_SECOND = 253_402_300_799
"""Of the year 9999, in seconds since 1970."""


class Rtc(Device):
    """Index and data port.

    Args:
        irq: IRQ 8.
        timers: for interrupts; its clock drives everything.
        cmos: initial contents by register number, 0x0e to 0x7f; they are not the clock's.
        utc_ns: nanoseconds since 1970 at which the clock starts.
    """

    def __init__(
        self, irq: Irq, timers: TimerService, cmos: Mapping[int, int] | None = None, utc_ns: int | None = None
    ) -> None:
        self._irq = irq
        self._clock = timers.clock
        self._timer = timers.timer(self._on_timer)
        self._index = 0
        self._line = False
        self._bytes = bytearray(128)
        self._bytes[_A] = _A_POWER_ON
        self._bytes[_B] = _B_24_HOURS
        self.store(cmos or {})
        self._offset = (time.time_ns() if utc_ns is None else utc_ns) - self._clock()
        self._seen = self._clock()
        self._acknowledged = self._seen
        self._owed = 0
        self._made_up = 0

    def read(self, offset: int, size: int) -> int:
        """All-ones at the index port, the selected register at the data port."""
        if offset == 0:
            return 0xFF if size == 1 else self._read_register(self._index) << 8 | 0xFF
        return self._read_register(self._index)

    def write(self, offset: int, size: int, value: int) -> None:
        """Select a register (bit 7, the NMI mask, is ignored), or write it."""
        if offset == 0:
            self._index = value & 0x7F
            value >>= 8
        if offset + size > 1:
            self._write_register(self._index, value & 0xFF)

    def state(self) -> dict[str, Any]:
        """Registers and CMOS, what the clock is ahead of the guest's time by, and which ticks are owed since when."""
        return {
            "index": self._index,
            "bytes": bytes(self._bytes),
            "offset_ns": self._offset,
            "seen_ns": self._seen,
            "acknowledged_ns": self._acknowledged,
            "owed": self._owed,
            "made_up": self._made_up,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `state` gave it."""
        self._index = state["index"]
        self._bytes[:] = state["bytes"]
        self._offset = state["offset_ns"]
        self._seen = state["seen_ns"]
        self._acknowledged = state["acknowledged_ns"]
        self._owed = state["owed"]
        self._made_up = state["made_up"]
        self._reschedule()

    def store(self, cmos: Mapping[int, int]) -> None:
        """Set registers of CMOS, 0x0e to 0x7f, from outside, by number; they are not the clock's."""
        for register, value in cmos.items():
            self._bytes[register] = value

    def reset(self) -> None:
        """The reset pin: interrupts and square wave off; time and CMOS stay (data sheet, RESET)."""
        self._bytes[_B] &= ~(_FLAG_PERIODIC | _FLAG_ALARM | _FLAG_UPDATE | _B_SQUARE_WAVE)
        self._collect()
        self._bytes[_C] = 0
        self._owe_nothing()
        self._index = 0
        self._reschedule()

    def _read_register(self, at: int) -> int:
        at = _CENTURY if at == _PS2_CENTURY else at
        if at in _TIME_REGISTERS:
            return self._bytes[at] if self._bytes[_B] & _B_SET else self._encode(at, self._now())
        if at == _A:
            return self._bytes[_A] & ~_A_UPDATING | self._updating()
        if at == _C:
            self._collect()
            flags = self._bytes[_C] | (_C_INTERRUPT if self._bytes[_C] & self._bytes[_B] else 0)
            self._bytes[_C] = 0
            self._reschedule()
            self._make_up(bool(flags & _FLAG_PERIODIC))
            return flags
        return _D_VALID if at == _D else self._bytes[at]

    def _write_register(self, at: int, byte: int) -> None:
        at = _CENTURY if at == _PS2_CENTURY else at
        if at in {_C, _D}:
            return
        self._collect()
        period = self._interrupt_period()
        if at in _TIME_REGISTERS:
            self._set_time_register(at, byte)
        elif at == _B:
            self._write_b(byte)
        else:
            self._bytes[at] = byte & ~_A_UPDATING if at == _A else byte
        if period != self._interrupt_period():
            self._owe_nothing()
        self._reschedule()

    def _write_b(self, byte: int) -> None:
        if byte & ~self._bytes[_B] & _B_SET:
            self._freeze()
        thaw = self._bytes[_B] & ~byte & _B_SET
        # The frozen bytes are in the format that is set now, or the one that this write sets: the new one counts.
        self._bytes[_B] = byte & ~_FLAG_UPDATE if byte & _B_SET else byte
        if thaw:
            self._thaw()

    def _set_time_register(self, at: int, byte: int) -> None:
        if self._bytes[_B] & _B_SET:
            self._bytes[at] = byte
        else:
            self._freeze()
            self._bytes[at] = byte
            self._thaw()

    # The time.

    def _utc_ns(self, at: int | None = None) -> int:
        return (self._clock() if at is None else at) + self._offset

    def _now(self) -> time.struct_time:
        return time.gmtime(min(self._utc_ns() // _SECOND, _LAST_SECOND))

    def _freeze(self) -> None:
        now = self._now()
        for register in _TIME_REGISTERS:
            self._bytes[register] = self._encode(register, now)

    def _thaw(self) -> None:
        """Set the clock to the time registers, if they hold a time."""
        late.load("datetime")
        from datetime import UTC, datetime  # slow to load, and few guests set the clock

        year = self._number(_CENTURY) * 100 + self._number(_YEAR)
        try:
            wanted = datetime(
                year,
                self._number(_MONTH),
                self._number(_DAY),
                self._hour(self._bytes[_HOURS]),
                self._number(_MINUTES),
                self._number(_SECONDS),
                tzinfo=UTC,
            )
        except ValueError:
            return
        into_second = self._utc_ns() % _SECOND
        self._offset = int(wanted.timestamp()) * _SECOND + into_second - self._clock()

    def _encode(self, register: int, now: time.struct_time) -> int:
        values = {
            _SECONDS: now.tm_sec,
            _MINUTES: now.tm_min,
            _WEEKDAY: (now.tm_wday + 1) % 7 + 1,
            _DAY: now.tm_mday,
            _MONTH: now.tm_mon,
            _YEAR: now.tm_year % 100,
            _CENTURY: now.tm_year // 100,
        }
        if register != _HOURS:
            return self._format(values[register])
        if self._bytes[_B] & _B_24_HOURS:
            return self._format(now.tm_hour)
        return self._format((now.tm_hour + 11) % 12 + 1) | (_PM if now.tm_hour >= 12 else 0)

    def _format(self, value: int) -> int:
        return value if self._bytes[_B] & _B_BINARY else value // 10 << 4 | value % 10

    def _parse(self, byte: int) -> int:
        return byte if self._bytes[_B] & _B_BINARY else (byte >> 4) * 10 + (byte & 0xF)

    def _number(self, register: int) -> int:
        return self._parse(self._bytes[register])

    def _hour(self, byte: int) -> int:
        if self._bytes[_B] & _B_24_HOURS:
            return self._parse(byte)
        return self._parse(byte & ~_PM) % 12 + (12 if byte & _PM else 0)

    def _running(self) -> bool:
        return self._bytes[_A] & _A_DIVIDER == _A_DIVIDER_32768 and not self._bytes[_B] & _B_SET

    def _updating(self) -> int:
        return _A_UPDATING if self._running() and _SECOND - self._utc_ns() % _SECOND <= _UPDATE_LEAD else 0

    # Register C and IRQ 8.

    def _collect(self) -> None:
        """Set the flags of what happened since the last call."""
        last, now = self._seen, self._clock()
        self._seen = now
        period = self._period()
        if period and last // period != now // period:
            self._bytes[_C] |= _FLAG_PERIODIC
            self._made_up = 0
        if self._running():
            if self._utc_ns(last) // _SECOND != self._utc_ns(now) // _SECOND:
                self._bytes[_C] |= _FLAG_UPDATE
            alarm = self._next_alarm(last)
            if alarm is not None and alarm <= now:
                self._bytes[_C] |= _FLAG_ALARM

    def _period(self) -> int:
        """Nanoseconds of the periodic rate; 0: off (data sheet, table 5; rates 1 and 2 stand for 8 and 9)."""
        rate = self._bytes[_A] & 0xF
        if rate == 0 or self._bytes[_A] & _A_DIVIDER != _A_DIVIDER_32768:
            return 0
        return (1 << ((rate + 7 if rate < 3 else rate) - 1)) * _SECOND // 32768

    def _interrupt_period(self) -> int:
        """The same, if it interrupts."""
        return self._period() if self._bytes[_B] & _FLAG_PERIODIC else 0

    def _owe_nothing(self) -> None:
        self._acknowledged = self._seen
        self._owed = 0
        self._made_up = 0

    def _make_up(self, told: bool) -> None:
        """After a read of C, which has ``told`` of a tick, or not: tell of one that came before, if any is owed."""
        period = self._interrupt_period()
        if not period:
            return
        ticks = self._seen // period - self._acknowledged // period
        self._acknowledged = self._seen
        self._owed = 0 if ticks > _MISSED_TICKS else min(max(self._owed + ticks - told, 0), _MISSED_TICKS)
        if self._owed and self._made_up < _MADE_UP_AT_ONCE:
            self._made_up += 1
            self._bytes[_C] |= _FLAG_PERIODIC
            self._reschedule()

    def _next_alarm(self, after: int) -> int | None:
        """When the alarm matches next, on our clock; None if its registers hold no time."""
        seconds = self._utc_ns(after) // _SECOND
        hours = self._alarm_values(_ALARM_HOURS, 24)
        minutes = self._alarm_values(_ALARM_MINUTES, 60)
        choices = self._alarm_values(_ALARM_SECONDS, 60)
        if not (hours and minutes and choices):
            return None
        day, second_of_day = divmod(seconds, 86400)
        now = (second_of_day // 3600, second_of_day // 60 % 60, second_of_day % 60)
        candidates = (
            (h, m, s)
            for h in hours
            if h >= now[0]
            for m in minutes
            if (h, m) >= now[:2]
            for s in choices
            if (h, m, s) > now
        )
        found = next(candidates, None)
        if found is None:
            day += 1
            found = (hours[0], minutes[0], choices[0])
        utc = day * 86400 + found[0] * 3600 + found[1] * 60 + found[2]
        return utc * _SECOND - self._offset

    def _alarm_values(self, register: int, limit: int) -> list[int]:
        byte = self._bytes[register]
        if byte & _ALARM_ANY == _ALARM_ANY:
            return list(range(limit))
        value = self._hour(byte) if register == _ALARM_HOURS else self._parse(byte)
        return [value] if value < limit else []

    def _reschedule(self) -> None:
        """Drive the line, and arm the timer for the next event that interrupts."""
        enabled = self._bytes[_B]
        line = bool(self._bytes[_C] & enabled & (_FLAG_PERIODIC | _FLAG_ALARM | _FLAG_UPDATE))
        if line != self._line:
            self._line = line
            self._irq(line)
        self._timer.cancel()
        if line:
            return  # The next edge needs a read of C first.
        now = self._clock()
        deadlines: list[int] = []
        period = self._period()
        if enabled & _FLAG_PERIODIC and period:
            deadlines.append((now // period + 1) * period)
        if self._running() and enabled & _FLAG_UPDATE:
            deadlines.append((self._utc_ns(now) // _SECOND + 1) * _SECOND - self._offset)
        if self._running() and enabled & _FLAG_ALARM and (alarm := self._next_alarm(now)) is not None:
            deadlines.append(alarm)
        if deadlines:
            self._timer.arm(max(min(deadlines), now + 1))

    def _on_timer(self) -> None:
        self._collect()
        self._reschedule()
