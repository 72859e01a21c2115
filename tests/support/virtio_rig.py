"""A virtio disk without a virtual machine, and a driver for it: what a guest does, step by step."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from device_rig import ManualTimers, Rig

from vmm.devices.pci import COMMAND, PciBus, PciConfigPorts
from vmm.devices.pirq import Q35, PirqRouter, Wiring
from vmm.devices.reset import ResetControl
from vmm.devices.virtio.block import VirtioBlk
from vmm.devices.virtio.transport import Backplane
from vmm.disks.drives import Drive
from vmm.disks.image import DiskImage

SECTORS = 64
"""Of the image that tests have."""

SLOT = 3
REGISTERS, MESSAGES = 0xE000_0000, 0xE100_0000
"""Where the BARs are put."""

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64
IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
NEXT, WRITE, INDIRECT = 1, 2, 4
RO, CONFIG_WCE, F_DISCARD, F_WRITE_ZEROES, F_INDIRECT, F_EVENT_INDEX, VERSION_1 = 5, 11, 13, 14, 28, 29, 32
"""Virtio 1.2: 2.1, 5.2.6, 2.7.5, 5.2.3 and chapter 6."""

STATUS = REGISTERS + 0x14
ISR, CONFIG, NOTIFY = REGISTERS + 0x1000, REGISTERS + 0x2000, REGISTERS + 0x3000
TABLE, AVAILABLE, USED, BUFFERS = 0x10000, 0x11000, 0x12000, 0x200000
SIZE = 16
_DESCRIPTOR = struct.Struct("<QIHH")


class Segment(NamedTuple):
    """A buffer of a request: bytes for the device, or how many it may write."""

    out: bytes = b""
    room: int = 0


class VirtioRig(Rig):
    """A machine with one disk.

    Args:
        drive: the disk.
        wiring: of its interrupt pin.
        virtual: whether it has no threads, and goes by ``timers``.
    """

    def __init__(self, drive: Drive | Path, wiring: Wiring = Q35, *, virtual: bool = False) -> None:
        super().__init__()
        self.timers = ManualTimers(self.lock)
        self.image = DiskImage(drive if isinstance(drive, Drive) else Drive(drive))
        self.pci = PciBus(self.mmio)
        self.pirqs = PirqRouter(wiring, self.sink)
        timers = self.timers if virtual else None
        self.disk = VirtioBlk(self.image, Backplane(self.core, self.lock, self.pirqs, timers=timers), SLOT)
        self.pci.add(SLOT, 0, self.disk.function)
        self.ports.add(0xCF8, 0xCFF, PciConfigPorts(self.pci, ResetControl(self.power)), "PCI configuration")
        self.made = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.disk.close()
        self.image.close()
        assert not self.failures + self.timers.failures

    # -- PCI ------------------------------------------------------------------------------------------------------

    def config_read(self, register: int, size: int = 4) -> int:
        self.out(0xCF8, 4, 1 << 31 | SLOT << 11 | register & 0xFC)
        return self.inp(0xCFC + (register & 3), size)

    def config_write(self, register: int, size: int, value: int) -> None:
        self.out(0xCF8, 4, 1 << 31 | SLOT << 11 | register & 0xFC)
        self.out(0xCFC + (register & 3), size, value)

    def place(self, command: int = 0x6) -> None:
        """Place the BARs; by default memory and bus mastering are on."""
        self.config_write(0x14, 4, MESSAGES)
        self.config_write(0x20, 4, REGISTERS)
        self.config_write(0x24, 4, 0)
        self.config_write(COMMAND, 2, command)

    # -- the driver -----------------------------------------------------------------------------------------------

    def offered(self) -> int:
        words = []
        for select in (0, 1):
            self.store(REGISTERS, 4, select)
            words.append(self.load(REGISTERS + 4, 4))
        return words[0] | words[1] << 32

    def start(self, *features: int, command: int = 0x6) -> None:
        """Reset the device and get it going, with these features and VERSION_1."""
        self.place(command)
        self.store(STATUS, 1, 0)
        assert self.load(STATUS, 1) == 0
        self.store(STATUS, 1, ACKNOWLEDGE | DRIVER)
        wanted = 1 << VERSION_1 | sum(1 << feature for feature in features)
        for select in (0, 1):
            self.store(REGISTERS + 8, 4, select)
            self.store(REGISTERS + 12, 4, wanted >> 32 * select & 0xFFFF_FFFF)
        self.store(STATUS, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        assert self.load(STATUS, 1) & FEATURES_OK
        self.memory.write(TABLE, bytes(0x3000))
        self.made = 0
        self.store(REGISTERS + 0x16, 2, 0)
        self.store(REGISTERS + 0x18, 2, SIZE)
        for register, address in ((0x20, TABLE), (0x28, AVAILABLE), (0x30, USED)):
            self.store(REGISTERS + register, 4, address)
            self.store(REGISTERS + register + 4, 4, 0)
        self.store(REGISTERS + 0x1C, 2, 1)
        self.store(STATUS, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    def descriptor(self, index: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        self.memory.write(TABLE + 16 * index, _DESCRIPTOR.pack(address, length, flags, following))

    def offer(self, head: int = 0, *, notify: bool = True) -> None:
        """Put a chain into the ring."""
        self.memory.write(AVAILABLE + 4 + 2 * (self.made % SIZE), head.to_bytes(2, "little"))
        self.made += 1
        self.memory.write(AVAILABLE + 2, (self.made & 0xFFFF).to_bytes(2, "little"))
        if notify:
            self.store(NOTIFY, 2, 0)

    def used(self) -> list[tuple[int, int]]:
        """Chains given back so far: head, bytes written."""
        count = int.from_bytes(self.memory.read(USED + 2, 2), "little")
        return [struct.unpack("<II", self.memory.read(USED + 4 + 8 * (i % SIZE), 8)) for i in range(count)]

    def chain(self, segments: Sequence[Segment], *, indirect: bool = False) -> list[int]:
        """Lay a chain out from descriptor 0 on, its buffers one after the other; return their addresses."""
        addresses = []
        at = BUFFERS
        table = 0x18000 if indirect else TABLE
        for index, segment in enumerate(segments):
            length = segment.room or len(segment.out)
            self.memory.write(at, segment.out or b"\xa5" * length)
            flags = (WRITE if segment.room else 0) | (NEXT if index + 1 < len(segments) else 0)
            self.memory.write(table + 16 * index, _DESCRIPTOR.pack(at, length, flags, index + 1))
            addresses.append(at)
            at += length
        if indirect:
            self.descriptor(0, table, 16 * len(segments), INDIRECT)
        return addresses

    def submit(self, segments: Sequence[Segment], *, indirect: bool = False) -> list[bytes]:
        """Serve one chain; return what is in its writable buffers then."""
        addresses = self.chain(segments, indirect=indirect)
        self.offer()
        self.disk.settle()
        found = zip(segments, addresses, strict=True)
        return [self.memory.read(at, segment.room) for segment, at in found if segment.room]

    def request(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0, **how: Any) -> tuple[int, bytes]:
        """One request, as drivers lay it out; return its status and what was read."""
        header = Segment(struct.pack("<IIQ", kind, 0, sector))
        parts = [Segment(data)] if data else [Segment(room=room)] if room else []
        *read, status = self.submit([header, *parts, Segment(room=1)], **how)
        return status[0], b"".join(read)

    def read_sectors(self, sector: int, count: int = 1) -> bytes:
        status, data = self.request(IN, sector, room=512 * count)
        assert status == OK
        return data

    @property
    def status(self) -> int:
        return self.load(STATUS, 1)
