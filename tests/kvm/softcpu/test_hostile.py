"""Guests that attack the software CPU itself: each may end its machine at most, and none grows it without bound."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from softcpu_rig import NOT_HERE, SoftcpuRig, values_of
from vmm._native import lib

from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
]

MIB = 1 << 20
SUPPORT = Path(__file__).resolve().parents[2] / "support"

# Only registers, or LOCK BT, which never takes the prefix.
NOT_LOCKABLE = [
    "f0 66 0f ab c0",
    "f0 0f ab c0",
    "f0 0f b3 c0",
    "f0 0f bb c0",
    "f0 0f a3 00",
    "f0 0f a3 c0",
    "f0 0f ba e8 05",
    "f0 0f ba f0 05",
    "f0 0f ba f8 05",
    "f0 0f ba e0 05",
    "f0 0f ba 20 05",
]
NOT_LOCKABLE_64 = ["f0 48 0f ab c0", "f0 4d 0f ba e8 3f"]


@pytest.mark.parametrize("ring", [0, 3])
def test_a_bit_test_that_cannot_be_locked_is_an_invalid_instruction(ring: int) -> None:
    codes = [*NOT_LOCKABLE, *NOT_LOCKABLE_64]
    tries = "\n".join(
        f"""
        lea {number}f(%rip), %r15
        .byte {", ".join(f"0x{byte}" for byte in code.split())}
        report $0xbad
        {number}:
        """
        for number, code in enumerate(codes, start=100)
    )
    enter = "call load_tss\nto_ring3 tries, 0x3202" if ring == 3 else ""
    source = f"""
    main:
        gate 6, invalid
        mov $0x9000, %eax
        xor %ebx, %ebx
        {enter}
    tries:
        mov $0x9000, %eax
        {tries}
        report %ebx
        done
    invalid:
        inc %ebx
        mov %r15, (%rsp)
        iretq
    """
    assert values_of(source) == [len(codes)]


def test_a_bit_test_that_can_be_locked_works() -> None:
    source = """
    main:
        mov $0x9000, %rdi
        movq $0, (%rdi)
        lock btsq $33, (%rdi)
        mov $5, %eax
        lock btcl %eax, (%rdi)
        lock btrq $33, (%rdi)
        setc %bl
        report (%rdi)
        report 4(%rdi)
        report %ebx
        done
    """
    low, high, carry = values_of(source)
    assert (low, high, carry & 1) == (1 << 5, 0, 1)


@pytest.mark.parametrize(
    "instruction",
    [
        "mov %cr0, %rax",
        "fnstenv 0x9000",
        "fxch %st(3)",
        "pshufd $27, %xmm1, %xmm2",
        "fldcw 0x9000; fnstcw 0x9000",
        "lock cmpxchg %eax, 0x9000",
        "rcl $3, %eax",
        "cvtsi2sd %eax, %xmm0",
        "pextrw $1, %xmm1, %ecx",
        "mov %cr8, %rax; mov %dr6, %rax",
    ],
)
def test_a_long_straight_line(instruction: str) -> None:
    """More instructions than the translator has temporaries, without a branch: blocks end by themselves."""
    source = f"""
    main:
        mov $0x37f, %eax
        mov %eax, 0x9000
        xor %eax, %eax
        xor %ebx, %ebx
        .rept 1500
        {instruction}
        inc %ebx
        .endr
        report %ebx
        done
    """
    assert values_of(source) == [1500]


def test_breakpoints_of_one_cpu_while_others_translate() -> None:
    """Each run begins with loading debug registers; with a breakpoint in them that drops the translations of all."""
    source = """
    main:
        test %ebx, %ebx
        jnz 1f
        start_others
        wait_for_cpus 4
    1:  shl $16, %ebx
        lea 0x300000(%ebx), %r8d
        mov $0x700000, %eax
        mov %rax, %dr0
        mov $0x401, %eax
        mov %rax, %dr7
    1:  mov %r8, %rdi                       # ever new code: blocks of one jump
        mov $200, %ecx
    2:  movw $0x00eb, (%rdi)
        add $2, %rdi
        loop 2b
        movb $0xc3, (%rdi)
        call *%r8
        call *%r8
        jmp 1b
    """
    with SoftcpuRig(source, cpus=4) as rig:
        for _ in range(60):
            assert set(rig.run(seconds=0.01)) == {lib.VCPU_STOPPED}


def resident() -> int:
    """Bytes of this process that are in memory, those that are mapped twice counted once (translated code)."""
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return next(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:"))


def test_a_guest_that_touches_ever_more_pages_does_not_grow_the_tlb() -> None:
    """512 GiB of addresses for the same 2 MiB: 2^19 pages a round, and the TLB could double after each."""
    source = """
    main:
        mov $0x22007, %eax                  # one page directory for every GiB
        mov $0x21000, %edi
        mov $512, %ecx
    1:  mov %rax, (%rdi)
        add $8, %rdi
        loop 1b
        mov $0x87, %eax                     # with the first 2 MiB everywhere
        mov $0x22000, %edi
        mov $512, %ecx
    1:  mov %rax, (%rdi)
        add $8, %rdi
        loop 1b
        mov $14, %ebx
    2:  mov %cr3, %rax
        mov %rax, %cr3
        xor %edi, %edi
        mov $0x80000, %ecx
    1:  mov (%rdi), %al
        add $0x1000, %rdi
        loop 1b
        dec %ebx
        jnz 2b
        report $1
        done
    """
    with SoftcpuRig(source) as rig:
        before = resident()
        rig.run()
        assert rig.values == [1]
        grown = resident() - before
    assert grown < 16 * MIB, f"{grown / MIB:.0f} MiB"


def test_a_guest_that_runs_ever_new_code_fills_the_translations_buffer_and_no_more() -> None:
    """More than a million blocks of one jump each, too many for the buffer: it is emptied, and its tables with it."""
    source = """
    main:
        mov $0x100000, %edi
        mov $1200000, %ecx
        mov $0x00eb, %eax                   # jmp to the next
        rep stosw
        movb $0xc3, (%rdi)
        mov $0x100000, %eax
        call *%rax
        report $1
        done
    """
    with SoftcpuRig(source) as rig:
        before = resident()
        rig.run(seconds=120)
        assert rig.values == [1]
        assert rig.softcpu is not None
        assert rig.softcpu.counters().translations_flushed >= 1
        grown = resident() - before
    assert grown < 448 * MIB, f"{grown / MIB:.0f} MiB"


def in_a_process_of_its_own(program: str) -> str:
    """What ``program`` prints; it may import the rig."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=120, env=environment
    )
    assert run.returncode == 0, (run.returncode, run.stdout, run.stderr)
    return run.stdout


