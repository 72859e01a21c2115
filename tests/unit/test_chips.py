"""Chips without KVM: 8259s, 8254 and I/O APIC, by what their data sheets say; time stands but where it is told.

What of this QEMU can be asked without a CPU, tests/oracle/test_random_chips.py compares with it.
"""

import pytest
from chips_rig import LAPIC, MS, ChipsRig, end, entry_of, program, route, start_lapic, start_pics

MASKED = 1 << 16


# -- 8259 -----------------------------------------------------------------------------------------------------------


def test_an_edge_at_the_slave_has_its_vector_and_waits_for_both_ends() -> None:
    with ChipsRig() as rig:
        start_pics(rig)
        rig.vm.irq_line(12, True)
        rig.vm.irq_line(12, False)
        rig.vm.irq_line(1, True)
        assert rig.take() == 0x21  # more important than the cascade
        assert rig.take() is None
        rig.write(0x20, 0x20)
        assert rig.take() == 0x2C
        rig.vm.irq_line(12, True)
        rig.write(0x20, 0x20)
        assert rig.take() is None  # the slave serves the one before
        rig.write(0xA0, 0x20)
        assert rig.take() == 0x2C


def test_a_level_interrupts_as_long_as_it_lasts() -> None:
    with ChipsRig() as rig:
        start_pics(rig)
        rig.write(0x4D1, 0x08)  # IRQ 11
        rig.vm.irq_line(11, True)
        assert rig.take() == 0x2B
        rig.write(0xA0, 0x20)
        rig.write(0x20, 0x20)
        assert rig.take() == 0x2B
        rig.vm.irq_line(11, False)
        rig.write(0xA0, 0x20)
        rig.write(0x20, 0x20)
        assert rig.take() is None


def test_no_elcr_makes_the_timer_a_level() -> None:
    with ChipsRig() as rig:
        rig.write(0x4D0, 0xFF)
        rig.write(0x4D1, 0xFF)
        assert (rig.read(0x4D0), rig.read(0x4D1)) == (0xF8, 0xDE)


def test_automatic_end_and_rotation() -> None:
    with ChipsRig() as rig:
        for offset, value in ((0, 0x11), (1, 0x20), (1, 4), (1, 3), (1, 0)):
            rig.write(0x20 + offset, value)
        rig.write(0x20, 0x80)  # rotate in automatic EOI mode
        for irq in (3, 4):
            rig.vm.irq_line(irq, True)
        assert [rig.take(), rig.take(), rig.take()] == [0x23, 0x24, None]
        for irq in (3, 4, 5):
            rig.vm.irq_line(irq, False)
            rig.vm.irq_line(irq, True)
        assert rig.take() == 0x25  # 4 was the last


# -- 8254 -----------------------------------------------------------------------------------------------------------


