"""The software CPU and the machine around it: stops, devices that store, other CPUs, interrupts, how a run ends."""

import mmap

import pytest
from assist_rig import CODE, NOT_HERE, AssistRig, values_of
from vmm._native import lib

from vmm import failure
from vmm.assist import has_hardware_virtualization
from vmm.bus import Device

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
]

STOPS = 2000


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
    with AssistRig(source) as rig:
        for _ in range(STOPS):
            assert rig.run(seconds=0.0005) == [lib.VCPU_STOPPED]
        rig.memory.write(0xA000, b"\1")
        rig.run()
        assert rig.done.is_set()
        rounds, *counters, stack = rig.values
        assert rounds > STOPS
        assert set(counters) == {rounds}
        assert stack == 0x9800


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


def test_a_device_that_stores_over_code() -> None:
    source = """
    .set function, 0x9000
    main:
        mov $200, %ebp
        action 0
    1:  mov $function, %eax
        call *%rax
        report %ebx
        action 0                            # the device rewrites the function
        mov $function, %eax
        call *%rax
        report %ebx
        action 1                            # and what stands right behind this OUT
        mov $1, %ebx
        report %ebx
        dec %ebp
        jnz 1b
        done
    """
    counts = {"function": 9, "behind": 1000}

    def rewrite_function(rig: AssistRig) -> None:
        counts["function"] += 1
        rig.memory.write(0x9000, b"\xbb" + counts["function"].to_bytes(4, "little") + b"\xc3")  # mov $n, %ebx; ret

    def rewrite_behind(rig: AssistRig) -> None:
        counts["behind"] += 1
        out = bytes.fromhex("b801000000 e7fc bb")  # mov $1, %eax; out %eax, $0xfc; mov $n, %ebx
        at = CODE + rig.memory.read(CODE, 0x2000).index(out) + len(out)
        rig.memory.write(at, counts["behind"].to_bytes(4, "little"))

    values = values_of(source, actions={0: rewrite_function, 1: rewrite_behind})
    expected: list[int] = []
    for n in range(200):
        expected += [10 + n, 11 + n, 1001 + n]
    assert values == expected


