"""One virtual machine: its memory, interrupt controllers, timers and clock."""

from __future__ import annotations

import mmap

from vmm._native import ffi, lib
from vmm.kvm.descriptor import Descriptor
from vmm.kvm.structs import GsiRoute, IrqchipRoute
from vmm.kvm.vcpu import Vcpu
from vmm.pin import Pinned
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from typing_extensions import Buffer

    from vmm.kvm.system import Kvm


class Vm(Descriptor):
    """A virtual machine, from `Kvm.create_vm`.

    What an Intel host needs and an AMD host only stores: `set_identity_map_address` and `set_tss_address` before the
    first `create_vcpu`. Where VMX lacks "unrestricted guest" (before Westmere, or turned off), KVM runs real mode as
    virtual-8086 mode with a task state segment and an identity-mapped page directory of its own, in guest physical
    addresses that nothing else may use (api.rst, KVM_SET_TSS_ADDR, KVM_SET_IDENTITY_MAP_ADDR).
    """

    def __init__(self, kvm: Kvm, fd: int) -> None:
        super().__init__(fd, "VM")
        self.kvm = kvm
        self._pins: dict[int, Any] = {}

    def close(self) -> None:
        """Give the descriptor back. The kernel keeps the machine until its last vCPU is closed too."""
        try:
            super().close()
        finally:
            # Where Ctrl-C comes meanwhile, the memory's owner closes that next.
            self._pins.clear()

    def attach(self, core: Any) -> None:
        """Be what the C core's ``struct vmm_vm`` asks; it has the descriptor already, so there is nothing to do."""

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION on this machine; for some capabilities the answer is more exact than `Kvm`'s."""
        return self._ioctl_value("KVM_CHECK_EXTENSION", capability, subject=f"capability {capability}")

    def enable_capability(self, capability: int, *arguments: int) -> None:
        """KVM_ENABLE_CAP with up to four arguments.

        Raises:
            KvmError: EINVAL for a capability that cannot be enabled, or not now.
        """
        enable = ffi.new("struct kvm_enable_cap *", {"cap": capability, "args": arguments})
        self._ioctl("KVM_ENABLE_CAP", enable, subject=f"capability {capability}")

    # -- memory -----------------------------------------------------------------------------------------------------

    def set_user_memory_region(
        self,
        slot: int,
        gpa: int,
        size: int,
        memory: int | Buffer,
        *,
        read_only: bool = False,
        log_dirty_pages: bool = False,
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION: back ``size`` bytes of guest memory from ``gpa``; size 0 deletes the slot.

        Args:
            slot: its number, below `Kvm.max_memory_slots`.
            gpa: guest physical address, of a page.
            size: bytes, whole pages.
            memory: address of as many bytes in this process, or a writable, page-aligned buffer, which is then kept
                until the slot is deleted or the machine closed. An address must stay mapped that long.
            read_only: guest stores become MMIO exits (KVM_MEM_READONLY).
            log_dirty_pages: let `dirty_log` work (KVM_MEM_LOG_DIRTY_PAGES).

        Raises:
            KvmError: EEXIST where it overlaps another slot; EINVAL for what is not aligned, or for a change of size
                or memory of an existing slot (delete it first).
        """
        hva, pin = memory, None
        if not isinstance(memory, int):
            hva, _, pin = Pinned.of(memory, writable=True)
        flags = (lib.KVM_MEM_READONLY if read_only else 0) | (lib.KVM_MEM_LOG_DIRTY_PAGES if log_dirty_pages else 0)
        region = ffi.new("struct kvm_userspace_memory_region *", (slot, flags, gpa, size, hva))
        subject = f"slot {slot}, {size:#x} bytes at GPA {gpa:#x}"
        self._ioctl("KVM_SET_USER_MEMORY_REGION", region, subject=subject)
        if size and pin is not None:
            self._pins[slot] = pin
        else:
            self._pins.pop(slot, None)

    def delete_memory_region(self, slot: int) -> None:
        """Take the memory of ``slot`` away: later accesses there are MMIO.

        Raises:
            KvmError: EINVAL if the slot is empty.
        """
        self.set_user_memory_region(slot, 0, 0, 0)

    def dirty_log(self, slot: int, size: int) -> bytes:
        """KVM_GET_DIRTY_LOG: one bit a page of ``slot``, lowest first, set if written since the last call.

        Args:
            slot: a slot that was made with ``log_dirty_pages``.
            size: the slot's bytes.

        Raises:
            KvmError: ENOENT if the slot has no log.
        """
        words = (size // mmap.PAGESIZE + 63) // 64
        bitmap = ffi.new("uint64_t[]", words)
        log = ffi.new("struct kvm_dirty_log *", {"slot": slot, "dirty_bitmap": bitmap})
        self._ioctl("KVM_GET_DIRTY_LOG", log, subject=f"slot {slot}")
        return bytes(ffi.buffer(bitmap))

    def set_identity_map_address(self, gpa: int) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR: one page that nothing else uses; before the first vCPU. For Intel, see `Vm`.

        Raises:
            KvmError: EINVAL once a vCPU exists.
        """
        self._ioctl("KVM_SET_IDENTITY_MAP_ADDR", ffi.new("uint64_t *", gpa), subject=f"GPA {gpa:#x}")

    def set_tss_address(self, gpa: int) -> None:
        """KVM_SET_TSS_ADDR: three pages below 4 GiB that nothing else uses. For Intel, see `Vm`.

        Raises:
            KvmError: EINVAL where three pages don't fit below 4 GiB.
        """
        self._ioctl_value("KVM_SET_TSS_ADDR", gpa, subject=f"GPA {gpa:#x}")

    # -- interrupts -------------------------------------------------------------------------------------------------

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: PICs, IOAPIC and a LAPIC in each vCPU, in the kernel; before the first vCPU.

        Raises:
            KvmError: EEXIST if it was called before; EINVAL if a vCPU exists.
        """
        self._ioctl_value("KVM_CREATE_IRQCHIP")

    def use_x2apic_ids(self) -> None:
        """KVM_CAP_X2APIC_API: APIC ids have 32 bits, and 255 is one of them; before the first vCPU.

        Raises:
            KvmError: EINVAL where KVM has no such capability.
        """
        flags = lib.KVM_X2APIC_API_USE_32BIT_IDS | lib.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
        self.enable_capability(lib.KVM_CAP_X2APIC_API, flags)

    def get_irqchip(self, chip: int) -> Any:
        """KVM_GET_IRQCHIP: struct kvm_irqchip of KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC.

        Raises:
            KvmError: ENXIO without `create_irqchip`; EINVAL for another chip.
        """
        state = ffi.new("struct kvm_irqchip *", {"chip_id": chip})
        self._ioctl("KVM_GET_IRQCHIP", state, subject=f"chip {chip}")
        return state

    def set_irqchip(self, state: Any) -> None:
        """KVM_SET_IRQCHIP with what `get_irqchip` gave.

        Raises:
            KvmError: ENXIO without `create_irqchip`; EINVAL for an unknown ``chip_id``.
        """
        self._ioctl("KVM_SET_IRQCHIP", state, subject=f"chip {state.chip_id}")

    def irq_line(self, gsi: int, level: bool) -> None:
        """KVM_IRQ_LINE: drive the wire of ``gsi``; an edge is high, then low.

        Raises:
            KvmError: ENXIO without `create_irqchip`.
        """
        line = ffi.new("struct kvm_irq_level *", {"irq": gsi, "level": level})
        self._ioctl("KVM_IRQ_LINE", line, subject=f"GSI {gsi}")

    def set_gsi_routing(self, routes: Iterable[GsiRoute]) -> None:
        """KVM_SET_GSI_ROUTING: replace the whole wiring (as a PC's: `vmm.kvm.structs.pc_routes`).

        Raises:
            KvmError: EINVAL for an unknown chip or pin, or more than KVM_CAP_IRQ_ROUTING routes.
        """
        listed = list(routes)
        table = ffi.new("struct kvm_irq_routing *", {"nr": len(listed), "entries": len(listed)})
        for entry, route in zip(table.entries, listed, strict=True):
            entry.gsi = route.gsi
            if isinstance(route, IrqchipRoute):
                entry.type = lib.KVM_IRQ_ROUTING_IRQCHIP
                entry.u.irqchip.irqchip, entry.u.irqchip.pin = route.irqchip, route.pin
            else:
                entry.type = lib.KVM_IRQ_ROUTING_MSI
                entry.u.msi.address_lo, entry.u.msi.address_hi = route.address & 0xFFFFFFFF, route.address >> 32
                entry.u.msi.data = route.data
        self._ioctl("KVM_SET_GSI_ROUTING", table, subject=f"{len(listed)} routes")

    def signal_msi(self, address: int, data: int) -> bool:
        """KVM_SIGNAL_MSI: send one message-signalled interrupt. False: the guest's LAPIC ignores it.

        Raises:
            KvmError: EINVAL without `create_irqchip`.
        """
        message = ffi.new(
            "struct kvm_msi *", {"address_lo": address & 0xFFFFFFFF, "address_hi": address >> 32, "data": data}
        )
        return self._ioctl("KVM_SIGNAL_MSI", message, subject=f"{data:#x} to {address:#x}") > 0

    def irqfd(self, fd: int, gsi: int, *, resample_fd: int | None = None, deassign: bool = False) -> None:
        """KVM_IRQFD: an event on eventfd ``fd`` raises ``gsi``.

        Args:
            fd: an eventfd.
            gsi: as in `set_gsi_routing`.
            resample_fd: makes the GSI level-triggered: it stays high until the guest's EOI, which is told here.
            deassign: end it.

        Raises:
            KvmError: EBADF or EINVAL if ``fd`` is no eventfd; EBUSY if it has a GSI already.
        """
        flags = lib.KVM_IRQFD_FLAG_DEASSIGN if deassign else 0
        if resample_fd is not None:
            flags |= lib.KVM_IRQFD_FLAG_RESAMPLE
        wiring = ffi.new("struct kvm_irqfd *", (fd, gsi, flags, resample_fd or 0))
        self._ioctl("KVM_IRQFD", wiring, subject=f"eventfd {fd}, GSI {gsi}")

    def ioeventfd(
        self, fd: int, address: int, size: int, *, port: bool = False, value: int | None = None, deassign: bool = False
    ) -> None:
        """KVM_IOEVENTFD: a guest store to ``address`` signals eventfd ``fd`` and does not leave the kernel.

        Args:
            fd: an eventfd.
            address: a GPA, or a port if ``port``.
            size: bytes of the store: 1, 2, 4, 8; 0 for any.
            port: OUT instead of a store to memory.
            value: only this value; None for any.
            deassign: end it; all else as when it was made.

        Raises:
            KvmError: EBADF or EINVAL if ``fd`` is no eventfd; EEXIST if there is one like it; ENOENT if deassigning
                what is not there.
        """
        flags = (lib.KVM_IOEVENTFD_FLAG_PIO if port else 0) | (lib.KVM_IOEVENTFD_FLAG_DEASSIGN if deassign else 0)
        if value is not None:
            flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH
        wiring = ffi.new("struct kvm_ioeventfd *", (value or 0, address, size, fd, flags))
        self._ioctl("KVM_IOEVENTFD", wiring, subject=f"eventfd {fd}, {'port' if port else 'GPA'} {address:#x}")

    def coalesce_writes(self, address: int, size: int, *, port: bool = False) -> None:
        """KVM_REGISTER_COALESCED_MMIO: keep stores that lie within these addresses in `Vcpu.coalesced_ring`.

        They are no exits any more, unless the ring is full.

        Args:
            address: the first GPA, or port.
            size: how many.
            port: OUT instead of a store to memory (KVM_CAP_COALESCED_PIO).

        Raises:
            KvmError: ENOSPC beyond a thousand ranges.
        """
        self._coalescing("KVM_REGISTER_COALESCED_MMIO", address, size, port)

    def stop_coalescing(self, address: int, size: int, *, port: bool = False) -> None:
        """KVM_UNREGISTER_COALESCED_MMIO: end what `coalesce_writes` began, for the ranges that lie within this one."""
        self._coalescing("KVM_UNREGISTER_COALESCED_MMIO", address, size, port)

    def _coalescing(self, ioctl: str, address: int, size: int, port: bool) -> None:
        zone = ffi.new("struct kvm_coalesced_mmio_zone *", {"addr": address, "size": size, "pio": port})
        self._ioctl(ioctl, zone, subject=f"{size} bytes at {'port' if port else 'GPA'} {address:#x}")

    # -- timers -----------------------------------------------------------------------------------------------------

    def create_pit2(self, *, speaker: bool = True) -> None:
        """KVM_CREATE_PIT2: the 8254 in the kernel; after `create_irqchip`.

        Args:
            speaker: port 0x61 answers too, with channel 2's gate and output (KVM_PIT_SPEAKER_DUMMY).

        Raises:
            KvmError: ENXIO without `create_irqchip`; EEXIST if it was called before.
        """
        # Older kernels (Linux 6.1 is one) make a PIT without PICs, whose ticks have nowhere to go: ask first.
        self.get_irqchip(lib.KVM_IRQCHIP_PIC_MASTER)
        config = ffi.new("struct kvm_pit_config *", (lib.KVM_PIT_SPEAKER_DUMMY if speaker else 0,))
        self._ioctl("KVM_CREATE_PIT2", config)

    def get_pit2(self) -> Any:
        """KVM_GET_PIT2: struct kvm_pit_state2.

        Raises:
            KvmError: ENXIO without `create_pit2`.
        """
        return self._get_struct("KVM_GET_PIT2", "struct kvm_pit_state2")

    def set_pit2(self, state: Any) -> None:
        """KVM_SET_PIT2 with what `get_pit2` gave.

        Raises:
            KvmError: ENXIO without `create_pit2`.
        """
        self._ioctl("KVM_SET_PIT2", state)

    def keep_pit_ticks(self, *, keep: bool) -> None:
        """KVM_REINJECT_CONTROL: whether ticks that come while one waits to be taken follow it, as after `create_pit2`.

        Without, they are lost, as hardware's are. To keep none any more, KVM waits some 15 ms until nobody looks at
        whether ticks are taken.

        Raises:
            KvmError: ENXIO without `create_pit2`.
        """
        self._ioctl("KVM_REINJECT_CONTROL", ffi.new("struct kvm_reinject_control *", {"pit_reinject": keep}))

    def get_clock(self) -> int:
        """KVM_GET_CLOCK: nanoseconds of kvmclock, as the guest sees it."""
        return int(self._get("KVM_GET_CLOCK", "struct kvm_clock_data").clock)

    def set_clock(self, nanoseconds: int) -> None:
        """KVM_SET_CLOCK."""
        self._ioctl("KVM_SET_CLOCK", ffi.new("struct kvm_clock_data *", {"clock": nanoseconds}))

    # -- CPUs -------------------------------------------------------------------------------------------------------

    def set_boot_cpu_id(self, vcpu_id: int) -> None:
        """KVM_SET_BOOT_CPU_ID: which vCPU is the BSP (else 0); before the first vCPU.

        Raises:
            KvmError: EBUSY once a vCPU exists.
        """
        self._ioctl_value("KVM_SET_BOOT_CPU_ID", vcpu_id, subject=f"vCPU {vcpu_id}")

    def create_vcpu(self, vcpu_id: int, index: int | None = None) -> Vcpu:
        """KVM_CREATE_VCPU.

        Args:
            vcpu_id: KVM's number for it, which is its APIC id.
            index: which of the machine's vCPUs it is, for people; ``vcpu_id``.

        Raises:
            KvmError: EINVAL beyond KVM_CAP_MAX_VCPU_ID, or more CPUs than `Kvm.max_vcpus`; EEXIST if it exists.
        """
        index = vcpu_id if index is None else index
        fd = self._ioctl_value("KVM_CREATE_VCPU", vcpu_id, subject=f"vCPU {index}")
        return Vcpu(self, fd, vcpu_id, index)
