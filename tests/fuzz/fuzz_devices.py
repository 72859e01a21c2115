"""What hostile guests and debuggers may try: one function a target, one call an input.

A function raises where something was raised that no such input should lead to.
"""

import random
import struct
from contextlib import suppress
from functools import cache
from typing import Any

from fuzz_inputs import MIB, number, scratch, spoiled
from vmm._native import ffi, lib

from vmm import Machine, MachineConfig
from vmm.bus import Bus
from vmm.debug.monitor import Monitor
from vmm.debug.points import KvmPoints
from vmm.debug.session import Session
from vmm.debug.target import Target
from vmm.devices.fwctl import LOG_LIMIT, Fwctl
from vmm.devices.fwctl_format import OID_LIMIT, VALUE_LIMIT
from vmm.errors import VmmError
from vmm.run import snapshot_plain

ACCESSES = 400


class Hostile:
    """A machine, used as its guest could."""

    def __init__(self, chance: random.Random, board: str) -> None:
        self.chance = chance
        disk = scratch() / "disk.img"
        disk.write_bytes(bytes(MIB))
        options: dict[str, Any] = {"machine": board, "accel": "kvm", "memory": "16M", "cpus": 2}
        options["drives"] = [f"file={disk},format=raw,snapshot=on", f"file={disk},format=raw,readonly=on"]
        if board == "bhyve":
            options["fwcfg"] = chance.choice(("qemu", "bhyve"))
        self.machine = Machine("exit", **options)
        self.devfns = [device << 3 | function for device, function in self.machine.platform.pci.functions()]

    def access(self, bus: Bus, address: int, size: int, value: int | None, count: int = 1) -> None:
        """One access, or a string of them; None reads."""
        data = bytes(size * count) if value is None else value.to_bytes(8, "little")[:size] * count
        buffer = ffi.new("uint8_t[]", data)
        access = ffi.new(
            "struct io_access *",
            {"address": address, "data": buffer, "size": size, "count": count, "is_write": value is not None},
        )
        with self.machine.io_lock:
            lib.io_table_access(bus._table, access)

    def configure(self) -> None:
        """Write to a register of some PCI function."""
        chance, ports = self.chance, self.machine.ports
        register = chance.choice(
            (0x04, 0x10, 0x14, 0x20, 0x24, 0x40, 0x44, 0x58, 0x60, 0x80, 0x84, 0x90, chance.randrange(256))
        )
        address = 0x8000_0000 | chance.choice(self.devfns) << 8 | register & 0xFC
        self.access(ports, 0xCF8, 4, address)
        size = chance.choice((1, 2, 4))
        value = chance.choice((number(chance, 32), 0x2 | chance.getrandbits(12), 0xFE00_0000 | chance.getrandbits(24)))
        self.access(ports, 0xCFC + chance.randrange(4), size, value)

    def step(self) -> None:
        """What a guest might do next."""
        chance, machine = self.chance, self.machine
        if chance.randrange(4) == 0:
            self.configure()
            return
        bus = chance.choice((machine.ports, machine.ports, machine.mmio))
        ranges = bus.ranges()
        if ranges and chance.randrange(8):
            place = chance.choice(ranges)
            address = place.first + chance.randrange(min(place.last - place.first + 1, 1 << chance.randrange(16)))
            address += chance.choice((0, 0, 0, -1, -3))
        else:
            address = number(chance, 16 if bus is machine.ports else 64)
        limit = 1 << 16 if bus is machine.ports else 1 << 64
        size = chance.choice((1, 1, 2, 4) if bus is machine.ports else (1, 2, 4, 8))
        count = chance.randrange(1, 40) if bus is machine.ports and chance.randrange(10) == 0 else 1
        value = number(chance, 8 * size) if chance.randrange(3) else None
        self.access(bus, min(address % limit, limit - size), size, value, count)

    def check(self) -> None:
        """Raise what a device raised."""
        machine = self.machine
        for error in (machine.ports.failure, machine.mmio.failure, machine._lifetime._failure):
            if error is not None:
                raise error


