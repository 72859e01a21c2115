"""What C uses of a Python object's memory is forgotten with it: that must not crash Python's garbage collector."""

import gc
import mmap
from collections.abc import Callable

import pytest
from device_rig import Rig

from vmm.devices.flash import Flash
from vmm.devices.fw_cfg_item import new_item
from vmm.pin import Pinned

SIZE = 0x20000


@pytest.mark.parametrize(
    "use",
    [
        lambda view: new_item("opt/a", 1, view, False, None, None),
        lambda view: Flash(Rig().memory, 0xFFFE0000, view, read_only=False),
    ],
    ids=["fw_cfg", "flash"],
)
@pytest.mark.parametrize("first", [0, SIZE // 2])
def test_a_view_and_what_uses_it_may_die_together(use: Callable[[memoryview], object], first: int) -> None:
    gc.collect()
    # Older than what refers to it, so that the collector comes to it first.
    view = memoryview(mmap.mmap(-1, SIZE))[first:]
    circle: list[object] = [view, use(view)]
    circle.append(circle)
    del view, circle
    assert gc.collect() > 0


def test_part_of_a_buffer_is_pinned_where_it_is() -> None:
    image = mmap.mmap(-1, SIZE)
    whole, part = Pinned.of(image), Pinned.of(memoryview(image)[0x1000:0x3000])
    assert (part.address, part.size) == (whole.address + 0x1000, 0x2000)
    del whole
    with pytest.raises(BufferError):
        image.close()
    del part
    image.close()


def test_what_is_to_be_writable_has_to_be() -> None:
    with pytest.raises(BufferError):
        Pinned.of(memoryview(bytearray(8)).toreadonly(), writable=True)
