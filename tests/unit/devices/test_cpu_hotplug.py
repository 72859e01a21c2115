"""CPU hot-plug: what of a snapshot its registers refuse; the rest is compared with QEMU, in tests/oracle."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


VALUES = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF)
ACCESSES = st.tuples(st.integers(0, 31), st.sampled_from([1, 2, 4]), st.none() | VALUES)


@given(st.lists(ACCESSES, max_size=40), st.lists(st.sampled_from([1, 2]), max_size=2, unique=True))
def test_whatever_a_guest_writes_can_be_read_and_restored(
    accesses: list[tuple[int, int, int | None]], plugged: list[int]
) -> None:
    """A processor comes halfway; at the end, another machine takes the state over and reads the same."""
    hostile, other = device(), device()
    hostile.write(0, 1, 0)
    for number, (offset, size, value) in enumerate(accesses):
        if number in (10, 20) and plugged:
            hostile.plug(plugged.pop())
        if value is None:
            assert 0 <= hostile.read(offset, size) < 1 << 8 * size
        else:
            hostile.write(offset, size, value & (1 << 8 * size) - 1)
    assert hostile.state()["present"][0], "the first processor cannot go"
    other.restore(hostile.state())
    assert other.state() == hostile.state()
    assert [other.read(offset, 4) for offset in range(32)] == [hostile.read(offset, 4) for offset in range(32)]
