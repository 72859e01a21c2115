"""How a board is built: the steps, and the devices that all boards have."""

from __future__ import annotations

import mmap
from contextlib import ExitStack
from functools import partial

from vmm import layout
from vmm.devices.acpi_pm import GPE_CPU, AcpiPm, ApmPorts, PmModel
from vmm.devices.debugcon import DebugConsole
from vmm.devices.hpet import Hpet
from vmm.devices.pci import PciBus, PciConfigPorts
from vmm.devices.pirq import PirqRouter, Wiring, kvm_sink
from vmm.devices.reset import I8042Reset, ResetControl, SystemControlA
from vmm.devices.rtc import Rtc
from vmm.devices.serial import Serial
from vmm.devices.shadow import LegacyArea, ShadowArea
from vmm.devices.timer import TimerService
from vmm.errors import ConfigError
from vmm.platform.parts import CODE, VARIABLES, Parts, Platform, Standing
from vmm.tables.boot_order import cmos_boot_bytes
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.bus import Device
    from vmm.devices.cpu_hotplug import CpuHotplug
    from vmm.devices.flash import Flash
    from vmm.devices.smi import SmiFeatures
    from vmm.devices.virtio.block import VirtioBlk
    from vmm.devices.virtio.transport import Backplane
    from vmm.devices.virtio.vhost_user import VhostUser
    from vmm.disks.image import DiskImage
    from vmm.vhost.backend import Backend

_BIOS_ALIAS = 128 * layout.KIB
"""How much of an image's end appears below 1 MiB, at 0xe0000, as on QEMU's PCs."""

_CMOS_CPUS = 0x5F
"""QEMU, hw/i386/x86.c: how many CPUs there are, less one."""


