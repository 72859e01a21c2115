"""One virtual CPU: its state, and KVM_RUN."""

from __future__ import annotations

import errno
import mmap
from contextlib import suppress

from vmm._native import ffi, lib
from vmm.kvm.descriptor import Descriptor, kvm_error
from vmm.kvm.structs import CpuidEntry, MpState, Struct, cpuid_to_c, msrs_to_c
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from vmm.kvm.exits import Exit
    from vmm.kvm.vm import Vm

_MAX_MSRS = 255
"""KVM_GET_MSRS and KVM_SET_MSRS take fewer than MAX_IO_MSRS, 256 (the kernel's arch/x86/kvm/x86.c)."""


class Vcpu(Descriptor):
    """A virtual CPU, from `Vm.create_vcpu`; all calls belong on the thread that runs it, or while none does.

    Registers are KVM's own structs, with its names of fields: ``get_regs().rip``. `vmm.cpu.registers.Registers.of`
    reads all of them to be looked at, as `Machine.registers` does.

    Attributes:
        vm: the machine it belongs to.
        index: which of the machine's vCPUs it is.
        vcpu_id: KVM's number for it, which is its APIC id.
        amend_sregs: called with what `get_sregs` is about to return; a software CPU's, which knows special registers of
            the guest that KVM cannot represent.
    """

    def __init__(self, vm: Vm, fd: int, vcpu_id: int, index: int) -> None:
        super().__init__(fd, f"vCPU {index}")
        self.vm = vm
        self.index = index
        self.vcpu_id = vcpu_id
        self.amend_sregs: Callable[[Any], None] | None = None
        try:
            self._page = mmap.mmap(fd, vm.kvm.vcpu_mmap_size)
        except OSError as error:
            self.close()
            raise kvm_error(error.errno or 0, "mmap", self._name) from error
        except BaseException:
            self.close()
            raise
        self._page_pin = ffi.from_buffer(self._page)
        self._run = ffi.cast("struct kvm_run *", self._page_pin)

    def attach(self, core_vcpu: Any) -> None:
        """Be what a ``struct vmm_vcpu`` asks; it has the descriptor already, so there is nothing to do."""

    def close(self) -> None:
        """Give the descriptor back, and the shared page once nobody holds data of an exit any more."""
        if self.closed:
            return
        super().close()
        # A constructor that raised leaves no page.
        if hasattr(self, "_run"):
            del self._run
            ffi.release(self._page_pin)
            # Where an exit's data lives on, the page goes with it.
            with suppress(BufferError):
                self._page.close()

    @property
    def run(self) -> Any:
        """The struct kvm_run shared with KVM_RUN, valid until `close`.

        Raises:
            KvmError: EBADF once closed.
        """
        if self.closed:
            raise kvm_error(errno.EBADF, "KVM_RUN", self._name)
        return self._run

    @property
    def coalesced_ring(self) -> Any:
        """The struct kvm_coalesced_mmio_ring of the machine, the same for all its vCPUs, valid until `close`.

        KVM puts in what `Vm.coalesce_writes` asked for and moves ``last``; whoever takes it out moves ``first``.

        Raises:
            KvmError: EBADF once closed; EOPNOTSUPP where KVM has none.
        """
        page = self.vm.kvm.check_extension(lib.KVM_CAP_COALESCED_MMIO)
        if self.closed or not page:
            raise kvm_error(errno.EBADF if self.closed else errno.EOPNOTSUPP, "mmap", f"{self._name}, coalesced writes")
        return ffi.cast("struct kvm_coalesced_mmio_ring *", self._page_pin + page * mmap.PAGESIZE)

    def run_once(self) -> Exit:
        """KVM_RUN until the guest needs something; what that is.

        The data of an `Io` or `Mmio` read is to be filled in before the next call, which completes the instruction.
        A signal, or `immediate_exit`, gives `Intr`. KVM_RUN of an AP that waits to be started blocks until it is.

        Raises:
            KvmError: KVM cannot run it: EFAULT for memory that is gone, ENOEXEC for a CPU without state.
        """
        # Only callers of this need the exits' classes, and making those takes longer than creating a vCPU.
        from vmm.kvm import exits

        run = self.run
        result = lib.kvm_abi_ioctl_value(self.fd, lib.KVM_RUN, 0)
        if result == 0:
            return exits.decode(run, self._page)
        if result == -errno.EINTR:
            return exits.Intr()
        if result == -errno.EAGAIN:
            return exits.Woken()
        raise kvm_error(-result, "KVM_RUN", self._name)

    def set_immediate_exit(self, wanted: bool) -> None:
        """Make the next KVM_RUN return before it enters the guest (KVM_CAP_IMMEDIATE_EXIT); it stays until reset."""
        self.run.immediate_exit = wanted

    # -- registers --------------------------------------------------------------------------------------------------

    def get_regs(self) -> Any:
        """KVM_GET_REGS: struct kvm_regs, general registers, RIP, RFLAGS."""
        return self._get_struct("KVM_GET_REGS", "struct kvm_regs")

    def set_regs(self, regs: Any) -> None:
        """KVM_SET_REGS. Forgets a pending exception."""
        self._ioctl("KVM_SET_REGS", regs)

    def get_sregs(self) -> Any:
        """KVM_GET_SREGS: struct kvm_sregs, segments, tables, control registers, EFER, APIC base."""
        sregs = self._get("KVM_GET_SREGS", "struct kvm_sregs")
        if self.amend_sregs is not None:
            self.amend_sregs(sregs)
        return Struct(sregs)

    def set_sregs(self, sregs: Any) -> None:
        """KVM_SET_SREGS.

        Raises:
            KvmError: EINVAL for control registers that no CPU accepts together.
        """
        self._ioctl("KVM_SET_SREGS", sregs)

    def get_fpu(self) -> Any:
        """KVM_GET_FPU: struct kvm_fpu, x87 and XMM; MXCSR is not filled in, see `get_xsave` for that."""
        return self._get_struct("KVM_GET_FPU", "struct kvm_fpu")

    def set_fpu(self, fpu: Any) -> None:
        """KVM_SET_FPU; what is beyond SSE stays, XSTATE_BV too, which may call this unused (see `set_xsave`)."""
        self._ioctl("KVM_SET_FPU", fpu)

    def translate(self, linear_address: int) -> int | None:
        """KVM_TRANSLATE: the GPA that the guest's page tables give for a linear address; None if they give none."""
        translation = ffi.new("struct kvm_translation *", {"linear_address": linear_address})
        self._ioctl("KVM_TRANSLATE", translation)
        return int(translation.physical_address) if translation.valid else None

    def get_xsave(self) -> bytearray:
        """KVM_GET_XSAVE2 (KVM_GET_XSAVE on older kernels): the XSAVE area in its standard format, 4096 bytes or more.

        SDM volume 1, section 13.4: legacy area 0-511, header 512-575 (XSTATE_BV first), then as CPUID leaf 0xd says.
        """
        size = self.vm.check_extension(lib.KVM_CAP_XSAVE2)
        area = bytearray(size or 4096)
        self._ioctl("KVM_GET_XSAVE2" if size else "KVM_GET_XSAVE", ffi.from_buffer(area))
        return area

    def set_xsave(self, area: bytes | bytearray) -> None:
        """KVM_SET_XSAVE: as `get_xsave` gives it.

        Raises:
            ValueError: fewer bytes than KVM reads.
            KvmError: EINVAL for a feature bit or an MXCSR that the CPU lacks.
        """
        size = self.vm.check_extension(lib.KVM_CAP_XSAVE2) or 4096
        if len(area) < size:
            raise ValueError(f"an XSAVE area has {size} bytes here, not {len(area)}")
        self._ioctl("KVM_SET_XSAVE", ffi.from_buffer(area))

    def get_xcrs(self) -> dict[int, int]:
        """KVM_GET_XCRS: extended control registers by number; {0: XCR0}."""
        xcrs = self._get("KVM_GET_XCRS", "struct kvm_xcrs")
        return {xcr.xcr: xcr.value for xcr in xcrs.xcrs[0 : xcrs.nr_xcrs]}

    def set_xcrs(self, values: Mapping[int, int]) -> None:
        """KVM_SET_XCRS.

        Raises:
            KvmError: EINVAL for a value of XCR0 that the CPU lacks.
        """
        xcrs = ffi.new("struct kvm_xcrs *", {"nr_xcrs": len(values)})
        for slot, (number, value) in zip(xcrs.xcrs, values.items(), strict=False):
            slot.xcr, slot.value = number, value
        self._ioctl("KVM_SET_XCRS", xcrs, subject=f"{self._name}, {len(values)} registers")

    def get_debugregs(self) -> Any:
        """KVM_GET_DEBUGREGS: struct kvm_debugregs, the guest's own DR0-DR3, DR6, DR7."""
        return self._get_struct("KVM_GET_DEBUGREGS", "struct kvm_debugregs")

    def set_debugregs(self, debugregs: Any) -> None:
        """KVM_SET_DEBUGREGS.

        Raises:
            KvmError: EINVAL for reserved bits.
        """
        self._ioctl("KVM_SET_DEBUGREGS", debugregs)

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """KVM_GET_MSRS: values by index. KVM stops at the first one it refuses: the result then ends before it."""
        wanted = list(indices)
        values: dict[int, int] = {}
        for start in range(0, len(wanted), _MAX_MSRS):
            table = msrs_to_c(dict.fromkeys(wanted[start : start + _MAX_MSRS], 0))
            done = self._ioctl("KVM_GET_MSRS", table)
            values.update((entry.index, entry.data) for entry in table.entries[0:done])
            if done < table.nmsrs:
                break
        return values

    def set_msrs(self, values: Mapping[int, int]) -> int:
        """KVM_SET_MSRS, in the order given. How many KVM accepted: it stops at the first one it refuses.

        An Intel host whose KVM_GET_SUPPORTED_CPUID offers arch-capabilities may still refuse MSR 0x10a
        (IA32_ARCH_CAPABILITIES), with the very value that `Kvm.get_feature_msrs` suggests (QEMU 7.2 aborts then). A new
        vCPU has a value of KVM's choice there, so vmm never writes it.
        """
        wanted = list(values.items())
        accepted = 0
        for start in range(0, len(wanted), _MAX_MSRS):
            table = msrs_to_c(dict(wanted[start : start + _MAX_MSRS]))
            done = self._ioctl("KVM_SET_MSRS", table)
            accepted += done
            if done < table.nmsrs:
                break
        return accepted

    # -- CPUID, interrupts, events ----------------------------------------------------------------------------------

    def get_cpuid2(self) -> list[CpuidEntry]:
        """KVM_GET_CPUID2: what the guest sees, some bits as its control registers make them."""
        entries = self._get_cpuid("KVM_GET_CPUID2")
        # Older kernels (Linux 6.1 is one) don't say how many they filled in: the rest is zeros.
        while entries and not any(entries[-1]):
            entries.pop()
        return entries

    def set_cpuid2(self, entries: Iterable[CpuidEntry]) -> None:
        """KVM_SET_CPUID2; before the first KVM_RUN.

        Raises:
            KvmError: E2BIG for more entries than KVM keeps (256); EINVAL for impossible ones, or a change later.
        """
        table = cpuid_to_c(entries)
        self._ioctl("KVM_SET_CPUID2", table, subject=f"{self._name}, {table.nent} leaves")

    def get_lapic(self) -> Any:
        """KVM_GET_LAPIC: struct kvm_lapic_state, the LAPIC's register page (SDM volume 3, table 11-1).

        Raises:
            KvmError: EINVAL without an in-kernel interrupt controller.
        """
        return self._get("KVM_GET_LAPIC", "struct kvm_lapic_state")

    def set_lapic(self, lapic: Any) -> None:
        """KVM_SET_LAPIC.

        Raises:
            KvmError: EINVAL without an in-kernel interrupt controller.
        """
        self._ioctl("KVM_SET_LAPIC", lapic)

    def get_mp_state(self) -> MpState:
        """KVM_GET_MP_STATE. Reading it lets INIT and SIPI that wait take effect first."""
        return MpState(self._get("KVM_GET_MP_STATE", "struct kvm_mp_state").mp_state)

    def set_mp_state(self, state: MpState) -> None:
        """KVM_SET_MP_STATE.

        Raises:
            KvmError: EINVAL for any but RUNNABLE without an in-kernel interrupt controller.
        """
        self._ioctl("KVM_SET_MP_STATE", ffi.new("struct kvm_mp_state *", (state,)), subject=f"{self._name}: {state!r}")

    def get_vcpu_events(self) -> Any:
        """KVM_GET_VCPU_EVENTS: struct kvm_vcpu_events, exceptions, interrupts, NMI and SMI in flight."""
        return self._get_struct("KVM_GET_VCPU_EVENTS", "struct kvm_vcpu_events")

    def set_vcpu_events(self, events: Any) -> None:
        """KVM_SET_VCPU_EVENTS.

        Raises:
            KvmError: EINVAL for flags without their capability, or an exception number above 31.
        """
        self._ioctl("KVM_SET_VCPU_EVENTS", events)

    def get_nested_state(self) -> bytes:
        """KVM_GET_NESTED_STATE: struct kvm_nested_state with its data; b"" where KVM offers no nested guests.

        Raises:
            KvmError: the vCPU is closed.
        """
        size = self.vm.check_extension(lib.KVM_CAP_NESTED_STATE)
        if not size:
            return b""
        # Bytes 4 to 7: the buffer's size, then the state's.
        state = bytearray(size)
        state[4:8] = size.to_bytes(4, "little")
        self._ioctl("KVM_GET_NESTED_STATE", ffi.from_buffer(state))
        return bytes(state[: int.from_bytes(state[4:8], "little")])

    def set_nested_state(self, state: bytes) -> None:
        """KVM_SET_NESTED_STATE with what `get_nested_state` gave; b"" does nothing.

        Raises:
            KvmError: EINVAL for what does not go with EFER or CR4.
        """
        if state:
            self._ioctl("KVM_SET_NESTED_STATE", ffi.from_buffer(bytearray(state)))

    def nmi(self) -> None:
        """KVM_NMI: a non-maskable interrupt, from any thread."""
        self._ioctl_value("KVM_NMI")

    def smi(self) -> None:
        """KVM_SMI: a system management interrupt; waits for the thread that is in KVM_RUN of this vCPU, if one is.

        Raises:
            KvmError: where KVM lacks KVM_CAP_X86_SMM.
        """
        self._ioctl_value("KVM_SMI")

    def set_guest_debug(self, control: int, debug_registers: Mapping[int, int] | None = None) -> None:
        """KVM_SET_GUEST_DEBUG: leave with `vmm.kvm.exits.Debug` after each instruction, or at breakpoints.

        Args:
            control: KVM_GUESTDBG_ENABLE with _SINGLESTEP, _USE_SW_BP or _USE_HW_BP; 0 turns all off.
            debug_registers: DR0-DR3 and DR7 by number, for _USE_HW_BP.
        """
        debug = ffi.new("struct kvm_guest_debug *", {"control": control})
        for number, value in (debug_registers or {}).items():
            debug.arch.debugreg[number] = value
        self._ioctl("KVM_SET_GUEST_DEBUG", debug, subject=f"{self._name}, control {control:#x}")

    def get_tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ: the guest's TSC frequency.

        Raises:
            KvmError: EIO where the host's TSC is unstable.
        """
        return self._ioctl_value("KVM_GET_TSC_KHZ")

    def set_tsc_khz(self, khz: int) -> None:
        """KVM_SET_TSC_KHZ.

        Raises:
            KvmError: EINVAL where the host cannot scale (KVM_CAP_TSC_CONTROL) and ``khz`` is not its own frequency.
        """
        self._ioctl_value("KVM_SET_TSC_KHZ", khz, subject=f"{self._name}, {khz} kHz")

    def get_tsc_offset(self) -> int:
        """KVM_GET_DEVICE_ATTR, KVM_VCPU_TSC_OFFSET: what the guest's TSC is ahead of the host's, modulo 2^64.

        Raises:
            KvmError: ENXIO or ENOTTY where KVM has no such attribute (before Linux 5.16).
        """
        offset = ffi.new("uint64_t *")
        self._tsc_offset("KVM_GET_DEVICE_ATTR", offset)
        return int(offset[0])

    def set_tsc_offset(self, offset: int) -> None:
        """KVM_SET_DEVICE_ATTR, KVM_VCPU_TSC_OFFSET.

        Raises:
            KvmError: as `get_tsc_offset`.
        """
        self._tsc_offset("KVM_SET_DEVICE_ATTR", ffi.new("uint64_t *", offset))

    def _tsc_offset(self, ioctl: str, offset: Any) -> None:
        attribute = {"group": lib.KVM_VCPU_TSC_CTRL, "attr": lib.KVM_VCPU_TSC_OFFSET}
        attribute["addr"] = int(ffi.cast("uintptr_t", offset))
        self._ioctl(ioctl, ffi.new("struct kvm_device_attr *", attribute), subject=f"{self._name}, TSC offset")

    # -- sync regs --------------------------------------------------------------------------------------------------

    def sync_registers(self, fields: int) -> None:
        """Have each KVM_RUN store state into ``run.s.regs`` (KVM_CAP_SYNC_REGS): `get_regs` without a call.

        Args:
            fields: KVM_SYNC_X86_REGS, _SREGS, _EVENTS; 0 turns it off. A bit that KVM_CHECK_EXTENSION does not name
                makes KVM_RUN fail with EINVAL.
        """
        self.run.kvm_valid_regs = fields

    def mark_synced_dirty(self, fields: int) -> None:
        """Have the next KVM_RUN load state from ``run.s.regs`` first; it clears the mark itself."""
        self.run.kvm_dirty_regs = fields
