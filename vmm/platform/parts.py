"""What a board is built from, and what it becomes."""

from __future__ import annotations

from types import MappingProxyType

from vmm.errors import ConfigError
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Mapping
    from typing import Any

    from vmm.bus import Bus, Device
    from vmm.devices.acpi_pm import AcpiPm
    from vmm.devices.clock import GuestClock
    from vmm.devices.cpu_hotplug import CpuHotplug
    from vmm.devices.debugcon import DebugConsole
    from vmm.devices.flash import Flash
    from vmm.devices.pci import PciBus
    from vmm.devices.rtc import Rtc
    from vmm.devices.serial import Serial
    from vmm.devices.signals import FlashFile, Irq, MemoryMapper, Msi, PowerControl, Sink
    from vmm.devices.smi import SmiFeatures
    from vmm.devices.timer import TimerService
    from vmm.devices.virtio.block import VirtioBlk
    from vmm.devices.virtio.vhost_user import VhostUser
    from vmm.disks.image import DiskImage
    from vmm.firmware.images import FirmwareImages
    from vmm.kvm.message_routes import MessageRoutes
    from vmm.vhost.backend import Backend

_CMOS_SHUTDOWN_STATUS, _RESUME = 0x0F, 0xFE
"""What SeaBIOS (src/resume.c) and OVMF (OvmfPkg/PlatformPei) take for a wake-up from S3."""

CODE, VARIABLES = "code", "variables"
"""The images."""


class Parts(NamedTuple):
    """What a board drives and is driven by.

    Attributes:
        ports: the port bus.
        mmio: the MMIO bus.
        memory: guest memory, RAM mapped but for the legacy area.
        ram_low: bytes of RAM from 0, the legacy area included.
        ram_high: bytes of RAM from 4 GiB.
        firmware: the images, to be mapped so that they end at 4 GiB.
        cpus: CPUs at boot.
        apic_ids: of all CPUs that there may be, by index; empty: none can be plugged in.
        present: which of these there are now; the machine's own list.
        irq: drives a line of the interrupt controllers: GSI, level.
        msi: sends an MSI: address, data.
        power: reset and power-off.
        clock: the guest's time.
        serial: gets what is printed on COM1.
        debugcon: gets what is printed on the debug port.
        core: the machine for devices in C, a ``struct vmm_vm *``.
        variables: the file that the variable store is kept in; None: the guest writes a private copy.
        hpet: whether there is one, where a board can do without.
        s3: whether the guest can suspend the machine to RAM.
        pvpanic: what the guest may report at its pvpanic port (`vmm.devices.pvpanic.EVENTS`); 0: there is none.
        smi: sends an SMI to the vCPU whose access is being served, or to all; None: there is no system management mode.
        secure_flash: only that mode may write the variable store.
        utc_ns: what the real-time clock shows at first, nanoseconds since 1970; None: the host's time.
        boot_order: BIOS boot devices, first to last, of a, c, d, n; None for QEMU's order.
        images: by `CODE` and `VARIABLES`, what the images became in an earlier machine; to be used in place.
        disks: images that the guest gets as disks, and backends of its vhost-user devices; they stay the caller's.
        shared: what backends map, a descriptor and (GPA, bytes, offset) for each part; None: there are none.
        coalesce: has KVM keep stores to guest addresses until somebody looks, or not any more, and tells whether none
            waits: address, bytes, whether; None where each store is an exit.
        ioeventfd: lets the kernel signal an eventfd for a 16-bit store to a guest address, or not any more: descriptor,
            address, whether; None where the kernel sees no such stores.
        messages: has the kernel send an MSI for an eventfd; None: devices of other processes interrupt by a thread.
        virtual: whether the guest's time goes by what it does, and with it whatever a device does.
    """

    ports: Bus
    mmio: Bus
    memory: MemoryMapper
    ram_low: int
    ram_high: int
    firmware: FirmwareImages
    cpus: int
    irq: Callable[[int, bool], None]
    msi: Msi
    power: PowerControl
    clock: GuestClock
    serial: Sink
    debugcon: Sink
    core: Any
    variables: FlashFile | None = None
    hpet: bool = True
    s3: bool = False
    pvpanic: int = 0
    smi: Callable[[bool], None] | None = None
    secure_flash: bool = False
    boot_order: str | None = None
    utc_ns: int | None = None
    images: Mapping[str, mmap.mmap] = MappingProxyType({})
    disks: tuple[DiskImage | Backend, ...] = ()
    shared: tuple[int, tuple[tuple[int, int, int], ...]] | None = None
    ioeventfd: Callable[[int, int, bool], None] | None = None
    messages: MessageRoutes | None = None
    virtual: bool = False
    apic_ids: tuple[int, ...] = ()
    present: list[bool] | None = None
    coalesce: Callable[[int, int, bool], bool] | None = None

    def line(self, gsi: int) -> Irq:
        """One interrupt line."""
        irq = self.irq
        return lambda level: irq(gsi, level)


