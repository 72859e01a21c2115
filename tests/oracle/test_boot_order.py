"""fw_cfg's bootorder beside QEMU's, for the same disks: byte for byte."""

from collections.abc import Callable
from pathlib import Path

import pytest
from qemu_qtest import Qemu

from vmm.firmware import guests
from vmm.machine import Machine
from vmm.tables.boot_order import HOST_BRIDGE_PATH
from vmm.vhost.backend import NETWORK, VhostDevice

pytestmark = pytest.mark.needs_kvm

DISKS = {"a": (3, 20), "b": (0x1E, 1), "c": (5, None), "d": (0xA, 0)}
"""PCI device number and boot index."""


@pytest.mark.parametrize("board", ["pc", "q35"])
@pytest.mark.parametrize("strict", ["off", "on"])
def test_the_same_disks(vmm_machine: Callable[..., Machine], tmp_path: Path, board: str, strict: str) -> None:
    drives, devices = [], []
    for name, (slot, index) in DISKS.items():
        image = tmp_path / f"{name}.img"
        image.write_bytes(bytes(512))
        drives.append(f"if=none,id={name},format=raw,file={image}")
        at = "" if index is None else f",bootindex={index}"
        devices.append(f"virtio-blk-pci,drive={name},addr={slot:#x}{at}")
    boot = f"strict={strict}"
    rom = guests.report("report.bin")
    roms = [f"romfile={rom},bootindex=10"]
    arguments = ["-boot", boot, "-option-rom", roms[0]]
    for drive, device in zip(drives, devices, strict=True):
        arguments += ["-drive", f"{drive},file.locking=off", "-device", device]
    with Qemu(tmp_path, 32 << 20, arguments, machine=board) as qemu:
        key, size = qemu.files()["bootorder"]
        theirs = qemu.item(key, size)
    with vmm_machine("probe", machine=board, drives=drives, devices=devices, boot=boot, option_roms=roms) as machine:
        assert machine.fw_cfg is not None
        ours = machine.fw_cfg.contents("bootorder")
        assert bytes(machine.fw_cfg.contents("genroms/report.bin")) == rom.read_bytes()
    assert bytes(ours) == theirs
    assert theirs.split(b"\n")[2] == b"/rom@genroms/report.bin"


def test_a_network_card(tmp_path: Path) -> None:
    device = "virtio-net-pci,netdev=n,addr=0x12,bootindex=0,romfile="
    with Qemu(tmp_path, 32 << 20, ["-netdev", "hubport,id=n,hubid=0", "-device", device], machine="q35") as qemu:
        key, size = qemu.files()["bootorder"]
        theirs = qemu.item(key, size)
    card = VhostDevice("card", tmp_path, NETWORK)
    assert f"{HOST_BRIDGE_PATH}/{card.node.format(slot=0x12)}\0".encode() == theirs
