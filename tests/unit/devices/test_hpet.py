import time

import pytest
from device_rig import ManualTimers, Rig
from hypothesis import given
from hypothesis import strategies as st

from vmm import layout
from vmm.devices.clock import GuestClock
from vmm.devices.hpet import Hpet
from vmm.devices.timer import TimerService

BASE = layout.HPET.start
CAPABILITIES, CONFIGURATION, STATUS, COUNTER = (BASE + i for i in (0x00, 0x10, 0x20, 0xF0))
LEVEL, INTERRUPT, PERIODIC, SET, BITS_32, MESSAGE = 1 << 1, 1 << 2, 1 << 3, 1 << 6, 1 << 8, 1 << 14
GSI_20 = 20 << 9
TICK = 10


def timer(number: int, register: int = 0) -> int:
    return BASE + 0x100 + 0x20 * number + register


class HpetRig(Rig):
    def __init__(self) -> None:
        super().__init__()
        self.timers = ManualTimers(self.lock, start_ns=77_777)
        self.hpet = Hpet(self.irq, self.msi, self.timers)
        self.mmio.add(BASE, layout.HPET.stop - 1, self.hpet, "HPET")

    def start(self) -> None:
        self.store(CONFIGURATION, 8, 1)

    def ticks(self, count: int) -> None:
        self.timers.advance(count * TICK)


@pytest.fixture
def rig() -> HpetRig:
    return HpetRig()


def test_capabilities(rig: HpetRig) -> None:
    value = rig.load(CAPABILITIES, 8)
    assert value >> 32 == 10_000_000, "femtoseconds a tick"
    assert value >> 16 & 0xFFFF == 0x8086
    assert value & 0xFF == 1
    assert value >> 8 & 0x1F == 2, "three comparators"
    assert value >> 13 & 1, "64 bits"
    assert not value >> 15 & 1, "no legacy replacement"
    assert rig.load(CAPABILITIES + 4, 4) == 10_000_000


def test_counter_runs_only_while_enabled(rig: HpetRig) -> None:
    rig.ticks(5)
    assert rig.load(COUNTER, 8) == 0
    rig.start()
    rig.ticks(7)
    assert rig.load(COUNTER, 8) == 7
    rig.store(CONFIGURATION, 8, 0)
    rig.ticks(5)
    assert rig.load(COUNTER, 8) == 7
    rig.store(COUNTER, 8, 0xFFFF_FFFE)
    rig.start()
    rig.ticks(3)
    assert rig.load(COUNTER, 8) == 0x1_0000_0001
    assert rig.load(COUNTER + 4, 4) == 1


def test_counter_is_not_writable_while_it_runs(rig: HpetRig) -> None:
    rig.start()
    rig.store(COUNTER, 8, 1000)
    assert rig.load(COUNTER, 8) == 0


def test_one_shot_level_interrupt_rearmed_in_the_handler(rig: HpetRig) -> None:
    # As bhyve's firmware does: 10 ms, lowest allowed GSI, level.
    allowed = rig.load(timer(0), 8) >> 32
    gsi = (allowed & -allowed).bit_length() - 1
    assert gsi == 20
    rig.store(timer(0), 8, gsi << 9 | LEVEL | INTERRUPT)
    rig.start()
    for _ in range(3):
        rig.store(timer(0, 8), 8, rig.load(COUNTER, 8) + 1_000_000)
        rig.ticks(999_999)
        assert not rig.lines.get(gsi)
        rig.ticks(1)
        assert rig.lines[gsi]
        assert rig.load(STATUS, 8) == 1
        rig.store(STATUS, 8, 1)
        assert not rig.lines[gsi]


def test_message_delivery(rig: HpetRig) -> None:
    assert rig.load(timer(1), 4) >> 15 & 1
    rig.store(timer(1, 0x10), 8, 0xFEE0_0000 << 32 | 0x40)
    rig.store(timer(1), 8, MESSAGE | INTERRUPT)
    rig.store(timer(1, 8), 8, 100)
    rig.start()
    rig.ticks(100)
    assert rig.messages == [(0xFEE0_0000, 0x40)]
    assert rig.edges == []


def test_edge_interrupt_is_a_pulse_without_status(rig: HpetRig) -> None:
    rig.store(timer(0), 8, GSI_20 | INTERRUPT)
    rig.store(timer(0, 8), 8, 10)
    rig.start()
    rig.ticks(10)
    assert rig.edges == [(20, True), (20, False)]
    assert rig.load(STATUS, 8) == 0


