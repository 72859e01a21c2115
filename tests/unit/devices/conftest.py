"""A virtio disk, and its image."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from virtio_rig import SECTORS, VirtioRig


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes((sector,)) * 512 for sector in range(SECTORS)))
    return path


@pytest.fixture
def disk(image: Path) -> Iterator[VirtioRig]:
    with VirtioRig(image) as rig:
        rig.start()
        yield rig
