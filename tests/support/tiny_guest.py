"""A guest of a few bytes in real mode, and what a refused call raises, for tests of single KVM calls."""

import mmap
from collections.abc import Callable
from typing import Self

import pytest

from vmm.errors import KvmError
from vmm.kvm import Kvm, Vcpu, Vm

CODE = 0x1000
SIZE = 0x10000


class TinyGuest:
    """64 KiB of RAM at GPA 0, and a vCPU that starts with CS 0 and all registers 0 at `CODE`."""

    def __init__(self, code: str, *, irqchip: bool = False) -> None:
        self.memory = mmap.mmap(-1, SIZE)
        self.kvm = Kvm()
        self.vm: Vm = self.kvm.create_vm()
        if irqchip:
            self.vm.create_irqchip()
        self.vm.set_user_memory_region(0, 0, SIZE, self.memory)
        self.vcpu: Vcpu = self.vm.create_vcpu(0)
        self.load(code)
        start(self.vcpu)

    def load(self, code: str, at: int = CODE) -> None:
        """Put machine code, in hexadecimal, at GPA ``at``."""
        data = bytes.fromhex(code)
        self.memory[at : at + len(data)] = data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for part in (self.vcpu, self.vm, self.kvm, self.memory):
            part.close()


def start(vcpu: Vcpu, at: int = CODE) -> None:
    """Let ``vcpu`` go on at ``at``, in real mode, with CS 0 and a stack below `CODE`."""
    sregs = vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.set_sregs(sregs)
    regs = vcpu.get_regs()
    regs.rip, regs.rsp, regs.rflags = at, CODE, 2
    vcpu.set_regs(regs)


def refused(error: int, call: Callable[[], object], text: str | None = None) -> None:
    """Expect a `KvmError` with this errno, its message one line that matches ``text``."""
    with pytest.raises(KvmError, match=text) as info:
        call()
    assert info.value.errno == error
    assert "\n" not in str(info.value)
