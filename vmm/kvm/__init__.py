"""KVM's API from Python: one class for each kind of file descriptor.

`Kvm` is ``/dev/kvm``, a `Vm` comes from it, a `Vcpu` from that. Each is a context manager, closes once however often
it is asked to, and keeps its parent alive. Layouts and numbers are the compiler's (``<linux/kvm.h>``); what a call
returns or takes are those structs, as `Struct` or as cffi objects. A call that KVM refuses raises
`vmm.errors.KvmError`, with errno.

This package knows nothing of machines, devices or firmware, and can be used by itself. Five instructions, from creating
the guest to its HLT:

>>> import mmap
>>> from vmm.kvm.exits import Hlt, Io
>>> from vmm.kvm import Kvm
>>> code = bytes.fromhex(
...     "ba f8 03"  # mov dx, 0x3f8
...     "00 d8"     # add al, bl
...     "04 30"     # add al, '0'
...     "ee"        # out dx, al
...     "f4"        # hlt
... )
>>> with mmap.mmap(-1, 0x1000) as memory, Kvm() as kvm, kvm.create_vm() as vm:  # 1. a machine, and a page for it
...     memory[: len(code)] = code
...     vm.set_user_memory_region(0, 0x1000, len(memory), memory)               # 2. the page at GPA 0x1000
...     with vm.create_vcpu(0) as vcpu:                                         # 3. a CPU, in real mode
...         sregs = vcpu.get_sregs()
...         sregs.cs.base = sregs.cs.selector = 0
...         vcpu.set_sregs(sregs)
...         regs = vcpu.get_regs()
...         regs.rip, regs.rax, regs.rbx, regs.rflags = 0x1000, 2, 2, 2         # 4. its registers
...         vcpu.set_regs(regs)
...         while not isinstance(leave := vcpu.run_once(), Hlt):                # 5. run it, answer its exits
...             if isinstance(leave, Io) and leave.is_write:
...                 print(f"port {leave.port:#x}:", bytes(leave.data).decode())
port 0x3f8: 4

Source of all calls: the kernel's Documentation/virt/kvm/api.rst, under the name of the ioctl that each method names.
"""

from vmm.kvm.structs import Capability, CpuidEntry, GsiRoute, IrqchipRoute, MpState, MsiRoute, Struct, pc_routes
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import Vm

__all__ = [
    "Capability",
    "CpuidEntry",
    "GsiRoute",
    "IrqchipRoute",
    "Kvm",
    "MpState",
    "MsiRoute",
    "Struct",
    "Vcpu",
    "Vm",
    "pc_routes",
]
