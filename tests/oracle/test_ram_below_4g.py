"""Where RAM is cut below 4 GiB: etc/e820 and CMOS beside those of Debian's QEMU."""

from pathlib import Path

import pytest
from qemu_qtest import Qemu

from vmm.config.machine import MachineConfig
from vmm.tables import e820
from vmm.tables.e820 import E820Type

GIB = 1 << 30
SIZES = ["2815M", "2816M", "3071M", "3072M", "3583M", "3584M", "6G"]


def of_qemu(directory: Path, machine: str, memory: int) -> list[tuple[int, int]]:
    """Base and length of each range of RAM. The file behind it is sparse."""
    with Qemu(directory, memory, machine=machine) as qemu:
        key, size = qemu.files()["etc/e820"]
        entries = e820.decode(qemu.item(key, size))
        qemu.commands(["outb 0x70 0x34"])
        cmos = int(qemu.commands(["inb 0x71"])[0], 16)
        qemu.commands(["outb 0x70 0x35"])
        cmos |= int(qemu.commands(["inb 0x71"])[0], 16) << 8
    ram = [(entry.base, entry.length) for entry in entries if entry.type == E820Type.RAM]
    assert ram[0][1] == cmos * 65536 + (16 << 20)
    return ram


@pytest.mark.parametrize("keys", ["", ",max-ram-below-4g=3G", ",max-ram-below-4g=1G", ",max-ram-below-4g=1280M"])
@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_as_qemu_cuts_it(tmp_path: Path, machine: str, keys: str) -> None:
    most = keys.partition("max-ram-below-4g=")[2] or None
    for number, size in enumerate(SIZES):
        ours = MachineConfig.create("probe", machine=machine, memory=size, max_ram_below_4g=most)
        ranges = [(0, ours.low_memory), (4 * GIB, ours.memory - ours.low_memory)]
        (tmp_path / str(number)).mkdir()
        theirs = of_qemu(tmp_path / str(number), machine + keys, ours.memory)
        assert [each for each in ranges if each[1]] == theirs, size
