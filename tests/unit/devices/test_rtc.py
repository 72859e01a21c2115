from datetime import UTC, datetime

import pytest
from device_rig import ManualTimers, Rig

from vmm.devices.rtc import Rtc

SECOND = 10**9
IRQ = 8
A, B, C, D = 10, 11, 12, 13
PERIOD = 976_562
"""Nanoseconds of the rate that a BIOS leaves: 1,024 Hz."""


class RtcRig(Rig):
    def __init__(self, start: datetime) -> None:
        super().__init__()
        self.timers = ManualTimers(self.lock, start_ns=12_345 * SECOND)
        utc = int((start - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * SECOND)
        self.rtc = Rtc(lambda level: self.irq(IRQ, level), self.timers, {0x34: 0x80, 0x35: 0x02}, utc)
        self.ports.add(0x70, 0x71, self.rtc, "RTC")

    def get(self, register: int) -> int:
        self.outb(0x70, register)
        return self.inb(0x71)

    def put(self, register: int, value: int) -> None:
        self.outb(0x70, register)
        self.outb(0x71, value)

    def time_of_day(self) -> list[int]:
        """Century, year, month, day, hour, minute, second."""
        return [self.get(register) for register in (0x32, 9, 8, 7, 4, 2, 0)]


@pytest.fixture
def rig() -> RtcRig:
    return RtcRig(datetime(2026, 11, 22, 17, 14, 58, tzinfo=UTC))


def test_time_in_bcd(rig: RtcRig) -> None:
    assert rig.time_of_day() == [0x20, 0x26, 0x11, 0x22, 0x17, 0x14, 0x58]
    assert rig.get(6) == 1, "a Sunday"


def test_the_century_is_at_its_second_place_too(rig: RtcRig) -> None:
    assert rig.get(0x37) == 0x20
    rig.put(0x37, 0x19)
    assert (rig.get(0x32), rig.get(0x37)) == (0x19, 0x19)


def test_time_passes(rig: RtcRig) -> None:
    rig.timers.advance(3 * SECOND)
    assert rig.time_of_day()[-2:] == [0x15, 0x01]


def test_binary_and_12_hour_formats(rig: RtcRig) -> None:
    rig.put(B, 0x06)
    assert rig.time_of_day() == [20, 26, 11, 22, 17, 14, 58]
    rig.put(B, 0x00)
    assert rig.get(4) == 0x85, "5 PM"
    rig.put(B, 0x04)
    rig.put(4, 12)
    assert rig.get(4) == 12, "midnight is 12 AM"
    rig.put(B, 0x06)
    assert rig.get(4) == 0


def test_setting_the_clock_with_updates_halted(rig: RtcRig) -> None:
    rig.put(B, 0x82)
    for register, value in ((0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59)):
        rig.put(register, value)
    rig.timers.advance(10 * SECOND)
    assert rig.time_of_day()[-1] == 0x59, "halted"
    rig.put(B, 0x02)
    rig.timers.advance(SECOND)
    assert rig.time_of_day() == [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00]


def test_what_is_no_date_leaves_the_clock_alone(rig: RtcRig) -> None:
    rig.put(B, 0x82)
    rig.put(8, 0x55)
    rig.put(B, 0x02)
    assert rig.time_of_day()[2] == 0x11


def test_the_end_of_time_is_survived(rig: RtcRig) -> None:
    rig.put(B, 0x82)
    for register, value in ((0x32, 0x99), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59)):
        rig.put(register, value)
    rig.put(B, 0x02)
    rig.timers.advance(1000 * SECOND)
    assert rig.time_of_day() == [0x99, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59]
    assert rig.failures == []


def test_cmos_holds_memory_sizes_and_what_is_written(rig: RtcRig) -> None:
    assert (rig.get(0x34), rig.get(0x35)) == (0x80, 0x02)
    rig.put(0x0F, 0x0A)
    assert rig.get(0x0F) == 0x0A
    assert rig.get(0x8F) == 0x0A, "bit 7 of the index is the NMI mask"


def test_register_d_always_says_valid(rig: RtcRig) -> None:
    rig.put(D, 0)
    assert rig.get(D) == 0x80


def test_index_port_is_write_only(rig: RtcRig) -> None:
    rig.outb(0x70, 0x0D)
    assert rig.inp(0x70, 2) == 0x80FF


def test_update_in_progress_shortly_before_the_second(rig: RtcRig) -> None:
    rig.timers.advance(SECOND - 300_000)
    assert rig.get(A) == 0x26
    rig.timers.advance(100_000)
    assert rig.get(A) == 0xA6
    rig.put(B, 0x82)
    assert rig.get(A) == 0x26


def test_register_c_says_what_happened_and_forgets(rig: RtcRig) -> None:
    rig.put(A, 0x20)  # no periodic rate
    rig.put(5, 0xFF)
    rig.put(3, 0xFF)
    rig.put(1, 0x30)
    rig.get(C)
    rig.timers.advance(SECOND)
    assert rig.get(C) == 0x10
    assert rig.get(C) == 0x00
    rig.timers.advance(31 * SECOND)
    assert rig.get(C) == 0x30
    assert rig.edges == [], "no interrupt is enabled"


