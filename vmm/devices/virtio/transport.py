"""The PCI function of a virtio device: identity, capabilities, BARs; laid out as QEMU's with disable-legacy=on.

What stands behind the BARs is C's (`native/virtio/pci.c`, `native/msix.c`).
"""

import struct
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm._native import ffi, lib
from vmm.devices.pci import COMMAND, DEVICE_DEPENDENT, INTERRUPT_PIN, SUBSYSTEM_ID, MemoryBar, PciFunction
from vmm.devices.pirq import PirqRouter

if TYPE_CHECKING:
    from vmm.devices.timer import TimerService
    from vmm.kvm.message_routes import MessageRoutes

VENDOR = 0x1AF4
_FIRST_DEVICE = 0x1040
"""Virtio 1.2, 4.1.2.1: device ID of virtio device type 0."""

_QEMU = 0x1100
"""Red Hat's subsystem ID for QEMU's devices (QEMU, docs/specs/pci-ids): at least 0x40, as 4.1.2.1 wants it."""

_COMMON, _NOTIFY, _ISR, _DEVICE, _WINDOW = 1, 2, 3, 4, 5
"""4.1.4: cfg_type."""

_CAPABILITY = struct.Struct("<BBBBB3xII")
"""struct virtio_pci_cap: cap_vndr, cap_next, cap_len, cfg_type, bar, offset, length."""

_VENDOR_SPECIFIC, _MSIX = 0x09, 0x11
"""PCI 3.0, appendix H: capability IDs."""

_PART = 0x1000
_AT_COMMON, _AT_ISR, _AT_DEVICE, _AT_NOTIFY, _AT_WINDOW, _AT_MSIX = 0x40, 0x50, 0x60, 0x70, 0x84, 0x98
"""Where QEMU has the capabilities, of which the list begins with the last."""

_MSIX_CONTROL = _AT_MSIX + 2
_MSIX_WRITABLE = 0xC000
"""Message Control: enable, function mask."""

_WINDOW_DATA = _AT_WINDOW + _CAPABILITY.size


class Backplane(NamedTuple):
    """What a virtio device is plugged into.

    Attributes:
        core: the machine for devices in C, a ``struct vmm_vm *``.
        lock: its io_lock.
        pirqs: the wires of the interrupt pin.
        on_notify: lets the kernel signal an eventfd for a 16-bit store to a guest address, or not any more:
            descriptor, address, whether; None: stores are the MMIO bus's.
        disks_read: how many disks the guest has read from, a ``uint64_t *``; None: nobody asks.
        messages: has the kernel send an MSI for an eventfd; None: none are sent so.
        timers: those of a machine whose time is virtual: disks go by it, and have no threads; None: they have.
    """

    core: Any
    lock: AbstractContextManager[object]
    pirqs: PirqRouter
    on_notify: Callable[[int, int, bool], None] | None = None
    disks_read: Any = None
    messages: "MessageRoutes | None" = None
    timers: "TimerService | None" = None


