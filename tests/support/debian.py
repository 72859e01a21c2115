"""Which versions Debian has installed here: what its firmware and QEMU do differs by it."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from vmm import directories


@cache
def version(package: str) -> tuple[int, int]:
    """Return the first two numbers of an installed package's version, without the epoch: (2025, 2) of ovmf."""
    shown = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Version}", package], capture_output=True, text=True, check=True
    ).stdout
    numbers = re.match(r"(?:\d+:)?(\d+)\.(\d+)", shown)
    assert numbers, f"{package} has the version {shown!r}"
    return int(numbers[1]), int(numbers[2])


def fetched_firmware(name: str) -> Path:
    """Return firmware of Debian 13, or skip the test."""
    if version("ovmf") >= (2023, 5):
        pytest.skip("the OVMF that is installed is a new one already")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "vmm" / "firmware-trixie" / name
    if not path.is_file():
        pytest.skip("no newer firmware here; scripts/fetch-firmware gets it")
    return path


def guest_disk() -> Path:
    """Return the disk that scripts/make-guest has made, or skip the test; not to be written to."""
    disks = sorted(directories.cache().glob("guest-*/disk.img"))
    if not disks:
        pytest.skip("no disk with Debian here; scripts/make-guest makes it")
    return disks[0]
