"""The ways in which a PC resets itself: ports 0xcf9, 0x92, and the keyboard controller's pulse."""

from __future__ import annotations

from vmm.bus import Device
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from vmm.devices.signals import PowerControl

_RESET_CPU = 0x04
_RESET_STICKY = 0x0A
"""ICH9 (316972) 13.7.5: RST_CPU starts the reset; SYS_RST and FULL_RST keep what was written."""

_FAST_RESET = 0x01
_A20 = 0x02

_PULSE_RESET = 0xFE
"""Intel 8042: pulse output port bit 0, which is the CPU's reset line."""


class ResetControl(Device):
    """One byte, at 0xcf9."""

    def __init__(self, power: PowerControl) -> None:
        self._power = power
        self._value = 0

    def read(self, offset: int, size: int) -> int:
        """The kind of reset chosen."""
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        """Choose the kind; reset when RST_CPU is set."""
        self._value = value & _RESET_STICKY
        if value & _RESET_CPU:
            self._power.reset(f"port 0xcf9 <- {value & 0xFF:#04x}")

    def state(self) -> dict[str, Any]:
        """The byte."""
        return {"value": self._value}

    def restore(self, state: dict[str, Any]) -> None:
        """The byte."""
        self._value = state["value"]

    def reset(self) -> None:
        """As at power-on."""
        self._value = 0


class SystemControlA(Device):
    """Port 0x92. A20 is a bit to read back: KVM has no gate, address line 20 is always on."""

    def __init__(self, power: PowerControl) -> None:
        self._power = power
        self._value = _A20

    def read(self, offset: int, size: int) -> int:
        """What was written; the reset bit reads as 0."""
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        """Keep the A20 bit; reset when bit 0 is set."""
        self._value = value & _A20
        if value & _FAST_RESET:
            self._power.reset(f"port 0x92 <- {value & 0xFF:#04x}")

    def state(self) -> dict[str, Any]:
        """The byte."""
        return {"value": self._value}

    def restore(self, state: dict[str, Any]) -> None:
        """The byte."""
        self._value = state["value"]

    def reset(self) -> None:
        """As at power-on."""
        self._value = _A20


class I8042Reset(Device):
    """The command port of a keyboard controller that is not there, but for its reset pulse."""

    def __init__(self, power: PowerControl) -> None:
        self._power = power

    def read(self, offset: int, size: int) -> int:
        """All-ones: no controller."""
        return -1

    def write(self, offset: int, size: int, value: int) -> None:
        """Reset on command 0xfe."""
        if value & 0xFF == _PULSE_RESET:
            self._power.reset("port 0x64 <- 0xfe")

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing."""
