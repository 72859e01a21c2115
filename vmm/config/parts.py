"""The parts of a machine's description, each with the text that QEMU or bhyve users write for it.

Everything that can be wrong with a single part is found here and raised as :class:`vmm.errors.ConfigError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

from vmm import layout, options
from vmm.errors import ConfigError
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, Final, Self, TypeVar

    Choice = TypeVar("Choice", bound=StrEnum)

MAX_MEMORY = 1 << 43
"""8 TiB: all above the PCI hole is one memory slot, which has fewer than 2**31 pages (Linux, KVM_MEM_MAX_NR_PAGES)."""

MAX_MEMORY_SLOTS = 256
"""For memory that is plugged in: QEMU, include/hw/acpi/acpi.h, ACPI_MAX_RAM_SLOTS."""

MAX_ADDRESS = 1 << 52
"""Intel SDM volume 3, 4.1.4: no processor of this architecture has more physical addresses."""

KNOWN_DEVICES: Final = (
    "virtio-blk-pci, virtio-net-pci, vhost-user-blk-pci and its like, pvpanic, vmgenid and vmcoreinfo"
)
"""For people: what -device can be."""

_PROPERTIES: Final[Mapping[str, frozenset[str]]] = {
    "vmgenid": frozenset({"guid"}),
    "vmcoreinfo": frozenset(),
    "pvpanic": frozenset({"ioport", "events"}),
}
"""Of the devices that are no disks, by name."""


class MachineType(StrEnum):
    """Which board is built."""

    AUTO = "auto"
    """The one that the firmware is known to want."""
    Q35 = "q35"
    PC = "pc"
    """i440FX."""
    BHYVE = "bhyve"


class Accelerator(StrEnum):
    """Who executes the guest's instructions."""

    AUTO = "auto"
    """KVM where it has hardware virtualization; else the software CPU, beside KVM where there is one."""
    KVM = "kvm"
    KVM_SOFTCPU = "kvm+softcpu"
    """The software CPU; KVM has the interrupt controllers and timers."""
    SOFTCPU = "softcpu"
    """The software CPU, with interrupt controllers and timers of its own: no KVM at all."""


ACCEL_KEYS = ("accel", "coalesced")
"""What may stand behind -accel."""


class Clock(StrEnum):
    """What the guest's time goes by."""

    HOST = "host"
    VIRTUAL = "virtual"
    """What the guest does; `vmm.run.virtual_time`."""


class SystemManagement(StrEnum):
    """Whether the machine has system management mode."""

    AUTO = "auto"
    """If the firmware needs it."""
    ON = "on"
    OFF = "off"


class Dispatch(StrEnum):
    """Which half of this program answers fw_cfg's ports."""

    C = "c"
    PYTHON = "python"
    """Only to show what that costs: the same items, no access log."""


class Sandboxing(StrEnum):
    """What is given up before the guest executes; `vmm.sandbox` does it."""

    OFF = "off"
    AUTO = "auto"
    """Threads, unless devices or functions of the caller's would run on them."""
    THREADS = "threads"
    """The threads that serve the guest: system calls other than theirs."""
    WHOLE = "whole"
    """That, and the whole process for good: other programs, files, sockets, privileges."""
    PROCESS = "process"
    """The machine has a process of its own, which is restricted as WHOLE says."""


class TargetKind(StrEnum):
    """Where a character device's output goes."""

    NONE = "none"
    STDIO = "stdio"
    FILE = "file"


class Target(NamedTuple):
    """A character device's other end; whatever it is, ``until`` and ``send`` see the stream too."""

    kind: TargetKind = TargetKind.NONE
    path: Path | None = None

    @classmethod
    def parse(cls, value: Self | str, option: str) -> Self:
        """Read ``none``, ``stdio`` or ``file:PATH``.

        Raises:
            ConfigError: anything else.
        """
        if isinstance(value, Target):
            return value
        options.check_type(value, option, str)
        if value in {"none", "null"}:
            return cls()
        if value == "stdio":
            return cls(TargetKind.STDIO)
        if value.startswith("file:") and value != "file:":
            from pathlib import Path

            return cls(TargetKind.FILE, Path(value.removeprefix("file:")))
        raise ConfigError(f"{options.shown(option, value)}: not a target; known are stdio, none and file:PATH")


class MemorySize(NamedTuple):
    """Bytes of RAM, None where nobody said; the most that it may become as memory is plugged in; in how many slots."""

    size: int | None
    most: int | None = None
    slots: int = 0


