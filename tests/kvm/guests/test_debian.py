"""A Debian on a disk of its own: it boots from UEFI and from a BIOS, keeps what it wrote, and outlives its VMM."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from debian import guest_disk

pytestmark = [pytest.mark.needs_kvm, pytest.mark.timeout(900)]

DEADLINE = 240.0
FIO_SECONDS = int(os.environ.get("VMM_FIO_SECONDS", "3"))
"""How long fio writes before the VMM is killed."""

ROOT_OFFSET = (4096 + (64 << 11)) << 9
"""Bytes, where scripts/make-guest has the root file system."""

LOGIN = """
expect login:
send-line root
expect Password:
send-line vmm
expect root@vmm-guest
"""
POWER_OFF = "send-line poweroff\npower-off\n"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A copy of the disk, which the guest may write to."""
    copy = tmp_path / "disk.img"
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", guest_disk(), copy], check=True)
    return copy


def booting(tmp_path: Path, dialogue: str, *machine: str) -> list[str]:
    """What boots it, and holds a dialogue after the login."""
    script = tmp_path / "dialogue"
    script.write_text(LOGIN + dialogue)
    words = [sys.executable, "-m", "vmm", "boot", *machine, "-m", "512M"]
    return [*words, "--script", str(script), "--timeout", str(DEADLINE), "-debugcon", "none", "-q"]


@pytest.fixture
def command(disk: Path, tmp_path: Path) -> Callable[[str, str], list[str]]:
    """`booting` with some firmware, from the copy."""
    return lambda firmware, dialogue: booting(tmp_path, dialogue, firmware, "-drive", f"file={disk},format=raw")


def printed(words: list[str]) -> str:
    """Run it to its power-off."""
    run = subprocess.run(words, capture_output=True, timeout=2 * DEADLINE, check=False)
    text = run.stdout.decode("utf-8", "replace")
    assert run.returncode == 0, f"{run.stderr.decode()}\n{text[-2000:]}"
    return text


WRITE = r"""
send-line fio --name=f --size=64M --rw=randwrite --bs=4k --fsync=16 --time_based --runtime=900 >/dev/null &
send-line mkdir d; i=0; while :; do i=$((i+1)); echo $i >d/$i; sync d/$i d; echo durable $i; done
expect nothing more
"""

CHECK = r"""
send-line cat kept; dmesg | grep EXT4-fs
send-line i=0; while [ "$(cat d/$((i+1)) 2>&1)" = $((i+1)) ]; do i=$((i+1)); done; echo found $i.
expect found \d+\.
"""


def test_it_keeps_what_it_wrote_also_when_the_vmm_is_killed(
    command: Callable[[str, str], list[str]], disk: Path
) -> None:
    write = "send-line echo written by $((6*7)) >kept && sync && cat kept\nexpect ^written by 42\n"
    printed(command("ovmf", write + POWER_OFF))

    # Killed while fio writes: each file that was said to be durable has to be there afterwards.
    dialogue = "send-line cat kept\nexpect ^written by 42\n" + WRITE
    with subprocess.Popen(command("seabios", dialogue), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(DEADLINE, process.kill)
        watchdog.start()
        text, killer = b"", None
        while data := os.read(process.stdout.fileno(), 1 << 16):
            text += data
            if killer is None and b"\ndurable 3" in text:
                killer = threading.Timer(FIO_SECONDS, process.kill)
                killer.start()
        watchdog.cancel()
    assert killer is not None, text[-2000:].decode("utf-8", "replace")
    durable = max(map(int, re.findall(rb"^durable (\d+)\r?$", text, re.MULTILINE)))

    text_after = printed(command("ovmf", CHECK + POWER_OFF))
    assert "written by 42" in text_after
    assert re.search(r"EXT4-fs \(vda3\): recovery complete", text_after)
    found = re.search(r"found (\d+)\.", text_after)
    assert found, text_after[-2000:]
    assert int(found[1]) >= durable
    checked = subprocess.run(
        ["/sbin/e2fsck", "-fn", f"{disk}?offset={ROOT_OFFSET}"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


def test_secure_boot_with_debians_signed_shim_grub_and_kernel(tmp_path: Path) -> None:
    """Microsoft's key verifies shim, Debian's in shim the others: nobody enrolled anything."""
    disk = guest_disk("shim-signed", "grub-efi-amd64-signed", "mokutil")
    ovmf = "if=pflash,format=raw,file=/usr/share/OVMF/OVMF_"
    drives = [f"{ovmf}CODE_4M.ms.fd,readonly=on", f"{ovmf}VARS_4M.ms.fd", f"file={disk},format=raw"]
    look = (
        "send-line mokutil --sb-state; dmesg | grep lockdown\nexpect ^SecureBoot enabled\nexpect ^.*kernel_lockdown\n"
    )
    said = printed(
        booting(tmp_path, look + POWER_OFF, "-snapshot", *(word for each in drives for word in ("-drive", each)))
    )
    assert "Kernel is locked down from EFI Secure Boot" in said
