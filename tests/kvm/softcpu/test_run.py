"""How a run of the software CPU ends: stops that leave nothing half done, faults that end it, and what was counted."""

import time

import pytest
from softcpu_rig import NOT_HERE, SoftcpuRig
from vmm._native import lib

from vmm.bus import Device
from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
]

STOPS = 2000

PAGE_CROSSING = 0x3F000FFD
PAGE_CROSSING_SIZE = 8


def test_a_stop_never_repeats_a_store() -> None:
    """Read-modify-write of every kind, stopped and resumed again and again: all counters agree in the end."""
    source = """
    main:
        mov $0x9000, %rdi
        mov $0x9800, %rsp
        mov $1, %r9d
    1:  inc %rbx
        incq (%rdi)
        lock incq 8(%rdi)
        mov $1, %eax
        xadd %rax, 16(%rdi)
        push (%rdi)
        pop 24(%rdi)
        addq $1, 32(%rdi)
        add %r9, 40(%rdi)
        cmpl $0, 0xa000
        je 1b
        report %ebx
        report (%rdi)
        report 8(%rdi)
        report 16(%rdi)
        report 24(%rdi)
        report 32(%rdi)
        report 40(%rdi)
        report %esp
        done
    """
    with SoftcpuRig(source) as rig:
        for _ in range(STOPS):
            assert rig.run(seconds=0.0005) == [lib.VCPU_STOPPED]
        rig.memory.write(0xA000, b"\1")
        rig.run()
        assert rig.done.is_set()
        rounds, *counters, stack = rig.values
        assert rounds > STOPS
        assert set(counters) == {rounds}
        assert stack == 0x9800


def test_a_stop_keeps_the_registers_of_x87_and_sse() -> None:
    """Whatever a processor makes of registers that are all zero: it need not keep those, and says so in XSTATE_BV."""
    source = """
    main:
        fninit
    1:  inc %rbx
        movq %rbx, %xmm0
        movdqa %xmm0, %xmm15
        mov %rbx, 0x9000
        fildq 0x9000
        in $0x21, %al                       # KVM has the chip, and loads and saves what it has of the registers
        mov $2000, %ecx
    2:  dec %ecx
        jnz 2b
        fistpq 0x9008
        cmp %rbx, 0x9008
        jne 3f
        movq %xmm15, %rax
        cmp %rax, %rbx
        jne 3f
        pxor %xmm0, %xmm0
        pxor %xmm15, %xmm15
        fninit
        in $0x21, %al
        mov $2000, %ecx
    2:  dec %ecx
        jnz 2b
        cmpl $0, 0xa000
        je 1b
        report $1
        done
    3:  report 0x9008
        report %eax
        report %ebx
        done
    """
    with SoftcpuRig(source) as rig:
        for _ in range(500):
            rig.run(seconds=0.0005)
            assert not rig.done.is_set(), rig.values
        rig.memory.write(0xA000, b"\1")
        rig.run()
        assert rig.values == [1]


