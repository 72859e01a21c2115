"""A machine of CPUs, RAM and three ports for guests in assembly, run by the software CPU (or by plain KVM).

Guests are assembled with GNU as and enter `main` in 64-bit mode at ring 0, all CPUs alike; see `PREAMBLE`.
"""

import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accelerators import PLAIN
from vmm._native import ffi, lib

from vmm import layout
from vmm.bus import Bus, Device, IoLock
from vmm.config.topology import Topology
from vmm.cpu import cpuid
from vmm.cpu.reset import reset_vcpu
from vmm.debug.look import Look
from vmm.devices.clock import VIRTUAL_START_NS, GuestClock
from vmm.firmware.images import NO_FIRMWARE
from vmm.kvm import Kvm, Vcpu
from vmm.memory import GuestMemory
from vmm.run import failure
from vmm.softcpu.chips import ChipsSystem
from vmm.softcpu.engine import SoftwareCpu

MIB = 1 << 20
CODE = 0x1000

NOT_HERE = "the software CPU is for hosts without hardware virtualization"

REPORT = 0xF4
"""A 32-bit OUT appends a value to `Rig.values`."""
DONE = 0xF8
"""An OUT ends the run."""
ACTION = 0xFC
"""An OUT of n calls `Rig.actions[n]`, as a device would act."""

PREAMBLE = """
# 1000 code   7000 GDT, IDT pointers' targets   8000.. stacks (4 KiB a CPU)   20000 page tables   30000 IDT
.set idt, 0x30000
.set pml4, 0x20000
.macro report value:vararg
    mov \\value, %eax
    out %eax, $0xf4
.endm
.macro done
    out %eax, $0xf8
    77: pause
    jmp 77b
.endm
.macro action number
    mov $\\number, %eax
    out %eax, $0xfc
.endm
.macro gate vector, handler, type=0x8e
    mov $\\vector, %edi
    lea \\handler(%rip), %rsi
    mov $\\type, %edx
    call set_gate
.endm
.code16
.globl _start
_start:
    cli
    ljmp $0, $1f
1:  xor %ax, %ax
    mov %ax, %ds
    lgdtl gdt_pointer
    lidtl idt_pointer
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmp $0x08, $start32
.code32
start32:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $1, %ecx
    lock xaddl %ecx, cpus_entered       # every CPU's own number, in order of arrival
    mov %ecx, %ebx
    inc %ecx
    shl $12, %ecx
    lea 0x8000(%ecx), %esp
    movl $0x21007, pml4                 # the first GiB, identity, user pages of 2 MiB
    movl $0x22007, 0x21000
    xor %ecx, %ecx
1:  mov %ecx, %eax
    shl $21, %eax
    or $0x87, %eax
    mov %eax, 0x22000(, %ecx, 8)
    inc %ecx
    cmp $512, %ecx
    jne 1b
    movl $0x23007, 0x21018              # and the last GiB below 4 GiB, uncached, for the LAPIC
    xor %ecx, %ecx
1:  mov %ecx, %eax
    shl $21, %eax
    add $0xc0000000, %eax
    or $0x97, %eax
    mov %eax, 0x23000(, %ecx, 8)
    inc %ecx
    cmp $512, %ecx
    jne 1b
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0x620, %eax                    # PAE, OSFXSR, OSXMMEXCPT
    mov %eax, %cr4
    mov $0xc0000080, %ecx
    rdmsr
    or $0x101, %eax                     # LME, SCE
    wrmsr
    mov %cr0, %eax
    and $0x9fffffff, %eax               # caches on
    or $0x80010022, %eax                # PG, WP, NE, MP
    mov %eax, %cr0
    ljmp $0x18, $start64
.code64
start64:
    mov $0x20, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov %eax, %ss
    mov %esp, %esp
    fninit
    jmp main
set_gate:                               # edi vector, rsi handler, dl type; keeps the rest
    push %rax
    shl $4, %edi
    lea idt(%rdi), %rdi
    mov %si, (%rdi)
    movw $0x18, 2(%rdi)
    movb $0, 4(%rdi)
    mov %dl, 5(%rdi)
    shr $16, %rsi
    mov %esi, 6(%rdi)
    movl $0, 12(%rdi)
    pop %rax
    ret
load_tss:                               # ring 3 comes back on the stack at 0x7f00
    movq $0x7f00, tss + 4(%rip)
    lea tss(%rip), %rax
    mov %ax, gdt + 0x42(%rip)
    shr $16, %rax
    mov %al, gdt + 0x44(%rip)
    mov %ah, gdt + 0x47(%rip)
    mov $0x40, %eax
    ltr %ax
    ret
.macro to_ring3 target, flags=0x202
    pushq $0x33
    pushq $0x6f00
    pushq $\\flags
    pushq $0x3b
    lea \\target(%rip), %rax
    push %rax
    iretq
.endm
.macro leave_long_mode                  # on to 32 bits without paging, in the segments 08 and 10
    pushq $0x08
    lea protected(%rip), %rax
    push %rax
    lretq
.code32
protected:
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    mov $0xc0000080, %ecx
    rdmsr
    and $~0x100, %eax                   # LME
    wrmsr
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
.endm
.macro start_others                     # INIT, SIPI to all but self, vector 1 (0x1000)
    mov $0xfee00000, %rax
    movl $0x1ff, 0xf0(%rax)
    movl $0xc4500, 0x300(%rax)
    movl $0xc4601, 0x300(%rax)
.endm
.macro wait_for_cpus count
    88: pause
    cmpl $\\count, cpus_entered(%rip)
    jb 88b
.endm
.align 16
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff            # 08 code, 32 bits
    .quad 0x00cf93000000ffff            # 10 data
    .quad 0x00af9b000000ffff            # 18 code, 64 bits
    .quad 0x00cf93000000ffff            # 20 data
    .quad 0x00cffb000000ffff            # 28 user code, 32 bits
    .quad 0x00cff3000000ffff            # 30 user data
    .quad 0x00affb000000ffff            # 38 user code, 64 bits
    .quad 0x0000890000000067            # 40 TSS
    .quad 0
    .quad 0x000f9b000000ffff            # 50 code, 16 bits
    .quad 0x000f93000000ffff            # 58 data, 16 bits
gdt_pointer:
    .word 12 * 8 - 1
    .quad gdt
idt_pointer:
    .word 0xfff
    .quad idt
real_idt_pointer:
    .word 0x3ff
    .quad 0
.align 16
tss: .fill 104, 1, 0
.align 64
cpus_entered: .quad 0
"""


