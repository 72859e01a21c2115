"""pvpanic: a port by which a guest's kernel says that it has panicked.

Source: docs/specs/pvpanic.rst and hw/misc/pvpanic.c in QEMU. The OS finds the port by ACPI's QEMU0001, firmware by the
fw_cfg file etc/pvpanic-port.
"""

from typing import TYPE_CHECKING, Any

from vmm import layout
from vmm.bus import Device
from vmm.devices.signals import PowerControl

if TYPE_CHECKING:
    from vmm.devices.fw_cfg import FwCfg

PORT_FILE = "etc/pvpanic-port"
"""u16, little-endian."""

PANICKED = 1 << 0
CRASH_LOADED = 1 << 1
"""The guest has panicked, and a kernel of its own, loaded before (kexec), takes the crash down: it goes on."""

EVENTS = PANICKED | CRASH_LOADED
"""What QEMU 7.2's device says that it supports."""


class Pvpanic(Device):
    """The port: reads tell which events are supported, a write reports one.

    Args:
        power: is told of a panic.
        events: of `EVENTS`, what a read says.

    Attributes:
        crashes_loaded: how often the guest has said so.
    """

    def __init__(self, power: PowerControl, events: int = EVENTS) -> None:
        self._power = power
        self._events = events
        self.crashes_loaded = 0

    def read(self, offset: int, size: int) -> int:
        """The events that are supported."""
        return self._events

    def write(self, offset: int, size: int, value: int) -> None:
        """As in QEMU, a panic counts before anything else, and whatever is supported."""
        if value & PANICKED:
            self._power.panic()
        elif value & CRASH_LOADED:
            self.crashes_loaded += 1

    def state(self) -> dict[str, Any]:
        """What was counted."""
        return {"crashes_loaded": self.crashes_loaded}

    def restore(self, state: dict[str, Any]) -> None:
        """As `state` gave it."""
        self.crashes_loaded = state["crashes_loaded"]

    def reset(self) -> None:
        """Nothing: what was counted belongs to the machine."""


def add_pvpanic(fw_cfg: "FwCfg") -> None:
    """Tell firmware where the port is.

    Raises:
        ConfigError: the file is there already.
    """
    fw_cfg.add_file(PORT_FILE, layout.PORT_PVPANIC.start.to_bytes(2, "little"))
