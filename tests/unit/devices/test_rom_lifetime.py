"""ROM that is mapped and then forgotten: what keeps it in place must not crash Python's garbage collector."""

import gc
import mmap

import pytest
from device_rig import Rig

SIZE = 0x20000
GPA = 0xE0000


class Forgotten(Rig):
    """A machine's parts refer to each other; so does this, and only the garbage collector takes it away."""

    def __init__(self, rom: memoryview) -> None:
        super().__init__()
        self.rom = rom
        self.itself = self
        self.memory.map_rom(GPA, rom)


@pytest.mark.parametrize("first", [0, SIZE // 2])
def test_rom_and_its_memory_may_die_together(first: int) -> None:
    gc.collect()
    # The view is older than what refers to it, so that the collector comes to it first.
    view = memoryview(mmap.mmap(-1, SIZE))[first:]
    rig = Forgotten(view)
    del view, rig
    assert gc.collect() > 0


def test_part_of_a_buffer_is_shown() -> None:
    image = mmap.mmap(-1, SIZE)
    image[SIZE // 2] = 0x5A
    rig = Rig()
    rig.memory.map_rom(GPA, memoryview(image)[SIZE // 2 :])
    image[SIZE // 2 + 1] = 0xA5
    assert rig.load(GPA, 2) == 0xA55A
    with pytest.raises(BufferError):
        image.close()
    rig.memory.unmap(GPA)
    image.close()