@cache
def assemble(source: str) -> bytes:
    """The flat binary of ``source`` behind `PREAMBLE`, linked to run at `CODE`."""
    with tempfile.TemporaryDirectory() as directory:
        text, program, image = (Path(directory) / name for name in ("guest.s", "guest.o", "guest.bin"))
        text.write_text(PREAMBLE + source, encoding="ascii")
        subprocess.run(["as", "--64", "-o", program, text], check=True)
        subprocess.run(["ld", "-Ttext", hex(CODE), "--oformat", "binary", "-o", image, program], check=True)
        return image.read_bytes()


class _Port(Device):
    def __init__(self, write: Callable[[int], None]) -> None:
        self._write = write

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._write(value)


class SoftcpuRig:
    """One machine with a guest in it; a context manager.

    Args:
        source: of the guest.
        cpus: how many.
        ram: bytes.
        software_cpu: whether that executes it, not KVM.
        kvm_smm: whether KVM has system management mode.
        virtual: whether its time goes by what it executes; then without KVM.

    Attributes:
        alone: whether rigs do without KVM, with chips of our own; tests/kvm/softcpu/conftest.py sets it. They have to
            where there is none.
        always_virtual: whether time is virtual whatever a test says; likewise.
    """

    alone = PLAIN == "softcpu"
    always_virtual = False

    def __init__(
        self,
        source: str,
        *,
        cpus: int = 1,
        ram: int = 16 * MIB,
        software_cpu: bool = True,
        kvm_smm: bool = False,
        virtual: bool = False,
    ) -> None:
        self.values: list[int] = []
        self.actions: dict[int, Callable[[], None]] = {}
        self.failures: list[BaseException] = []
        self.done = threading.Event()
        self._closers = ExitStack()
        virtual = virtual or (self.always_virtual and software_cpu)
        alone = virtual or (self.alone and software_cpu)
        self.clock = GuestClock()
        if virtual:
            self.clock.stand(VIRTUAL_START_NS)
        chips = ChipsSystem("a test", self.clock if virtual else None) if alone else None
        self.kvm: Kvm = self._closers.enter_context(chips or Kvm())
        self.vm = self._closers.enter_context(self.kvm.create_vm())
        self.vm.set_identity_map_address(layout.KVM_IDENTITY_MAP_ADDRESS)
        self.vm.set_tss_address(layout.KVM_TSS_ADDRESS)
        self.vm.create_irqchip()
        self.vm.create_pit2()
        self.core = ffi.gc(lib.vmm_vm_new(self.vm.fd), lib.vmm_vm_free)
        self.vm.attach(self.core)
        self.memory = GuestMemory(self.vm, self.core, ram, ram, kvm_smm=kvm_smm)
        self._closers.callback(self.memory.close)
        self.lock = IoLock(self.core)
        self.ports = Bus("port", ffi.addressof(self.core, "ports"), self.lock, self.failures.append)
        self.mmio = Bus("MMIO", ffi.addressof(self.core, "mmio"), self.lock, self.failures.append)
        self.ports.add(REPORT, REPORT + 3, _Port(self.values.append), "report")
        self.ports.add(DONE, DONE + 3, _Port(lambda _: self._finish()), "done")
        self.ports.add(ACTION, ACTION + 3, _Port(lambda number: self.actions[number]()), "action")
        self.softcpu = SoftwareCpu(self.core, self.vm) if software_cpu else None
        if self.softcpu is not None:
            self._closers.callback(self.softcpu.close)
            if virtual:
                self.softcpu.go_by(self.clock, ffi.NULL)
        self.vcpus: list[Vcpu] = []
        self.cores: list[Any] = []
        for index in range(cpus):
            self._add_vcpu(index, cpus)
        self.memory.write(CODE, assemble(source))
        regs = self.vcpus[0].get_regs()
        regs.rip = CODE
        self.vcpus[0].set_regs(regs)
        sregs = self.vcpus[0].get_sregs()
        sregs.cs.base = sregs.cs.selector = 0
        self.vcpus[0].set_sregs(sregs)

    def _add_vcpu(self, index: int, count: int) -> None:
        vcpu = self._closers.enter_context(self.vm.create_vcpu(index))
        entries = cpuid.cpuid_entries(self.kvm, index, cpuid.Guest(Topology(cores=count), software_cpu=True))
        vcpu.set_cpuid2(entries)
        reset_vcpu(vcpu)
        core = lib.vmm_vcpu_new(self.core, vcpu.fd, vcpu.run, index)
        self._closers.callback(lib.vmm_vcpu_free, core)
        vcpu.attach(core)
        if self.softcpu is not None:
            self.softcpu.add_vcpu(core, entries)
            vcpu.amend_sregs = partial(self.softcpu.amend_sregs, core)
        self.vcpus.append(vcpu)
        self.cores.append(core)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closers.close()

    def why(self) -> str:
        """Why the first vCPU's run ended, as a user reads it."""
        look = Look(self.memory, NO_FIRMWARE)
        return failure.describe(self.vcpus[0], self.cores[0], self.memory, lambda: look, software_cpu=True)[1]

    def run(self, seconds: float = 240) -> list[int]:
        """Run until the guest is done, a vCPU ends, or the time is over; the outcome of each vCPU."""
        outcomes = [-1] * len(self.vcpus)
        lib.vmm_vm_resume(self.core)
        execute = lib.vmm_vcpu_run if self.softcpu is None else self.softcpu.run

        def vcpu_thread(index: int) -> None:
            outcomes[index] = execute(self.cores[index])
            if outcomes[index] != lib.VCPU_STOPPED:
                self.done.set()

        def all_in_turn() -> None:
            assert self.softcpu is not None
            self.softcpu.run_in_turn()
            outcomes[:] = [int(core.end.outcome) for core in self.cores]
            if set(outcomes) != {lib.VCPU_STOPPED}:
                self.done.set()

        if self.softcpu is not None and self.softcpu.in_turn:
            threads = [threading.Thread(target=all_in_turn)]
        else:
            threads = [threading.Thread(target=vcpu_thread, args=(index,)) for index in range(len(self.vcpus))]
        for thread in threads:
            thread.start()
        self.done.wait(seconds)
        began = time.monotonic()
        self.stop()
        for thread in threads:
            thread.join(30)
        self.stop_seconds = time.monotonic() - began
        assert not any(thread.is_alive() for thread in threads), "a vCPU did not stop"
        assert not self.failures, self.failures
        return outcomes

    def stop(self) -> None:
        """Make all vCPUs return."""
        lib.vmm_vm_stop(self.core, self.cores, len(self.cores))

    def _finish(self) -> None:
        self.done.set()
        self.stop()


def values_of(
    source: str, *, cpus: int = 1, actions: dict[int, Callable[[SoftcpuRig], None]] | None = None
) -> list[int]:
    """What a guest reports until it is done."""
    with SoftcpuRig(source, cpus=cpus) as rig:
        for number, act in (actions or {}).items():
            rig.actions[number] = lambda act=act: act(rig)  # type: ignore[misc]
        outcomes = rig.run()
        assert rig.done.is_set(), f"not done; outcomes {outcomes}, reported {[hex(value) for value in rig.values]}"
        assert set(outcomes) == {lib.VCPU_STOPPED}, (outcomes, [hex(value) for value in rig.values])
        return rig.values
