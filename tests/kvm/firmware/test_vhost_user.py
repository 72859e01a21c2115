"""Devices that other processes serve: qcow2 images by QEMU's storage daemon, folders by virtiofsd."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from linux_machine import DEADLINE, fields, printed

from vmm.disks.drives import Drive
from vmm.errors import ConfigError
from vmm.firmware import guests
from vmm.machine import Machine

pytestmark = pytest.mark.needs_kvm

VMM = [sys.executable, "-m", "vmm"]
WAITS = ["boot", "seabios", "-serial", "none", "-q", "--timeout", "100"]
VIRTIOFSD = {
    "/usr/lib/qemu/virtiofsd": ["-o", "source=SHARE", "-o", "sandbox=chroot"],
    "/usr/libexec/virtiofsd": ["--shared-dir=SHARE", "--sandbox=chroot"],
}
"""Where Debian 12 and 13 have it, QEMU's and the one in Rust, and how each is told what it shares."""


def qcow2(path: Path, contents: bytes) -> Path:
    """Make an image with these contents."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(contents)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)
    raw.unlink()
    return path


def contents(image: Path) -> bytes:
    """What a guest finds in an image."""
    raw = image.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw], check=True)
    return raw.read_bytes()


def daemons(image: Path) -> list[int]:
    """The processes that serve an image."""
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdecimal() and str(image) in (process / "cmdline").read_text().split("\0", 1)[-1]:
                words = (process / "cmdline").read_text().split("\0")
                found += [int(process.name)] if words[0] == "qemu-storage-daemon" else []
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_linux_writes_into_a_qcow2_image_and_is_reset(tmp_path: Path) -> None:
    before = os.urandom(8 << 20)
    image = qcow2(tmp_path / "a disk, of mine.qcow2", before)
    script = """
    set -e
    if [ "$(head -c 5 /dev/vda)" = again ]; then
        dd if=/dev/vda of=/dev/vda bs=4k skip=100 seek=7 count=50 conv=fsync
        echo 0000:00:01.0 >/sys/bus/pci/drivers/virtio-pci/unbind
        echo 0000:00:01.0 >/sys/bus/pci/drivers/virtio-pci/bind
        dd if=/dev/vda of=/dev/null bs=64k iflag=direct & dd if=/dev/vda of=/dev/null bs=4k iflag=direct & wait
        cmp /dev/vda /dev/vdb && echo "they are the same"
    else
        printf again | dd of=/dev/vda conv=notrunc,fsync
        dd if=/dev/vda of=/dev/vdb bs=1M
        dd if=/dev/vda of=/dev/vdb bs=4k skip=100 seek=7 count=50 conv=fsync
        for i in 1 2 3 4; do dd if=/dev/vda of=/dev/null bs=1M iflag=direct & done
        reboot -f
    fi
    """
    other = tmp_path / "other.img"
    other.write_bytes(bytes(8 << 20))
    drives: list[Drive | Path] = [Drive(image, format="qcow2"), other]
    with Machine("none", drives=drives, reboot=True, memory="5G", **fields(script, tmp_path / "initrd")) as machine:
        assert daemons(image)
        text = printed(machine)
        assert machine.reset_count == 1
    assert "they are the same" in text
    assert not daemons(image)
    expected = bytearray(before)
    expected[:5] = b"again"
    expected[7 * 4096 : 57 * 4096] = before[100 * 4096 : 150 * 4096]
    assert contents(image) == expected == other.read_bytes()


@contextmanager
def listening(path: Path, command: list[str]) -> Iterator[None]:
    """A backend that listens at a socket."""
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(path.exists)
            yield
        finally:
            process.terminate()


def test_linux_and_other_backends(vmm_machine: Callable[..., Any], tmp_path: Path) -> None:
    """An overlay over a qcow2 image, backends that somebody else started, a disk by its number, a shared folder."""
    data = os.urandom(2 << 20)
    image = qcow2(tmp_path / "disk.qcow2", data)
    before = image.read_bytes()
    served = tmp_path / "served.img"
    served.write_bytes(data)
    share = tmp_path / "share"
    share.mkdir()
    (share / "question").write_text("what?")
    virtiofsd = next((path for path in VIRTIOFSD if Path(path).exists()), None)
    if virtiofsd is None:
        pytest.skip("no virtiofsd here: it is in qemu-system-common (Debian 12) or virtiofsd (13)")
    sharing = [virtiofsd, *(word.replace("SHARE", str(share)) for word in VIRTIOFSD[virtiofsd])]
    block, files = tmp_path / "block", tmp_path / "files"
    export = "type=vhost-user-blk,id=e,node-name=n,writable=on,addr.type=unix"
    blockdev = f"driver=file,node-name=n,filename={served}"
    script = """
    set -e
    dd if=/dev/zero of=/dev/vda bs=64k count=1 conv=fsync
    cmp -n 65536 /dev/vda /dev/zero && dd if=/dev/vdb of=/dev/vda bs=64k count=1 conv=fsync && cmp /dev/vda /dev/vdb
    printf 'by hand' | dd of=/dev/vdb conv=notrunc,fsync
    mkdir /share && mount -t virtiofs home /share
    cat /share/question; echo
    echo answer >/share/answer
    umount /share
    echo "all done"
    """
    with (
        listening(block, ["qemu-storage-daemon", "--blockdev", blockdev, "--export", f"{export},addr.path={block}"]),
        listening(files, [*sharing, f"--socket-path={files}"]),
    ):
        text = printed(
            vmm_machine(
                "none",
                drives=[Drive(image, format="qcow2", snapshot=True)],
                chardevs=[f"socket,id=b,path={block}", f"socket,id=f,path={files}"],
                devices=[
                    "vhost-user-device-pci,chardev=b,virtio-id=2,num_vqs=1,config_size=60",
                    "vhost-user-fs-pci,chardev=f,tag=home",
                ],
                **fields(script, tmp_path / "initrd"),
            )
        )
    assert "what?" in text
    assert "all done" in text, text
    assert (share / "answer").read_text() == "answer\n"
    assert image.read_bytes() == before
    assert served.read_bytes() == b"by hand" + data[7:]


@contextmanager
def waiting(image: Path, *more: str) -> Iterator["subprocess.Popen[bytes]"]:
    """SeaBIOS that has read the disk, found nothing to boot there, and waits, in the default sandbox."""
    log = image.with_suffix(".log")
    command = [*VMM, *WAITS, "-debugcon", f"file:{log}", "-drive", f"file={image},format=qcow2", *more]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            wait_until(lambda: process.poll() is not None or (log.exists() and b"No bootable" in log.read_bytes()))
            yield process
        finally:
            process.kill()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return qcow2(tmp_path / "disk.qcow2", bytes(1 << 20))


def test_who_has_the_image(image: Path) -> None:
    with waiting(image) as process:
        again = subprocess.run(
            [*VMM, "boot", "probe", "-drive", f"file={image},format=qcow2"], capture_output=True, text=True, check=False
        )
        assert again.returncode == 2
        (line,) = again.stderr.splitlines()
        assert "(qemu-storage-da) uses it; end it first" in line
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130, said
    assert not daemons(image)


def test_the_daemon_ends_with_a_machine_that_is_killed(image: Path) -> None:
    with waiting(image) as process:
        assert daemons(image)
        process.kill()
        process.wait(DEADLINE)
        wait_until(lambda: not daemons(image))


def test_a_daemon_that_ends_ends_the_run(image: Path) -> None:
    with waiting(image) as process:
        (daemon,) = daemons(image)
        os.kill(daemon, signal.SIGKILL)
        _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 4
    assert said.decode() == (
        f"vmm: -drive file={image}: its qemu-storage-daemon ended by signal 9, and the disk is gone\n"
    )


@pytest.mark.parametrize("accel", ["auto", "kvm"])
def test_seabios_boots_from_a_qcow2_image(tmp_path: Path, accel: str) -> None:
    """With plain KVM, notifications go past us."""
    token = os.urandom(8).hex()
    sector = (guests.boot_sector().read_bytes() + token.encode()).ljust(1 << 20, b"\0")
    image = qcow2(tmp_path / "disk.qcow2", sector)
    drive = f"if=none,id=d0,file={image},format=qcow2,readonly=on"
    command = [
        *VMM,
        "boot",
        "seabios",
        "-q",
        "-accel",
        accel,
        "-drive",
        drive,
        "-device",
        "virtio-blk-pci,drive=d0,bootindex=0",
    ]
    run = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert run.returncode == 0, run.stderr
    assert f"boot-sector: {token}" in run.stdout


def test_a_driver_that_comes_and_goes_in_the_sandbox(tmp_path: Path) -> None:
    """The vCPU's thread takes the interrupts from KVM, as the driver frees them, and is allowed to."""
    image = qcow2(tmp_path / "disk.qcow2", b"still here".ljust(1 << 20, b"\0"))
    script = """
    cd /sys/bus/pci/drivers/virtio-pci
    for i in 1 2 3; do
        dd if=/dev/vda of=/dev/null bs=4k iflag=direct
        echo 0000:00:01.0 >unbind
        echo 0000:00:01.0 >bind
    done
    head -c 10 /dev/vda
    """
    its = fields(script, tmp_path / "initrd")
    words = ["-direct", "-kernel", str(its["kernel"]), "-initrd", str(its["initrd"]), "-append", its["append"]]
    command = [*VMM, "boot", *words, "-q", "-drive", f"file={image},format=qcow2", "--timeout", "100"]
    run = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "still here" in run.stdout


def test_no_snapshot_of_it(image: Path) -> None:
    with (
        Machine(str(guests.path("probe")), drives=[Drive(image, format="qcow2")]) as machine,
        pytest.raises(ConfigError, match=r"no snapshot: -drive file=.*: another process has part of what"),
    ):
        machine.snapshot()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda data: b"\0" * 512 + data[512:], "format=qcow2: is no image of any format that is known"),
        (lambda data: b"KDMV" + data[4:], "format=qcow2: is a vmdk image"),
        (
            lambda data: data[:4] + b"\0\0\0\x63" + data[8:],
            r"Unsupported qcow2 version 99 \(says qemu-storage-daemon\)",
        ),
        (lambda data: data[:24] + b"\xff" * 8 + data[32:], r"\(says qemu-storage-daemon\)"),
    ],
)
def test_broken_images(image: Path, broken: Callable[[bytes], bytes], message: str) -> None:
    image.write_bytes(broken(image.read_bytes()))
    with pytest.raises(ConfigError, match=message) as caught:
        Machine(str(guests.path("probe")), drives=[Drive(image, format="qcow2")])
    assert "\n" not in str(caught.value)
    assert not daemons(image)
