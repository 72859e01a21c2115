"""Disks boot in the order of their boot indices, and -boot does with disks what it says."""

import itertools
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import debian
import pytest

from vmm.config.machine import MachineConfig
from vmm.disks.drives import Drive
from vmm.firmware import guests
from vmm.machine import Machine
from vmm.run.outcome import Reason
from vmm.verify.run import verify

pytestmark = pytest.mark.needs_kvm

DEADLINE = 60.0
FIRST_SLOT = 4

ORDERS = tuple(itertools.permutations(range(3)))
"""Boot indices of three disks."""

UEFI_ORDERS = [
    pytest.param(firmware, order, id=f"{name}-{order}")
    for turn, (name, firmware) in enumerate({"installed": "ovmf", "fetched": "ovmf-trixie"}.items())
    for order in (ORDERS if "VMM_ALL_ORDERS" in os.environ else ORDERS[turn::2])
]
"""Each version of OVMF boots half of them, as a boot takes seconds; with VMM_ALL_ORDERS all."""

READ_ALL = """
31 c0 8e d8 8e c0            xor ax, ax; mov ds, ax; mov es, ax
b2 80                        mov dl, 0x80
52                     next: push dx
b8 01 02 b9 02 00 b6 00      mov ax, 0x201; mov cx, 2; mov dh, 0
bb 00 80 cd 13               mov bx, 0x8000; int 0x13
72 10                        jc done
ba 02 04 be 00 80            mov dx, 0x402; mov si, 0x8000
b9 03 00 f3 6e               mov cx, 3; rep outsb
5a fe c2 eb e0               pop dx; inc dl; jmp next
ba 04 06 b8 00 20 ef f4  done: mov dx, 0x604; mov ax, 0x2000; out dx, ax; hlt
"""
"""A boot sector: prints what the second sector of each disk begins with, in the BIOS's order, and powers off."""

CODE = re.compile(r"^((?:[0-9a-f]{2} )+)", re.MULTILINE)


def boot_sector(token: str) -> bytes:
    code = bytes.fromhex("".join(CODE.findall(READ_ALL)))
    return (code.ljust(510, b"\0") + b"\x55\xaa" + token.encode()).ljust(1 << 20, b"\0")


def bootable_folder(directory: Path) -> Path:
    target = directory / "EFI" / "BOOT" / "BOOTX64.EFI"
    target.parent.mkdir(parents=True)
    shutil.copy(guests.efi("example"), target)
    return directory


@pytest.mark.parametrize(("firmware", "indices"), UEFI_ORDERS)
def test_uefi_boots_disks_in_order(
    vmm_machine: Callable[..., Machine], tmp_path: Path, firmware: str, indices: tuple[int, ...]
) -> None:
    image = debian.firmware(firmware)
    folder = bootable_folder(tmp_path / "esp")
    disks = [
        Drive(shutil.copytree(folder, tmp_path / f"esp{slot}"), folder=True, bootindex=index, slot=slot)
        for slot, index in enumerate(indices, FIRST_SLOT)
    ]
    machine = vmm_machine(image, drives=disks)
    for _ in indices:
        machine.expect("example.efi without load options", deadline=DEADLINE)
    booted = re.findall(r"starting Boot\w+ \"[^\"]*\" from \S*/Pci\(0x(\w+),0x0\)", machine.serial.text())
    expected = sorted(range(len(indices)), key=indices.__getitem__)
    assert [int(slot, 16) - FIRST_SLOT for slot in booted] == expected


def numbered(tmp_path: Path, indices: tuple[int | None, ...]) -> list[Drive]:
    drives = []
    for number, index in enumerate(indices):
        image = tmp_path / f"{number}.img"
        image.write_bytes(boot_sector(f"[{number}]"))
        drives.append(Drive(image, bootindex=index, slot=number + FIRST_SLOT))
    return drives


@pytest.mark.parametrize("indices", ORDERS, ids=str)
def test_a_bios_numbers_disks_in_order(
    vmm_machine: Callable[..., Machine], tmp_path: Path, indices: tuple[int, ...]
) -> None:
    boot = "menu=on,splash-time=50"
    machine = vmm_machine("seabios", drives=numbered(tmp_path, indices), boot=boot)
    assert machine.run(deadline=DEADLINE).reason is Reason.POWER_OFF
    log = machine.debugcon.text()
    assert re.findall(r"\[(\d)\]", log) == [str(indices.index(place)) for place in range(3)]
    assert "for boot menu" in log


