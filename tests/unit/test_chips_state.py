"""What chips without KVM give and take of their state, and what they refuse."""

import errno
import struct
import threading

import pytest
from chips_rig import LAPIC, MS, ChipsRig, command, end, program, start_lapic, start_pics
from lapic import soon
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


SREGS: dict[str, dict[str, int]] = {
    "CR0 beyond 32 bits": {"cr0": 1 << 32 | 0x60000010},
    "paging without protection": {"cr0": 1 << 31 | 0x60000010},
    "not write-through without cache disable": {"cr0": 0x20000010},
    "a bit of CR4 that the software CPU has not": {"cr4": 1 << 13},
    "a priority of five bits": {"cr8": 16},
    "SVM": {"efer": 1 << 12},
    "long mode without paging": {"efer": 1 << 8 | 1 << 10},
    "paging in long mode, not active": {"cr0": 0x80000011, "cr4": 1 << 5, "efer": 1 << 8},
    "long mode without PAE": {"cr0": 0x80000011, "efer": 1 << 8 | 1 << 10},
    "x2APIC, and off": {"apic_base": 0xFEE00400},
    "a reserved bit of the APIC's base": {"apic_base": 0xFEE00802},
}


@pytest.mark.parametrize("values", SREGS.values(), ids=SREGS.keys())
def test_no_cpu_has_such_registers(values: dict[str, int]) -> None:
    with ChipsRig() as rig:
        (vcpu,) = rig.vcpus
        before = bytes(ffi.buffer(vcpu.get_sregs().cdata))
        sregs = vcpu.get_sregs()
        for name, value in values.items():
            setattr(sregs.cdata, name, value)
        with pytest.raises(KvmError, match="EINVAL"):
            vcpu.set_sregs(sregs)
        assert bytes(ffi.buffer(vcpu.get_sregs().cdata)) == before


def test_code_of_64_bits_needs_long_mode() -> None:
    with ChipsRig() as rig:
        (vcpu,) = rig.vcpus
        sregs = vcpu.get_sregs()
        sregs.cdata.cs.l = 1
        with pytest.raises(KvmError, match="EINVAL"):
            vcpu.set_sregs(sregs)
        sregs.cdata.cr0, sregs.cdata.cr4, sregs.cdata.efer = 0x80000011, 1 << 5, 1 << 8 | 1 << 10
        vcpu.set_sregs(sregs)
        assert vcpu.get_sregs().cdata.cs.l == 1


def test_what_is_an_msr_too_is_refused_as_such() -> None:
    with ChipsRig() as rig:
        (vcpu,) = rig.vcpus
        for index, value in ((0xC0000080, 1 << 12), (0x1B, 0xFEE00400)):
            assert vcpu.set_msrs({index: value}) == 0
        with pytest.raises(KvmError, match="KVM_SET_XCRS"):
            vcpu.set_xcrs({0: 5})


def test_a_local_apic_takes_no_bits_that_it_has_not() -> None:
    with ChipsRig() as rig:
        (vcpu,) = rig.vcpus
        page = vcpu.get_lapic()
        ffi.buffer(page)[:] = b"\xff" * len(ffi.buffer(page))
        vcpu.set_lapic(page)
        for offset, value in ((0x80, 0xFF), (0xF0, 0x3FF), (0x100, 0xFFFF0000), (0x200, 0xFFFF0000), (0x370, 0x100FF)):
            assert rig.load(LAPIC + offset) == value, hex(offset)
        # Of missed ticks, no more than are ever made up for.
        assert struct.unpack_from("<I", bytes(ffi.buffer(vcpu.get_lapic())), 0x2A0) == (200,)


def test_ticks_that_came_too_late_are_in_the_state() -> None:
    with ChipsRig() as old, ChipsRig() as new:
        for rig in (old, new):
            start_pics(rig)
            start_lapic(rig)
        old.store(LAPIC + 0x3E0, 0b1011)
        old.store(LAPIC + 0x320, 0x20041)
        old.store(LAPIC + 0x380, 10 * MS)
        program(old, 0, 2, 11932)
        assert old.take() is None
        for rig in (old, new):
            rig.advance(35 * MS)
        assert old.take() == 0x20
        for chip in range(3):
            new.vm.set_irqchip(old.vm.get_irqchip(chip))
        new.vm.set_pit2(old.vm.get_pit2())
        new.vcpus[0].set_lapic(old.vcpus[0].get_lapic())
        for rig in (old, new):
            taken = []
            for _ in range(8):
                vector = rig.take()
                taken.append(vector)
                rig.write(0x20, 0x20)
                if vector == 0x41:
                    end(rig)
            # Three of each have passed, and the first of one was taken.
            assert (taken.count(0x20), taken.count(0x41)) == (2, 3), taken


def test_an_interrupt_of_the_pics_that_a_message_announced_is_in_the_state() -> None:
    with ChipsRig(2) as old, ChipsRig(2) as new:
        start_pics(old)
        start_lapic(old)
        start_lapic(old, 1)
        old.vm.irq_line(1, True)
        command(old, 0x700, destination=1)
        for chip in range(3):
            new.vm.set_irqchip(old.vm.get_irqchip(chip))
        for cpu in range(2):
            new.vcpus[cpu].set_lapic(old.vcpus[cpu].get_lapic())
        assert [new.take(1), new.take(1)] == [0x21, None]


def test_a_count_wakes_only_who_would_sleep_longer() -> None:
    with ChipsRig() as rig:
        handle = rig.vcpus[0]._handle
        woken: list[object] = []
        callback = ffi.callback("void(void *)", woken.append)
        rig._calls.execute(handle, callback, ffi.NULL, ffi.NULL)
        waits = threading.Thread(target=rig._calls.wait, args=(handle, (True, True, True)))
        waits.start()

        def wakes(count: int) -> bool:
            before = len(woken)
            program(rig, 0, 2, count)
            return len(woken) > before

        try:
            # Not at once: until the thread waits, and where it looks just between two of a count's three writes.
            assert soon(lambda: not wakes(20000))
            assert soon(lambda: not wakes(30000))
            assert wakes(10000)
            assert soon(lambda: not wakes(10000))
        finally:
            rig._calls.nudge(handle)
            waits.join()
        rig._calls.execute(handle, ffi.NULL, ffi.NULL, ffi.NULL)


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