def test_periodic_interrupt_waits_for_register_c(rig: RtcRig) -> None:
    rig.put(B, 0x42)
    rig.timers.advance(PERIOD)
    assert rig.edges == [(IRQ, True)]
    assert rig.get(C) & 0xC0 == 0xC0
    assert not rig.lines[IRQ]
    rig.timers.advance(PERIOD)
    assert rig.lines[IRQ]


def told_of_ticks(rig: RtcRig) -> int:
    """Serve the periodic interrupt as long as its line is high; how often that was."""
    before = len(rig.edges)
    told = 0
    while rig.lines.get(IRQ):
        assert rig.get(C) & 0xC0 == 0xC0
        told += 1
    assert rig.edges[before:] == [(IRQ, False), (IRQ, True)] * (told - 1) + [(IRQ, False)] * bool(told), "one edge each"
    return told


def test_ticks_that_came_while_one_waited_are_made_up(rig: RtcRig) -> None:
    rig.put(A, 0x26)
    rig.put(B, 0x42)
    rig.get(C)
    told = 0
    for late in (1, 3, 17, 1, 1, 9, 2):
        rig.timers.advance(late * PERIOD)
        told += told_of_ticks(rig)
    assert told == 1 + 3 + 17 + 1 + 1 + 9 + 2


def test_no_more_than_20_are_made_up_between_two_ticks(rig: RtcRig) -> None:
    rig.put(B, 0x42)
    rig.get(C)
    rig.timers.advance(50 * PERIOD)
    told = [told_of_ticks(rig)]
    for _ in range(3):
        rig.timers.advance(PERIOD)
        told.append(told_of_ticks(rig))
    assert told == [21, 21, 10, 1], "the one that came itself, and 20 more; 53 in all"


def test_who_does_not_listen_is_owed_no_ticks(rig: RtcRig) -> None:
    rig.put(B, 0x42)
    rig.get(C)
    rig.timers.advance(1000 * PERIOD)
    assert told_of_ticks(rig) == 21
    rig.timers.advance(1001 * PERIOD)
    assert told_of_ticks(rig) == 1


@pytest.mark.parametrize(("register", "value"), [(A, 0x27), (B, 0x02)])
def test_ticks_of_before_are_forgotten(rig: RtcRig, register: int, value: int) -> None:
    rig.put(B, 0x42)
    rig.get(C)
    rig.timers.advance(5 * PERIOD)
    rig.put(register, value)
    rig.put(B, 0x42)
    assert told_of_ticks(rig) == 1, "what register C says all the same"


def test_a_guest_that_polls_is_told_of_one_tick(rig: RtcRig) -> None:
    rig.get(C)
    rig.timers.advance(5 * PERIOD)
    assert [rig.get(C), rig.get(C)] == [0x40, 0]


def test_a_reset_and_a_snapshot_know_of_ticks_that_are_owed(rig: RtcRig) -> None:
    rig.put(B, 0x42)
    rig.get(C)
    rig.timers.advance(5 * PERIOD)
    state = rig.rtc.state()
    assert told_of_ticks(rig) == 5
    rig.rtc.restore(state)
    assert told_of_ticks(rig) == 5
    rig.timers.advance(5 * PERIOD)
    rig.rtc.reset()
    rig.put(B, 0x42)
    assert told_of_ticks(rig) == 0


def test_update_interrupt_each_second(rig: RtcRig) -> None:
    rig.put(B, 0x12)
    for _ in range(3):
        rig.timers.advance(SECOND)
        assert rig.get(C) & 0x90 == 0x90
    assert rig.edges == [(IRQ, True), (IRQ, False)] * 3


@pytest.mark.parametrize(
    ("hours", "minutes", "seconds", "expected_s"),
    [
        (0x17, 0x15, 0x00, 2),
        (0xFF, 0x14, 0x59, 1),
        (0xC0, 0xC0, 0xC0, 1),
        (0x17, 0x14, 0x58, 86400),
        (0x00, 0x00, 0x00, 6 * 3600 + 45 * 60 + 2),
        (0xFF, 0x00, 0xFF, 45 * 60 + 2),
    ],
)
def test_alarm_interrupt(rig: RtcRig, hours: int, minutes: int, seconds: int, expected_s: int) -> None:
    for register, value in ((5, hours), (3, minutes), (1, seconds)):
        rig.put(register, value)
    rig.put(B, 0x22)
    rig.timers.advance(expected_s * SECOND - 1)
    assert not rig.lines.get(IRQ)
    rig.timers.advance(1)
    assert rig.lines[IRQ]
    assert rig.get(C) & 0xA0 == 0xA0


def test_alarm_that_is_no_time_never_comes(rig: RtcRig) -> None:
    rig.put(5, 0x77)
    rig.put(B, 0x22)
    rig.timers.advance(2 * 86400 * SECOND)
    assert rig.edges == []


def test_reset_disables_interrupts_and_keeps_time_and_cmos(rig: RtcRig) -> None:
    rig.put(0x0F, 5)
    rig.put(B, 0x72)
    rig.timers.advance(SECOND)
    rig.rtc.reset()
    assert not rig.lines[IRQ]
    assert rig.get(B) == 0x02
    assert rig.get(0x0F) == 5
    assert rig.time_of_day()[-1] == 0x59