def test_strict_boot_tries_nothing_else(vmm_machine: Callable[..., Machine], tmp_path: Path) -> None:
    drives = numbered(tmp_path, (None, 0))
    drives[1].path.write_bytes(bytes(1 << 20))
    machine = vmm_machine("seabios", drives=drives, boot="strict=on")
    machine.expect("No bootable device", deadline=DEADLINE)
    assert "[0]" not in machine.debugcon.text()


@pytest.mark.parametrize(("boot", "disk"), [("order=nc", False), ("order=nc,once=c", True)])
def test_letters_order_disks_and_option_roms(
    vmm_machine: Callable[..., Machine], tmp_path: Path, boot: str, disk: bool
) -> None:
    # The report guest offers itself as a network card's ROM does.
    items: dict[str, Any] = {"genroms/report.bin": guests.report("report.bin")}
    machine = vmm_machine("seabios", drives=numbered(tmp_path, (None,)), boot=boot, fw_cfg=items)
    assert machine.run(deadline=DEADLINE).reason is Reason.POWER_OFF
    text = machine.debugcon.text()
    assert ("[0]" in text, "VMMR" in text) == (disk, not disk)


@pytest.mark.parametrize("firmware", ["ovmf", "seabios"])
def test_verify_shows_the_order(tmp_path: Path, firmware: str) -> None:
    result = verify(MachineConfig.create(firmware, drives=numbered(tmp_path, (2, 0, 1))))
    assert result.ok
    subject = next(subject for subject in result.subjects if subject.name == "boot order")
    disks = [row for row in subject.rows if row.name.startswith("/pci")]
    assert [row.name for row in disks] == [f"/pci@i0cf8/scsi@{slot}/disk@0,0" for slot in (5, 6, 4)]
    assert [row.found.partition(":")[0] for row in disks] == ["1", "2", "3"]
    # What boots a BIOS is nothing for UEFI.
    bios = firmware == "seabios"
    assert [row.taken for row in disks] == (["started", "not tried", "not tried"] if bios else ["failed to load"] * 3)
    assert bios or [row.name for row in subject.rows if row.taken == "started"] == ["EFI Internal Shell"]


def test_verify_shows_what_is_started(tmp_path: Path) -> None:
    folder = bootable_folder(tmp_path / "esp")
    empty = tmp_path / "empty.img"
    empty.write_bytes(bytes(1 << 20))
    drives = [Drive(folder, folder=True, bootindex=1), Drive(empty, bootindex=0)]
    result = verify(MachineConfig.create("ovmf", drives=drives))
    taken = {row.name: row.taken for row in result.subject("boot order").rows if row.taken}
    assert list(taken.values()) == ["failed to load", "started"]


def test_a_disk_that_a_bios_cannot_boot_hides_those_behind_it(tmp_path: Path) -> None:
    drives = numbered(tmp_path, (1, 0))
    drives[1].path.write_bytes(bytes(1 << 20))
    before = drives[0].path.read_bytes()
    rows = verify(MachineConfig.create("seabios", drives=drives)).subject("boot order").rows
    assert [row.taken for row in rows[:3]] == ["not a bootable disk", "not tried", "could not read the boot disk"]
    assert drives[0].path.read_bytes() == before


def test_an_option_rom_between_disks(tmp_path: Path) -> None:
    drives = numbered(tmp_path, (0, 2))
    drives[0].path.write_bytes(bytes(1 << 20))
    rom = shutil.copy(guests.report("report.bin"), tmp_path / "own.bin")
    result = verify(MachineConfig.create("seabios", drives=drives, option_roms=f"{rom},bootindex=1"))
    taken = {row.name: row.taken for row in result.subject("boot order").rows if row.taken}
    assert taken == {
        "/pci@i0cf8/scsi@4/disk@0,0": "not a bootable disk",
        "/rom@genroms/own.bin": "started",
        "/pci@i0cf8/scsi@5/disk@0,0": "not tried",
    }
    assert result.ok