class StoppingDevice(Device):
    """Asks for a stop the first time it is reached; its bytes are their own offsets."""

    def __init__(self, rig: SoftcpuRig) -> None:
        self._rig = rig
        self.written = bytearray(PAGE_CROSSING_SIZE)

    def read(self, offset: int, size: int) -> int:
        self._stop()
        return int.from_bytes(range(offset, offset + size), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self._stop()
        self.written[offset : offset + size] = value.to_bytes(size, "little")

    def _stop(self) -> None:
        if not self._rig.done.is_set():
            self._rig.done.set()
            self._rig.stop()


@pytest.mark.parametrize("software_cpu", [True, False])
def test_a_stop_leaves_no_access_half_done(request: pytest.FixtureRequest, software_cpu: bool) -> None:
    """KVM hands out an access across two pages one page at a time."""
    if not software_cpu:
        request.getfixturevalue("kvm_device")
    load = """
    main:
        mov $0x3f000ffd, %edi
        mov (%rdi), %rbx
    1:  jmp 1b
    """
    with SoftcpuRig(load, software_cpu=software_cpu) as rig:
        rig.mmio.add(PAGE_CROSSING, PAGE_CROSSING + PAGE_CROSSING_SIZE - 1, StoppingDevice(rig), "stopping")
        assert rig.run() == [lib.VCPU_STOPPED]
        assert rig.vcpus[0].get_regs().rbx == 0x0706050403020100
    store = load.replace("mov (%rdi), %rbx", "mov $0x1122334455667788, %rbx\n mov %rbx, (%rdi)")
    with SoftcpuRig(store, software_cpu=software_cpu) as rig:
        device = StoppingDevice(rig)
        rig.mmio.add(PAGE_CROSSING, PAGE_CROSSING + PAGE_CROSSING_SIZE - 1, device, "stopping")
        assert rig.run() == [lib.VCPU_STOPPED]
        assert device.written == bytes.fromhex("8877665544332211")


@pytest.mark.usefixtures("both_kinds_of_chips")
@pytest.mark.parametrize("out", ["out %al, $0xf8", "out %eax, (%dx)"])
def test_nothing_is_executed_behind_the_out_that_stops_the_machine(out: str) -> None:
    """As in KVM: a guest that sleeps, or resets the machine, need not be in a loop by then."""
    source = f"""
    main:
        mov $0xf8, %edx
        movl $0, 0x9100
        {out}
        movl $1, 0x9100
        {out}
    1:  jmp 1b
    """
    with SoftcpuRig(source) as rig:
        assert rig.run() == [lib.VCPU_STOPPED]
        assert rig.memory.read(0x9100, 4) == bytes(4)
        rig.done.clear()
        assert rig.run() == [lib.VCPU_STOPPED]
        assert rig.memory.read(0x9100, 4) == b"\1\0\0\0"


def test_a_stop_is_prompt() -> None:
    with SoftcpuRig("main:\n1: jmp 1b", cpus=1) as rig:
        best = 1.0
        for _ in range(10):
            rig.run(seconds=0.01)
            best = min(best, rig.stop_seconds)
        assert best < 0.1


@pytest.mark.parametrize("loop", ["1: jmp 1b", "1: pause\njmp 1b", "1: cli\nhlt\njmp 1b"])
def test_a_guest_that_spins_with_interrupts_off_obeys_a_stop(loop: str) -> None:
    with SoftcpuRig(f"main:\ncli\n{loop}", cpus=1) as rig:
        assert rig.run(seconds=0.2) == [lib.VCPU_STOPPED]
        assert rig.stop_seconds < 5


def test_registers_are_kvms_after_a_stop_and_changes_to_them_count() -> None:
    source = """
    main:
        mov $0x1122334455667788, %rbx
        cvtsi2sd %rbx, %xmm1
    1:  cmp $0x99, %rcx
        jne 1b
        report %ecx
        done
    """
    with SoftcpuRig(source) as rig:
        rig.run(seconds=0.1)
        regs = rig.vcpus[0].get_regs()
        assert regs.rbx == 0x1122334455667788
        assert any(rig.vcpus[0].get_fpu().xmm[1])
        regs.rcx = 0x99
        rig.vcpus[0].set_regs(regs)
        rig.run()
        assert rig.values == [0x99]


def test_a_triple_fault_is_an_outcome() -> None:
    source = """
    main:
        lidt nothing
        report $1
        ud2
    nothing: .word 0
        .quad 0
    """
    with SoftcpuRig(source) as rig:
        assert rig.run() == [lib.VCPU_SHUTDOWN]
        assert rig.values == [1]


def test_a_fault_in_ring_3_without_a_task_is_what_it_is_on_a_cpu() -> None:
    """TR says, as after a reset, that there is a TSS at 0, whose stack is at 0, too: a triple fault."""
    source = """
    main:
        gate 6, main
        mov $0x7e00, %rsp
        to_ring3 user
    user:
        ud2
    """
    with SoftcpuRig(source) as rig:
        assert rig.run() == [lib.VCPU_SHUTDOWN]


def test_counters_say_what_ran_where() -> None:
    source = """
    main:
        mov $1000000, %ecx
    1:  loop 1b
        mov $0xfee00000, %rax
        mov 0x20(%rax), %ebx                # one step in KVM
        in $0x21, %al                       # another
        done
    """
    with SoftcpuRig(source) as rig:
        rig.run()
        assert rig.softcpu is not None
        counters = rig.softcpu.counters()
        assert 1_000_000 <= counters.instructions < 1_200_000
        assert counters.kvm_steps == 2
        assert counters.swaps == 1


def test_no_interrupt_is_lost_to_a_stop() -> None:
    """Each is waited for; KVM may have acknowledged one, and the guest not seen it, when a run ends."""
    source = """
    timer:
        incl ticks
        movl $0, 0xb0(%rdi)
        iretq
    main:
        gate 0x40, timer
        mov $0xfee00000, %rdi
        movl $0x1ff, 0xf0(%rdi)
        movl $0xb, 0x3e0(%rdi)
        movl $0x40, 0x320(%rdi)             # one-shot
        xor %ebx, %ebx
    1:  inc %ebx
        movl $50000, 0x380(%rdi)
        test $1, %bl
        jz 3f
        sti
    2:  cmp ticks, %ebx                     # spinning
        jne 2b
        cli
        jmp 4f
    3:  sti
        hlt
        cli
        cmp ticks, %ebx
        jne 3b
    4:  cmp $2000, %ebx
        jne 1b
        report ticks
        done
    .align 64
    ticks: .long 0
    """
    with SoftcpuRig(source) as rig:
        deadline = time.monotonic() + 60
        while not rig.values and time.monotonic() < deadline:
            rig.run(seconds=0.002)
        assert rig.values == [2000]
