"""CPU hot-plug: what of a snapshot its registers refuse; the rest is compared with QEMU, in tests/oracle."""

from typing import Any

import pytest

from vmm.devices.cpu_hotplug import CpuHotplug


def device() -> CpuHotplug:
    counts: list[int] = []
    return CpuHotplug([0, 1, 2], [True, False, False], lambda: None, counts.append, lambda: None)


@pytest.mark.parametrize(
    "changes",
    [
        {"selector": -4},
        {"selector": 1 << 32},
        {"command": 5},
        {"command": -1},
        {"flags": [0, 0, 1 << 40]},
        {"flags": [0, 0, 1]},  # present, which is kept elsewhere
        {"flags": [0, 0]},
        {"ost": [[0, 0]]},
        {"ost": [[0, 0], [0, 1 << 32], [0, 0]]},
        {"present": [True, True]},
        {"present": [False, True, True]},
    ],
)
def test_it_refuses_registers_that_no_guest_could_have_written(changes: dict[str, Any]) -> None:
    """With some of these, the guest's next access would end the run."""
    restored = device()
    before = restored.state()
    with pytest.raises(ValueError, match=r"processors instead of|that none can have"):
        restored.restore(before | {"modern": True} | changes)
    assert restored.state() == before
