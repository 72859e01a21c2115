"""axe-core, which finds what keeps people from reading a page: npm fetches it once, into build/."""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

VERSION = "4.14.1"
SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
"""Of axe.min.js."""

BUILD = Path(__file__).parents[2] / "build"


def source() -> str:
    """Return the script; skips the test where it cannot be had."""
    path = BUILD / f"axe-core-{VERSION}.min.js"
    if not path.exists():
        path.write_bytes(_fetched())
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == SHA256, f"{path} is not axe-core {VERSION}"
    return data.decode()


def _fetched() -> bytes:
    if shutil.which("npm") is None:
        pytest.skip("no npm here, which fetches axe-core")
    with tempfile.TemporaryDirectory() as directory:
        command = ["npm", "pack", f"axe-core@{VERSION}", "--pack-destination", directory]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot fetch axe-core {VERSION}: {done.stderr.strip()[-200:]}")
        with tarfile.open(Path(directory) / f"axe-core-{VERSION}.tgz") as archive:
            member = archive.extractfile("package/axe.min.js")
            assert member is not None
            return member.read()