def test_a_process_without_address_space_gets_an_error() -> None:
    program = """
import resource
from softcpu_rig import SoftcpuRig
from vmm.errors import HostError

SoftcpuRig("main: done").__exit__(None, None, None)  # every module is loaded
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (128 << 20), resource.RLIM_INFINITY))
try:
    SoftcpuRig("main: done")
except HostError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
with SoftcpuRig("main: report $7\\ndone") as rig:
    rig.run()
    print(rig.values)
"""
    refused, fine = in_a_process_of_its_own(program).splitlines()
    assert refused.startswith("no memory or no thread for the software CPU")
    assert "(ulimit -v)" in refused
    assert "scripts/setup" not in refused
    assert fine == "[7]"


def test_where_the_engine_gives_up_the_machine_ends_and_nothing_else() -> None:
    """Memory runs out in the middle of translating: millions of blocks, two bytes each."""
    program = """
import resource
from softcpu_rig import SoftcpuRig
from vmm._native import ffi, lib

source = '''
main:
    mov $0x100000, %edi
    mov $0xe00000 / 2 - 8, %ecx
    mov $0x00eb, %eax
    rep stosw
    movb $0xf4, (%rdi)
    action 1
    mov $0x100000, %eax
    jmp *%rax
'''

def no_more_memory():
    used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used, resource.RLIM_INFINITY))

with SoftcpuRig(source) as rig:
    rig.actions[1] = no_more_memory
    outcomes = rig.run()
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert outcomes == [lib.VCPU_INTERNAL_ERROR], outcomes
    for _ in range(2):
        print(rig.why())
        lib.vmm_vm_resume(rig.core)
        assert rig.softcpu.run(rig.cores[0]) == lib.VCPU_INTERNAL_ERROR
with SoftcpuRig("main: report $7\\ndone") as rig:
    rig.run()
    print(rig.values)
"""
    first, again, other = in_a_process_of_its_own(program).splitlines()
    assert first == again
    why = r"the software CPU gave up on the guest's code \([\w-]+\.c:\d+: out of memory\)"
    assert re.fullmatch(why + r", vCPU 0 at RIP 0x[\da-f]{6}", first), first
    assert other == "[7]"
