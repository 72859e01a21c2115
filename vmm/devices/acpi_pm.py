"""The ACPI fixed hardware (ACPI 6.5, 4.8): PM1a event and control registers, PM timer, GPE0, SMI_CMD.

The blocks move with the chipset's PMBASE register, at run time. The PM timer itself is C's. Not there: the timer's
overflow status, sleep states other than S3 and S5, and SMIs other than that by APM control. On a machine without system
management mode, `SMI_EN` says that firmware set it up before, so that nobody waits for an SMI.
"""

from __future__ import annotations

from vmm import layout
from vmm._native import ffi, lib
from vmm.bus import Bus, Device
from vmm.errors import ConfigError
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from vmm.devices.clock import GuestClock
    from vmm.devices.signals import Irq, PowerControl

POWER_BUTTON = 1 << 8
"""PM1 status and enable, bit PWRBTN."""

WAKE = 1 << 15
"""PM1 status, bit WAK_STS."""

GPE_CPU = 2
"""As in QEMU (ACPI_CPU_HOTPLUG_STATUS, likewise): ``\\_GPE._E02`` tells the OS."""

GPE_VMGENID = 5
"""As in QEMU (ACPI_VMGENID_CHANGE_STATUS in include/hw/acpi/acpi_dev_interface.h): ``\\_GPE._E05`` tells the OS."""

_SCI_ENABLE = 0x01
_SLEEP_ENABLE = 1 << 5
_SLEEP_TYPE_SHIFT = 2
"""PM1 control: SCI_EN is bit 0; SLP_TYP bits 10-12 and SLP_EN bit 13 are bits 2-4 and 5 of the second byte."""

_SMI_ENABLE_GLOBAL = 1 << 0
_SMI_ENABLE_APMC = 1 << 5


class PmModel(NamedTuple):
    """How one chipset's ACPI hardware differs from another's."""

    size: int
    """Ports from PMBASE on."""
    acpi_enable: int
    acpi_disable: int
    """Bytes for SMI_CMD; the FADT tells the OS."""
    s5_sleep_type: int
    """SLP_TYP for soft-off; the DSDT's \\_S5 tells the OS."""
    gpe0: range | None
    """GPE0 inside the block, if it is there: status bytes, then as many enable bytes."""
    smi_enable: int | None
    """Offset of ICH9's SMI_EN."""
    timer_bits: int = 24
    s3_sleep_type: int | None = None
    """SLP_TYP for suspend to RAM, on a machine that offers it."""


ICH9 = PmModel(layout.ICH9_PM_SIZE, 0x02, 0x03, 0, layout.ICH9_GPE0, layout.ICH9_SMI_ENABLE, s3_sleep_type=1)
"""SMI_CMD and SLP_TYP values as in QEMU's q35 (hw/isa/lpc_ich9.c, hw/acpi/core.c), which OVMF has built in."""

PIIX4 = PmModel(layout.PIIX4_PM_SIZE, 0xF1, 0xF0, 0, None, None, s3_sleep_type=1)
"""As in QEMU's pc (hw/acpi/piix4.c)."""

BHYVE = PmModel(len(layout.PORT_PM_BHYVE), 0xA0, 0xA1, 5, None, None, timer_bits=32)
"""bhyve: usr.sbin/bhyve/pm.c."""


class EventBlock(Device):
    """Status bytes that are cleared by writing ones, then as many enable bytes.

    Args:
        size: bytes of both.
        changed: called after every change.
    """

    def __init__(self, size: int, changed: Callable[[], None]) -> None:
        self._half = size // 2
        self._bytes = bytearray(size)
        self._changed = changed

    @property
    def pending(self) -> bool:
        """Any event that is enabled and has happened."""
        half = self._half
        return any(self._bytes[i] & self._bytes[half + i] for i in range(half))

    def read(self, offset: int, size: int) -> int:
        """Status or enable bytes."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Clear status bits, set enable bytes."""
        for at in range(offset, min(offset + size, len(self._bytes))):
            byte = value >> (8 * (at - offset)) & 0xFF
            self._bytes[at] = self._bytes[at] & ~byte if at < self._half else byte
        self._changed()

    def raise_event(self, bits: int) -> None:
        """Events happen: set status bits."""
        status = int.from_bytes(self._bytes[: self._half], "little") | bits
        self._bytes[: self._half] = status.to_bytes(self._half, "little")
        self._changed()

    def state(self) -> dict[str, Any]:
        """The bytes."""
        return {"bytes": bytes(self._bytes)}

    def restore(self, state: dict[str, Any]) -> None:
        """The bytes."""
        self._bytes[:] = state["bytes"]
        self._changed()

    def reset(self) -> None:
        """No event, none enabled."""
        self._bytes[:] = bytes(len(self._bytes))
        self._changed()


