"""`vmm` where there is no KVM, in a namespace of mounts whose /dev/kvm is something else or is missing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mounts import own_mounts

from vmm.errors import ExitStatus
from vmm.softcpu import engine

pytestmark = pytest.mark.skipif(not engine.is_built(), reason="without the software CPU, nothing can run there")

OTHER_DEVICE = 'mount --bind /dev/null /dev/kvm; exec "$@"'
NO_DEVICE = """
mount -t tmpfs none "$0"
for name in null zero urandom; do
    touch "$0/$name"
    mount --bind "/dev/$name" "$0/$name"
done
mount --rbind "$0" /dev
exec "$@"
"""

HIDDEN = pytest.mark.parametrize(
    ("script", "why"), [(NO_DEVICE, "No such file or directory"), (OTHER_DEVICE, "not KVM's device")]
)


def vmm(script: str, directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``vmm`` without KVM's device."""
    if script == OTHER_DEVICE and not Path("/dev/kvm").exists():
        pytest.skip("there is nothing to put something else in the place of")
    (directory / "dev").mkdir(exist_ok=True)
    return subprocess.run(
        [*own_mounts(), "sh", "-ec", script, directory / "dev", sys.executable, "-m", "vmm", *words],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def report_of(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


@HIDDEN
def test_machines_run_and_info_says_so(script: str, why: str, tmp_path: Path) -> None:
    run = vmm(script, tmp_path, "info", "--json")
    assert run.returncode == ExitStatus.OK, run.stderr
    found = json.loads(run.stdout)
    assert why in found["kvm"]["error"]
    assert found["accelerator"]["auto"] == "softcpu"
    assert why in found["accelerator"]["why"]
    assert found["machine"] == {"runs": True}


@pytest.mark.parametrize("sandbox", ["off", "on"])
def test_the_report_says_who_executed_it_and_why(sandbox: str, tmp_path: Path) -> None:
    """Also in the sandbox, whose filters then name no descriptor of KVM."""
    path = tmp_path / "report.json"
    run = vmm(NO_DEVICE, tmp_path, "boot", "probe", "-smp", "3", "--sandbox", sandbox, "--json", str(path))
    assert run.returncode == ExitStatus.OK, run.stderr
    assert "cpus started: 3" in run.stdout
    assert "software CPU without KVM (no KVM: cannot open /dev/kvm" in " ".join(run.stderr.split())
    accelerator = report_of(path)["accelerator"]
    assert accelerator["name"] == "softcpu"
    assert accelerator["instructions"] > 10_000


@pytest.mark.parametrize("accelerator", ["kvm", "kvm+softcpu"])
def test_what_needs_kvm_ends_with_the_remedy(accelerator: str, tmp_path: Path) -> None:
    run = vmm(NO_DEVICE, tmp_path, "boot", "probe", "-accel", accelerator)
    assert run.returncode == ExitStatus.HOST_LACKS
    (line,) = run.stderr.splitlines()
    assert line.startswith(
        f"vmm: -accel {accelerator}: cannot open /dev/kvm: No such file or directory; load KVM with "
    )
    assert line.endswith("; -accel softcpu does without KVM")


@pytest.mark.parametrize(
    ("firmware", "until"), [(("seabios", "-m", "128M"), "No bootable device"), (("ovmf", "-smp", "4"), "Shell>")]
)
def test_firmware_boots(firmware: tuple[str, ...], until: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    run = vmm(NO_DEVICE, tmp_path, "boot", *firmware, "--until", until, "--timeout", "100", "--json", str(path))
    assert run.returncode == ExitStatus.OK, run.stderr[-2000:]
    report = report_of(path)
    assert report["accelerator"]["name"] == "softcpu"
    assert report["cpus"]["started"] == (4 if "4" in firmware else 1)
