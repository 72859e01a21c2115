import time

import pytest
from device_rig import Rig

from vmm import layout
from vmm.devices.acpi_pm import BHYVE, ICH9, PIIX4, AcpiPm, ApmPorts, PmModel

BASE = 0x600
STATUS, ENABLE, CONTROL, TIMER = BASE, BASE + 2, BASE + 4, BASE + 8
GPE0, SMI_EN = BASE + 0x20, BASE + 0x30
SCI = 9
POWER_BUTTON = 0x100


class PmRig(Rig):
    def __init__(self, model: PmModel = ICH9) -> None:
        super().__init__()
        self.pm = AcpiPm(model, self.ports, lambda level: self.irq(SCI, level), self.power, self.clock)
        apm = layout.PORT_APM
        self.ports.add(apm.start, apm.stop - 1, ApmPorts(self.pm), "APM")
        self.pm.move(BASE)


@pytest.fixture
def rig() -> PmRig:
    return PmRig()


def test_enable_bits_are_held(rig: PmRig) -> None:
    rig.out(ENABLE, 2, 0x0121)
    assert rig.inp(ENABLE, 2) == 0x0121
    assert rig.inp(STATUS, 4) == 0x0121_0000


@pytest.mark.parametrize(("model", "on", "off"), [(ICH9, 0x02, 0x03), (PIIX4, 0xF1, 0xF0), (BHYVE, 0xA0, 0xA1)])
def test_smi_command_switches_acpi(model: PmModel, on: int, off: int) -> None:
    rig = PmRig(model)
    rig.outb(0xB2, on)
    assert rig.inp(CONTROL, 2) == 1
    assert rig.inb(0xB2) == on
    rig.outb(0xB2, off)
    assert rig.inp(CONTROL, 2) == 0


def test_power_button_interrupts_once_acpi_is_on(rig: PmRig) -> None:
    rig.out(ENABLE, 2, POWER_BUTTON)
    rig.pm.press_power_button()
    assert not rig.lines.get(SCI)
    rig.out(CONTROL, 2, 1)
    assert rig.lines[SCI]
    rig.out(STATUS, 2, POWER_BUTTON)
    assert not rig.lines[SCI]
    assert rig.inp(STATUS, 2) == 0


def test_writing_zeros_clears_no_status(rig: PmRig) -> None:
    rig.pm.press_power_button()
    rig.out(STATUS, 2, 0)
    assert rig.inp(STATUS, 2) == POWER_BUTTON


@pytest.mark.parametrize("model", [ICH9, PIIX4])
def test_s3_suspends_where_it_is_offered_and_is_told_at_the_wake_up(model: PmModel) -> None:
    rig = PmRig(model)
    rig.out(CONTROL, 2, 1 << 13 | 1 << 10)
    assert rig.power.events == ["suspend"]
    assert rig.pm.event.read(0, 2) == 0
    rig.pm.wake_up()
    assert rig.pm.event.read(0, 2) == 1 << 15
    without = PmRig(model._replace(s3_sleep_type=None))
    without.out(CONTROL, 2, 1 << 13 | 1 << 10)
    assert without.power.events == []


@pytest.mark.parametrize(("model", "sleep_type"), [(ICH9, 0), (PIIX4, 0), (BHYVE, 5)])
def test_s5_powers_off_and_other_states_do_not(model: PmModel, sleep_type: int) -> None:
    rig = PmRig(model)
    for other in set(range(8)) - {sleep_type, model.s3_sleep_type}:
        rig.out(CONTROL, 2, 1 << 13 | other << 10)
    rig.out(CONTROL, 2, sleep_type << 10)
    assert rig.power.events == []
    rig.out(CONTROL, 2, 1 << 13 | sleep_type << 10)
    assert rig.power.events == ["off"]
    assert rig.inp(CONTROL, 2) == sleep_type << 10, "SLP_EN reads as 0"


def test_gpe0_of_ich9(rig: PmRig) -> None:
    rig.outb(CONTROL, 1)
    rig.outb(GPE0 + 8 + 2, 0x04)
    rig.pm.gpe0.raise_event(1 << 18)
    assert rig.lines[SCI]
    assert rig.inp(GPE0, 4) == 1 << 18
    rig.out(GPE0, 4, 1 << 18)
    assert not rig.lines[SCI]


def test_smm_looks_set_up(rig: PmRig) -> None:
    assert rig.inp(SMI_EN, 4) == 0x20
    rig.out(SMI_EN, 4, 0x0001_0021)
    assert rig.inp(SMI_EN, 4) == 0x0001_0021


HZ = 3_579_545


def ticks_at(ns: int) -> int:
    return ns * HZ // 10**9


def test_timer_counts_at_3_579545_mhz() -> None:
    # Two reads bracket two reads of the clock: the count in between is at most what the outer pair saw.
    rig = PmRig(BHYVE)
    before = time.monotonic_ns()
    first = rig.inp(TIMER, 4)
    inner_start = time.monotonic_ns()
    time.sleep(0.02)
    inner_end = time.monotonic_ns()
    ticks = rig.inp(TIMER, 4) - first
    after = time.monotonic_ns()
    assert ticks_at(inner_end - inner_start) - 1 <= ticks <= ticks_at(after - before) + 1


@pytest.mark.parametrize(("model", "bits"), [(ICH9, 24), (PIIX4, 24), (BHYVE, 32)])
@pytest.mark.parametrize("age_s", [0, 5, 1201, 10**9])
def test_timer_width(model: PmModel, bits: int, age_s: int) -> None:
    """24 bits overflow after 4.7 s, 32 bits after 1,199.9 s."""
    rig = PmRig(model)
    # On a host that started later than that, the clock's start lies below zero, and wraps.
    start = time.monotonic_ns() - age_s * 10**9
    rig.pm._timer.start_ns = start % (1 << 64)
    earliest = ticks_at(time.monotonic_ns() - start)
    count = rig.inp(TIMER, 4)
    latest = ticks_at(time.monotonic_ns() - start)
    assert count in {ticks % (1 << bits) for ticks in range(earliest, latest + 1)}


def test_timer_ignores_writes() -> None:
    rig = PmRig(BHYVE)
    before = time.monotonic_ns()
    first = rig.inp(TIMER, 4)
    rig.out(TIMER, 4, 0xFFFF_FFFF)
    assert 0 <= rig.inp(TIMER, 4) - first <= ticks_at(time.monotonic_ns() - before) + 1


def test_registers_that_are_not_there_read_as_zero(rig: PmRig) -> None:
    assert rig.inp(BASE + 0x0C, 4) == 0
    rig.out(BASE + 0x60, 4, 0xFFFF_FFFF)
    assert rig.inp(BASE + 0x60, 4) == 0


def test_apm_status_is_a_scratch_byte(rig: PmRig) -> None:
    rig.outb(0xB3, 0x5A)
    assert rig.inp(0xB2, 2) == 0x5A00


def test_reset(rig: PmRig) -> None:
    rig.out(ENABLE, 2, POWER_BUTTON)
    rig.out(CONTROL, 2, 1)
    rig.pm.press_power_button()
    rig.pm.reset()
    assert not rig.lines[SCI]
    assert [r.name for r in rig.ports.ranges()] == ["APM"]
    rig.pm.move(BASE)
    assert rig.inp(STATUS, 4) == 0
