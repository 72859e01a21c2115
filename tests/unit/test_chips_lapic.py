"""Local APICs without KVM, by what Intel's manual says."""

import pytest
from chips_rig import LAPIC, MS, SPURIOUS_ON, ChipsRig, command, end, start_lapic

from vmm.kvm import MpState

INIT, STARTUP, NMI, LOWEST, FIXED = 5 << 8, 6 << 8, 4 << 8, 1 << 8, 0
ASSERT = 1 << 14
LOGICAL = 1 << 11
MASKED = 1 << 16
PERIODIC = 1 << 17
TSC_DEADLINE = 2 << 17
TSC_DEADLINE_MSR = 0x6E0
APIC_BASE = 0x1B
X2APIC_ON = 0xC00


def test_priorities_of_vectors_and_tasks() -> None:
    with ChipsRig() as rig:
        start_lapic(rig)
        for vector in (0x41, 0x52, 0x60):
            command(rig, FIXED | vector)
        rig.store(LAPIC + 0x80, 0x50)
        assert [rig.take(), rig.take()] == [0x60, None]
        assert rig.load(LAPIC + 0xA0) == 0x60
        end(rig)
        assert rig.take() is None
        assert rig.load(LAPIC + 0xA0) == 0x50
        rig.store(LAPIC + 0x80, 0)
        assert [rig.take(), rig.take()] == [0x52, None]
        end(rig)
        assert rig.take() == 0x41


def test_nothing_comes_before_the_spurious_register_says_so() -> None:
    with ChipsRig() as rig:
        command(rig, FIXED | 0x41)
        start_lapic(rig)
        assert rig.take() is None
        rig.store(LAPIC + 0x320, 0x41)
        rig.store(LAPIC + 0xF0, 0xFF)
        assert rig.load(LAPIC + 0x320) == MASKED | 0x41


@pytest.mark.parametrize(
    ("low", "destination", "takers"),
    [
        (FIXED | 0x41, 2, [2]),
        (FIXED | 0x41, 0xFF, [0, 1, 2, 3]),
        (FIXED | 0x41 | 1 << 18, 0, [1]),
        (FIXED | 0x41 | 2 << 18, 0, [0, 1, 2, 3]),
        (FIXED | 0x41 | 3 << 18, 0, [0, 2, 3]),
        (FIXED | 0x41 | LOGICAL, 0b1010, [1, 3]),
        (LOWEST | 0x41 | LOGICAL, 0b1110, [2]),
        (NMI, 3, [3]),
    ],
)
def test_destinations(low: int, destination: int, takers: list[int]) -> None:
    """CPU 1 sends; by lowest priority, to the first of those that do nothing."""
    with ChipsRig(4) as rig:
        for cpu in range(4):
            start_lapic(rig, cpu)
            rig.store(LAPIC + 0xD0, 1 << 24 + cpu, cpu)
            rig.store(LAPIC + 0x80, 0x20 if cpu == 1 else 0, cpu)
        command(rig, low, destination, cpu=1)
        taken = [rig.take(cpu) for cpu in range(4)]
        assert taken == [(2 if low & 0x700 == NMI else 0x41) if cpu in takers else None for cpu in range(4)]