def test_periodic_as_linux_programs_it(rig: HpetRig) -> None:
    # arch/x86/kernel/hpet.c, hpet_clkevt_set_state_periodic: accumulator by VAL_SET, then the period, 32 bits each.
    rig.start()
    rig.store(timer(0), 4, GSI_20 | INTERRUPT | PERIODIC | SET | BITS_32)
    rig.store(timer(0, 8), 4, 100_000)
    rig.store(timer(0, 8), 4, 100_000)
    rig.ticks(1_000_000)
    assert rig.edges == [(20, True), (20, False)] * 10
    assert rig.load(timer(0, 8), 4) == 1_100_000


def test_fast_period_cannot_flood_the_host(rig: HpetRig) -> None:
    rig.start()
    rig.store(timer(0), 4, GSI_20 | INTERRUPT | PERIODIC | SET)
    rig.store(timer(0, 8), 8, 1)
    rig.timers.advance(1_000_000)
    assert len(rig.edges) <= 2 * 21


def test_comparator_in_the_past_fires_at_once(rig: HpetRig) -> None:
    rig.start()
    rig.ticks(1000)
    rig.store(timer(2), 8, GSI_20 | INTERRUPT)
    rig.store(timer(2, 8), 8, 10)
    rig.timers.advance(0)
    assert rig.edges == [(20, True), (20, False)]


def test_32_bit_comparator_waits_across_the_wrap(rig: HpetRig) -> None:
    rig.store(COUNTER, 8, 0xFFFF_FF00)
    rig.start()
    rig.store(timer(0), 8, GSI_20 | INTERRUPT | BITS_32)
    rig.store(timer(0, 8), 8, 0x100)
    rig.ticks(0x1FF)
    assert rig.edges == []
    rig.ticks(1)
    assert rig.edges[0] == (20, True)


def test_gsi_that_is_not_allowed_stays_quiet(rig: HpetRig) -> None:
    for config in (INTERRUPT, LEVEL | INTERRUPT):
        rig.store(timer(0), 8, 4 << 9 | config)
        rig.store(timer(0, 8), 8, 1)
        rig.start()
        rig.ticks(10)
    assert rig.edges == []


def test_disabling_takes_the_deadline_back(rig: HpetRig) -> None:
    rig.store(timer(0), 8, GSI_20 | INTERRUPT)
    rig.store(timer(0, 8), 8, 100)
    rig.start()
    rig.ticks(50)
    rig.store(CONFIGURATION, 8, 0)
    rig.ticks(1000)
    assert rig.edges == []
    rig.start()
    rig.ticks(50)
    assert rig.edges[0] == (20, True)


def test_reset(rig: HpetRig) -> None:
    rig.store(timer(0), 8, GSI_20 | LEVEL | INTERRUPT)
    rig.store(timer(0, 8), 8, 1)
    rig.start()
    rig.ticks(2)
    assert rig.lines[20]
    rig.hpet.reset()
    assert not rig.lines[20]
    assert rig.load(COUNTER, 8) == 0
    assert rig.load(timer(0), 4) & INTERRUPT == 0


@given(offset=st.integers(0, len(layout.HPET) - 1), size=st.integers(1, 8))
def test_any_part_of_the_registers_can_be_read(offset: int, size: int) -> None:
    rig = HpetRig()
    rig.store(timer(1), 8, GSI_20 | LEVEL | INTERRUPT)
    rig.store(timer(1, 8), 8, 0x0123_4567_89AB_CDEF)
    rig.store(timer(2, 0x10), 8, 0xFEE0_0000 << 32 | 0x40)
    rig.store(COUNTER, 8, 0xFFFF_FFFF)
    rig.start()
    rig.ticks(0x1234)
    block = b"".join(rig.load(BASE + at, 8).to_bytes(8, "little") for at in range(0, len(layout.HPET), 8))
    assert block[0xF0:0xF8] == (0x1_0000_1233).to_bytes(8, "little")
    size = min(size, len(block) - offset)
    assert rig.load(BASE + offset, size).to_bytes(size, "little") == block[offset : offset + size]


def test_counter_wraps_around_at_64_bits(rig: HpetRig) -> None:
    rig.store(COUNTER, 8, (1 << 64) - 2)
    rig.start()
    rig.ticks(5)
    assert rig.load(COUNTER, 8) == 3
    rig.store(CONFIGURATION, 8, 0)
    rig.ticks(5)
    assert rig.load(COUNTER, 8) == 3


def test_the_machines_clock_drives_it() -> None:
    rig = Rig()
    timers = TimerService(rig.lock, rig.failures.append, GuestClock())
    rig.mmio.add(BASE, layout.HPET.stop - 1, Hpet(rig.irq, rig.msi, timers), "HPET")
    before = time.monotonic_ns()
    rig.store(CONFIGURATION, 8, 1)
    started = time.monotonic_ns()
    earliest = (time.monotonic_ns() - started) // TICK
    counter = rig.load(COUNTER, 8)
    assert earliest <= counter <= (time.monotonic_ns() - before) // TICK
    timers.close()
