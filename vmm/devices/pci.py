"""PCI bus 0: type-0 functions, configuration mechanism #1 (PCI 3.0, 3.2.2.3.2) and ECAM (PCI Express 2.0, 7.2.2).

No function here has a base address register: what the chipset decodes, it decodes at addresses of its own registers.
"""

from vmm.bus import Device

CONFIG_SIZE = 256
"""Bytes of configuration space of a conventional function; what ECAM shows beyond reads as all-ones."""

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

_CONFIG_ENABLE = 1 << 31


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

    def read_config(self, register: int, size: int) -> int:
        """``size`` bytes from ``register``; all-ones beyond the end."""
        return int.from_bytes(self.config[register : register + size].ljust(size, b"\xff"), "little")

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

    def reset(self) -> None:
        """Registers as at power-on."""
        if self._power_on is not None:
            self.config[:] = self._power_on
            self.config_written(0, CONFIG_SIZE - 1)


class PciBus:
    """Bus 0 and its functions; other buses, and empty slots, read as all-ones."""

    def __init__(self) -> None:
        self._functions: dict[int, PciFunction] = {}

    def add(self, device: int, function: int, what: PciFunction) -> None:
        """Put a function at 0:device.function."""
        self._functions[device << 3 | function] = what

    def functions(self) -> dict[tuple[int, int], PciFunction]:
        """Every function by (device, function)."""
        return {(devfn >> 3, devfn & 7): what for devfn, what in sorted(self._functions.items())}

    def read(self, bdf: int, register: int, size: int) -> int:
        """Read configuration space; ``bdf`` is bus << 8 | device << 3 | function."""
        function = self._functions.get(bdf)
        return -1 if function is None else function.read_config(register, size)

    def write(self, bdf: int, register: int, size: int, value: int) -> None:
        """Write configuration space."""
        function = self._functions.get(bdf)
        if function is not None:
            function.write_config(register, size, value)

    def reset(self) -> None:
        """Every function as at power-on."""
        for function in self._functions.values():
            function.reset()


class PciConfigPorts(Device):
    """Ports 0xcf8-0xcff: CONFIG_ADDRESS (32-bit accesses only), CONFIG_DATA (any width).

    Args:
        pci: the bus behind them.
        reset_control: what a byte at 0xcf9 reaches instead.
    """

    def __init__(self, pci: PciBus, reset_control: Device) -> None:
        self._pci = pci
        self._reset_control = reset_control
        self._address = 0

    def read(self, offset: int, size: int) -> int:
        """CONFIG_ADDRESS as written, or the register that it selects."""
        if offset >= 4:
            if not self._address & _CONFIG_ENABLE:
                return -1
            return self._pci.read(self._address >> 8 & 0xFFFF, (self._address & 0xFC) + offset - 4, size)
        if offset == 0 and size == 4:
            return self._address
        if offset == 1 and size == 1:
            return self._reset_control.read(0, 1)
        return -1

    def write(self, offset: int, size: int, value: int) -> None:
        """Select a register, or write to it."""
        if offset >= 4:
            if self._address & _CONFIG_ENABLE:
                self._pci.write(self._address >> 8 & 0xFFFF, (self._address & 0xFC) + offset - 4, size, value)
        elif offset == 0 and size == 4:
            self._address = value & 0x80FF_FFFC
        elif offset == 1 and size == 1:
            self._reset_control.write(0, 1, value)

    def reset(self) -> None:
        """No register selected."""
        self._address = 0


class Ecam(Device):
    """Configuration space as memory: bus << 20 | device << 15 | function << 12 | register."""

    def __init__(self, pci: PciBus) -> None:
        self._pci = pci

    def read(self, offset: int, size: int) -> int:
        """Read the register that the address names."""
        return self._pci.read(offset >> 12, offset & 0xFFF, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the register that the address names."""
        self._pci.write(offset >> 12, offset & 0xFFF, size, value)
