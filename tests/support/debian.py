"""Which versions Debian has installed here: what its firmware and QEMU do differs by it."""

import re
import subprocess
from functools import cache


@cache
def version(package: str) -> tuple[int, int]:
    """Return the first two numbers of an installed package's version, without the epoch: (2025, 2) of ovmf."""
    shown = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Version}", package], capture_output=True, text=True, check=True
    ).stdout
    numbers = re.match(r"(?:\d+:)?(\d+)\.(\d+)", shown)
    assert numbers, f"{package} has the version {shown!r}"
    return int(numbers[1]), int(numbers[2])
