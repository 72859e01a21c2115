"""Where a report comes from: which vmm, when, on what host, by which command, of which images.

Only for reports that are written to a file: hashing an image takes longer than to run a small guest.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import shlex
from typing import TYPE_CHECKING

from vmm.firmware.images import FirmwareKind
from vmm.info import cpu_facts
from vmm.installation import version

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Literal

    from vmm.config.machine import MachineConfig
    from vmm.firmware.images import FirmwareImages
    from vmm.inputs import Contents
    from vmm.report.schema import ImageReport, OriginReport


def origin(words: Sequence[str] | None, images: Iterable[ImageReport]) -> OriginReport:
    """Describe where a report comes from.

    Args:
        words: the command line behind ``vmm``; None: there was none.
        images: what the guests began with.
    """
    cpu = cpu_facts()
    return {
        "vmm": version(),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "command": None if words is None else shlex.join(["vmm", *words]),
        "host": {
            "cpu": cpu["name"],
            "cpus": cpu["online"],
            "virtualization": cpu["virtualization"],
            "kernel": os.uname().release,
        },
        "images": list(images),
    }


def images_of_machine(config: MachineConfig) -> Iterator[ImageReport]:
    """Hash what a machine began with, as it was read."""
    yield from images_of_firmware(config.firmware)
    if config.kernel is not None:
        yield _image("kernel", str(config.kernel.path), config.kernel.data)


def images_of_firmware(images: FirmwareImages) -> Iterator[ImageReport]:
    """Hash a firmware's file or files, as they were read."""
    store = images.variables
    if images.kind is FirmwareKind.NONE:
        return
    if store is not None and store.path == images.path:
        yield _image("firmware", str(images.path), store.data, images.code)  # one file, which was split
        return
    yield _image("firmware", str(images.path), images.code)
    if store is not None:
        yield _image("variables", str(store.path), store.data)


def _image(role: Literal["firmware", "variables", "kernel"], path: str, *parts: Contents) -> ImageReport:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return {"role": role, "path": path, "size": sum(map(len, parts)), "sha256": digest.hexdigest()}
