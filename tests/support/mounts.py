"""Commands with mounts of their own."""

import os
import subprocess

import pytest


def own_mounts() -> list[str]:
    """Return what to put before a command that mounts something; skip the test where this user may not."""
    within = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    if subprocess.run([*within, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False).returncode:
        pytest.skip("this host lets this user mount nothing, not even in a namespace of his own")
    return within
