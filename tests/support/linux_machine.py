"""A Linux that runs a shell script beside its disks and shared folders, and powers off."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmm.machine import Machine
from vmm.run.outcome import Reason
from vmm.verify import linux_guest
from vmm.verify.linux_guest import LinuxFiles

DEADLINE = 120.0


def fields(script: str, initrd: Path, append: str = "", modules: Sequence[Path] | None = None) -> dict[str, Any]:
    """Return the fields of a machine that does so; its RAM disk is written to ``initrd``."""
    files = LinuxFiles.find()
    initrd.write_bytes(linux_guest.build_script_initramfs(files, script, modules=modules))
    words = f"{linux_guest.COMMAND_LINE} {append}"
    return {"direct": True, "kernel": files.kernel, "initrd": initrd, "append": words}


def printed(machine: Machine) -> str:
    """Run it to its end; return what it printed."""
    outcome = machine.run(deadline=DEADLINE)
    text = machine.serial.text()
    assert outcome.reason is Reason.POWER_OFF, f"{outcome.message}\n{text[-2000:]}"
    return text
