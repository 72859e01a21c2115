"""SMBIOS, byte for byte as Debian's QEMU builds it from the same options, whatever these are.

What differs on purpose is taken out of both sides in `comparable`, with the reason.
"""

import os
import random
from pathlib import Path

import pytest
from qemu_qtest import Qemu

from vmm.config.machine import MachineConfig
from vmm.devices.fw_cfg_format import Key
from vmm.tables.files import SMBIOS_ANCHOR_FILE, SMBIOS_FILE
from vmm.tables.smbios import SmbiosDescription, build_smbios
from vmm.tables.smbios_options import DEVICE_KINDS, FIELDS, SmbiosOption, check_together, split_structures

GIB = 1 << 30
MEMORIES = {64 << 20: (64 << 20, 0), 5 * GIB: (3 * GIB, 2 * GIB), 33 * GIB: (3 * GIB, 30 * GIB)}
"""Bytes of RAM: below QEMU's PCI hole, which is not ours, and from 4 GiB on. The file behind it is sparse."""

SEEDS = 24

ALWAYS_GIVEN = {
    1: ("manufacturer", "product", "version"),
    2: ("manufacturer", "product", "version"),
    3: ("manufacturer", "version"),
    4: ("manufacturer", "version", "max-speed", "current-speed", "processor-id"),
    17: ("manufacturer",),
    0: ("vendor", "version", "date", "uefi"),
}
"""Where QEMU says what it is by default: itself, its boards, its processor with 2000 MHz.

All types have options, for QEMU leaves 0 and 2 to firmware where no option is about them.
"""


class Options:
    """Random ``-smbios`` options; their texts have all that a command line can carry."""

    def __init__(self, seed: int, directory: Path) -> None:
        self._random = random.Random(seed)
        self._directory = directory

    def text(self) -> str:
        letters = "aZ09 .,;:=/\\'\"%$üß仮機" + os.fsdecode(b"\xff\x80\x01\n\t")
        return "".join(self._random.choices(letters, k=self._random.choice([0, 1, 5, 30, 200])))

    def value(self, number: int, key: str) -> str:
        kind = FIELDS[number][key]
        if isinstance(kind, int):
            # QEMU leaves a processor id of 0 out.
            number = self._random.choice([1, kind, self._random.randint(1, kind)])
            return self._random.choice([str(number), hex(number)])
        if isinstance(kind, tuple):
            return self._random.choice(DEVICE_KINDS)
        if kind == "switch":
            return self._random.choice(["on", "off"])
        if kind == "uuid":
            digits = self._random.randbytes(16).hex()
            return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
        if kind == "release":
            return f"{self._random.randint(0, 255)}.{self._random.randint(0, 255)}"
        if key == "path":
            path = self._directory / f"text-{self._random.getrandbits(64)}"
            path.write_bytes(os.fsencode(self.text()) * self._random.choice([1, 50]))
            return str(path)
        # QEMU cuts a prefix and its number off after 127 bytes, after which all sockets may be called the same.
        return self.text()[:40] if key in {"sock_pfx", "loc_pfx"} else self.text()

    def option(self, number: int) -> str:
        always = ALWAYS_GIVEN.get(number, ())
        keys = [key for key in FIELDS[number] if key in always or self._random.random() < 0.5]
        if number == 11:
            keys = self._random.choices(["value", "path"], k=self._random.randint(1, 5))
        self._random.shuffle(keys)
        parts = [f"{key}={self.value(number, key).replace(',', ',,')}" for key in keys]
        return ",".join([f"type={number}", *parts])

    def all(self) -> list[str]:
        """One option of each type, more of some; files of structures for other types."""
        # Of types 0, 4 and 17 QEMU forgets the numbers that an earlier option gave.
        numbers = [*FIELDS, *self._random.choices([1, 2, 3, 8, 11, 41], k=self._random.randint(0, 8))]
        texts = [self.option(number) for number in numbers]
        for kind in range(130, 130 + self._random.randint(0, 3)):
            path = self._directory / f"structure-{kind}"
            area = self._random.randbytes(self._random.randint(0, 40))
            path.write_bytes(bytes([kind, 4 + len(area), kind, kind]) + area + b"text\0\0")
            texts.append(f"file={path}")
        self._random.shuffle(texts)
        return texts


def of_qemu(directory: Path, arguments: list[str], memory: int, entry_point: int) -> dict[str, bytes]:
    options = [word for text in arguments for word in ("-smbios", text)]
    # By its version: newer ones make memory devices larger than 16 GiB.
    machine = f"pc-i440fx-7.2,smbios-entry-point-type={entry_point}"
    with Qemu(directory, memory, options, machine=machine) as qemu:
        files = qemu.files()
        return {name: qemu.item(*files[name]) for name in (SMBIOS_ANCHOR_FILE, SMBIOS_FILE)}


def of_ours(arguments: list[str], memory: int, entry_point: int) -> dict[str, bytes]:
    options = tuple(map(SmbiosOption.parse, arguments))
    check_together(options)
    version = (3, 0) if entry_point == 64 else (2, 8)
    return build_smbios(SmbiosDescription(*MEMORIES[memory], version=version, options=options))


def test_the_uuid_is_the_machines_too(tmp_path: Path) -> None:
    text = "type=1,uuid=4600cb32-38ec-4b2f-8acb-81c6ea54f2d8"
    ours = MachineConfig.create("probe", smbios=text).uuid
    with Qemu(tmp_path, 64 << 20, ["-smbios", text]) as qemu:
        assert qemu.item(Key.UUID, 16) == ours


def comparable(tables: bytes) -> list[bytes]:
    structures = []
    for structure in split_structures(tables):
        data = bytearray(structure)
        if data[0] == 4:
            # QEMU says "unknown" of what a processor can do, here is what is known: 64 bits, cores, threads.
            data[0x26:0x28] = bytes(2)
            # The family: "other"; QEMU 10.0 says "see family 2", which is "other".
            assert data[0x06] in {0x01, 0xFE}
            data[0x06] = 0x01
        if data[0] == 8:
            # QEMU gives it the handles of types 0 and 1, so that there are two of each; here it has its own.
            assert data[3] in {0, 8}
            data[3] = 0
        structures.append(bytes(data))
    return structures


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_options(tmp_path: Path, seed: int) -> None:
    options = Options(seed, tmp_path).all()
    machine = random.Random(seed)
    memory, entry_point = machine.choice(list(MEMORIES)), machine.choice([32, 64])
    ours, theirs = of_ours(options, memory, entry_point), of_qemu(tmp_path, options, memory, entry_point)
    assert comparable(ours[SMBIOS_FILE]) == comparable(theirs[SMBIOS_FILE])
    assert ours[SMBIOS_ANCHOR_FILE] == theirs[SMBIOS_ANCHOR_FILE]