def parse_memory(value: str | int, most: str | int | None = None, slots: int | None = None) -> MemorySize:
    """Read QEMU's ``[size=]SIZE[,slots=N][,maxmem=SIZE]``, or an ``int`` of bytes.

    Args:
        value: a bare number is MiB for the size and bytes for maxmem, as in QEMU.
        most: maxmem, where it is not in the text.
        slots: likewise.

    Raises:
        ConfigError: not a size, something is said twice, or slots and not for how much.
    """
    options.check_type(value, "-m", str, int)
    keys: dict[str, str | int] = {"size": value}
    if isinstance(value, str):
        keys = {**options.parse_keys(value, "-m", known=("size", "slots", "maxmem"), implied="size")}
    for key, name, given, kinds in (
        ("maxmem", "max_memory", most, (str, int)),
        ("slots", "memory_slots", slots, (int,)),
    ):
        if given is not None:
            options.check_type(given, name, *kinds)
            if key in keys:
                raise ConfigError(f"-m {value}: {key}= is there, and {name} is given, too; give one of them")
            keys[key] = given
    if "slots" in keys and "maxmem" not in keys:
        raise ConfigError(f"-m slots={keys['slots']}: for memory that is plugged in; give maxmem=SIZE, too")
    return MemorySize(
        options.parse_size(keys["size"], "-m", unit="m") if "size" in keys else None,
        options.parse_size(keys["maxmem"], "-m maxmem=") if "maxmem" in keys else None,
        options.parse_int(keys.get("slots", 0), "-m slots="),
    )


class RamPlaces(NamedTuple):
    """Where RAM is: bytes from 0, bytes of the rest, where that begins; and bytes of room for more of it."""

    low: int
    high: int = 0
    high_base: int = layout.HIGH_RAM_BASE
    room: int = 0

    @property
    def end(self) -> int:
        """The first address behind all of it; `high_base` where there is nothing above."""
        return self.high_base + self.high

    @property
    def hotplug(self) -> range:
        """Where memory may be plugged in: from a whole GiB on (QEMU, pc_get_device_memory_range in hw/i386/pc.c)."""
        start = -(-self.end // layout.GIB) * layout.GIB
        return range(start, start + self.room)


def low_memory(machine: MachineType, size: int, most: int | None = None) -> int:
    """Bytes of RAM from 0; the rest begins at 4 GiB.

    Args:
        machine: the board, not AUTO.
        size: bytes of RAM.
        most: as ``-machine max-ram-below-4g=``; what a board has no room for below 4 GiB goes above in any case.
    """
    if machine is MachineType.BHYVE:
        limit = min(layout.BHYVE_LOW_RAM, most or layout.BHYVE_LOW_RAM)
    elif machine is MachineType.Q35:
        whole = layout.Q35_LOW_RAM
        limit = min(layout.Q35_LOW_RAM_CUT if size >= whole else whole, most or whole)
    else:
        limit = min(layout.PC_LOW_RAM, most or layout.PC_LOW_RAM)
        if size >= limit:
            limit = min(limit, layout.PC_LOW_RAM_CUT)
    return min(size, limit)


def parse_devices(texts: Iterable[str], *, repeatable: bool = False) -> dict[str, Any]:
    """Return the fields of a `MachineConfig` that ``-device`` texts set.

    Args:
        texts: of devices that are no disks.
        repeatable: what would be random is the same each time.

    Raises:
        ConfigError: no such device, or a bad property.
    """
    fields: dict[str, Any] = {}
    for text in texts:
        keys = options.parse_keys(text, "-device", known=("driver", "guid", "id", "ioport", "events"), implied="driver")
        driver = keys.get("driver")
        if driver is None or driver not in _PROPERTIES:
            raise ConfigError(f"-device {text}: no such device here; known are {KNOWN_DEVICES}")
        if driver in fields:
            raise ConfigError(f"-device {driver}: a machine has one at the most")
        if strange := keys.keys() - {"driver", "id"} - _PROPERTIES[driver]:
            raise ConfigError(f"-device {text}: {driver} has no {', '.join(sorted(strange))}")
        if driver == "pvpanic":
            fields[driver] = _pvpanic(keys)
        elif driver == "vmgenid":
            from uuid import NAMESPACE_OID, uuid4, uuid5

            guid = keys.get("guid", "auto")
            if guid == "auto":
                generation = uuid5(NAMESPACE_OID, "vmm --clock virtual") if repeatable else uuid4()
            else:
                generation = options.parse_uuid(guid, "-device vmgenid,guid=")
            fields[driver] = generation.bytes_le
        else:
            fields[driver] = True
    return fields


def _pvpanic(keys: dict[str, str]) -> int:
    """Return the events that a guest may report."""
    from vmm.devices.pvpanic import EVENTS

    port = layout.PORT_PVPANIC.start
    if options.parse_int(keys.get("ioport", port), "-device pvpanic,ioport=") != port:
        raise ConfigError(f"-device pvpanic,ioport={keys['ioport']}: it is at {port:#x}; leave ioport out")
    return options.parse_int(keys.get("events", EVENTS), "-device pvpanic,events=", minimum=1, maximum=EVENTS)


def several(value: Any, name: str, *single: type) -> tuple[Any, ...]:
    """Return what may be given once or repeatedly as a tuple.

    Raises:
        TypeError: it is of another type, or has something of another type in it.
    """
    alone = isinstance(value, (*single, Mapping)) or not isinstance(value, Iterable)
    values = (value,) if alone else tuple(value)
    for one in values:
        options.check_type(one, name, *single)
    return values


def parse_choice(kind: type[Choice], value: Choice | str, option: str) -> Choice:
    """Return the member of an enumeration that a word names.

    Raises:
        ConfigError: none has that name.
    """
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(f"{options.shown(option, value)}: not known; known are {', '.join(kind)}") from None
