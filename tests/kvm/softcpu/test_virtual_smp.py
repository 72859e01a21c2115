"""Virtual time with several CPUs: which of them executes when depends on the guest alone."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from softcpu_rig import SoftcpuRig
from vmm._native import lib

from vmm import Machine
from vmm.report.collect import collect
from vmm.report.schema import VirtualTimeReport
from vmm.run.outcome import Reason
from vmm.run.virtual_time import Replayed, read_recording
from vmm.softcpu import engine

pytestmark = pytest.mark.skipif(not engine.is_built(), reason="the software CPU is not built")

ENDS = {"probe": None, "seabios": "No bootable device"}


def told(machine: Machine) -> VirtualTimeReport:
    assert machine.outcome is not None
    return collect(machine, machine.outcome)["virtual_time"]


def starts(machine: Machine) -> list[tuple[int | str, int | None]]:
    """Which CPU, and after how many instructions of all."""
    return [(event.subject, event.instructions) for event in machine.timeline if event.kind == "vcpu-started"]


@pytest.mark.parametrize("firmware", ["probe", "seabios"])
def test_each_boot_with_four_cpus_executes_the_same(firmware: str, request: pytest.FixtureRequest) -> None:
    def boot() -> tuple[VirtualTimeReport, list[tuple[int | str, int | None]]]:
        with Machine(firmware, clock="virtual", cpus=4) as machine:
            outcome = machine.run(ENDS[firmware], deadline=240)
            assert outcome.reason is (Reason.POWER_OFF if ENDS[firmware] is None else Reason.UNTIL), outcome.message
            return told(machine), starts(machine)

    at_rest, started = boot()
    assert [index for index, _ in started] == [0, 1, 2, 3]
    assert started[0][1] == 0
    counts = [count or 0 for _, count in started]
    assert counts == sorted(counts), "no time passes between those that one command starts"
    assert counts[1] > 1_000
    request.getfixturevalue("busy_host")
    assert boot() == (at_rest, started)


def test_the_hash_tells_cpus_apart() -> None:
    def hashed(cpu: int) -> tuple[int, int]:
        source = f"""
        main:
            cmp $0, %ebx
            jne 1f
            start_others
            wait_for_cpus 2
        1:  cmp ${cpu}, %ebx
            jne 2f
            report $1
            done
        2:  nop
            cli
            hlt
        """
        with SoftcpuRig(source, cpus=2, virtual=True) as rig:
            rig.run()
            assert rig.values == [1]
            assert rig.softcpu is not None
            return rig.softcpu.trace_hash()

    assert hashed(0) == hashed(0)
    assert hashed(0)[0] != hashed(1)[0]


def test_resets_of_four_cpus() -> None:
    def reset_twice() -> tuple[VirtualTimeReport, list[tuple[int | str, int | None]]]:
        with Machine("seabios", clock="virtual", cpus=4, boot="reboot-timeout=100", max_resets=2) as machine:
            outcome = machine.run(deadline=240)
            assert outcome.reason is Reason.RESET_LOOP, outcome.message
            resets = [event.instructions for event in machine.timeline if event.kind == "reset"]
            assert [count for index, count in starts(machine) if index == 0] == [0, *resets]
            assert [index for index, _ in starts(machine)] == [0, 1, 2, 3] * 3
            return told(machine), starts(machine)

    assert reset_twice() == reset_twice()


def test_what_was_typed_is_replayed_with_two_cpus(tmp_path: Path) -> None:
    """Between two runs, and, if the host lets us, while the guest goes on; the replay is one run."""
    recording = tmp_path / "typed.jsonl"
    with Machine("seabios", clock="virtual", cpus=2, record=recording) as machine:
        assert machine.run("SeaBIOS", 240).reason is Reason.UNTIL
        machine.send("xyz")
        machine.power_button()
        ended = machine.run("No bootable device", 240, on_poll=lambda machine: machine.send("w"))
        assert ended.reason is Reason.UNTIL
        first = told(machine)
    inputs = read_recording(recording.read_bytes())
    assert [entry.typed for entry in inputs[:2]] == [b"xyz", None]
    with Machine("seabios", clock="virtual", cpus=2, replay=recording) as machine:
        assert machine.run("No bootable device", 240).reason is Reason.UNTIL
        assert told(machine) == first
        assert machine.virtual_time is not None
        assert machine.virtual_time.replayed == Replayed(len(inputs), len(inputs), exact=True)


# Guests of a few instructions.


def ran(source: str, cpus: int) -> tuple[list[int], Any]:
    """What a guest reports until it is done, and the trace's hash."""
    with SoftcpuRig(source, cpus=cpus, virtual=True) as rig:
        outcomes = rig.run()
        assert rig.done.is_set()
        assert set(outcomes) == {lib.VCPU_STOPPED}
        assert rig.softcpu is not None
        return rig.values, rig.softcpu.trace_hash()


RING = """
main:
    gate 0x40, handler
    mov $0xfee00000, %rdi
    movl $0x1ff, 0xf0(%rdi)
    mov 0x20(%rdi), %ebp                    # APIC ID, in bits 31:24
    cmp $0, %ebx
    jne 1f
    start_others
1:  lock incl ready
2:  pause
    cmpl $4, ready
    jb 2b
    cmp $0, %ebp
    jne 3f
    call send
3:  sti
    hlt
    jmp 3b
handler:
    mov %ebp, %eax
    shr $24, %eax
    out %eax, $0xf4
    rdtsc
    out %eax, $0xf4
    incl passed
    cmpl $100, passed
    je 4f
    movl $0, 0xb0(%rdi)
    call send
    iretq
4:  done
send:                                       # to the next one
    lea 0x01000000(%rbp), %eax
    and $0x03000000, %eax
    mov %eax, 0x310(%rdi)
    movl $0x4040, 0x300(%rdi)
    ret
.align 64
ready: .long 0
passed: .long 0
"""


