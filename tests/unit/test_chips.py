"""Chips without KVM: interrupt controllers and timers, by what their data sheets say; time stands but where it is told.

What of this QEMU can be asked without a CPU, tests/oracle/test_random_chips.py compares with it.
"""

import errno
import struct

import pytest
from chips_rig import IOAPIC, LAPIC, ChipsRig
from vmm._native import ffi, lib

from vmm.errors import KvmError
from vmm.kvm import MpState

MS = 1_000_000
SPURIOUS_ON = 0x1FF
INIT, STARTUP, NMI, LOWEST, FIXED = 5 << 8, 6 << 8, 4 << 8, 1 << 8, 0
ASSERT = 1 << 14
LOGICAL = 1 << 11
MASKED = 1 << 16
PERIODIC = 1 << 17
TSC_DEADLINE = 2 << 17
TSC_DEADLINE_MSR = 0x6E0
APIC_BASE = 0x1B
X2APIC_ON = 0xC00


def start_pics(rig: ChipsRig) -> None:
    """As firmware does: vectors 0x20 and 0x28, nothing masked."""
    for port, vector, icw3 in ((0x20, 0x20, 4), (0xA0, 0x28, 2)):
        for offset, value in ((0, 0x11), (1, vector), (1, icw3), (1, 1), (1, 0)):
            rig.write(port + offset, value)


def start_lapic(rig: ChipsRig, cpu: int = 0) -> None:
    rig.store(LAPIC + 0xF0, SPURIOUS_ON, cpu)


def end(rig: ChipsRig, cpu: int = 0) -> None:
    rig.store(LAPIC + 0xB0, 0, cpu)


def command(rig: ChipsRig, low: int, destination: int = 0, cpu: int = 0) -> None:
    rig.store(LAPIC + 0x310, destination << 24, cpu)
    rig.store(LAPIC + 0x300, low, cpu)


def route(rig: ChipsRig, pin: int, entry: int) -> None:
    for half in (1, 0):
        rig.store(IOAPIC, 0x10 + 2 * pin + half)
        rig.store(IOAPIC + 0x10, entry >> 32 * half & 0xFFFFFFFF)


def entry_of(rig: ChipsRig, pin: int) -> int:
    rig.store(IOAPIC, 0x10 + 2 * pin)
    return rig.load(IOAPIC + 0x10)


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


def program(rig: ChipsRig, channel: int, mode: int, count: int) -> None:
    rig.write(0x43, channel << 6 | 3 << 4 | mode << 1)
    rig.write(0x40 + channel, count & 0xFF)
    rig.write(0x40 + channel, count >> 8 & 0xFF)


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


# -- local APIC -----------------------------------------------------------------------------------------------------


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


# -- state ----------------------------------------------------------------------------------------------------------


def test_state_goes_from_one_machine_to_another() -> None:
    with ChipsRig() as old, ChipsRig() as new:
        start_pics(old)
        start_lapic(old)
        program(old, 0, 2, 11932)
        old.store(LAPIC + 0x3E0, 0b1011)
        old.store(LAPIC + 0x320, 0x41)
        old.store(LAPIC + 0x380, 5 * MS)
        old.vm.irq_line(1, True)
        old.advance(2 * MS)
        new.advance(2 * MS)
        for chip in range(3):
            new.vm.set_irqchip(old.vm.get_irqchip(chip))
        new.vm.set_pit2(old.vm.get_pit2())
        new.vcpus[0].set_lapic(old.vcpus[0].get_lapic())
        for chip in range(3):
            assert bytes(ffi.buffer(new.vm.get_irqchip(chip))) == bytes(ffi.buffer(old.vm.get_irqchip(chip)))
        for rig in (old, new):
            assert rig.take() == 0x21
            rig.write(0x20, 0x20)
            assert rig.take() is None
            rig.advance(3 * MS)
            assert rig.take() == 0x41
            end(rig)
            rig.advance(6 * MS)
            assert rig.take() == 0x20


