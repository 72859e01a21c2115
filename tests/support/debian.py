"""Which versions Debian has installed here: what its firmware and QEMU do differs by it."""

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


def fetched(name: str, file: str) -> Path:
    """Return a file of what scripts/fetch-guests gets by that name, or skip the test."""
    path = directories.cache() / "guests" / name / file
    if not path.is_file():
        pytest.skip(f"no {name} here; scripts/fetch-guests {name} gets it")
    return path


def firmware(name: str) -> str:
    """Return what boots firmware that is installed ("ovmf") or fetched ("ovmf-trixie"), or skip the test."""
    files = {"ovmf-ia32-trixie": "OVMF32_CODE_4M.fd", "seabios-sid": "bios-256k.bin"}
    return name if "-" not in name else str(fetched(name, files.get(name, "OVMF_CODE_4M.fd")))


def guest_disk(*packages: str) -> Path:
    """Return the disk that scripts/make-guest has made with these packages, or skip the test; not to be written to."""
    for disk in sorted(directories.cache().glob("guest-*/disk.img")):
        listed = disk.with_name("packages")
        if set(packages) <= set(listed.read_text(encoding="ascii").split() if listed.exists() else ()):
            return disk
    pytest.skip(f"no disk with Debian {' and '.join(packages)} here; scripts/make-guest makes it")
