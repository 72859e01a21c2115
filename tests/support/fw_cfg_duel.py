"""The same random accesses for Debian's QEMU and for our device, compared step by step.

Both have the same items and the same memory map: RAM with ROM at 768 KiB (a
machine without a display has no hole for one), nothing from the end of RAM on. Our side goes first, for it tells
which key and offset are current; QEMU then gets the same accesses in one batch.
"""

import random
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fw_cfg_rig import READ, SELECT, SKIP, WRITE, Rig
from qemu_qtest import Qemu, in_command, out_command

if TYPE_CHECKING:
    from collections.abc import Callable

MEMORY = 4 << 20
ROM = 0xC0000
LOW_END = ROM
HIGH = 0x100000

QEMU_ARGUMENTS = (
    *("-device", "vmcoreinfo", "-device", "vmgenid"),
    *("-fw_cfg", "opt/test/one,string=x", "-fw_cfg", "opt/test/text,string=The quick brown fox"),
)
"""Two writable files, of 16 and 8 bytes, and two of the user's."""

WRITABLE = ("etc/vmcoreinfo", "etc/vmgenid_addr")

DIRECTORY = 0x19

FIXED_KEYS = {0x02: 16, 0x03: 8, 0x04: 2, 0x05: 2, 0x0D: 16, 0x0E: 2, 0x0F: 2, 0x8002: 4, 0x8004: 121}