class Board:
    """Builds a `Platform` step by step; the modules of this package say which steps.

    Args:
        name: of the board.
        parts: what it is built from.
        wiring: of the interrupt pins of its PCI devices.
    """

    def __init__(self, name: str, parts: Parts, wiring: Wiring) -> None:
        self.name = name
        self.parts = parts
        self.pci = PciBus(parts.mmio)
        self.pirqs = PirqRouter(wiring, kvm_sink(parts.core))
        self._disks: list[VirtioBlk] = []
        self._smi_features: SmiFeatures | None = None
        self._cpu_hotplug: CpuHotplug | None = None
        self._cpu_hotplug_ports = range(0)
        self._cpu_count = bytearray(parts.cpus.to_bytes(2, "little"))
        self._rtc: Rtc | None = None
        self._vhost: list[VhostUser] = []
        self.timers = TimerService(parts.ports.lock, parts.ports.fail, parts.clock)
        self._debugcon = DebugConsole(parts.debugcon, self.timers, parts.ports.lock)
        self._devices: dict[str, Device] = {}
        self._images: dict[str, mmap.mmap] = {}

    def add_at_ports(self, ports: range, device: Device, name: str) -> None:
        """Put a device at ports."""
        self.parts.ports.add(ports.start, ports.stop - 1, device, name)
        self._devices[name] = device

    def add_at(self, addresses: range, device: Device, name: str) -> None:
        """Put a device at guest physical addresses."""
        self.parts.mmio.add(addresses.start, addresses.stop - 1, device, name)
        self._devices[name] = device

    def map_rom(self) -> mmap.mmap:
        """Map the code at its place below 4 GiB; returns its bytes."""
        parts = self.parts
        image = self._images[CODE] = self._image(CODE, parts.firmware.code)
        parts.memory.map_rom(parts.firmware.code_address, image)
        return image

    def map_code(self) -> ShadowArea:
        """Map the code, if there is any, below 4 GiB; returns the area below 1 MiB that shows its end, too."""
        image: mmap.mmap | bytes = self.map_rom() if self.parts.firmware.code else b""
        shadow = ShadowArea(self.parts.memory, memoryview(image)[-_BIOS_ALIAS:])
        self.add_at(layout.LEGACY_ROM, LegacyArea(shadow), "legacy ROM area")
        return shadow

    def map_variables(self) -> Flash | None:
        """Put the variable store, as flash, below the code: what is in the user's own file, or a private copy."""
        firmware = self.parts.firmware
        store = firmware.variables
        if store is None:
            return None
        from vmm.devices.flash import Flash, WriteBack

        file, write_back = self.parts.variables, None
        if file is not None:
            contents = file.contents
            write_back = WriteBack(file.store, self.timers, self.parts.ports.lock)
        else:
            contents = self._image(VARIABLES, store.data)
        self._images[VARIABLES] = contents
        gpa = firmware.variables_address
        coalesce = self.parts.coalesce
        flash = Flash(
            self.parts.memory,
            gpa,
            contents,
            read_only=False,
            write_back=write_back,
            secure=self.parts.secure_flash,
            coalesce=None if coalesce is None else partial(coalesce, gpa, len(contents)),
        )
        self.add_at(range(gpa, gpa + len(contents)), flash, "flash VARS")
        return flash

    def add_consoles(self, debug_port: range = layout.PORT_DEBUG_QEMU) -> Serial:
        """Add COM1 and the debug port."""
        parts = self.parts
        serial = Serial(parts.line(layout.COM1_IRQ), parts.serial, parts.ports.lock)
        self.add_at_ports(layout.PORT_COM1, serial, "COM1")
        self.add_at_ports(debug_port, self._debugcon, "debugcon")
        return serial

    def add_clock(self) -> Rtc:
        """Add RTC and CMOS."""
        rtc = self._rtc = Rtc(self.parts.line(layout.RTC_IRQ), self.timers, cmos(self.parts), self.parts.utc_ns)
        self.add_at_ports(layout.PORT_CMOS, rtc, "RTC and CMOS")
        return rtc

    def add_hpet(self) -> range | None:
        """Add the HPET, if there is to be one; return where it is."""
        if not self.parts.hpet:
            return None
        self.add_at(layout.HPET, Hpet(self.parts.irq, self.parts.msi, self.timers), "HPET")
        return layout.HPET

    def add_pvpanic(self) -> None:
        """Add the port at which the guest says that it has panicked, if there is to be one."""
        if not self.parts.pvpanic:
            return
        from vmm.devices.pvpanic import Pvpanic

        self.add_at_ports(layout.PORT_PVPANIC, Pvpanic(self.parts.power, self.parts.pvpanic), "pvpanic")

    def add_cpu_hotplug(self, ports: range, pm: AcpiPm) -> None:
        """Add the registers of plugged CPUs, if there is room for any."""
        parts = self.parts
        if parts.present is None or not parts.apic_ids:
            return
        from vmm.devices.cpu_hotplug import CpuHotplug

        notify = partial(pm.gpe0.raise_event, 1 << GPE_CPU)
        gone = parts.power.remove_cpu
        self._cpu_hotplug = CpuHotplug(parts.apic_ids, parts.present, notify, self._note_cpus, gone)
        self._cpu_hotplug_ports = ports
        self.add_at_ports(ports, self._cpu_hotplug, "CPU hot-plug")

    def _note_cpus(self, count: int) -> None:
        """Tell firmware how many CPUs there are now."""
        self._cpu_count[:] = count.to_bytes(2, "little")
        if self._rtc is not None:
            self._rtc.store({_CMOS_CPUS: count - 1 & 0xFF})

    def standing(self, pm: AcpiPm, gpe0: range | None, *, ecam: range | None = None, hpet: range | None) -> Standing:
        """What stands where now, with what only the chipset knows."""
        hotplug, present = self._cpu_hotplug, self.parts.present or []
        smi = self._smi_features
        return Standing(
            pm.decoded,
            gpe0,
            ecam=ecam,
            hpet=hpet,
            pci_slots=self.pci_slots,
            cpu_hotplug=None if hotplug is None else self._cpu_hotplug_ports.start,
            announces_cpus=smi is not None and smi.announces_cpus,
            plugged=frozenset(index for index in range(self.parts.cpus, len(present)) if present[index]),
            gone=frozenset(index for index in range(self.parts.cpus) if present and not present[index]),
        )

    def add_smi(self) -> Callable[[], None] | None:
        """Add what firmware is asked about SMIs; return what sends one, if there is system management mode."""
        send = self.parts.smi
        if send is None:
            return None
        from vmm.devices.smi import BROADCAST, CPU_HOTPLUG, SmiFeatures

        supported = BROADCAST | CPU_HOTPLUG if self.parts.apic_ids else BROADCAST
        features = self._smi_features = SmiFeatures(supported)
        self._devices["SMI features"] = features
        return lambda: send(features.broadcast)

    def add_acpi(self, model: PmModel, smi: Callable[[], None] | None = None) -> AcpiPm:
        """Add the ACPI block, placed nowhere yet, and SMI_CMD."""
        parts = self.parts
        if not parts.s3:
            model = model._replace(s3_sleep_type=None)
        pm = AcpiPm(model, parts.ports, parts.line(layout.SCI_IRQ), parts.power, parts.clock, smi)
        self._devices["ACPI"] = pm
        self.add_at_ports(layout.PORT_APM, ApmPorts(pm), "APM")
        return pm

    def add_config_and_reset(self) -> None:
        """Add PCI configuration ports, and every way to reset."""
        power = self.parts.power
        reset_control = ResetControl(power)
        self._devices["reset control"] = reset_control
        self.add_at_ports(layout.PORT_PCI_CONFIG, PciConfigPorts(self.pci, reset_control), "PCI configuration")
        self.add_at_ports(layout.PORT_SYSTEM_CONTROL_A, SystemControlA(power), "system control A")
        self.add_at_ports(layout.PORT_I8042_COMMAND, I8042Reset(power), "i8042 command")

    @property
    def pci_slots(self) -> tuple[int, ...]:
        """Device numbers of PCI devices with interrupt pins of their own, beside the chipset."""
        return tuple(sorted(device.slot for device in (*self._disks, *self._vhost)))

    def add_disks(self) -> None:
        """Add the disks, those without a slot of their own to the first that are free.

        Raises:
            ConfigError: a slot is taken, or none is left.
            HostError: the host has no room for one more.
        """
        parts = self.parts
        if not parts.disks:
            return
        from vmm._native import ffi
        from vmm.devices.virtio.transport import Backplane

        counter = ffi.new("uint64_t *")
        timers = self.timers if parts.virtual else None
        backplane = Backplane(parts.core, parts.mmio.lock, self.pirqs, parts.ioeventfd, counter, parts.messages, timers)
        with ExitStack() as closers:
            for each in sorted(parts.disks, key=lambda each: each.slot is None):
                try:
                    slot = self.pci.free_slot() if each.slot is None else each.slot
                    device = self._virtio(each, backplane, slot)
                    closers.callback(device.close)
                    self.pci.add(slot, 0, device.function)
                except ConfigError as error:
                    how = "" if each.slot is None else "; give another addr=, or none"
                    raise ConfigError(f"{each.option}: {error}{how}") from None
                self._devices[device.name] = device
            closers.pop_all()

    def _virtio(self, each: DiskImage | Backend, backplane: Backplane, slot: int) -> VirtioBlk | VhostUser:
        if self.parts.shared is not None:
            from vmm.vhost.backend import Backend

            if isinstance(each, Backend):
                from vmm.devices.virtio.vhost_user import SharedMemory, VhostUser
                from vmm.vhost.protocol import Region

                fd, parts = self.parts.shared
                memory = SharedMemory(fd, [Region(*part) for part in parts])
                self._vhost.append(VhostUser(each, backplane, slot, memory, self.parts.mmio.fail))
                return self._vhost[-1]
        from typing import cast

        from vmm.devices.virtio.block import VirtioBlk

        self._disks.append(VirtioBlk(cast("DiskImage", each), backplane, slot))
        return self._disks[-1]

    def assign_bars(self, room: range) -> None:
        """Give every BAR an address, the largest first."""
        at = room.start
        bars = [(bar, function) for function in self.pci.functions().values() for bar in function.bars]
        for bar, function in sorted(bars, key=lambda pair: -pair[0].size):
            function.assign_bar(bar, at)
            at += bar.size

    def finish(
        self, pm: AcpiPm, serial: Serial, rtc: Rtc, flash: Flash | None, standing: Callable[[], Standing]
    ) -> Platform:
        """The result."""
        return Platform(
            name=self.name,
            pci=self.pci,
            pm=pm,
            serial=serial,
            debugcon=self._debugcon,
            rtc=rtc,
            flash=flash,
            timers=self.timers,
            devices=self._devices,
            images=self._images,
            disks=self._disks,
            smi_features=self._smi_features,
            cpu_hotplug=self._cpu_hotplug,
            cpu_count=self._cpu_count,
            vhost=self._vhost,
            standing=standing,
        )

    def _image(self, name: str, data: bytes) -> mmap.mmap:
        """Memory with what is in an image, or what that became."""
        image = self.parts.images.get(name)
        if image is None:
            image = mmap.mmap(-1, len(data))
            image[:] = data
        return image