def board(name: str, chance: random.Random) -> None:
    """Ports, MMIO and PCI of a board, its reset and its state."""
    hostile = Hostile(chance, name)
    with hostile.machine as machine:
        for _ in range(ACCESSES):
            hostile.step()
        hostile.check()
        with machine.io_lock:
            state = machine.platform.state()
        snapshot_plain.encode(state)
        if chance.randrange(2):
            machine.reset()
        else:
            with machine.io_lock:
                machine.platform.restore(state)
        for _ in range(ACCESSES // 4):
            hostile.step()
        hostile.check()


@cache
def uefi() -> MachineConfig:
    """Firmware with a variable store."""
    return MachineConfig.create("ovmf", memory="48M", accel="kvm")


def flash(chance: random.Random) -> None:
    """Commands for the flash chip, and its contents afterwards."""
    with Machine(uefi()) as machine:
        chip = machine.platform.flash
        assert chip is not None
        size = len(chip.contents())
        hostile = Hostile.__new__(Hostile)
        hostile.chance, hostile.machine = chance, machine
        place = next((one for one in machine.mmio.ranges() if "flash" in one.name), None)
        assert place is not None
        commands = (0xFF, 0x70, 0x50, 0x90, 0x98, 0x20, 0xD0, 0x40, 0x10, 0xE8, 0xE9, 0xB0, 0x60, 0x01, 0x2F)
        for _ in range(ACCESSES):
            address = place.first + min(number(chance, 20), place.last - place.first - 8)
            width = chance.choice((1, 2, 4, 8))
            value = chance.choice((chance.choice(commands), number(chance, 8 * width)))
            hostile.access(machine.mmio, address, width, value & (1 << 8 * width) - 1 if chance.randrange(4) else None)
        hostile.check()
        assert len(chip.contents()) == size


def fwctl(chance: random.Random) -> None:
    """Messages of any size and order; what is kept of them has its bounds."""
    device = Fwctl(extensions=bool(chance.randrange(2)))
    device.register("hw.ncpu", 3)
    device.register("text", "hello")
    device.register("most", lambda: bytes(chance.choice((0, VALUE_LIMIT, VALUE_LIMIT + 1))))
    device.register("written", b"", setter=lambda _: None)
    names = (b"hw.ncpu\0", b"text\0", b"most\0", b"written\0", b"", b"\xff" * 100, b"hw")
    for _ in range(200):
        match chance.randrange(5):
            case 0:
                device.write(0, 2, 0)
                for _ in range(4):
                    device.read(1, 1)
            case 1 | 2:
                operation = chance.choice((1, 2, 3, 4, 5, number(chance, 32)))
                payload = chance.choice(names) + chance.randbytes(chance.choice((0, 0, 8, 100, 5000)))
                size = chance.choice((12 + len(payload), number(chance, 32)))
                data = struct.pack("<III", size, operation, number(chance, 32)) + payload
                for at in range(0, len(data), 4):
                    device.write(0, 4, int.from_bytes(data[at : at + 4], "little"))
            case 3:
                for _ in range(chance.randrange(1200)):
                    device.read(0, 4)
            case _:
                device.write(chance.randrange(2), chance.choice((1, 2, 4, 8)), number(chance))
                device.read(chance.randrange(2), chance.choice((1, 2, 4, 8)))
        assert len(device._request.payload) <= OID_LIMIT + 8 + VALUE_LIMIT + 4
        assert len(device._response) <= VALUE_LIMIT + 64
        assert len(device.requests) <= LOG_LIMIT
    state = device.state()
    snapshot_plain.encode(state)
    device.restore(state)


@cache
def debuggee() -> Machine:
    """A machine that stands still."""
    machine = Machine("hang", accel="kvm", memory="16M", cpus=2)
    machine.run(deadline=0.05)
    return machine


def gdb(chance: random.Random) -> None:
    """Packets: what debuggers say, spoiled."""
    machine = debuggee()
    target = Target(machine.vcpus, machine._processors.cores, machine.memory)
    points = KvmPoints(target, interprets=False)
    monitor = Monitor(machine, target)
    wanted: list[Any] = []
    session = Session(target, wanted, points.check, lambda _: chance.choice((16, 32, 64)), monitor.run)
    said = [
        b"qSupported:swbreak+", b"qXfer:features:read:target.xml:0,fff", b"qXfer:threads:read::0,fff", b"Hg1", b"Hc2",
        b"g", b"p10", b"P10=00", b"G" + b"00" * 560, b"m0,100", b"M1000,2:1234", b"X1000,4:abcd", b"Z0,1000,1",
        b"Z1,ffff,1", b"Z2,1000,8", b"z0,1000,1", b"vCont;c", b"vCont;s:1;c", b"s", b"T1", b"?", b"qC", b"D", b"k",
        b"qRcmd," + b"translate 0xfff0".hex().encode(), b"qRcmd," + b"registers 1".hex().encode(),
        b"qRcmd," + b"fw_cfg etc/e820".hex().encode(), b"qRcmd," + b"trace".hex().encode(), b"Qqemu.PhyMemMode:1",
    ]  # fmt: skip
    for _ in range(60):
        packet = chance.choice(said)
        session.answer(packet if chance.randrange(3) == 0 else spoiled(chance, packet))
    with suppress(VmmError):
        points.arm(wanted, ())
    points.disarm()
    machine.reset()
