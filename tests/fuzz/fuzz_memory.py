"""What a guest may leave in its memory for those who look there afterwards: one call an input.

It raises where something was raised that no such input should lead to.
"""

import random
import struct
import zlib
from collections.abc import Callable
from functools import cache

from fuzz_files import volume
from fuzz_inputs import MIB, number, spoiled

from vmm import Machine
from vmm.cpu.registers import Registers
from vmm.debug import efi, secure_boot
from vmm.debug.look import Look
from vmm.debug.option_roms import option_roms
from vmm.tables.in_ram import find_tables, processors

RAM = 16 * MIB
REGISTERS = ("rip", "rsp", "rbp", "rax", "cr2", "cr3", "cs_base", "ss_base")
Point = Callable[[], int]


@cache
def machine() -> Machine:
    """One that stands still."""
    made = Machine("hang", accel="kvm", memory="16M")
    made.run(deadline=0.05)
    return made


def executable(chance: random.Random, at: int) -> bytes:
    """A PE header that gives its own address, with a debug directory."""
    made = bytearray(0x400)
    pe, directory, record = 0x80, 0x200, 0x240
    made[:2] = b"MZ"
    struct.pack_into("<I", made, 0x3C, pe)
    made[pe : pe + 6] = b"PE\0\0\x64\x86"
    struct.pack_into("<H", made, pe + 24, 0x20B)
    struct.pack_into("<Q", made, pe + 48, at)
    struct.pack_into("<I", made, pe + 80, chance.choice((0x1000, 64 * MIB, number(chance, 32))))
    struct.pack_into("<I", made, pe + 24 + 112 + 48, chance.choice((directory, number(chance, 32))))
    struct.pack_into("<III", made, directory + 12, 2, chance.choice((40, number(chance, 32))), record)
    made[record : record + 4] = chance.choice((b"RSDS", b"NB10", b"MTOC"))
    made[record + 24 :] = chance.randbytes(len(made) - record - 24) if chance.randrange(2) else b"/a/b/c.dll" * 20
    return bytes(made)


def terse(chance: random.Random, at: int) -> bytes:
    """A TE header that gives its own address."""
    stripped = chance.choice((40, 0x200, number(chance, 16)))
    base = at - stripped + 40 & (1 << 64) - 1
    head = struct.pack("<2sHBBHIIQ", b"VZ", 0x8664, chance.randrange(34), 11, stripped, 0, 0, base)
    return head + b"".join(number(chance, 32).to_bytes(4, "little") for _ in range(100))


def uefi(chance: random.Random, places: list[int], point: Point) -> list[bytes]:
    """An EFI_SYSTEM_TABLE and what it leads to, one structure a place: most of it right."""

    def lead(at: int) -> bytes:
        return (at if chance.randrange(8) else point()).to_bytes(8, "little")

    def count() -> int:
        return chance.choice((1, 2, 3, 3, number(chance, 32)))

    guid = chance.choice((efi._DEBUG_TABLE, secure_boot._TABLE))
    head = efi._SIGNATURE + struct.pack("<II", 0, 120) + bytes(88)
    system = head + count().to_bytes(8, "little") + lead(places[0] + 120) + guid.bytes_le + lead(places[1])
    if guid == secure_boot._TABLE:
        records = (
            struct.pack("<II", chance.randrange(6), chance.choice((8, 40, number(chance, 32)))) + b"\\\0a\0" * 8
            for _ in range(4)
        )
        return [system, count().to_bytes(8, "little") + b"".join(records)]
    image = (
        bytes(32)
        + lead(places[5])
        + bytes(24)
        + lead(places[6])
        + chance.choice((0x1000, number(chance))).to_bytes(8, "little")
    )
    nodes = b"".join(
        struct.pack("<BBH", *chance.choice(((4, 6, 20), (1, 1, 4), (0x7F, 0, 0)))) + bytes(16) for _ in range(4)
    )
    return [
        system,
        struct.pack("<II", 0, count()) + lead(places[2]),
        lead(places[3]) * 8,
        struct.pack("<Q", chance.choice((1, 1, 1, number(chance, 32)))) + lead(places[4]),
        image,
        nodes,
        executable(chance, places[6]),
    ]


