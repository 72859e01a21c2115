"""Our disk beside QEMU's virtio-blk-pci with disable-legacy=on: the same to a driver, the same locks on the image."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian import version
from qemu_qtest import Qemu
from virtio_rig import CONFIG_WCE, F_DISCARD, REGISTERS, VirtioRig

from vmm.disks.drives import Drive
from vmm.disks.image import DiskImage
from vmm.errors import ConfigError

SLOT = 3
SIZE = 16 << 20
COMMON = (0x10, 0x12, 0x16, 0x18, 0x1A, 0x1C, 0x1E)
"""Registers of 16 bits: vector, number of queues; queue selected, its size, vector, whether enabled, notify offset."""

OFFER_QUEUE_RESET = 40
"""VIRTIO_F_RING_RESET, of QEMU since 7.2."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


@pytest.fixture
def qemu(tmp_path: Path, image: Path) -> Iterator[Qemu]:
    drive = f"if=none,id=d0,format=raw,file={image},file.locking=off"
    device = f"virtio-blk-pci,drive=d0,disable-legacy=on,addr={SLOT},num-queues=1"
    with Qemu(tmp_path, 32 << 20, ["-drive", drive, "-device", device], machine="q35") as opened:
        yield opened


def theirs(qemu: Qemu, register: int, size: int = 4) -> int:
    letter = {1: "b", 2: "w", 4: "l"}[size]
    address = 1 << 31 | SLOT << 11 | register & 0xFC
    return int(qemu.commands([f"outl 0xcf8 {address:#x}", f"in{letter} {0xCFC + (register & 3):#x}"])[1], 16)


def place(qemu: Qemu) -> None:
    for register, value in ((0x20, REGISTERS), (0x24, 0), (4, 6)):
        address = 1 << 31 | SLOT << 11 | register
        qemu.commands([f"outl 0xcf8 {address:#x}", f"outl 0xcfc {value:#x}"])


def test_the_same_configuration_space(qemu: Qemu, image: Path) -> None:
    with VirtioRig(image) as disk:
        mine = [disk.config_read(register) for register in range(0, 256, 4)]
    assert mine == [theirs(qemu, register) for register in range(0, 256, 4)]


def test_the_same_features_and_configuration(qemu: Qemu, image: Path) -> None:
    place(qemu)
    words = []
    for select in (0, 1):
        qemu.commands([f"writel {REGISTERS:#x} {select}"])
        words.append(int(qemu.commands([f"readl {REGISTERS + 4:#x}"])[0], 16))
    offered = words[0] | words[1] << 32
    with VirtioRig(image) as disk:
        disk.place()
        # Without discard=unmap, QEMU takes discards and does nothing.
        mine = disk.offered()
        known = 1 << OFFER_QUEUE_RESET | 1 << F_DISCARD
        assert offered & ~known == mine, hex(offered ^ mine)
        assert mine >> CONFIG_WCE & 1
        config = [disk.load(REGISTERS + 0x2000 + at, 4) for at in range(0, 56, 4)]
        registers = [disk.load(REGISTERS + at, 2) for at in COMMON]
    theirs_now = [int(qemu.commands([f"readw {REGISTERS + at:#x}"])[0], 16) for at in COMMON]
    # QEMU 7.2's queues have 256 entries at the most, as ours, and QEMU 10.0's 1024.
    at_most = 256 if version("qemu-system-x86") < (10, 0) else 1024
    assert [*registers[:3], at_most, *registers[4:]] == theirs_now
    assert registers[3] == 256
    their_config = [int(qemu.commands([f"readl {REGISTERS + 0x2000 + at:#x}"])[0], 16) for at in range(0, 56, 4)]
    assert config == their_config


READER = {"read_only": True}
SNAPSHOT = {"snapshot": True}
WRITER: dict[str, bool] = {}


@pytest.mark.parametrize(
    ("readonly", "ours", "refused"),
    [
        pytest.param("on", READER, None, id="two readers"),
        pytest.param("on", SNAPSHOT, None, id="a reader and an overlay"),
        pytest.param("on", WRITER, "uses it", id="a reader and a writer"),
        pytest.param("off", READER, "writes to it", id="a writer and a reader"),
        pytest.param("off", SNAPSHOT, "writes to it", id="a writer and an overlay"),
        pytest.param("off", WRITER, "uses it", id="two writers"),
    ],
)
def test_an_image_that_qemu_has(
    tmp_path: Path, image: Path, readonly: str, ours: dict[str, bool], refused: str | None
) -> None:
    arguments = ["-drive", f"if=virtio,format=raw,file={image},readonly={readonly}"]
    drive = Drive(image, **ours)  # type: ignore[arg-type]  # of flags alone
    with Qemu(tmp_path, 32 << 20, arguments):
        if refused is None:
            DiskImage(drive).close()
        else:
            with pytest.raises(ConfigError, match=rf"process \d+ \(qemu-system-\S*\) {refused}; end it first"):
                DiskImage(drive)
    DiskImage(drive).close()


@pytest.mark.parametrize(
    ("readonly", "ours", "lock"),
    [
        pytest.param("on", READER, None, id="two readers"),
        pytest.param("off", READER, "write", id="a reader and a writer"),
        pytest.param("on", WRITER, "write", id="a writer and a reader"),
        pytest.param("off", WRITER, "write", id="two writers"),
    ],
)
def test_qemu_finds_our_locks(image: Path, readonly: str, ours: dict[str, bool], lock: str | None) -> None:
    command = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"]
    command += ["-drive", f"if=virtio,format=raw,file={image},readonly={readonly}"]
    with DiskImage(Drive(image, **ours)):  # type: ignore[arg-type]  # of flags alone
        script = '{"execute": "qmp_capabilities"}{"execute": "quit"}'
        ended = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode == 0) == (lock is None), ended.stderr
    if lock is not None:
        assert "lock" in ended.stderr
        assert "Is another process using the image" in ended.stderr
