"""How vmm came onto this host: its distribution, and whether it runs in a clone, whose scripts a remedy may name."""

import os

DISTRIBUTION = "firmware-vmm"
"""What pip knows it by; the distribution named vmm is somebody else's."""

_SCRIPTS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scripts")


def version() -> str:
    """Return the version that is installed."""
    from importlib import metadata  # takes 10 ms, which few runs need

    return metadata.version(DISTRIBUTION)


def remedy(script: str, in_clone: str, elsewhere: str) -> str:
    """Return what to do: in a clone, which has that script, or where vmm was installed by pip."""
    return in_clone if os.path.isfile(os.path.join(_SCRIPTS, script)) else elsewhere


def extra_remedy(name: str) -> str:
    """Return what to do where a package of an extra is missing."""
    return remedy("setup", "run scripts/setup test", f"pip install '{DISTRIBUTION}[{name}]'")
