"""The oracles: Debian's QEMU as it is installed, and that of another Debian, which scripts/fetch-qemu gets."""

import os
import subprocess
from pathlib import Path

import pytest

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmm"


def fetched(name: str) -> Path:
    """Return the directory of the program qemu-system-x86_64, or skip the test."""
    directory = _CACHE / name / "bin"
    if not directory.is_dir():
        pytest.skip("no other QEMU here; scripts/fetch-qemu gets it")
    return directory


OTHERS = [path.parent.name for path in sorted(_CACHE.glob("qemu-*/bin"))] or ["qemu-of-another-debian"]


@pytest.fixture(params=["installed", *OTHERS])
def each_qemu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test with each QEMU."""
    if request.param != "installed":
        monkeypatch.setenv("PATH", str(fetched(request.param)), prepend=os.pathsep)


@pytest.fixture
def qemu_of_debian_12(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test with QEMU 7.2, whichever is installed."""
    _run("version 7.2", "qemu-bookworm", monkeypatch)


@pytest.fixture
def qemu_of_debian_13(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test with QEMU 10.0, whichever is installed."""
    _run("version 10.0", "qemu-trixie", monkeypatch)


def _run(version: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    if version not in said:
        monkeypatch.setenv("PATH", str(fetched(name)), prepend=os.pathsep)


@pytest.fixture(params=OTHERS)
def other_qemu(request: pytest.FixtureRequest) -> Path:
    """The directory of a QEMU that is not the installed one."""
    return fetched(request.param)
