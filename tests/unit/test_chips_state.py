"""What chips without KVM give and take of their state, and what they refuse."""

import errno
import struct

import pytest
from chips_rig import LAPIC, MS, ChipsRig, end, program, start_lapic, start_pics
from vmm._native import ffi, lib

from vmm.errors import KvmError


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