HUGE = (0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
LONGEST_HOLE = 4096
"""QEMU walks through unassigned memory a few bytes at a time."""

STEPS_PER_COMPARISON = 60


@dataclass
class Difference:
    """One access whose outcome differs, and what led to it."""

    access: str
    qemu: str
    ours: str


@dataclass
class Score:
    """What a duel came to."""

    accesses: int = 0
    dma: int = 0
    resets: int = 0
    clobbered_writes: int = 0
    """Times that QEMU overwrote a writable item from an unreadable source, and we did not: the known exception."""
    differences: list[Difference] = field(default_factory=list)


class Duel:
    """Args: a started `Qemu` with QEMU_ARGUMENTS and MEMORY; the seed of everything random; whether our writes wait."""

    def __init__(self, qemu: Qemu, seed: int, *, coalesced: bool = False) -> None:
        self.qemu = qemu
        self.random = random.Random(seed)
        self.score = Score()
        self.files = qemu.files()
        self.rig = Rig(ram_size=LOW_END, coalesced=coalesced)
        self.rig.add_memory(ROM, HIGH - ROM, read_only=True)[:] = qemu.read(ROM, HIGH - ROM)
        self.high = self.rig.add_memory(HIGH, MEMORY - HIGH)
        self._add_items()
        self.rig.start()
        qemu.commands(["outw 0x510 0x0", out_command(0x514, 4, 0)])
        self._batch: list[tuple[str, str]] = []
        """QEMU's command and our answer."""
        noise = self.random.randbytes(MEMORY)
        qemu.ram[:] = noise
        self.rig.ram[:] = noise[:LOW_END]
        self.high[:] = noise[HIGH:]

    def _add_items(self) -> None:
        device = self.rig.device
        for key, size in FIXED_KEYS.items():
            device.add_item(key, self.qemu.item(key, size))
        self.sizes = {0: 4, 1: 4, DIRECTORY: 4 + 64 * len(self.files), **FIXED_KEYS}
        for name, (key, size) in self.files.items():
            device.add_file(name, self.qemu.item(key, size), writable=name in WRITABLE)
            self.sizes[key] = size
        self.writable_keys = {self.files[name][0]: name for name in WRITABLE}

    # -- one access on our side, noted for QEMU ---------------------------------------------------------------------

    def _in(self, port: int, size: int, count: int = 1) -> None:
        data = self.rig.inp(port, size, count)
        for at in range(0, size * count, size):
            answer = int.from_bytes(data[at : at + size], "little")
            self._batch.append((in_command(port, size), f"{answer:#x}"))

    def _out(self, port: int, size: int, value: int) -> None:
        self.rig.out(port, value, size)
        self._batch.append((out_command(port, size, value), ""))

    def _big_endian_out(self, port: int, value: int) -> None:
        self._out(port, 4, int.from_bytes(struct.pack(">I", value), "little"))

    def _poke(self, gpa: int, data: bytes) -> None:
        """Store into RAM on both sides; QEMU's must wait until what it still has to do is done."""
        assert gpa + len(data) <= LOW_END or HIGH <= gpa <= MEMORY - len(data)
        self.flush()
        self.qemu.ram[gpa : gpa + len(data)] = data
        if gpa < LOW_END:
            self.rig.poke(gpa, data)
        else:
            self.high[gpa - HIGH : gpa - HIGH + len(data)] = data

    # -- comparison -------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Let QEMU do the batch, and compare its answers."""
        batch, self._batch = self._batch, []
        self.score.accesses += len(batch)
        for (command, ours), reply in zip(batch, self.qemu.commands(command for command, _ in batch), strict=True):
            if ours and int(reply, 16) != int(ours, 16):
                self.score.differences.append(Difference(command, reply, ours))

    def compare_memory(self) -> None:
        """All RAM, byte by byte."""
        self.flush()
        sides = ((0, LOW_END, self.rig.ram), (HIGH, MEMORY, self.high))
        for first, last, ours in sides:
            theirs = self.qemu.ram[first:last]
            if theirs != bytes(ours):
                at = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
                self.score.differences.append(
                    Difference(f"RAM at {first + at:#x}", theirs[at : at + 16].hex(), bytes(ours[at : at + 16]).hex())
                )

    # -- random accesses --------------------------------------------------------------------------------------------

    def run(self, accesses: int) -> Score:
        """Go on until so many port accesses were compared, or something differs."""
        steps: list[tuple[float, Callable[[], None]]] = [
            (30, self._select),
            (25, self._read_data),
            (15, self._odd_read),
            (10, self._odd_write),
            (40, self._dma),
            (1, self._lost_dma),
            (0.05, self._reset),
        ]
        weights = [weight for weight, _ in steps]
        while self.score.accesses < accesses and not self.score.differences:
            for _, step in self.random.choices(steps, weights, k=STEPS_PER_COMPARISON):
                step()
            self.compare_memory()
        return self.score

    def _key(self) -> int:
        pick = self.random.random()
        if pick < 0.8:
            key = self.random.choice(list(self.sizes))
        elif pick < 0.9:
            key = self.random.randrange(0x40) | self.random.choice((0, 0x8000))
        else:
            key = self.random.randrange(0x10000)
        return key ^ (0x4000 if self.random.random() < 0.1 else 0)

    def _left(self, key: int | None) -> int:
        """Bytes of the item that a transfer would begin with; key: what it selects first."""
        native = self.rig.settled()
        if key is not None:
            return self.sizes.get(key & ~0x4000, 0)
        return self.sizes.get(native.key, 0) - native.offset if native.key in self.sizes else 0

    def _select(self) -> None:
        self._out(0x510, 2, self._key())

    def _read_data(self) -> None:
        self._in(0x511, 1, self.random.choice((1, 1, 2, 4, 5, 16, 40)))

    def _odd_read(self) -> None:
        self._in(self.random.randrange(0x50D, 0x51F), self.random.choice((1, 2, 4)), self.random.choice((1, 1, 3)))

    def _odd_write(self) -> None:
        port, size = self.random.randrange(0x50D, 0x51F), self.random.choice((1, 2, 4))
        if (port, size) == (0x518, 4):
            self._lost_dma()
        else:
            self._out(port, size, self.random.randrange(1 << (8 * size)))

    def _lost_dma(self) -> None:
        """A descriptor where no memory is."""
        high = self.random.choice((0, 0, 1, self.random.randrange(1 << 32)))
        self._big_endian_out(0x514, high)
        self._big_endian_out(0x518, self.random.randrange(MEMORY, 0xE0000000))

    def _reset(self) -> None:
        """Reset both; the latched high half, which QEMU keeps, is written afresh: the known exception."""
        self.flush()
        self.qemu.reset()
        self.rig.device.reset()
        self.score.resets += 1
        self._big_endian_out(0x514, 0)

    def _ram_address(self, size: int) -> int:
        first, last = self.random.choice(((0, LOW_END), (HIGH, MEMORY)))
        return self.random.randrange(first, last - size)

    def _data_address(self, length: int) -> int:
        near = self.random.randrange(-length - 8, 9)
        return self.random.choice(
            (
                *[self._ram_address(min(length, LOW_END - 1))] * 12,
                *(LOW_END + near, HIGH + near, MEMORY + near),
                self.random.randrange(ROM, HIGH - LONGEST_HOLE),
                self.random.randrange(MEMORY, 0x80000000),
                (1 << 64) + min(near, -1),
                (1 << 32) + self.random.randrange(1 << 20),
            )
        ) % (1 << 64)

    def _descriptor_address(self) -> int:
        near = self.random.randrange(-24, 0)
        return self.random.choice(
            (*[self._ram_address(16)] * 10, self._ram_address(16) & ~15, LOW_END + near, MEMORY + near)
        )

    def _readable(self, gpa: int, length: int) -> bool:
        return gpa + length <= MEMORY

    def _length(self, left: int) -> int:
        return self.random.choice(
            (0, 1, left, max(left - 1, 0), left + 1, left + self.random.randrange(300), self.random.randrange(left + 9))
        )

    def _dma(self) -> None:
        operation = self.random.choice((0, READ, READ, READ, SKIP, WRITE, WRITE, self.random.randrange(32)))
        control = operation | self.random.choice((0, 0, 1)) | self.random.choice((0, 0, SELECT, SELECT))
        control |= self.random.choice((0, 0, 0, self.random.randrange(0x800) << 5))
        key = self._key() if self.random.random() < 0.7 else self.random.choice(list(self.writable_keys))
        left = self._left(key if control & SELECT else None)
        length = self._length(left)
        address = self._data_address(min(length, 2 * LONGEST_HOLE))
        selected = key & ~0x4000 if control & SELECT else self.rig.settled().key
        if selected == DIRECTORY:
            # QEMU's is longer: zeros up to its slot limit, the known exception.
            length = min(length, left)
        if control & READ:
            if not self._in_ram(address, length) and (length - left > LONGEST_HOLE or length > 140000):
                length = min(length, self.random.randrange(LONGEST_HOLE))
            if left > 0 and MEMORY <= address < 0x80000000 and self.random.random() < 0.3:
                length = self.random.choice(HUGE)  # fails in the item's part, so that no zeros are stored
        elif self.random.random() < 0.1:
            length = self.random.choice(HUGE)
        at = self._descriptor_address()
        in_ram = 16 if at < MEMORY - 15 and at >= HIGH else min(16, max(LOW_END - at, 0))
        if in_ram < 16:
            length = min(length, LONGEST_HOLE)
        descriptor = struct.pack(">IIQ", control | (key << 16), length, address)[:in_ram]
        if descriptor:
            self._poke(at, descriptor)
            # Behind the end of low RAM is ROM, which reads as zeros there.
            control, length, address = struct.unpack(">IIQ", descriptor.ljust(16, b"\0"))
            key = control >> 16
            control &= 0xFFFF
        self.score.dma += 1
        before = self.rig.settled().key
        self._big_endian_out(0x514, at >> 32)
        self._big_endian_out(0x518, at)
        current = key & ~0x4000 if control & SELECT else before
        if (
            descriptor
            and control & (READ | WRITE) == WRITE
            and current in self.writable_keys
            and 0 < length <= left
            and not self._readable(address, length)
        ):
            self.score.clobbered_writes += 1
            self._restore(current)

    @staticmethod
    def _in_ram(address: int, length: int) -> bool:
        return address + length <= LOW_END or HIGH <= address <= MEMORY - length

    def _restore(self, key: int) -> None:
        """Write what we kept, and QEMU did not, into the item on both sides."""
        contents = self.rig.device.contents(self.writable_keys[key])
        self._poke(0x8000, contents)
        self._poke(0x9000, struct.pack(">IIQ", key << 16 | SELECT | WRITE, len(contents), 0x8000))
        self._big_endian_out(0x514, 0)
        self._big_endian_out(0x518, 0x9000)
