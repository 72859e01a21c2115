"""The user's directories, as the XDG Base Directory Specification names them (version 0.8)."""

import os
from pathlib import Path

_NO_HOME = Path("/nonexistent")
"""Of users who have neither HOME nor an account, as in containers; Debian's accounts without a home name it."""


def cache() -> Path:
    """Return where vmm keeps what can be had again."""
    return base("XDG_CACHE_HOME", ".cache") / "vmm"


def base(variable: str, default: str) -> Path:
    """Return the directory that an environment variable names, or its default below the home directory."""
    given = Path(os.environ.get(variable, ""))
    if given.is_absolute():  # the specification: others are to be ignored
        return given
    try:
        return Path.home() / default
    except RuntimeError:
        return _NO_HOME / default
