"""Disks of real guests: Linux reads and writes them, OVMF and bhyve's UEFI read them, SeaBIOS boots from them."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from disk_images import write_fat
from linux_machine import DEADLINE, fields, printed

from vmm.disks.drives import Drive
from vmm.firmware import guests
from vmm.machine import Machine
from vmm.report.collect import collect
from vmm.report.text import text as report_text
from vmm.run.outcome import Reason
from vmm.run.snapshot import Snapshot

pytestmark = pytest.mark.needs_kvm

MachineMaker = Callable[..., Machine]


@pytest.fixture
def linux(vmm_machine: Callable[..., Any], tmp_path: Path) -> MachineMaker:
    """Make a machine whose Linux runs a shell script beside its disks, and powers off."""

    def make(script: str, append: str = "", firmware: str = "none", **more: Any) -> Machine:
        described = fields(script, tmp_path / "initrd", append) | {"direct": firmware == "none"}
        machine = vmm_machine(firmware, **described, **more)
        assert isinstance(machine, Machine)
        return machine

    return make


SCRIPT = """
set -e
echo "whole $(md5sum /dev/vda)"
dd if=/dev/vda of=/tail bs=4k skip=100 count=50 iflag=direct
dd if=/tail of=/dev/vda bs=4k seek=7 conv=fsync
cat /sys/block/vda/serial; echo
grep -E 'virtio' /proc/interrupts
dd if=/dev/vda of=/dev/null bs=64k iflag=direct & dd if=/dev/vda of=/dev/null bs=4k iflag=direct & wait
blkdiscard -o 1048576 -l 1048576 /dev/vda
echo 0000:00:0$SLOT.0 >/sys/bus/pci/drivers/virtio-pci/unbind
echo 0000:00:0$SLOT.0 >/sys/bus/pci/drivers/virtio-pci/bind
echo "again $(md5sum /dev/vda)"
"""


@pytest.mark.parametrize(
    ("board", "slot", "append", "interrupt"),
    [
        pytest.param("q35", 1, "", "PCI-MSI", marks=pytest.mark.hw_long),
        ("pc", 2, "pci=nomsi", "IO-APIC"),
        ("pc", 2, "pci=nomsi noapic", "XT-PIC"),
    ],
)
def test_linux_reads_and_writes(
    linux: MachineMaker, tmp_path: Path, board: str, slot: int, append: str, interrupt: str
) -> None:
    image = tmp_path / "disk.img"
    before = os.urandom(4 << 20)
    image.write_bytes(before)
    drive = Drive(image, unmap=True, serial="vmm-1")
    text = printed(linux(SCRIPT.replace("$SLOT", str(slot)), append, machine=board, drives=[drive]))
    expected = bytearray(before)
    expected[7 * 4096 : 57 * 4096] = before[100 * 4096 : 150 * 4096]
    expected[1 << 20 : 2 << 20] = bytes(1 << 20)
    assert f"whole {hashlib.md5(before, usedforsecurity=False).hexdigest()}" in text
    assert f"again {hashlib.md5(expected, usedforsecurity=False).hexdigest()}" in text
    assert "vmm-1" in text
    assert any(interrupt in line and "virtio0" in line for line in text.splitlines()), text
    assert image.read_bytes() == expected


def test_linux_sees_errors_and_goes_on(linux: MachineMaker, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    script = """
    dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct && echo "first read"
    read line
    dd if=/dev/vda of=/dev/null bs=4k skip=200 count=1 iflag=direct || echo "second failed"
    dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct && echo "still there"
    """
    machine = linux(script, drives=[image])
    machine.expect("first read", deadline=DEADLINE)
    os.truncate(image, 64 << 10)
    machine.send("\n")
    text = printed(machine)
    assert "I/O error, dev vda, sector 1600" in text
    assert "second failed" in text
    assert "still there" in text
    assert machine.outcome is not None
    report = collect(machine, machine.outcome)
    (disk,) = report["disks"]
    assert (disk["slot"], disk["size"], disk["writes"]) == (1, 1 << 20, 1)
    assert disk["errors"] >= 1
    words = report_text(report, 1000)
    assert f"disk          {image}, 1 MiB: " in words
    assert "failed, the last with: input/output error" in words


def test_a_reset_in_the_middle_of_reading(linux: MachineMaker, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(64 << 20))
    script = """
    if [ "$(head -c 5 /dev/vda)" = again ]; then
        cmp -s -n 1048576 /dev/vda /dev/zero 512 && echo "second boot"
    else
        printf again | dd of=/dev/vda conv=notrunc,fsync
        for i in 1 2 3 4; do dd if=/dev/vda of=/dev/null bs=1M iflag=direct & done
        reboot -f
    fi
    """
    machine = linux(script, drives=[image], reboot=True)
    assert "second boot" in printed(machine)
    assert machine.reset_count == 1
    assert image.read_bytes() == b"again".ljust(64 << 20, b"\0")


def test_linux_goes_on_reading_from_a_snapshot(linux: MachineMaker, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(16 << 20))
    script = """
    md5sum /dev/vda
    for i in 1 2 3 4; do dd if=/dev/vda bs=64k iflag=direct | md5sum & done
    echo begun
    wait
    md5sum /dev/vda
    """
    machine = linux(script, drives=[Drive(image, read_only=True)])
    machine.expect("begun", deadline=DEADLINE)
    digest = hashlib.md5(image.read_bytes(), usedforsecurity=False).hexdigest()
    with machine.snapshot() as snapshot:
        text = printed(machine)
        assert text.count(digest) == 6
        for _ in range(2):
            with Machine.restore(snapshot) as restored:
                assert printed(restored).count(digest) == 6
                assert "error" not in restored.serial.text()


def test_a_disk_is_there_after_s3(linux: MachineMaker, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4 << 20))
    script = """
    for i in 1 2; do
        echo mem >/sys/power/state
        echo "awake $i" | dd of=/dev/vda seek=$i conv=fsync
        dd if=/dev/vda bs=64k iflag=direct | md5sum
    done
    """
    machine = linux(script, firmware="seabios", cpus=2, s3=True, drives=[image])
    for _ in range(2):
        assert machine.run(deadline=DEADLINE).reason is Reason.SUSPENDED, machine.serial.text()
        machine.wakeup()
    text = printed(machine)
    expected = image.read_bytes()
    assert expected == (bytes(512) + b"awake 1\n".ljust(512, b"\0") + b"awake 2\n").ljust(4 << 20, b"\0")
    assert hashlib.md5(expected, usedforsecurity=False).hexdigest() in text


def test_a_folder_goes_with_a_snapshot(vmm_machine: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "hello.txt").write_text("hello from a folder\n")
    machine = vmm_machine("ovmf", drives=[Drive(folder, folder=True)])
    in_the_shell(machine, r"cp fs0:\hello.txt fs0:\copy.txt")
    (folder / "hello.txt").write_text("hello from another time\n")
    with machine.snapshot() as snapshot:
        snapshot.save(tmp_path / "folder.snap")
        with Machine.restore(snapshot) as restored:
            restored.send_line(r"rm fs0:\copy.txt")
            restored.expect("successful", deadline=60)
    with Snapshot.load(tmp_path / "folder.snap") as loaded, Machine.restore(loaded) as restored:
        restored.send_line(r"type fs0:\copy.txt")
        restored.expect("hello from a folder", deadline=60)


def test_linux_cannot_write_what_is_read_only(linux: MachineMaker, tmp_path: Path) -> None:
    images = [tmp_path / "one.img", tmp_path / "two.img"]
    for image in images:
        image.write_bytes(b"x" * (1 << 20))
    script = """
    dd if=/dev/zero of=/dev/vda bs=4k count=1 || echo "refused"
    dd if=/dev/zero of=/dev/vdb bs=4k count=1 conv=fsync && cmp -n 4096 /dev/vdb /dev/zero && echo "written"
    """
    text = printed(linux(script, drives=[Drive(images[0], read_only=True), Drive(images[1], snapshot=True)]))
    assert "refused" in text
    assert "written" in text
    assert [image.read_bytes() for image in images] == [b"x" * (1 << 20)] * 2


@pytest.mark.parametrize("board", [pytest.param("pc", marks=pytest.mark.hw), "q35"])
def test_seabios_boots_from_a_disk(vmm_machine: Callable[..., Any], tmp_path: Path, board: str) -> None:
    image = tmp_path / "disk.img"
    token = os.urandom(8).hex()
    image.write_bytes((guests.boot_sector().read_bytes() + token.encode()).ljust(1 << 20, b"\0"))
    text = printed(vmm_machine("seabios", machine=board, drives=[image]))
    assert f"boot-sector: {token}" in text


@pytest.fixture
def fat(tmp_path: Path) -> Iterator[Path]:
    image = tmp_path / "fat.img"
    write_fat(image, "HELLO.TXT", b"hello from a FAT\n")
    before = image.read_bytes()
    yield image
    assert image.read_bytes() == before, "nobody wrote"


def in_the_shell(machine: Machine, *commands: str) -> str:
    machine.expect("any other key to continue", deadline=DEADLINE)
    machine.send_line()
    machine.expect("Shell>", deadline=60)
    for command in commands:
        machine.send_line(command)
        machine.expect("Shell>", deadline=60)
    return machine.serial.text()


@pytest.mark.parametrize("firmware", ["ovmf", "bhyve"])
def test_uefi_reads_a_file(vmm_machine: Callable[..., Any], fat: Path, firmware: str) -> None:
    text = in_the_shell(vmm_machine(firmware, drives=[Drive(fat, slot=4)]), r"type fs0:\hello.txt")
    assert "PciRoot(0x0)/Pci(0x4,0x0)" in text
    assert "BLK0:" in text
    assert "hello from a FAT" in text
