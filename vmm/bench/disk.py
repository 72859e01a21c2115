"""How fast a Linux guest reads its virtio disk: dd one block after the other, and 4 KiB here and there.

Each run is a whole machine: Debian's kernel, started without firmware by vmm and with QEMU's own loader by QEMU, and a
RAM disk with busybox and `native/bench/disk_reads.c`. All bypass the page caches of guest and host. What it took, the
guest says; its clock is the host's.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.bench.contenders import QEMU_KVM, QEMU_TCG, VMM_C, Contender, ContenderFailedError, Qemu, run, tool
from vmm.errors import HostError
from vmm.verify import linux_guest
from vmm.verify.linux_guest import LinuxFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENDERS = (VMM_C, QEMU_KVM, QEMU_TCG)

IMAGE_MIB = 256
BLOCK_MIB = 1
"""Of dd."""

DEPTHS = (1, 32)
"""Requests of 4 KiB that are on their way at a time."""

_EACH_MS = 1500
"""How long a guest reads here and there, with each depth."""

_MEMORY_MIB = 256

_SCRIPT = f"""
disk_reads
dd if=/dev/vda of=/dev/null bs={BLOCK_MIB}M iflag=direct
disk_reads
{"".join(f"disk_reads /dev/vda {depth} {_EACH_MS}; " for depth in DEPTHS)}
"""

_DD = re.compile(r"disk_reads: now (\d+)\n(\d+)\+0 records in\n.*\ndisk_reads: now (\d+)")
_READS = re.compile(r"disk_reads: depth (\d+) reads (\d+) ns (\d+)")


@dataclass(frozen=True)
class DiskCase:
    """One way to read: ``key`` names it, ``size`` is in bytes."""

    key: str
    title: str
    size: int


CASES = (
    DiskCase("sequential", f"dd, {BLOCK_MIB} MiB at a time", BLOCK_MIB << 20),
    *(DiskCase(f"random-{depth}", f"4 KiB here and there, {depth} at a time", 4096) for depth in DEPTHS),
)


@dataclass(frozen=True)
class Guest:
    """The files of a run."""

    kernel: Path
    initrd: Path
    image: Path

    @classmethod
    @contextmanager
    def made(cls) -> Iterator[Guest]:
        """Give them, as long as the context lasts; the image is below ``TMPDIR``, and all of it is allocated.

        Raises:
            HostError: there is no Linux to boot, or no room.
        """
        files = LinuxFiles.find()
        program = tool("disk_reads").read_bytes()
        with tempfile.TemporaryDirectory(prefix="vmm-bench-") as directory:
            guest = cls(files.kernel, Path(directory, "initrd"), Path(directory, "disk.img"))
            try:
                guest.initrd.write_bytes(linux_guest.build_script_initramfs(files, _SCRIPT, {"disk_reads": program}))
                with guest.image.open("wb") as image:
                    for _ in range(IMAGE_MIB):
                        image.write(os.urandom(1 << 20))
                    image.flush()
                    os.fsync(image.fileno())
            except OSError as error:
                raise HostError(f"no room for a disk of {IMAGE_MIB} MiB in {directory}: {error.strerror}") from None
            yield guest


def command(contender: Contender, guest: Guest) -> list[str]:
    """Return the command that boots the guest with COM1 on stdout."""
    loaded = ["-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", linux_guest.COMMAND_LINE]
    path = str(guest.image).replace(",", ",,")
    drive = f"if=none,id=disk,file={path},format=raw,cache=none,aio=threads"
    if isinstance(contender, Qemu):
        board = [*contender.machine("q35"), "-m", str(_MEMORY_MIB), "-serial", "stdio"]
        return [*board, *loaded, "-drive", drive, "-device", "virtio-blk-pci,drive=disk,disable-legacy=on"]
    board = [sys.executable, "-m", "vmm", "boot", "-direct", "-no-reboot", "-q", "-debugcon", "none"]
    board += ["-m", f"{_MEMORY_MIB}M", "-serial", "stdio"]
    return [*board, *loaded, "-drive", drive, "-device", "virtio-blk-pci,drive=disk"]


def measure(contender: Contender, limit_s: float, guest: Guest) -> dict[str, float]:
    """Boot once; return the nanoseconds that a request took, by case.

    Raises:
        ContenderFailedError: the process failed, or the guest did not say what it did.
    """
    text = run(contender, command(contender, guest), limit_s).replace("\r", "")
    found = {f"random-{depth}": int(ns) / int(reads) for depth, reads, ns in _READS.findall(text)}
    for began, blocks, ended in _DD.findall(text):
        found["sequential"] = (int(ended) - int(began)) / int(blocks)
    if set(found) != {case.key for case in CASES}:
        last = (text.strip().splitlines() or ["it printed nothing"])[-1]
        raise ContenderFailedError(f"{contender.name}: the guest did not read its disk: {last}")
    return found
