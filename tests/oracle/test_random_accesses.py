"""Random port accesses and DMA descriptors, the same for Debian's QEMU and for our device.

VMM_ORACLE_ACCESSES sets how many are compared in all; a failure's seed repeats it.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fw_cfg_duel import MEMORY, QEMU_ARGUMENTS, Duel
from qemu_qtest import Qemu

pytestmark = pytest.mark.usefixtures("each_qemu")

ACCESSES = int(os.environ.get("VMM_ORACLE_ACCESSES", "20000"))
SEEDS = range(1, 5)


@pytest.mark.timeout(600 + ACCESSES // 100)
@pytest.mark.parametrize("seed", SEEDS)
def test_same_answers_and_same_memory(
    tmp_path: Path, seed: int, record_property: Callable[[str, object], None]
) -> None:
    with Qemu(tmp_path, MEMORY, QEMU_ARGUMENTS) as qemu:
        score = Duel(qemu, seed, coalesced=seed % 2 == 0).run(ACCESSES // len(SEEDS))
    for name in ("accesses", "dma", "resets", "clobbered_writes"):
        record_property(name, getattr(score, name))
    print(f"seed {seed}: {score}")  # shown for a failure, or with -rP
    assert not score.differences
    assert score.dma > ACCESSES // len(SEEDS) // 20