def test_interrupts_between_cpus_come_at_the_same_time_in_each_run() -> None:
    """One goes around a hundred times, while the others halt."""
    values, trace = ran(RING, cpus=4)
    assert values[::2] == [1, 2, 3, 0] * 25
    times = values[1::2]
    # One RDTSC and five accesses to devices, a microsecond each, and some instructions.
    assert all(6_000 <= later - earlier <= 6_100 for earlier, later in pairwise(times))
    assert ran(RING, cpus=4) == (values, trace)


@pytest.mark.parametrize(("waits", "share"), [("pause", 1.25), ("nop", 4.1)], ids=["PAUSE", "without"])
def test_cpus_that_spin_leave_the_others_their_time(waits: str, share: float) -> None:
    """A million instructions of one CPU, while three others wait for it: how much time passes."""
    source = f"""
    main:
        cmp $0, %ebx
        jne 2f
        start_others
        wait_for_cpus 4
        rdtsc
        mov %eax, %ebx
        mov $500000, %ecx
    1:  dec %ecx
        jnz 1b
        rdtsc
        sub %ebx, %eax
        mov %eax, %ebx
        report %ebx
        done
    2:  {waits}
        cmpl $0, never
        je 2b
    .align 64
    never: .long 0
    """
    values, trace = ran(source, cpus=4)
    assert 1_000_000 <= values[0] <= share * 1_000_000
    assert ran(source, cpus=4) == (values, trace)


def test_where_all_cpus_spin_time_goes_fast() -> None:
    """Four wait for a second to be over, which one of them reads in the TSC: few turns, and it ends soon behind it."""
    source = """
    main:
        cmp $0, %ebx
        jne 2f
        start_others
        wait_for_cpus 4
        rdtsc
        shl $32, %rdx
        lea (%rax, %rdx), %rbx
        add $1000000000, %rbx
        xor %ebp, %ebp
    1:  inc %ebp
        pause
        rdtsc
        shl $32, %rdx
        or %rdx, %rax
        cmp %rbx, %rax
        jb 1b
        sub %rbx, %rax
        mov %eax, %ebx
        report %ebp
        report %ebx
        done
    2:  pause
        cmpl $0, never
        je 2b
    .align 64
    never: .long 0
    """
    turns, late = ran(source, cpus=4)[0]
    assert 10_000 <= turns <= 20_000
    assert late <= 70_000


def test_a_cpu_that_halts_is_woken_by_its_own_timer_while_another_computes() -> None:
    """A tick each millisecond for one CPU; the other counts up to 10 million."""
    source = """
    main:
        gate 0x40, handler
        cmp $0, %ebx
        jne 2f
        start_others
        wait_for_cpus 2
        mov $5000000, %ecx
    1:  dec %ecx
        jnz 1b
        report ticks
        done
    2:  mov $0xfee00000, %rdi
        movl $0x1ff, 0xf0(%rdi)
        movl $0x0b, 0x3e0(%rdi)             # by 1
        movl $0x20040, 0x320(%rdi)          # periodic
        movl $1000000, 0x380(%rdi)
    3:  sti
        hlt
        jmp 3b
    handler:
        incl ticks
        movl $0, 0xb0(%rdi)
        iretq
    .align 64
    ticks: .long 0
    """
    (ticks,), trace = ran(source, cpus=2)
    assert ticks == 10
    assert ran(source, cpus=2) == ([ticks], trace)


@pytest.mark.parametrize(
    "first",
    ["cli; hlt", "sti; hlt", "4: pause; jmp 4b", "4: jmp 4b"],
    ids=["deaf", "halted", "PAUSE", "spinning"],
)
def test_four_cpus_can_be_stopped_whatever_the_first_one_does(first: str) -> None:
    source = f"""
    main:
        cmp $0, %ebx
        jne 5f
        start_others
        wait_for_cpus 4
        mov $1, %eax
        out %eax, $0xfc
        {first}
        report $1
    5:  cli
        hlt
        report $2
    """
    with SoftcpuRig(source, cpus=4, virtual=True) as rig:
        rig.actions[1] = rig.done.set  # which stops them, a moment later
        assert rig.run() == [lib.VCPU_STOPPED] * 4
        assert rig.values == []


def test_where_one_cpu_ends_the_others_execute_nothing_more() -> None:
    source = """
    main:
        cmp $0, %ebx
        jne 2f
        start_others
    1:  lock incl count
        jmp 1b
    2:  mov $1000000, %ecx
    3:  dec %ecx
        jnz 3b
        lidt nothing                        # a triple fault
        ud2
    .align 64
    nothing: .quad 0, 0
    count: .quad 0
    """

    def counted() -> tuple[int, int]:
        with SoftcpuRig(source, cpus=3, virtual=True) as rig:
            assert sorted(rig.run()) == sorted([lib.VCPU_STOPPED, lib.VCPU_STOPPED, lib.VCPU_SHUTDOWN])
            assert rig.softcpu is not None
            return rig.softcpu.counters().instructions, int(rig.clock())

    first = counted()
    assert first[0] > 2_000_000
    assert counted() == first