def cmos(parts: Parts) -> dict[int, int]:
    """CMOS registers that tell a BIOS the memory sizes, CPUs and boot order.

    Layout: IBM AT for 0x14 to 0x18, 0x30, 0x31; QEMU, hw/i386/x86.c and pc.c, and bhyve, for 0x34, 0x35, 0x5b to 0x5f,
    0x38 and 0x3d. Sizes are little-endian and saturate.
    """
    registers: dict[int, int] = {}

    def put(register: int, size: int, value: int) -> None:
        value = min(value, (1 << 8 * size) - 1)
        for i in range(size):
            registers[register + i] = value >> (8 * i) & 0xFF

    above_1_mib = max(0, parts.ram_low - layout.MIB) // layout.KIB
    put(0x14, 1, 0x02)  # equipment: a coprocessor
    put(0x15, 2, 640)  # KiB of base memory
    put(0x17, 2, above_1_mib)
    put(0x30, 2, above_1_mib)
    put(0x34, 2, max(0, parts.ram_low - 16 * layout.MIB) // (64 * layout.KIB))
    put(0x5B, 3, parts.ram_high // (64 * layout.KIB))
    put(_CMOS_CPUS, 1, parts.cpus - 1)
    return registers | cmos_boot_bytes(parts.boot_order)
