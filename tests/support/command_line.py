"""The command line in a process of its own."""

import subprocess
import sys
from pathlib import Path

VMM = [sys.executable, "-m", "vmm"]


def vmm(*arguments: str | Path, timeout: float = 120, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [*VMM, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )
