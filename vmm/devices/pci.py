"""PCI bus 0: type-0 functions, what their configuration space holds, and what writing to it does.

Every other access is served by C, from the same bytes (`native/pci_config.c`).
Functions that decode addresses of the guest's choice have base address registers (BARs); the bus moves their ranges.
What the chipset decodes, it decodes at addresses of its own registers.
"""

from __future__ import annotations

from vmm._native import ffi, lib
from vmm.bus import Bus, Device, Front
from vmm.errors import ConfigError
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CONFIG_SIZE: int = lib.PCI_CONFIG_SIZE
"""Bytes of configuration space of a conventional function."""

VENDOR_ID = 0x00
COMMAND = 0x04
STATUS = 0x06
REVISION_AND_CLASS = 0x08
HEADER_TYPE = 0x0E
BASE_ADDRESS = 0x10
SUBSYSTEM_ID = 0x2C
CAPABILITIES = 0x34
INTERRUPT_LINE = 0x3C
INTERRUPT_PIN = 0x3D
DEVICE_DEPENDENT = 0x40
"""PCI 3.0, 6.1: figure 6-1."""

_COMMAND_WRITABLE = 0x0547
"""I/O, memory, bus master, parity response, SERR#, interrupt disable: what software may want to see stick."""

COMMAND_MEMORY = 0x0002
COMMAND_BUS_MASTER = 0x0004

_STATUS_CAPABILITIES = 0x10
"""There is a list of capabilities."""

_MULTIFUNCTION = 0x80

_BAR_WIDE, _BAR_PREFETCHABLE = 0x4, 0x8
"""PCI 3.0, 6.2.5.1: a BAR for memory, of 64 bits; reads have no side effects, as a bridge's window for wide BARs wants
it."""

QEMU_SUBSYSTEM = 0x1100_1AF4
"""Red Hat, QEMU virtual machine: SeaBIOS looks for it in 0:0.0 before it looks for fw_cfg
(QEMU, docs/specs/pci-ids)."""

_DEVICES = 32

_RESET_CONTROL = 1
"""Port 0xcf9, counted from CONFIG_ADDRESS."""


class MemoryBar(NamedTuple):
    """A base address register for memory.

    Attributes:
        number: 0 to 5; a wide one takes the next as well.
        size: bytes, a power of two, 16 at least.
        handler: a C ``io_handler *`` that serves the range.
        state: what it is called with.
        name: of the range.
        wide: 64 bits.
        moved: told where the range was and where it is, None for nowhere.
    """

    number: int
    size: int
    handler: Any
    state: Any
    name: str
    wide: bool = False
    moved: Callable[[int | None, int | None], None] | None = None

    @property
    def register(self) -> int:
        """Where the register is."""
        return BASE_ADDRESS + 4 * self.number

    @property
    def width(self) -> int:
        """Bytes of the register."""
        return 8 if self.wide else 4


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
        self.bars: list[MemoryBar] = []
        self.view: Any = ffi.NULL
        """Registers that C fills in before they are read, a ``struct pci_view *``."""
        self.replaced: Callable[[], None] = _nothing
        """The bus's: called when a BAR may have moved."""
        self._power_on: bytes | None = None

    def dword(self, register: int) -> int:
        """The 32-bit register at ``register``."""
        return int.from_bytes(self.config[register : register + 4], "little")

    def set_dword(self, register: int, value: int) -> None:
        """Set a 32-bit register from the device's side, whatever the guest may write."""
        self.config[register : register + 4] = value.to_bytes(4, "little")

    def set_capabilities(self, first: int) -> None:
        """Say that there are capabilities, and where the first of them is."""
        self.config[STATUS] |= _STATUS_CAPABILITIES
        self.config[CAPABILITIES] = first

    def add_bar(self, bar: MemoryBar) -> None:
        """Have a base address register, with 0 in it."""
        kind = _BAR_WIDE | _BAR_PREFETCHABLE if bar.wide else 0
        end = bar.register + bar.width
        self.config[bar.register : end] = kind.to_bytes(bar.width, "little")
        self.writable[bar.register : end] = (-bar.size & (1 << 8 * bar.width) - 1).to_bytes(bar.width, "little")
        self.bars.append(bar)

    def assign_bar(self, bar: MemoryBar, address: int) -> None:
        """Place a BAR and turn memory and bus mastering on, where firmware expects to find that done at power-on."""
        kind = self.config[bar.register] & 0xF
        self.config[bar.register : bar.register + bar.width] = (address | kind).to_bytes(bar.width, "little")
        self.config[COMMAND] |= COMMAND_MEMORY | COMMAND_BUS_MASTER
        self.config_written(COMMAND, COMMAND + 1)

    def decoded(self, bar: MemoryBar) -> int | None:
        """Where a BAR is; None: it answers nowhere, for it has no address yet or memory is turned off."""
        address = int.from_bytes(self.config[bar.register : bar.register + bar.width], "little") & -bar.size
        return address if address and self.config[COMMAND] & COMMAND_MEMORY else None

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
        if self.bars and first < BASE_ADDRESS + 24 and last >= COMMAND:
            self.replaced()

    def restore(self, config: bytes) -> None:
        """Registers as they were, and what follows from them."""
        if self._power_on is None:
            self._power_on = bytes(self.config)
        self.config[:] = config
        self.config_written(0, CONFIG_SIZE - 1)

    def wake_up(self) -> None:
        """Put again what the registers place to where they say; they stay, but those that a subclass resets."""
        self.config_written(0, CONFIG_SIZE - 1)

    def reset(self) -> None:
        """Registers as at power-on."""
        if self._power_on is not None:
            self.config[:] = self._power_on
            self.config_written(0, CONFIG_SIZE - 1)


def _nothing() -> None:
    """For a function on no bus."""


class PciBus:
    """Bus 0 and its functions; other buses, and empty slots, read as all-ones.

    Args:
        mmio: where BARs appear.

    Attributes:
        core: what C reads configuration space from, a ``struct pci_bus *``.
    """

    def __init__(self, mmio: Bus) -> None:
        self.core = ffi.new("struct pci_bus *")
        self._mmio = mmio
        self._functions: dict[int, PciFunction] = {}
        self._pins: list[Any] = []
        self._placed: dict[MemoryBar, int] = {}

    def add(self, device: int, function: int, what: PciFunction) -> None:
        """Put a function at 0:device.function.

        Raises:
            ConfigError: there is one already.
        """
        if device << 3 | function in self._functions:
            raise ConfigError(f"PCI slot {device}.{function} is taken")
        pin = ffi.from_buffer("uint8_t[]", what.config)
        self._pins.append(pin)
        self._functions[device << 3 | function] = what
        self.core.config[device << 3 | function] = pin
        self.core.views[device << 3 | function] = what.view
        what.replaced = self._place_bars

    def free_slot(self) -> int:
        """The first device number without functions.

        Raises:
            ConfigError: there is none left.
        """
        taken = {devfn >> 3 for devfn in self._functions}
        for device in range(_DEVICES):
            if device not in taken:
                return device
        raise ConfigError(f"PCI has no slot left: there are {_DEVICES}")

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

    def wake_up(self) -> None:
        """Every function as after S3: `PciFunction.wake_up`."""
        for function in self._functions.values():
            function.wake_up()

    def reset(self) -> None:
        """Every function as at power-on."""
        for function in self._functions.values():
            function.reset()

    def _place_bars(self) -> None:
        """Move ranges to where BARs say. One over another device's stays away: that is undefined on a real bus."""
        wanted = {
            bar: at
            for function in self._functions.values()
            for bar in function.bars
            if (at := function.decoded(bar)) is not None
        }
        before = dict(self._placed)
        for bar, old in before.items():
            if wanted.get(bar) != old:
                self._mmio.remove(old)
                del self._placed[bar]
        for bar, at in wanted.items():
            if bar not in self._placed and at + bar.size <= 1 << 64:
                try:
                    self._mmio.add_native(at, at + bar.size - 1, bar.handler, bar.state, bar.name)
                except ConfigError:
                    continue
                self._placed[bar] = at
        for bar in {**before, **self._placed}:
            if bar.moved is not None and before.get(bar) != self._placed.get(bar):
                bar.moved(before.get(bar), self._placed.get(bar))


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

    is_part = True

    def __init__(self, pci: PciBus) -> None:
        self._pci = pci
        self._core = ffi.new("struct pci_ecam *", {"pci": pci.core})
        self.front = Front(ffi.addressof(lib, "pci_ecam_access"), self._core)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the register that the address names."""
        self._pci.write(offset, size, value)
