"""Debian's QEMU as the other machine that our guests run on."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

QemuRun = Callable[..., str]


@pytest.fixture
def qemu(tmp_path: Path) -> QemuRun:
    """Run a ROM image on QEMU until it ends the machine; return what it printed on the debug port.

    The machine has nothing that the command line does not name. A guest that fails writes its status to
    isa-debug-exit and so gives QEMU an exit status other than zero.
    """
    program = shutil.which("qemu-system-x86_64")
    assert program, "these tests need Debian's package qemu-system-x86 (scripts/setup test installs it)"

    def run(image: Path, *options: str, machine: str = "q35", accelerator: str = "tcg", status: int = 0) -> str:
        output = tmp_path / "debugcon"
        command = [program, "-nodefaults", "-display", "none", "-no-reboot", "-bios", str(image)]
        command += ["-machine", machine, "-accel", accelerator, "-cpu", "qemu64"]
        command += [
            "-chardev",
            f"file,id=debugcon,path={output}",
            "-device",
            "isa-debugcon,iobase=0x402,chardev=debugcon",
        ]
        command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4", *options]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        # isa-debug-exit: status << 1 | 1.
        assert ended.returncode == (status << 1 | 1 if status else 0), ended.stderr
        return output.read_text(encoding="ascii")

    return run
