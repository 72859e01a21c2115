"""Whose firmware an image is and which interface it speaks, remembered from run to run.

Looking into an image (:mod:`vmm.firmware.clients`) takes up to half a second where volumes are compressed, as long as a
third of a boot. So the answers that a machine needs are kept in ``$XDG_CACHE_HOME/vmm/firmware-identity``, a small file
for each image, named by a hash of the image and of the code that looked. A cache that cannot be used is not needed.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from vmm import directories
from vmm.firmware.images import Identity, Interface
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

_LOOKS = ("clients.py", "contents.py", "volumes.py")
"""The modules whose change makes remembered answers worthless."""


def identify(data: bytes, path: Path) -> Identity:
    """Return what an image is; ``path`` is only its name. Whatever the bytes are, it doesn't raise."""
    file = _directory() / f"{hashlib.sha256(_revision() + data).hexdigest()}.json"
    remembered = _recall(file)
    if remembered is not None:
        return remembered
    from vmm.firmware.clients import SMM, analyze_bytes  # costs 50 ms that a remembered answer need not pay

    analysis = analyze_bytes(data, path)
    identity = Identity(analysis.kind, analysis.recommended_interface, analysis.reason, SMM in analysis.features)
    _remember(file, identity)
    return identity


def _directory() -> Path:
    return directories.cache() / "firmware-identity"


@cache
def _revision() -> bytes:
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in _LOOKS)).digest()


def _recall(file: Path) -> Identity | None:
    try:
        content: Any = json.loads(file.read_bytes())
        return Identity(
            str(content["kind"]), Interface(content["interface"]), str(content["reason"]), bool(content["needs_smm"])
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _remember(file: Path, identity: Identity) -> None:
    # Written aside and renamed: another vmm may be reading.
    aside = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(identity._asdict()), encoding="utf-8")
        aside.replace(file)
    except OSError:
        with suppress(OSError):
            aside.unlink()