def test_what_was_due_and_not_seen_to_is_in_the_state() -> None:
    with ChipsRig() as old, ChipsRig() as new:
        for rig in (old, new):
            start_pics(rig)
            start_lapic(rig)
        old.store(LAPIC + 0x320, 0x41)
        old.store(LAPIC + 0x380, MS)
        program(old, 0, 0, 1193)
        old.advance(2 * MS)
        new.advance(2 * MS)
        pit = old.vm.get_pit2()
        for chip in range(3):
            new.vm.set_irqchip(old.vm.get_irqchip(chip))
        new.vm.set_pit2(pit)
        new.vcpus[0].set_lapic(old.vcpus[0].get_lapic())
        assert [new.take(), new.take(), new.take()] == [0x20, 0x41, None]


def test_a_count_that_ends_once_ends_where_time_went_on_meanwhile() -> None:
    with ChipsRig() as old, ChipsRig() as new:
        start_pics(new)
        program(old, 0, 4, 1193)  # its output is low again by then
        new.advance(5 * MS)
        new.vm.set_pit2(old.vm.get_pit2())
        assert [new.take(), new.take()] == [0x20, None]
        assert old.take() is None


def test_a_count_that_has_interrupted_does_not_do_so_again() -> None:
    """Mode 0, whose output stays high."""
    with ChipsRig() as old, ChipsRig() as new:
        for rig in (old, new):
            start_pics(rig)
        program(old, 0, 0, 1193)
        for rig in (old, new):
            rig.advance(2 * MS)
        assert old.take() == 0x20
        old.write(0x20, 0x20)
        new.vm.set_pit2(old.vm.get_pit2())
        for rig in (old, new):
            assert rig.take() is None


def test_mxcsr_has_no_reserved_bits() -> None:
    with ChipsRig() as rig:
        (vcpu,) = rig.vcpus
        area = bytearray(vcpu.get_xsave())
        area[26] = 1
        with pytest.raises(KvmError, match="KVM_SET_XSAVE"):
            vcpu.set_xsave(bytes(area))


def test_what_is_left_of_a_closed_machine_asks_nothing_that_was_freed() -> None:
    with ChipsRig() as rig:
        core = ffi.gc(lib.vmm_vm_new(-1), lib.vmm_vm_free)
        rig.vm.attach(core)
        vcpu = ffi.gc(lib.vmm_vcpu_new(core, -1, rig.vcpus[0].run, 0), lib.vmm_vcpu_free)
        rig.vcpus[0].attach(vcpu)
        vcpu.start_watched = True
        rig.vm.close()
        assert not core.chips
        assert lib.vmm_vcpu_reset(vcpu) == -errno.EBADF


def test_fpu_and_xsave_are_one() -> None:
    with ChipsRig() as rig:
        (vcpu,) = rig.vcpus
        fpu = vcpu.get_fpu()
        assert fpu.fcw == 0x37F
        fpu.fcw, fpu.fsw, fpu.ftwx = 0x27F, 0x3800, 0x81
        fpu.cdata.xmm[3][5] = 0xAB
        vcpu.set_fpu(fpu)
        area = vcpu.get_xsave()
        assert struct.unpack_from("<HHB", area) == (0x27F, 0x3800, 0x81)
        assert area[160 + 3 * 16 + 5] == 0xAB
        assert struct.unpack_from("<I", area, 24) == (0x1F80,)


def test_what_kvm_would_refuse_is_refused() -> None:
    with ChipsRig() as rig:
        with pytest.raises(KvmError, match="KVM_CREATE_IRQCHIP"):
            rig.vm.create_irqchip()
        with pytest.raises(KvmError, match="KVM_CREATE_VCPU"):
            rig.vm.create_vcpu(0)
        with pytest.raises(KvmError, match="KVM_IRQ_LINE"):
            rig.vm.irq_line(24, True)
        with pytest.raises(KvmError, match="ENOTTY"):
            rig.vcpus[0].smi()
        assert rig.vcpus[0].get_msrs([0x12345, 0x10]) == {}
        rig.vm.close()
        with pytest.raises(KvmError, match="EBADF"):
            rig.vcpus[0].get_regs()
        with pytest.raises(KvmError, match="EBADF"):
            rig.vm.get_clock()
    assert lib.CHIPS_MAX_CPUS == 1024
