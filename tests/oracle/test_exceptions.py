"""Where we differ from QEMU on purpose: each difference once, by name, with both sides shown."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from fw_cfg_rig import BUFFER, DESCRIPTOR, ERROR, READ, SELECT, WRITE, Rig
from qemu_qtest import Qemu, QemuSide

pytestmark = pytest.mark.usefixtures("each_qemu")

MEMORY = 4 << 20
VMCOREINFO = bytes.fromhex("0100 0000 00000000 0000000000000000")


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[QemuSide]:
    with Qemu(tmp_path, MEMORY, ["-device", "vmcoreinfo"]) as process:
        yield QemuSide(process)


def test_write_from_an_unreadable_source_leaves_the_item_alone(qemu: QemuSide) -> None:
    """QEMU reports the error and still overwrites the item, with zeros for what it could not read."""
    key, size = qemu.qemu.files()["etc/vmcoreinfo"]
    assert qemu.qemu.item(key, size) == VMCOREINFO
    assert qemu.dma(key << 16 | SELECT | WRITE, size, MEMORY + 0x1000) == ERROR
    assert qemu.qemu.item(key, size) == bytes(16)

    rig = Rig()
    rig.device.add_file("etc/vmcoreinfo", VMCOREINFO, writable=True)
    rig.start()
    assert rig.dma(0x20 << 16 | SELECT | WRITE, size, MEMORY + 0x1000) == ERROR
    assert rig.device.contents("etc/vmcoreinfo") == VMCOREINFO


def test_reset_forgets_the_high_half_of_the_dma_address(qemu: QemuSide) -> None:
    """QEMU keeps it: the next guest's first 32-bit trigger goes to an address of the last one's."""
    descriptor = struct.pack(">IIQ", SELECT | READ, 4, BUFFER)
    qemu.out(0x514, 4, struct.pack(">I", 1))
    qemu.qemu.reset()
    qemu.qemu.ram[DESCRIPTOR : DESCRIPTOR + 16] = descriptor
    qemu.trigger(DESCRIPTOR, high=False)
    assert qemu.qemu.ram[DESCRIPTOR : DESCRIPTOR + 16] == descriptor

    rig = Rig().start()
    rig.outs(0x514, 4, struct.pack(">I", 1))
    rig.device.reset()
    rig.poke(DESCRIPTOR, descriptor)
    rig.outs(0x518, 4, struct.pack(">I", DESCRIPTOR))
    assert rig.peek(DESCRIPTOR, 4) == bytes(4)
    assert rig.peek(BUFFER, 4) == b"QEMU"


def test_directory_is_as_long_as_its_files(qemu: QemuSide) -> None:
    """QEMU's always has room for its 32 slots: what lies behind its files can be told from behind the item's end."""
    files = qemu.qemu.files()
    used = 4 + 64 * len(files)
    beyond = MEMORY - used  # the last used byte is the last of RAM
    qemu.qemu.ram[beyond:] = b"\xaa" * used
    assert qemu.dma(0x19 << 16 | SELECT | READ, used + 1, beyond) == ERROR

    rig = Rig()
    for name in files:
        rig.device.add_file(name, b"")
    rig.start()
    assert [item.size for item in rig.device.items() if item.key == 0x19] == [used]


def test_more_files_than_qemu_has_slots(tmp_path: Path) -> None:
    names = [f"opt/test/{number}" for number in range(40)]
    options = [word for name in names for word in ("-fw_cfg", f"{name},string=x")]
    with pytest.raises((OSError, ValueError)), Qemu(tmp_path, MEMORY, options):
        pass

    rig = Rig()
    for name in names:
        rig.device.add_file(name, b"x")
    rig.start()
    rig.select(rig.device.key_of(names[-1]))
    assert rig.inp(0x511, 1, 2) == b"x\0"