class Standing(NamedTuple):
    """What the board's registers placed where, at one moment: what tables have to say.

    Attributes:
        pm_base: port of the ACPI block; None if it is decoded nowhere.
        gpe0: ports of GPE0; None for none.
        ecam: addresses of PCIe configuration space; None for none.
        hpet: addresses of the HPET; None for none.
        pci_slots: device numbers of PCI devices with interrupt pins.
        cpu_hotplug: port of the registers of plugged CPUs; None for none.
        announces_cpus: whether firmware is told by an SMI of a CPU that was plugged in.
        plugged: indices of the CPUs that are there and were not at boot.
        gone: indices of those that were, and are not there any more.
    """

    pm_base: int | None = None
    gpe0: range | None = None
    ecam: range | None = None
    hpet: range | None = None
    pci_slots: tuple[int, ...] = ()
    cpu_hotplug: int | None = None
    announces_cpus: bool = False
    plugged: frozenset[int] = frozenset()
    gone: frozenset[int] = frozenset()


class Platform(NamedTuple):
    """A board that was built.

    Attributes:
        name: "q35", "pc" or "bhyve".
        pci: bus 0.
        pm: ACPI hardware: where it is now, the power button.
        serial: COM1.
        debugcon: the debug port.
        rtc: the clock and CMOS.
        flash: the variable store's chip, if the firmware has one.
        timers: the thread that devices get called back on.
        devices: all that a reset reaches, by name.
        images: by `CODE` and `VARIABLES`, the memory of the images that there are.
        disks: the disks that are served here, in the order in which they were given.
        vhost: the devices that other processes serve, likewise.
        cpu_hotplug: the registers of plugged CPUs; None: none can be plugged in.
        cpu_count: how many CPUs there are now, 2 bytes, little-endian.
        smi_features: what firmware and chipset agree on about SMIs; None without system management mode.
        standing: tells what stands where now; io_lock is held.
    """

    name: str
    pci: PciBus
    pm: AcpiPm
    serial: Serial
    debugcon: DebugConsole
    rtc: Rtc
    flash: Flash | None
    timers: TimerService
    devices: dict[str, Device]
    images: dict[str, mmap.mmap]
    disks: list[VirtioBlk]
    vhost: list[VhostUser]
    smi_features: SmiFeatures | None
    cpu_hotplug: CpuHotplug | None
    cpu_count: bytearray
    standing: Callable[[], Standing]

    @property
    def boot_indices(self) -> list[tuple[int, str]]:
        """Boot index and OpenFirmware path of each disk that has one."""
        indices = [(disk.drive.bootindex, disk.path) for disk in self.disks]
        indices += [(device.backend.device.bootindex, device.path) for device in self.vhost]
        return [(index, path) for index, path in indices if index is not None]

    def state(self) -> dict[str, Any]:
        """The state of every device, by name, with its version; io_lock is held."""
        devices = {name: [device.state_version, device.state()] for name, device in self.devices.items()}
        return {"devices": devices, "pci": self.pci.state()}

    def place(self, state: dict[str, Any]) -> None:
        """Put everything where `state` says that it was, before `restore`; io_lock is held."""
        self.pci.restore(state["pci"])

    def restore(self, state: dict[str, Any]) -> None:
        """Let every device be what it was; io_lock is held.

        Raises:
            ConfigError: another version of a device gave its state.
        """
        for name, device in self.devices.items():
            version, its = state["devices"][name]
            if version != device.state_version:
                raise ConfigError(f"the state of {name} is of version {version}; this vmm knows {device.state_version}")
            device.restore(its)

    def reset(self, *, wakeup: bool = False) -> None:
        """Every device as after a reset of the machine; vCPUs are stopped. RAM, CMOS and flash keep their contents.

        Args:
            wakeup: from S3: the chipset's registers stay, for SeaBIOS wakes up in the RAM that PAM shows, and sets no
                ACPI ports of ICH9 again, but for those of system management mode and their locks, which firmware sets
                again; firmware is told by CMOS, the OS by PM1's status (QEMU, rtc_notify_suspend and
                acpi_notify_wakeup).
        """
        for device in self.devices.values():
            device.reset()
        if not wakeup:
            self.pci.reset()
        else:
            self.pci.wake_up()
            self.rtc.store({_CMOS_SHUTDOWN_STATUS: _RESUME})
            self.pm.wake_up()

    def flush(self) -> None:
        """Let out what devices hold back for a moment; for when no vCPU runs any more, and io_lock is not held."""
        self.debugcon.flush()
        if self.flash is not None:
            self.flash.flush()

    def settle(self) -> None:
        """Wait until disks have served every request; no vCPU runs, and io_lock is not held."""
        for disk in self.disks:
            disk.settle()

    def restrict_disks(self, vm: int) -> None:
        """As `VirtioBlk.restrict`, for each of them."""
        for disk in self.disks:
            disk.restrict(vm)

    def close(self) -> None:
        """Stop the timers and threads, and let go of the images; no vCPU runs any more, and io_lock is not held."""
        self.timers.close()
        for disk in self.disks:
            disk.close()
        for device in self.vhost:
            device.close()
        if self.flash is not None:
            try:
                self.flash.flush()
            finally:
                self.flash.close()