class VirtioFunction(PciFunction):
    """One virtio device.

    Args:
        kind: virtio device type (virtio 1.2, chapter 5).
        class_code: PCI's.
        core: the device's registers, a ``struct virtio_pci *``.
        backplane: what it is plugged into.
        slot: PCI device number.
        name: of its ranges on the bus.
        event_fds: what a notification of each queue signals.
    """

    def __init__(
        self,
        kind: int,
        class_code: int,
        core: Any,
        backplane: Backplane,
        slot: int,
        name: str,
        event_fds: Sequence[int],
    ) -> None:
        super().__init__(VENDOR, _FIRST_DEVICE + kind, class_code, revision=1)
        self.slot = slot
        self._core = core
        self._lock = backplane.lock
        self._event_fds = event_fds
        self._on_notify = backplane.on_notify
        core.slot, core.pirq = slot, backplane.pirqs.wiring.pirq(slot)
        self.set_dword(SUBSYSTEM_ID, _QEMU << 16 | VENDOR)
        self.config[INTERRUPT_PIN] = 1
        self._add_capabilities()
        registers = ffi.addressof(lib, "virtio_pci_access"), core
        messages = ffi.addressof(lib, "virtio_pci_msix_access"), core
        self.add_bar(MemoryBar(lib.VIRTIO_MSIX_BAR, lib.MSIX_BAR_SIZE, *messages, f"{name} MSI-X"))
        self.add_bar(
            MemoryBar(
                lib.VIRTIO_REGISTERS_BAR, lib.VIRTIO_BAR_SIZE, *registers, name, wide=True, moved=self._registers_moved
            )
        )
        self._window = ffi.new("struct virtio_pci_window *", {"device": core, "capability": _AT_WINDOW})
        self._config_pin = ffi.from_buffer("uint8_t[]", self.config)
        self._window.config = self._config_pin
        lib.virtio_pci_window_init(self._window)
        self.view = ffi.addressof(self._window, "view")

    def config_written(self, first: int, last: int) -> None:
        """Tell C of what concerns it."""
        super().config_written(first, last)
        if first < COMMAND + 2 and last >= COMMAND:
            lib.virtio_pci_set_command(self._core, self._word(COMMAND))
        if first < _MSIX_CONTROL + 2 and last >= _MSIX_CONTROL:
            lib.virtio_pci_set_msix_control(self._core, self._word(_MSIX_CONTROL))
        if first < _WINDOW_DATA + 4 and last >= _WINDOW_DATA and first >= DEVICE_DEPENDENT:
            lib.virtio_pci_window_store(self._window)

    def reset(self) -> None:
        """Configuration space as at power-on; the registers behind the BAR are the device's own to reset."""
        super().reset()
        with self._lock:
            self.config_written(COMMAND, COMMAND + 1)
            self.config_written(_MSIX_CONTROL, _MSIX_CONTROL + 1)

    def _word(self, register: int) -> int:
        return int.from_bytes(self.config[register : register + 2], "little")

    def _registers_moved(self, old: int | None, new: int | None) -> None:
        if self._on_notify is None:
            return
        for address, wanted in ((old, False), (new, True)):
            if address is not None:
                for queue, event_fd in enumerate(self._event_fds):
                    register = lib.VIRTIO_BAR_NOTIFY + queue * lib.VIRTIO_NOTIFY_MULTIPLIER
                    self._on_notify(event_fd, address + register, wanted)

    def _add_capabilities(self) -> None:
        config, writable = self.config, self.writable
        writable[DEVICE_DEPENDENT:] = bytes(len(writable) - DEVICE_DEPENDENT)
        bar = lib.VIRTIO_REGISTERS_BAR

        def put(at: int, following: int, kind: int, place: int, tail: bytes = b"", size: int = _PART) -> None:
            length = _CAPABILITY.size + len(tail)
            where = bar if kind != _WINDOW else 0
            head = _CAPABILITY.pack(_VENDOR_SPECIFIC, following, length, kind, where, place, size)
            config[at : at + length] = head + tail

        self.set_capabilities(_AT_MSIX)
        vectors = self._core.msix.vectors
        places = lib.VIRTIO_MSIX_BAR, lib.MSIX_PBA_OFFSET | lib.VIRTIO_MSIX_BAR
        config[_AT_MSIX : _AT_MSIX + 12] = struct.pack("<BBHII", _MSIX, _AT_WINDOW, vectors - 1, *places)
        writable[_MSIX_CONTROL : _MSIX_CONTROL + 2] = _MSIX_WRITABLE.to_bytes(2, "little")
        put(_AT_WINDOW, _AT_NOTIFY, _WINDOW, 0, bytes(4), size=0)
        # What the guest chooses for the window: bar, offset, length, and its data.
        writable[_AT_WINDOW + 4] = 0xFF
        writable[_AT_WINDOW + 8 : _WINDOW_DATA + 4] = b"\xff" * 12
        multiplier = lib.VIRTIO_NOTIFY_MULTIPLIER.to_bytes(4, "little")
        put(_AT_NOTIFY, _AT_DEVICE, _NOTIFY, lib.VIRTIO_BAR_NOTIFY, multiplier)
        put(_AT_DEVICE, _AT_ISR, _DEVICE, lib.VIRTIO_BAR_DEVICE)
        put(_AT_ISR, _AT_COMMON, _ISR, lib.VIRTIO_BAR_ISR)
        put(_AT_COMMON, 0, _COMMON, lib.VIRTIO_BAR_COMMON)