class AcpiPm(Device):
    """PM1a, the PM timer and what else lies in one chipset's block.

    Args:
        model: the chipset.
        ports: the bus on which the block moves.
        irq: the SCI line.
        power: gets the S5 request.
        clock: the guest's.
        smi: sends an SMI; None: there is no system management mode.
    """

    def __init__(
        self,
        model: PmModel,
        ports: Bus,
        irq: Irq,
        power: PowerControl,
        clock: GuestClock,
        smi: Callable[[], None] | None = None,
    ) -> None:
        self.model = model
        self._smi = smi
        self._smi_locked = False
        self.base: int | None = None
        self.event = EventBlock(4, self._update_sci)
        self.gpe0 = EventBlock(len(model.gpe0) if model.gpe0 else 4, self._update_sci)
        self._ports = ports
        self._irq = irq
        self._power = power
        self._control = bytearray(4)
        self._smi_enable = bytearray(4)
        self._reset_smi_enable()
        self._timer = ffi.new("struct pm_timer *")
        self._clock = clock  # C's struct goes by it
        lib.pm_timer_init(self._timer, clock.core, model.timer_bits)
        self._placed: list[int] = []

    def move(self, base: int | None) -> None:
        """Decode the block at ``base``; None, or where other devices are: nowhere."""
        if base == self.base:
            return
        for first in self._placed:
            self._ports.remove(first)
        self._placed.clear()
        self.base = base
        if base is None:
            return
        timer = layout.PM_TIMER
        try:
            self._place(base, timer, _Part(self, 0), "ACPI PM1a")
            self._ports.add_native(
                base + timer, base + timer + 3, ffi.addressof(lib, "pm_timer_access"), self._timer, "ACPI PM timer"
            )
            self._placed.append(base + timer)
            if timer + 4 < self.model.size:
                self._place(
                    base + timer + 4, self.model.size - timer - 4, _Part(self, timer + 4), "ACPI GPE0 and SMI_EN"
                )
        except ConfigError:
            # The guest's mistake, and real chipsets' answer to it is undefined.
            for first in self._placed:
                self._ports.remove(first)
            self._placed.clear()

    @property
    def decoded(self) -> int | None:
        """Where the guest finds the block; None: nowhere, as before firmware has set PMBASE."""
        return self.base if self._placed else None

    def command(self, value: int) -> None:
        """A write to SMI_CMD: an SMI, but for the two commands whose handler on real machines switches SCI_EN."""
        if value == self.model.acpi_enable:
            self._control[0] |= _SCI_ENABLE
        elif value == self.model.acpi_disable:
            self._control[0] &= ~_SCI_ENABLE
        elif self._smi is not None and self._smi_enable[0] & _SMI_ENABLE_APMC:
            self._smi()
        self._update_sci()

    def lock_smi(self, locked: bool) -> None:
        """GBL_SMI_EN cannot be changed any more, or again (ICH9, GEN_PMCON_1.SMI_LOCK)."""
        self._smi_locked = locked

    def wake_up(self) -> None:
        """Tell the OS that the machine was asleep."""
        self.event.raise_event(WAKE)

    def press_power_button(self) -> None:
        """Ask the guest's OS to shut down (ACPI 6.5, 4.8.3.1.1.1)."""
        self.event.raise_event(POWER_BUTTON)

    def notify_generation(self) -> None:
        """Tell the guest's OS that there is a new VM generation id."""
        self.gpe0.raise_event(1 << GPE_VMGENID)

    def read(self, offset: int, size: int) -> int:
        """Any register but the timer, which has a range of its own; all others read as 0."""
        value = 0
        for i in range(size):
            value |= self._read_byte(offset + i) << (8 * i)
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Any register but the timer."""
        for i in range(size):
            self._write_byte(offset + i, value >> (8 * i) & 0xFF)

    def state(self) -> dict[str, Any]:
        """Registers, and when the timer was 0; where they are decoded is the chipset's."""
        return {
            "control": bytes(self._control),
            "smi_enable": bytes(self._smi_enable),
            "event": self.event.state(),
            "gpe0": self.gpe0.state(),
            "timer_start_ns": int(self._timer.start_ns),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `state` gave it."""
        self._control[:] = state["control"]
        self._smi_enable[:] = state["smi_enable"]
        self._timer.start_ns = state["timer_start_ns"]
        self.event.restore(state["event"])
        self.gpe0.restore(state["gpe0"])

    def reset(self) -> None:
        """ACPI off, nothing pending, decoded nowhere; the timer runs on."""
        self._control[:] = bytes(4)
        self._smi_locked = False
        self._reset_smi_enable()
        self.event.reset()
        self.gpe0.reset()
        self.move(None)

    def _reset_smi_enable(self) -> None:
        self._smi_enable[:] = (0 if self._smi is not None else _SMI_ENABLE_APMC).to_bytes(4, "little")

    def _place(self, first: int, size: int, device: Device, name: str) -> None:
        self._ports.add(first, first + size - 1, device, name)
        self._placed.append(first)

    def _read_byte(self, at: int) -> int:
        gpe0, smi = self.model.gpe0, self.model.smi_enable
        if at < layout.PM_CONTROL:
            return self.event.read(at, 1)
        if at < layout.PM_TIMER:
            return self._control[at - layout.PM_CONTROL]
        if gpe0 is not None and at in gpe0:
            return self.gpe0.read(at - gpe0.start, 1)
        if smi is not None and smi <= at < smi + 4:
            return self._smi_enable[at - smi]
        return 0

    def _write_byte(self, at: int, byte: int) -> None:
        gpe0, smi = self.model.gpe0, self.model.smi_enable
        if at < layout.PM_CONTROL:
            self.event.write(at, 1, byte)
        elif at == layout.PM_CONTROL + 1:
            self._control[1] = byte & ~_SLEEP_ENABLE
            if byte & _SLEEP_ENABLE:
                self._sleep(byte >> _SLEEP_TYPE_SHIFT & 7)
        elif at < layout.PM_TIMER:
            self._control[at - layout.PM_CONTROL] = byte
            self._update_sci()
        elif gpe0 is not None and at in gpe0:
            self.gpe0.write(at - gpe0.start, 1, byte)
        elif smi is not None and smi <= at < smi + 4:
            kept = _SMI_ENABLE_GLOBAL if self._smi_locked and at == smi else 0
            self._smi_enable[at - smi] = byte & ~kept | self._smi_enable[at - smi] & kept

    def _sleep(self, sleep_type: int) -> None:
        if sleep_type == self.model.s5_sleep_type:
            self._power.power_off()
        elif sleep_type == self.model.s3_sleep_type:
            self._power.suspend()

    def _update_sci(self) -> None:
        enabled = self._control[0] & _SCI_ENABLE
        self._irq(bool(enabled) and (self.event.pending or self.gpe0.pending))


class _Part(Device):
    """A range inside the block: the same device, its offsets shifted."""

    is_part = True

    def __init__(self, whole: Device, start: int) -> None:
        self._whole = whole
        self._start = start

    def read(self, offset: int, size: int) -> int:
        return self._whole.read(self._start + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._whole.write(self._start + offset, size, value)


class ApmPorts(Device):
    """Ports 0xb2 (SMI_CMD) and 0xb3 (a scratch byte for an SMI handler).

    Args:
        pm: what the commands act on.
    """

    def __init__(self, pm: AcpiPm) -> None:
        self._pm = pm
        self._bytes = bytearray(2)

    def read(self, offset: int, size: int) -> int:
        """What was written last."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Keep it; a command goes to the ACPI hardware, and what comes with it, to 0xb3, first."""
        end = min(offset + size, 2)
        self._bytes[offset:end] = value.to_bytes(size, "little")[: end - offset]
        if offset == 0:
            self._pm.command(value & 0xFF)

    def state(self) -> dict[str, Any]:
        """Both bytes."""
        return {"bytes": bytes(self._bytes)}

    def restore(self, state: dict[str, Any]) -> None:
        """Both bytes; what a command did is the ACPI hardware's state."""
        self._bytes[:] = state["bytes"]

    def reset(self) -> None:
        """As at power-on."""
        self._bytes[:] = bytes(2)
