"""PCI bus 0: type-0 functions, what their configuration space holds, and what writing to it does.

Every other access is served by C, from the same bytes (`native/pci_config.c`).
No function here has a base address register: what the chipset decodes, it decodes at addresses of its own registers.
"""

from typing import Any

from vmm._native import ffi, lib
from vmm.bus import Device, Front

CONFIG_SIZE: int = lib.PCI_CONFIG_SIZE
"""Bytes of configuration space of a conventional function."""

VENDOR_ID = 0x00
COMMAND = 0x04
REVISION_AND_CLASS = 0x08
HEADER_TYPE = 0x0E
SUBSYSTEM_ID = 0x2C
INTERRUPT_LINE = 0x3C
INTERRUPT_PIN = 0x3D
DEVICE_DEPENDENT = 0x40
"""PCI 3.0, 6.1: figure 6-1."""

_COMMAND_WRITABLE = 0x0547
"""I/O, memory, bus master, parity response, SERR#, interrupt disable: what software may want to see stick."""

_MULTIFUNCTION = 0x80

QEMU_SUBSYSTEM = 0x1100_1AF4
"""Red Hat, QEMU virtual machine: SeaBIOS looks for it in 0:0.0 before it looks for fw_cfg
(QEMU, docs/specs/pci-ids)."""

_RESET_CONTROL = 1
"""Port 0xcf9, counted from CONFIG_ADDRESS."""


class PciFunction:
    """One function: 256 bytes of configuration space, and which bits of them the guest may write.

    Registers from 0x40 on hold what is written unless a subclass narrows `writable`.

    Args:
        vendor: vendor ID.
        device: device ID.
        class_code: 24 bits: base class, subclass, programming interface.
        revision: revision ID.
        multifunction: the device has more functions than this one, which is its function 0.
    """

    def __init__(
        self, vendor: int, device: int, class_code: int, *, revision: int = 0, multifunction: bool = False
    ) -> None:
        self.config = bytearray(CONFIG_SIZE)
        self.writable = bytearray(CONFIG_SIZE)
        self.set_dword(VENDOR_ID, device << 16 | vendor)
        self.set_dword(REVISION_AND_CLASS, class_code << 8 | revision)
        self.set_dword(SUBSYSTEM_ID, QEMU_SUBSYSTEM)
        self.config[HEADER_TYPE] = _MULTIFUNCTION if multifunction else 0
        self.writable[COMMAND : COMMAND + 2] = _COMMAND_WRITABLE.to_bytes(2, "little")
        self.writable[INTERRUPT_LINE] = 0xFF
        self.writable[DEVICE_DEPENDENT:] = b"\xff" * (CONFIG_SIZE - DEVICE_DEPENDENT)
        self._power_on: bytes | None = None

    def dword(self, register: int) -> int:
        """The 32-bit register at ``register``."""
        return int.from_bytes(self.config[register : register + 4], "little")

    def set_dword(self, register: int, value: int) -> None:
        """Set a 32-bit register from the device's side, whatever the guest may write."""
        self.config[register : register + 4] = value.to_bytes(4, "little")

    def write_config(self, register: int, size: int, value: int) -> None:
        """Store what is writable of ``value``, then tell the subclass."""
        if self._power_on is None:
            self._power_on = bytes(self.config)
        end = min(register + size, CONFIG_SIZE)
        for at in range(register, end):
            byte = value >> (8 * (at - register)) & 0xFF
            mask = self.writable[at]
            self.config[at] = self.config[at] & ~mask | byte & mask
        if register < end:
            self.config_written(register, end - 1)

    def config_written(self, first: int, last: int) -> None:
        """Registers ``first`` to ``last`` were written: act on it."""

    def restore(self, config: bytes) -> None:
        """Registers as they were, and what follows from them."""
        if self._power_on is None:
            self._power_on = bytes(self.config)
        self.config[:] = config
        self.config_written(0, CONFIG_SIZE - 1)

    def reset(self) -> None:
        """Registers as at power-on."""
        if self._power_on is not None:
            self.config[:] = self._power_on
            self.config_written(0, CONFIG_SIZE - 1)


class PciBus:
    """Bus 0 and its functions; other buses, and empty slots, read as all-ones.

    Attributes:
        core: what C reads configuration space from, a ``struct pci_bus *``.
    """

    def __init__(self) -> None:
        self.core = ffi.new("struct pci_bus *")
        self._functions: dict[int, PciFunction] = {}
        self._pins: list[Any] = []

    def add(self, device: int, function: int, what: PciFunction) -> None:
        """Put a function at 0:device.function."""
        pin = ffi.from_buffer("uint8_t[]", what.config)
        self._pins.append(pin)
        self._functions[device << 3 | function] = what
        self.core.config[device << 3 | function] = pin

    def functions(self) -> dict[tuple[int, int], PciFunction]:
        """Every function by (device, function)."""
        return {(devfn >> 3, devfn & 7): what for devfn, what in sorted(self._functions.items())}

    def write(self, at: int, size: int, value: int) -> None:
        """Write to a function that is there; ``at`` is where ECAM has the register."""
        self._functions[at >> 12].write_config(at & 0xFFF, size, value)

    def state(self) -> dict[str, bytes]:
        """The configuration space of each function, by "device.function"."""
        return {f"{devfn >> 3}.{devfn & 7}": bytes(what.config) for devfn, what in self._functions.items()}

    def restore(self, state: dict[str, bytes]) -> None:
        """Give each function what `state` gave, and let it act on that."""
        for devfn, what in self._functions.items():
            what.restore(state[f"{devfn >> 3}.{devfn & 7}"])

    def reset(self) -> None:
        """Every function as at power-on."""
        for function in self._functions.values():
            function.reset()


class PciConfigPorts(Device):
    """Ports 0xcf8-0xcff: CONFIG_ADDRESS and CONFIG_DATA are C's, but for writes to functions.

    Args:
        pci: the bus behind them.
        reset_control: what a byte at 0xcf9 reaches instead.
    """

    def __init__(self, pci: PciBus, reset_control: Device) -> None:
        self._pci = pci
        self._reset_control = reset_control
        self._core = ffi.new("struct pci_ports *", {"pci": pci.core})
        self.front = Front(ffi.addressof(lib, "pci_ports_access"), self._core)

    def read(self, offset: int, size: int) -> int:
        """The byte at 0xcf9."""
        return self._reset_control.read(0, 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write to the byte at 0xcf9, or to the function that is selected."""
        if offset == _RESET_CONTROL:
            self._reset_control.write(0, 1, value)
        else:
            self._pci.write(lib.pci_ports_selected(self._core, offset), size, value)

    def state(self) -> dict[str, Any]:
        """CONFIG_ADDRESS."""
        return {"address": int(self._core.address)}

    def restore(self, state: dict[str, Any]) -> None:
        """CONFIG_ADDRESS."""
        self._core.address = state["address"]

    def reset(self) -> None:
        """No register selected."""
        self._core.address = 0


class Ecam(Device):
    """Configuration space as memory: bus << 20 | device << 15 | function << 12 | register. Reads are C's."""

    def __init__(self, pci: PciBus) -> None:
        self._pci = pci
        self._core = ffi.new("struct pci_ecam *", {"pci": pci.core})
        self.front = Front(ffi.addressof(lib, "pci_ecam_access"), self._core)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the register that the address names."""
        self._pci.write(offset, size, value)
