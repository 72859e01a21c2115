"""Which images Secure Boot refused in a run: by the firmware's own account, and whether the files have a signature."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from vmm.debug.efi import reader
from vmm.debug.secure_boot import refusals
from vmm.disks.fat import head_of_file
from vmm.disks.gpt import SECTOR
from vmm.efi.image import is_signed
from vmm.efi.paths import KERNEL_IMAGE
from vmm.legible import legible

if TYPE_CHECKING:
    from vmm.devices.virtio.block import VirtioBlk
    from vmm.machine import Machine
    from vmm.report.schema import RefusedImageReport

_ON_DISK: Final = re.compile(
    r"PciRoot\(0x0\)/Pci\(0x([0-9A-Fa-f]{1,2}),0x0\)(?:/HD\(\d+,\w+,[^,/]+,0x([0-9A-Fa-f]{1,16}),0x[0-9A-Fa-f]+\))?/(\\.*)"
)
"""UEFI 2.10, 10.6: device, first sector of the partition, path of the file."""
_HEADERS: Final = 1 << 16
"""Bytes of a file that are looked at."""


def refused_images(machine: Machine) -> list[RefusedImageReport]:
    """Return those of a machine that does not run."""
    found = refusals(reader(machine.memory), machine.memory.low_size)
    return [{"image": legible(image), "cause": cause, "signed": _is_signed(machine, image)} for image, cause in found]


def _is_signed(machine: Machine, image: str) -> bool | None:
    kernel = machine.config.kernel
    if image == KERNEL_IMAGE and kernel is not None:
        return is_signed(bytes(kernel.data))
    place = _ON_DISK.fullmatch(image)
    if place is None:
        return None
    disk = next((disk for disk in machine.platform.disks if disk.slot == int(place[1], 16)), None)
    # What is written into an overlay is not looked for.
    if disk is None or (disk.drive.snapshot and not disk.drive.folder and disk.counters()["writes"]):
        return None
    head = _head(disk, int(place[2] or "0", 16) * SECTOR, place[3])
    return None if head is None else is_signed(head)


def _head(disk: VirtioBlk, start: int, path: str) -> bytes | None:
    def read(at: int, size: int) -> bytes:
        with suppress(OSError, OverflowError):
            return os.pread(disk.fd, size, start + at)
        return b""

    return head_of_file(read, [name for name in re.split(r"[\\/]", path) if name], _HEADERS)
