"""Several CPUs on one software CPU: locked instructions, states of their own, INIT and SIPI."""

import itertools
import threading

import pytest
from softcpu_rig import NOT_HERE, SoftcpuRig, values_of
from vmm._native import lib

from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
    pytest.mark.usefixtures("all_kinds_of_turns"),
]


def test_locked_instructions_between_cpus() -> None:
    source = """
    main:
        cmp $0, %ebx
        jne work
        start_others
    work:
        wait_for_cpus 4
        mov $50000, %ecx
    1:  lock incl counters
    2:  mov $1, %eax                        # XCHG is locked without saying so
        xchg %eax, lock_word
        test %eax, %eax
        jz 3f
        pause
        jmp 2b
    3:  mov counters + 4, %eax              # not atomic: the lock keeps it whole
        inc %eax
        mov %eax, counters + 4
        movl $0, lock_word
    4:  mov counters + 8, %eax
        lea 1(%rax), %edx
        lock cmpxchg %edx, counters + 8
        jne 4b
        mov counters + 16, %rax
        mov counters + 24, %rdx
    5:  lea 1(%rax), %rbx
        mov %rcx, %r8
        lea 1(%rdx), %rcx
        lock cmpxchg16b counters + 16
        mov %r8, %rcx
        jne 5b
        loop 1b
        lock incl finished
    6:  pause
        cmpl $4, finished
        jb 6b
        mov $1, %eax
        xchg %eax, reporter
        test %eax, %eax
        jnz park
        report counters
        report counters + 4
        report counters + 8
        report counters + 16
        report counters + 24
        done
    park:
        cli
        hlt
        jmp park
    .align 64
    counters: .quad 0, 0, 0, 0
    lock_word: .long 0
    finished: .long 0
    reporter: .long 0
    """
    assert values_of(source, cpus=4) == [200_000] * 5


def test_each_cpu_has_its_own_fpu_and_registers() -> None:
    source = """
    main:
        mov %ebx, %r15d
        cmp $0, %ebx
        jne 1f
        start_others
    1:  wait_for_cpus 4
        lea 3(%r15), %eax
        cvtsi2sd %eax, %xmm5
        movd %eax, %xmm9
        mov %eax, 0x9000(, %r15, 8)
        fildl 0x9000(, %r15, 8)
        mov $20000, %ecx
    2:  pause                               # each hands the engine to the next CPU
        cvtsd2si %xmm5, %eax
        lea 3(%r15), %edx
        cmp %edx, %eax
        jne bad
        movd %xmm9, %eax
        cmp %edx, %eax
        jne bad
        fistl 0x9000(, %r15, 8)
        cmp %edx, 0x9000(, %r15, 8)
        jne bad
        loop 2b
        lock incl finished
    3:  pause
        cmpl $4, finished
        jne 3b
        test %r15d, %r15d
        jnz 4f
        report $0x900d
        done
    4:  hlt
    bad:
        report $0xbad
        done
    .align 64
    finished: .long 0
    """
    assert values_of(source, cpus=4) == [0x900D]


def test_a_cpu_that_halted_with_interrupts_off_starts_again_by_init_only() -> None:
    source = """
    main:
        cmp $0, %ebx
        jne other
        start_others
        wait_for_cpus 2
    1:  pause
        cmpl $1, parked
        jne 1b
        mov $0xfee00000, %rax
        mov $50, %ecx                       # interrupts do not wake it
    2:  movl $0xc4040, 0x300(%rax)
        loop 2b
        report woken
        start_others
        wait_for_cpus 3
        report cpus_entered
        report woken
        done
    other:
        mov $0xfee00000, %rax
        movl $0x1ff, 0xf0(%rax)
        incl parked
        cli
        hlt
        incl woken
        jmp other
    .align 64
    parked: .long 0
    woken: .long 0
    """
    assert values_of(source, cpus=2) == [0, 3, 0]


def test_init_takes_a_cpu_out_of_a_loop() -> None:
    source = """
    main:
        cmp $0, %ebx
        jne other
        start_others
        wait_for_cpus 2
        mov $0xfee00000, %rax
        mov $20, %r14d
    1:  mov cpus_entered, %r13d
        movl $0xc4500, 0x300(%rax)
        movl $0xc4601, 0x300(%rax)
    2:  pause
        cmp cpus_entered, %r13d
        je 2b
        dec %r14d
        jnz 1b
        report cpus_entered
        done
    other:
        cli
        mov $0x8ff0, %esp                   # however often it starts
    3:  jmp 3b
    """
    assert values_of(source, cpus=2) == [22]


# In virtual time, one thread has all turns.
@pytest.mark.parametrize("all_kinds_of_turns", ["beside-kvm", "alone"], indirect=True)
def test_a_stop_needs_no_turn() -> None:
    """Whoever waits for one leaves, though another CPU is in the middle of an access that takes long."""
    source = """
    main:
        test %ebx, %ebx
        jnz spin
        start_others
        wait_for_cpus 4
        action 0
    spin:
        pause
        jmp spin
    """
    with SoftcpuRig(source, cpus=4) as rig:
        assert rig.softcpu is not None
        reached, left = threading.Event(), threading.Event()

        def take_long() -> None:
            reached.set()
            left.wait(240)

        rig.actions[0] = take_long
        lib.vmm_vm_resume(rig.core)
        first, *others = (threading.Thread(target=rig.softcpu.run, args=(core,)) for core in rig.cores)
        for thread in (first, *others):
            thread.start()
        assert reached.wait(60)
        rig.stop()
        for thread in others:
            thread.join(20)
        waiting = [thread.is_alive() for thread in others]
        left.set()
        for thread in (first, *others):
            thread.join(60)
        assert waiting == [False] * 3


def test_counters_may_be_read_while_cpus_run() -> None:
    source = """
    main:
        test %ebx, %ebx
        jnz 1f
        start_others
    1:  pause
        lock incl 0x9000
        jmp 1b
    """
    with SoftcpuRig(source, cpus=4) as rig:
        assert rig.softcpu is not None
        runner = threading.Thread(target=rig.run, kwargs={"seconds": 0.2})
        runner.start()
        seen = [rig.softcpu.counters() for _ in iter(runner.is_alive, False)]
        runner.join()
        seen.append(rig.softcpu.counters())
    for before, after in itertools.pairwise(seen):
        assert all(one <= other for one, other in zip(before, after, strict=True)), (before, after)
    assert seen[-1].swaps > 3
