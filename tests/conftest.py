"""Firmware that is built rather than installed."""

import subprocess
import sys
from pathlib import Path

import pytest

BUILD_BHYVE_FIRMWARE = Path(__file__).parents[1] / "scripts" / "build-bhyve-firmware"


@pytest.fixture(scope="session")
def bhyve_firmware() -> dict[str, Path]:
    """Each variant's directory; scripts/test has built them, so that this costs nothing."""
    done = subprocess.run([sys.executable, BUILD_BHYVE_FIRMWARE], check=True, stdout=subprocess.PIPE, text=True)
    return {Path(line).parent.name: Path(line).parent for line in done.stdout.splitlines()}