def test_a_thousand_hertz_for_ten_seconds() -> None:
    with ChipsRig() as rig:
        start_pics(rig)
        program(rig, 0, 2, 1193)
        ticks = 0
        for _ in range(20_000):
            rig.advance(MS // 2)
            while rig.take() == 0x20:
                ticks += 1
                rig.write(0x20, 0x20)
        assert ticks == 10 * 1193182 // 1193


def test_ticks_that_the_host_came_too_late_for_are_made_up_for_and_those_that_the_guest_did_not_want_are_not() -> None:
    with ChipsRig() as rig:
        start_pics(rig)
        program(rig, 0, 2, 1193)
        rig.advance(50 * MS)
        ticks = 0
        while rig.take() == 0x20:
            ticks += 1
            rig.write(0x20, 0x20)
        assert ticks == 50
        for _ in range(50):
            rig.advance(MS)
            rig.read(0x21)  # somebody looks, and the guest takes no interrupt
        assert rig.take() == 0x20
        rig.write(0x20, 0x20)
        assert rig.take() is None


def test_a_cpu_that_waits_to_be_started_loses_no_ticks_of_another() -> None:
    with ChipsRig(cpus=2) as rig:
        start_pics(rig)
        program(rig, 0, 2, 1193)
        for _ in range(50):
            rig.advance(MS)
            assert not rig.is_started(1)
        ticks = 0
        while rig.take() == 0x20:
            ticks += 1
            rig.write(0x20, 0x20)
        assert ticks == 50


def test_mode_0_interrupts_once() -> None:
    with ChipsRig() as rig:
        start_pics(rig)
        program(rig, 0, 0, 11932)
        rig.advance(9 * MS)
        assert rig.take() is None
        rig.advance(2 * MS)
        assert rig.take() == 0x20
        rig.write(0x20, 0x20)
        rig.advance(1000 * MS)
        assert rig.take() is None


@pytest.mark.parametrize(
    ("mode", "after", "value"),
    [(0, 100, 0x10000 - 20), (2, 100, 60), (2, 159, 1), (3, 30, 20), (3, 50, 60), (4, 81, 0xFFFF)],
)
def test_a_count_can_be_read(mode: int, after: int, value: int) -> None:
    """80, after so many clocks; a latched one stays until it was read."""
    with ChipsRig() as rig:
        program(rig, 1, mode, 80)
        rig.advance(after * 1_000_000_000 // 1193182 + 1)
        rig.write(0x43, 0x40)
        rig.advance(MS)
        assert rig.read(0x41) | rig.read(0x41) << 8 == value


def test_decimal_counts() -> None:
    with ChipsRig() as rig:
        rig.write(0x43, 0x75)  # channel 1, mode 2, BCD
        rig.write(0x41, 0x00)
        rig.write(0x41, 0x10)  # a thousand
        rig.advance(1 * 1_000_000_000 // 1193182 + 1)
        rig.write(0x43, 0x40)
        assert rig.read(0x41) | rig.read(0x41) << 8 == 0x0999


def test_port_61_has_the_second_channels_gate_and_output() -> None:
    with ChipsRig() as rig:
        rig.write(0x61, 0)
        rig.write(0x43, 0xB0)
        rig.write(0x61, 1)
        rig.write(0x42, 0x34)
        rig.write(0x42, 0x12)
        assert rig.read(0x61) & 0x23 == 0x01
        rig.advance(5 * MS)
        assert rig.read(0x61) & 0x23 == 0x21


# -- I/O APIC -------------------------------------------------------------------------------------------------------


def test_a_level_waits_for_its_end() -> None:
    with ChipsRig(2) as rig:
        start_lapic(rig, 1)
        route(rig, 20, 1 << 56 | 1 << 15 | 0x61)
        rig.vm.irq_line(20, True)
        assert rig.take(1) == 0x61
        assert entry_of(rig, 20) & 1 << 14
        end(rig, 1)
        assert rig.take(1) == 0x61  # it is still high
        rig.vm.irq_line(20, False)
        end(rig, 1)
        assert rig.take(1) is None
        assert not entry_of(rig, 20) & 1 << 14


def test_a_level_that_nobody_took_waits_for_no_end() -> None:
    with ChipsRig() as rig:
        route(rig, 20, 1 << 15 | 0x61)
        rig.vm.irq_line(20, True)
        assert not entry_of(rig, 20) & 1 << 14
        start_lapic(rig)
        rig.vm.irq_line(20, True)
        assert rig.take() == 0x61
        assert entry_of(rig, 20) & 1 << 14


def test_an_edge_comes_once_and_not_while_it_is_masked() -> None:
    with ChipsRig() as rig:
        start_lapic(rig)
        rig.store(LAPIC + 0x350, MASKED)
        route(rig, 2, 0x61)
        rig.vm.irq_line(0, True)
        assert rig.take() == 0x61
        end(rig)
        assert rig.take() is None
        route(rig, 2, MASKED | 0x61)
        rig.vm.irq_line(0, False)
        rig.vm.irq_line(0, True)
        route(rig, 2, 0x61)
        assert rig.take() is None


def test_the_8259s_by_way_of_the_io_apic() -> None:
    """ExtINT, as a virtual wire that the I/O APIC is in."""
    with ChipsRig(2) as rig:
        rig.store(LAPIC + 0x350, MASKED)
        start_pics(rig)
        for cpu in range(2):
            start_lapic(rig, cpu)
        route(rig, 9, 1 << 56 | 7 << 8)
        rig.vm.irq_line(9, True)
        assert [rig.take(0), rig.take(1)] == [None, 0x29]


def test_a_message() -> None:
    with ChipsRig(2) as rig:
        for cpu in range(2):
            start_lapic(rig, cpu)
        assert rig.vm.signal_msi(LAPIC | 1 << 12, 0x51)
        assert not rig.vm.signal_msi(LAPIC | 7 << 12, 0x51)
        assert [rig.take(0), rig.take(1)] == [None, 0x51]


WIDE_IDS = (0, 1, 255, 300)


@pytest.mark.parametrize(
    ("low", "high", "takers"),
    [
        (0, 0, [0]),
        (300 & 0xFF, 300 >> 8 << 1, [300]),
        (255, 0, [255]),  # no broadcast where it is an id
        (1, 1 << 1, []),  # 257 is nobody's
        (0, 0x7F << 1, []),
        (1, 1 << 1 | 1, [1]),  # as remapping wants it, which is not there
    ],
)
def test_destinations_of_15_bits(low: int, high: int, takers: list[int]) -> None:
    """By a message, and by the I/O APIC."""
    with ChipsRig(wide_ids=WIDE_IDS) as rig:
        for cpu in range(len(WIDE_IDS)):
            base = rig.read_msr(0x1B, cpu)
            assert base is not None
            assert rig.write_msr(0x1B, base | 0xC00, cpu)
            assert rig.write_msr(0x80F, 0x1FF, cpu)
        rig.vm.signal_msi(LAPIC | low << 12 | high << 4, 0x51)
        assert [number for cpu, number in enumerate(WIDE_IDS) if rig.take(cpu) == 0x51] == takers
        route(rig, 20, low << 56 | high << 48 | 0x61)
        rig.vm.irq_line(20, True)
        assert [number for cpu, number in enumerate(WIDE_IDS) if rig.take(cpu) == 0x61] == takers


def test_destinations_have_8_bits_where_ids_do() -> None:
    with ChipsRig(2) as rig:
        for cpu in range(2):
            start_lapic(rig, cpu)
        assert rig.vm.signal_msi(LAPIC | 1 << 12 | 1 << 5, 0x51)
        assert [rig.take(0), rig.take(1)] == [None, 0x51]
        assert rig.vm.signal_msi(LAPIC | 0xFF << 12, 0x61)
        assert [rig.take(0), rig.take(1)] == [0x61, 0x61]
