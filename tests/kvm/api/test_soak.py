"""scripts/soak, for a moment: what it looks for is found at any length."""

import re
import subprocess
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[3] / "scripts" / "soak"


@pytest.mark.needs_kvm
@pytest.mark.usefixtures("kvm_device")
def test_boots_machines_stops_and_a_soak() -> None:
    words = ["--boots", "2", "--machines", "8", "--stops", "1", "--minutes", "0.05"]
    done = subprocess.run([SOAK, *words], capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for line in ("boots: 2 of OVMF", "machines: 8 of two CPUs", "stops: 8 of guests", "soak: 0.05 minutes, "):
        assert re.search(f"^{line}", done.stdout, re.MULTILINE), done.stdout
