"""The C core built with ThreadSanitizer, under several vCPUs at one device."""

import os
import subprocess
from pathlib import Path

NATIVE = Path(__file__).resolve().parents[2] / "native"
CORE = ("exit_times", "fw_cfg", "guest_memory", "io_table", "trace", "vcpu_run")


def test_vcpus_share_fw_cfg_without_a_race(tmp_path: Path) -> None:
    program = tmp_path / "stress"
    sources = [NATIVE / "stress" / "fw_cfg_stress.c", *(NATIVE / f"{name}.c" for name in CORE)]
    flags = [f"@{NATIVE / 'warnings.txt'}", "-Werror", f"-I{NATIVE / 'include'}"]
    # Another sanitizer, preloaded into this interpreter, is none of theirs.
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run(
        ["clang", "-std=gnu11", "-g", "-O1", "-fsanitize=thread", *flags, "-o", program, *sources],
        check=True,
        env=clean,
    )
    # Without address randomization: ThreadSanitizer's shadow does not fit beside every layout.
    command = ["setarch", "-R", str(program), "2000"]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, env=clean)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2000 transfers a vCPU, 0 torn, 0 refused" in run.stdout