def pointers(point: Point, chance: random.Random) -> bytes:
    """Pointers, counts and kinds of no structure in particular."""
    small = (lambda: number(chance, 32), lambda: chance.randrange(4), point)
    return b"".join((chance.choice(small)() & (1 << 64) - 1).to_bytes(8, "little") for _ in range(64))


def description(xsdt: int) -> bytes:
    """An RSDP, its checksums right."""
    made = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, b"GUEST ", 2, 0, 36, xsdt, 0))
    made[8] = -sum(made[:20]) & 0xFF
    made[32] = -sum(made) & 0xFF
    return bytes(made)


def acpi(point: Point, chance: random.Random) -> bytes:
    """A table of ACPI's, most often with a right checksum."""
    body = pointers(point, chance)[: chance.randrange(512)]
    size = chance.choice((36 + len(body), 36 + len(body), MIB, number(chance, 32)))
    made = bytearray(chance.choice((b"XSDT", b"APIC")) + struct.pack("<I", size) + bytes(28) + body)
    made[9] = -sum(made) & 0xFF
    return bytes(made)


def option_rom(chance: random.Random) -> bytes:
    """One with headers."""
    made = bytearray(0x200)
    made[:3] = b"\x55\xaa" + bytes([chance.randrange(256)])
    struct.pack_into("<HH", made, 0x18, *(chance.choice((0x40, number(chance, 16))) for _ in range(2)))
    made[0x40:0x44] = chance.choice((b"$PnP", b"PCIR"))
    return bytes(made) + chance.randbytes(0x200)


def leftovers(chance: random.Random) -> None:
    """Tables, images and page tables that make no sense, or go round, are looked at, and that takes no long time."""
    memory = machine().memory
    places = [chance.randrange(0x1000, RAM - 0x2000) & -(1 << chance.randrange(3, 13)) for _ in range(16)]
    places += [chance.randrange(1, RAM >> 16) << 16 for _ in range(2)]

    def point() -> int:
        return chance.choice(places) if chance.randrange(4) else number(chance)

    written = []
    for at in places:
        kinds = (
            lambda at=at: executable(chance, at), lambda at=at: terse(chance, at), lambda: volume(chance),
            lambda: pointers(point, chance), lambda: acpi(point, chance),
        )  # fmt: skip
        data = chance.choice(kinds)()[:0x2000]
        written.append((at, spoiled(chance, data)[:0x2000] if chance.randrange(4) == 0 else data))
    written += zip(places, uefi(chance, places, point), strict=False)
    rsdp, xsdt = chance.sample(places[7:], 2)
    written += [(rsdp, description(xsdt)), (xsdt, acpi(point, chance))]
    table = places[0] if chance.randrange(8) else point()
    checked = efi._SIGNATURE + table.to_bytes(8, "little")
    head = checked + struct.pack("<I", zlib.crc32(checked + bytes(8)))
    written.append((chance.choice((4, 8, 12)) * MIB, head))
    written.append((0xC0000 + chance.randrange(64) * 0x800, option_rom(chance)))
    written = [(at, data) for at, data in written if at + len(data) <= 0xA0000 or at >= MIB]
    for at, data in written:
        memory.write(at, data)
    values = dict(machine().registers().values)
    values |= {name: point() for name in REGISTERS}
    values |= {"cr0": chance.choice((0x10, 1, 0x8000_0001)), "cr4": chance.choice((0, 0x10, 0x20, 0x1020))}
    values |= {"efer": chance.choice((0, 0x500)), "cs_attributes": chance.choice((0x9B, 0xC09B, 0xA09B))}
    look = Look(memory, machine().config.firmware)
    read = efi.reader(memory)
    match chance.randrange(8):
        case 0:
            for image in look.images.all(values):
                str(image.as_dict())
        case 1:
            str(look.around()(0, Registers(values), ()))
        case 2 | 3:
            for found in find_tables(memory).values():
                list(processors(found.data))
        case _:
            secure_boot.refusals(read, memory.low_size)
            efi.listed(read, memory.low_size)
            list(option_roms(read))
    for at, data in written:
        memory.write(at, bytes(len(data)))
