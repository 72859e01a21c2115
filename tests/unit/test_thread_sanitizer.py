"""The C core built with ThreadSanitizer, under several vCPUs at one device."""

import os
import subprocess
from pathlib import Path

NATIVE = Path(__file__).resolve().parents[2] / "native"
CORE = (
    "coalesced",
    "device_access",
    "exit_times",
    "fw_cfg",
    "guest_memory",
    "interrupts",
    "io_table",
    "machine",
    "msix",
    "profile",
    "trace",
    "vcpu_run",
)


def stress(directory: Path, name: str, iterations: int) -> str:
    """Build a program of native/stress with ThreadSanitizer, and run it; return what it printed."""
    program = directory / "stress"
    sources = [NATIVE / "stress" / f"{name}.c", *(NATIVE / f"{part}.c" for part in CORE)]
    sources += sorted((NATIVE / "chips").glob("*.c"))
    sources += sorted((NATIVE / "virtio").glob("*.c"))
    flags = [f"@{NATIVE / 'warnings.txt'}", "-Werror", f"-I{NATIVE / 'include'}"]
    # Another sanitizer, preloaded into this interpreter, is none of theirs.
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run(
        ["clang", "-std=gnu11", "-g", "-O1", "-fsanitize=thread", *flags, "-o", program, *sources],
        check=True,
        env=clean,
    )
    # Without address randomization: ThreadSanitizer's shadow does not fit beside every layout.
    command = ["setarch", "-R", str(program), str(iterations)]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, env=clean)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_vcpus_share_fw_cfg_without_a_race(tmp_path: Path) -> None:
    assert "2000 transfers a vCPU, 0 torn, 0 refused" in stress(tmp_path, "fw_cfg_stress", 2000)


def test_threads_of_a_disk_race_with_nobody(tmp_path: Path) -> None:
    assert "2000 rounds, some answered, 0 wrong, 0 after a reset" in stress(tmp_path, "virtio_blk_stress", 2000)