def test_clusters() -> None:
    with ChipsRig(4) as rig:
        for cpu in range(4):
            start_lapic(rig, cpu)
            rig.store(LAPIC + 0xE0, 0, cpu)
            rig.store(LAPIC + 0xD0, (cpu // 2 << 4 | 1 << cpu % 2) << 24, cpu)
        command(rig, FIXED | 0x41 | LOGICAL, 0x12)
        assert [rig.take(cpu) for cpu in range(4)] == [None, None, None, 0x41]


def test_init_and_startup() -> None:
    with ChipsRig(2) as rig:
        ap = rig.vcpus[1]
        assert ap.get_mp_state() is MpState.UNINITIALIZED
        command(rig, STARTUP | 0x12, 1)
        assert rig.take(1) is None  # no INIT before
        command(rig, INIT | ASSERT, 1)
        assert rig.take(1) == -1
        assert ap.get_mp_state() is MpState.INIT_RECEIVED
        command(rig, STARTUP | 0x12, 1)
        command(rig, STARTUP | 0x34, 1)
        assert rig.take(1) == -1
        assert ap.get_mp_state() is MpState.RUNNABLE
        sregs = ap.get_sregs()
        assert (sregs.cs.base, sregs.cs.selector, ap.get_regs().rip) == (0x34000, 0x3400, 0)
        command(rig, STARTUP | 0x56, 1)
        assert rig.take(1) is None  # it runs
        command(rig, INIT | 1 << 15, 1)  # the end of a level
        assert rig.take(1) is None


def test_both_at_once_are_enough() -> None:
    with ChipsRig(2) as rig:
        command(rig, INIT | ASSERT, 1)
        command(rig, STARTUP | 9, 1)
        assert rig.take(1) == -1
        assert rig.vcpus[1].get_mp_state() is MpState.RUNNABLE
        assert rig.vcpus[1].get_sregs().cs.base == 0x9000


@pytest.mark.parametrize("divide", [0b1011, 0b0000, 0b1010])
def test_a_one_shot(divide: int) -> None:
    shift = {0b1011: 0, 0b0000: 1, 0b1010: 7}[divide]
    with ChipsRig() as rig:
        start_lapic(rig)
        rig.store(LAPIC + 0x3E0, divide)
        rig.store(LAPIC + 0x320, 0x41)
        rig.store(LAPIC + 0x380, 1000)
        rig.advance(400 << shift)
        assert rig.load(LAPIC + 0x390) == 600
        assert rig.take() is None
        rig.advance(600 << shift)
        assert [rig.take(), rig.take()] == [0x41, None]
        assert rig.load(LAPIC + 0x390) == 0


def test_a_period_loses_nothing_where_the_host_is_late() -> None:
    with ChipsRig() as rig:
        start_lapic(rig)
        rig.store(LAPIC + 0x3E0, 0b1011)
        rig.store(LAPIC + 0x320, PERIODIC | 0x41)
        rig.store(LAPIC + 0x380, MS)
        rig.advance(30 * MS + 1)
        ticks = 0
        while rig.take() == 0x41:
            ticks += 1
            end(rig)
        assert ticks == 30
        assert rig.load(LAPIC + 0x390) == MS - 1
        rig.store(LAPIC + 0x320, PERIODIC | MASKED | 0x41)
        rig.advance(30 * MS)
        assert rig.take() is None


def test_a_tsc_deadline() -> None:
    with ChipsRig() as rig:
        start_lapic(rig)
        assert rig.write_msr(TSC_DEADLINE_MSR, 5)
        assert rig.read_msr(TSC_DEADLINE_MSR) == 0  # not in that mode
        rig.store(LAPIC + 0x320, TSC_DEADLINE | 0x41)
        now = rig.read_msr(0x10)
        assert now is not None
        assert rig.write_msr(TSC_DEADLINE_MSR, now + 1000)
        rig.advance(999)
        assert rig.take() is None
        rig.advance(1)
        assert [rig.take(), rig.take()] == [0x41, None]
        assert rig.read_msr(TSC_DEADLINE_MSR) == 0


def test_x2apic() -> None:
    with ChipsRig(2) as rig:
        base = rig.read_msr(APIC_BASE)
        assert base is not None
        assert rig.read_msr(0x802) is None
        for cpu in range(2):
            assert not rig.write_msr(APIC_BASE, base & ~0x800 | 0x400, cpu)
            assert rig.write_msr(APIC_BASE, base & ~0x100 | X2APIC_ON, cpu)
            assert rig.write_msr(0x80F, SPURIOUS_ON, cpu)
        assert not rig.write_msr(APIC_BASE, base)  # back by way of off alone
        assert [rig.read_msr(0x802, cpu) for cpu in range(2)] == [0, 1]
        assert [rig.read_msr(0x80D, cpu) for cpu in range(2)] == [1, 2]
        assert rig.write_msr(0x830, 1 << 32 | 0x41)
        assert rig.write_msr(0x830, 2 << 32 | LOGICAL | 0x51)
        assert [rig.take(1), rig.write_msr(0x80B, 0, 1), rig.take(1)] == [0x51, True, 0x41]
        assert rig.write_msr(0x83F, 0x61)
        assert rig.take() == 0x61
        for index, value in ((0x80B, 1), (0x802, 0), (0x808, 0x100), (0x83F, 0x100), (0x80E, 0), (0x831, 0)):
            assert not rig.write_msr(index, value)
        assert rig.read_msr(0x80B) is None


def test_a_cpu_in_xapic_mode_is_started_by_an_id_that_mode_has_not() -> None:
    """As one that was plugged in; 44 is what xAPIC has of 300."""
    with ChipsRig(wide_ids=(0, 44, 300)) as rig:
        base = rig.read_msr(APIC_BASE)
        assert base is not None
        assert rig.write_msr(APIC_BASE, base | X2APIC_ON)
        assert rig.write_msr(0x830, 300 << 32 | INIT | ASSERT)
        assert [rig.take(cpu) for cpu in range(3)] == [None, None, -1]


def test_errors_are_told() -> None:
    with ChipsRig() as rig:
        start_lapic(rig)
        rig.store(LAPIC + 0x370, 0x45)
        command(rig, FIXED | 5)
        assert rig.take() == 0x45
        assert rig.load(LAPIC + 0x280) == 0
        rig.store(LAPIC + 0x280, 0)
        assert rig.load(LAPIC + 0x280) == 0x60  # sent, received
        rig.store(LAPIC + 0x280, 0)
        assert rig.load(LAPIC + 0x280) == 0


def test_one_nmi_waits_for_another_and_two_for_a_cpu_that_has_not_had_its_turn() -> None:
    with ChipsRig() as rig:
        for _ in range(3):
            command(rig, NMI)
        assert [rig.take() for _ in range(3)] == [2, 2, None]
        command(rig, NMI)
        assert rig.take() == 2
        for _ in range(3):
            command(rig, NMI)
        assert [rig.take() for _ in range(2)] == [2, None]