def test_code_that_changes_itself() -> None:
    source = """
    main:
        mov $1000, %ebp
        xor %r12d, %r12d
    1:  mov %ebp, patched + 1               # another block
        call patched
        add %ebx, %r12d
        mov %ebp, ahead + 1                 # this block, ahead of the store
        nop
    ahead:
        mov $0, %ecx
        add %ecx, %r12d
        dec %ebp
        jnz 1b
        report %r12d
        movl $0x5007, 0x45000               # the same page at 1 GiB: store there, run here
        movl $0x45007, 0x44000
        movl $0x44007, 0x21008
        mov %cr3, %rax
        mov %rax, %cr3
        movl $0x0000bb90, 0x5000            # nop; mov $0, %ebx
        movw $0, 0x5004
        movb $0xc3, 0x5006
        mov $0x40000000, %rdi
        mov $100, %ebp
        xor %r12d, %r12d
    2:  mov %ebp, 2(%rdi)
        mov $0x5000, %eax
        call *%rax
        add %ebx, %r12d
        dec %ebp
        jnz 2b
        report %r12d
        done
    .align 64
    patched:
        mov $0, %ebx
        ret
    """
    assert values_of(source) == [1000 * 1001, 100 * 101 // 2]


def test_code_that_another_cpu_changes() -> None:
    source = """
    main:
        cmp $0, %ebx
        jne runner
        start_others
        wait_for_cpus 2
        mov $500, %ebp
    1:  mov %ebp, patched + 1
        mov %ebp, turn
    2:  pause
        cmpl $0, turn
        jne 2b
        dec %ebp
        jnz 1b
        report total
        done
    runner:
        cmpl $0, turn
        jne 3f
        pause
        jmp runner
    3:  call patched
        add %ecx, total
        movl $0, turn
        jmp runner
    .align 64
    turn: .long 0
    total: .long 0
    .align 4096
    patched:
        mov $0, %ecx
        ret
    """
    assert values_of(source, cpus=2) == [500 * 501 // 2]


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


LAPIC_TIMER = """
    .macro start_timer vector, mode, count
        mov $0xfee00000, %rax
        movl $0x1ff, 0xf0(%rax)             # enabled
        movl $0xb, 0x3e0(%rax)              # divide by 1
        movl $(\\mode << 17 | \\vector), 0x320(%rax)
        movl $\\count, 0x380(%rax)          # nanoseconds
    .endm
    .macro eoi
        mov $0xfee00000, %rax
        movl $0, 0xb0(%rax)
    .endm
"""


def test_interrupts_reach_ring_3_and_return_to_it() -> None:
    source = (
        LAPIC_TIMER
        + """
    timer:
        push %rax
        incl ticks
        mov 16(%rsp), %eax                  # CS of what was interrupted
        mov %eax, last_cs
        mov 24(%rsp), %rax
        mov %rax, last_flags
        eoi
        pop %rax
        iretq
    finish:
        report last_cs
        mov last_flags, %ebx
        report %ebx
        report %r12d
        done
    main:
        call load_tss
        gate 0x40, timer
        gate 3, finish, 0xee
        start_timer 0x40, 1, 2000000
        mov $0x7e00, %rsp
        to_ring3 user
    user:
        xor %r12d, %r12d
        mov $0x123456789abcdef0, %r8
        mov %r8, %r9
        cvtsi2sd %r8, %xmm3
        movq %xmm3, %r10
    1:  cmp %r8, %r9
        jne 2f
        movq %xmm3, %r11
        cmp %r10, %r11
        jne 2f
        cmpl $50, ticks
        jb 1b
        mov $0x900d, %r12d
    2:  int3
    .align 64
    ticks: .long 0
    last_cs: .long 0
    last_flags: .quad 0
    """
    )
    cs, flags, verdict = values_of(source)
    assert (cs, verdict) == (0x3B, 0x900D)
    assert flags & 0x300 == 0x200, "IF is set, and TF has not leaked from the way KVM is stepped"


@pytest.mark.parametrize("mode", ["periodic", "one-shot", "deadline"])
def test_hlt_waits_for_each_kind_of_timer(mode: str) -> None:
    number = {"one-shot": 0, "periodic": 1, "deadline": 2}[mode]
    arm = {
        "one-shot": "mov $0xfee00000, %rax\n movl $3000000, 0x380(%rax)",
        "periodic": "",
        "deadline": "rdtsc\n add $3000000, %eax\n adc $0, %edx\n mov $0x6e0, %ecx\n wrmsr",
    }[mode]
    source = (
        LAPIC_TIMER
        + f"""
    timer:
        push %rax
        incl ticks
        eoi
        pop %rax
        iretq
    main:
        gate 0x40, timer
        start_timer 0x40, {number}, 3000000
        mov $0x900d, %r15d
    1:  {arm}
        sti
        hlt
        cli
        cmpl $30, ticks
        jb 1b
        report %r15d
        done
    .align 64
    ticks: .long 0
    """
    )
    assert values_of(source) == [0x900D]


def test_a_timer_interrupts_code_that_never_waits() -> None:
    source = (
        LAPIC_TIMER
        + """
    timer:
        push %rax
        incl ticks
        eoi
        pop %rax
        iretq
    main:
        gate 0x40, timer
        start_timer 0x40, 1, 1000000
        xor %ebx, %ebx
        sti
    1:  inc %rbx                            # interrupts on: taken between any two blocks
        cmpl $20, ticks
        jb 1b
        cli
        movl $0, ticks
    2:  inc %rbx                            # off but for one instruction now and then
        test $0xffff, %ebx
        jnz 2b
        sti
        nop
        cli
        cmpl $20, ticks
        jb 2b
        report $0x900d
        done
    .align 64
    ticks: .long 0
    """
    )
    assert values_of(source) == [0x900D]


def test_a_lower_cr8_lets_a_waiting_interrupt_through() -> None:
    source = (
        LAPIC_TIMER
        + """
    timer:
        push %rax
        incl ticks
        eoi
        pop %rax
        iretq
    main:
        gate 0x40, timer
        mov $8, %ebx
        mov %rbx, %cr8                      # masks vectors below 0x90
        start_timer 0x40, 0, 1000
        sti
        mov $3000000, %ecx
    1:  loop 1b
        report ticks
        xor %ebx, %ebx
        mov %rbx, %cr8
    2:  pause
        cmpl $1, ticks
        jne 2b
        report ticks
        done
    .align 64
    ticks: .long 0
    """
    )
    assert values_of(source) == [0, 1]


def test_nmis_arrive_with_interrupts_off_and_one_at_a_time() -> None:
    source = """
    nmi:
        push %rax
        incl received
        pop %rax
        iretq
    main:
        mov %ebx, %r15d
        gate 2, nmi
        mov $0xfee00000, %rdi
        movl $0x1ff, 0xf0(%rdi)
        cmp $0, %r15d
        jne other
        start_others
        wait_for_cpus 2
    1:  pause
        cmpl $1, ready
        jne 1b
        mov $20, %ebp
    2:  mov received, %r13d
        movl $0xc4400, 0x300(%rdi)          # NMI to the other
    3:  pause
        cmp received, %r13d
        je 3b
        dec %ebp
        jnz 2b
        report received
        done
    other:
        incl ready
    4:  jmp 4b
    .align 64
    received: .long 0
    ready: .long 0
    """
    assert values_of(source, cpus=2) == [20]


def test_the_pic_delivers_too() -> None:
    source = """
    timer:
        push %rax
        incl ticks
        mov $0x20, %al
        out %al, $0x20
        pop %rax
        iretq
    main:
        gate 0x20, timer
        mov $0x11, %al                      # ICW1 to ICW4, vectors from 20h
        out %al, $0x20
        mov $0x20, %al
        out %al, $0x21
        mov $4, %al
        out %al, $0x21
        mov $1, %al
        out %al, $0x21
        mov $0xfe, %al                      # IRQ 0 only
        out %al, $0x21
        mov $0x34, %al                      # 8254 channel 0, rate generator, about 1 kHz
        out %al, $0x43
        mov $0xa9, %al
        out %al, $0x40
        mov $4, %al
        out %al, $0x40
        sti
    1:  pause
        cmpl $30, ticks
        jb 1b
        report $0x900d
        done
    .align 64
    ticks: .long 0
    """
    assert values_of(source) == [0x900D]


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


def test_an_ipi_wakes_and_interrupts() -> None:
    source = """
    ipi:
        push %rax
        lock incl received
        mov $0xfee00000, %rax
        movl $0, 0xb0(%rax)
        pop %rax
        iretq
    main:
        mov %ebx, %r15d
        gate 0x41, ipi
        mov $0xfee00000, %rax
        movl $0x1ff, 0xf0(%rax)
        cmp $0, %r15d
        jne other
        start_others
    1:  pause
        cmpl $2, ready
        jne 1b
        mov $0xfee00000, %rax
        mov $100, %ebp
    1:  mov received, %r13d
        add $2, %r13d
        movl $0xc4041, 0x300(%rax)
    2:  pause
        cmp received, %r13d
        jne 2b
        dec %ebp
        jnz 1b
        report received
        done
    other:
        lock incl ready
        cmp $1, %r15d
        je spin
    3:  sti
        hlt
        jmp 3b
    spin:
        sti
    4:  jmp 4b
    .align 64
    received: .long 0
    ready: .long 0
    """
    assert values_of(source, cpus=3) == [200]


def test_a_triple_fault_is_an_outcome() -> None:
    source = """
    main:
        lidt nothing
        report $1
        ud2
    nothing: .word 0
        .quad 0
    """
    with AssistRig(source) as rig:
        assert rig.run() == [lib.VCPU_SHUTDOWN]
        assert rig.values == [1]


def test_a_tss_that_was_never_loaded_ends_the_run_and_nothing_else() -> None:
    source = """
    main:
        gate 6, main
        xor %eax, %eax
        ltr %ax
        mov $0x7e00, %rsp
        to_ring3 user
    user:
        ud2
    """
    with AssistRig(source) as rig:
        assert rig.run() == [lib.VCPU_INTERNAL_ERROR]
        message = failure.describe(rig.vcpus[0], rig.cores[0].end, rig.memory, software_cpu=True)[1]
        assert "without a TSS" in message


@pytest.mark.parametrize("loop", ["1: jmp 1b", "1: pause\njmp 1b", "1: cli\nhlt\njmp 1b"])
def test_a_guest_that_spins_with_interrupts_off_obeys_a_stop(loop: str) -> None:
    with AssistRig(f"main:\ncli\n{loop}", cpus=1) as rig:
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
    with AssistRig(source) as rig:
        rig.run(seconds=0.1)
        regs = rig.vcpus[0].get_regs()
        assert regs.rbx == 0x1122334455667788
        assert any(rig.vcpus[0].get_fpu().xmm[1])
        regs.rcx = 0x99
        rig.vcpus[0].set_regs(regs)
        rig.run()
        assert rig.values == [0x99]


def test_code_and_data_where_no_memory_is() -> None:
    source = """
    undefined:
        mov (%rsp), %rbx                    # all-ones is no instruction
        report %ebx
        done
    main:
        gate 6, undefined
        mov $0x3f000000, %edi               # in the first GiB, beyond RAM
        mov (%rdi), %eax
        mov %eax, %ebx
        report %ebx
        movl $5, (%rdi)
        lock incl (%rdi)
        report (%rdi)
        jmp *%rdi
    """
    assert values_of(source) == [0xFFFFFFFF, 0xFFFFFFFF, 0x3F000000]


def test_read_only_memory_ignores_stores() -> None:
    source = """
    main:
        mov $0xd0000, %edi
        report (%rdi)
        movl $1, (%rdi)
        lock incl (%rdi)
        report (%rdi)
        action 0                            # the chipset shows RAM there now
        movl $7, (%rdi)
        report (%rdi)
        action 1                            # and the ROM again
        report (%rdi)
        done
    """

    def show_ram(rig: AssistRig) -> None:
        rig.memory.unmap(0xD0000)
        rig.memory.map_ram(0xD0000, 0x1000)

    def show_rom(rig: AssistRig) -> None:
        rig.memory.unmap(0xD0000)
        rig.memory.map_rom(0xD0000, rom)

    rom = mmap.mmap(-1, 0x1000)
    rom[:] = b"\x44\x33\x22\x11" * 1024
    with AssistRig(source) as rig:
        rig.memory.map_rom(0xD0000, rom)
        rig.actions = {0: lambda: show_ram(rig), 1: lambda: show_rom(rig)}
        rig.run()
        assert rig.values == [0x11223344, 0x11223344, 7, 0x11223344]
        assert rom[:4] == b"\x44\x33\x22\x11"


class Chip(Device):
    """A flash chip in little: 70h shows a status, ffh the array."""

    def __init__(self, rig: AssistRig, array: mmap.mmap) -> None:
        self.rig, self.array = rig, array
        self.reads = 0
        rig.memory.map_rom(0xD0000, array)

    def read(self, offset: int, size: int) -> int:
        self.reads += 1
        return 0x80

    def write(self, offset: int, size: int, value: int) -> None:
        shown = any(region.gpa == 0xD0000 for region in self.rig.memory.regions())
        if value == 0x70 and shown:
            self.rig.memory.unmap(0xD0000)
        elif value == 0xFF and not shown:
            self.rig.memory.map_rom(0xD0000, self.array)


def test_a_flash_chip_changes_modes_between_two_instructions() -> None:
    source = """
    main:
        mov $0xd0000, %edi
        mov $0xd0100, %esi
        mov $500, %ebp
    1:  cmpl $0x11223344, (%rdi)
        jne bad
        call *%rsi                          # code in the array
        cmp $55, %ebx
        jne bad
        movb $0x70, (%rdi)
        cmpb $0x80, (%rdi)
        jne bad
        movb $0x70, (%rdi)
        movb $0xff, (%rdi)
        cmpl $0x11223344, (%rdi)
        jne bad
        dec %ebp
        jnz 1b
        report $0x900d
        done
    bad:
        report $0xbad
        done
    """
    array = mmap.mmap(-1, 0x1000)
    array[:4] = b"\x44\x33\x22\x11"
    array[0x100:0x106] = bytes.fromhex("bb37000000 c3")  # mov $55, %ebx; ret
    with AssistRig(source) as rig:
        rig.memory.park_roms(True)
        chip = Chip(rig, array)
        rig.mmio.add(0xD0000, 0xD0FFF, chip, "chip")
        slots = rig.memory.slots_used
        rig.run()
        assert rig.values == [0x900D]
        assert chip.reads == 500
        assert rig.memory.slots_used == slots
        rig.memory.unmap(0xD0000)
        rig.memory.map_ram(0xD0000, 0x1000)  # something else wants the addresses
        assert rig.memory.slots_used == slots
        rig.memory.park_roms(False)


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
    with AssistRig(source) as rig:
        rig.run()
        assert rig.assist is not None
        counters = rig.assist.counters()
        assert 1_000_000 <= counters.instructions < 1_200_000
        assert counters.kvm_steps == 2
        assert counters.swaps == 1


def test_a_stop_is_prompt() -> None:
    with AssistRig("main:\n1: jmp 1b", cpus=1) as rig:
        best = 1.0
        for _ in range(10):
            rig.run(seconds=0.01)
            best = min(best, rig.stop_seconds)
        assert best < 0.1
