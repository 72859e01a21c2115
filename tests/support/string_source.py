"""A device that guests read by `REP INS`."""

from vmm.bus import Device

PORT = 0x500


class Source(Device):
    """What it gives depends on how much it has given."""

    def __init__(self) -> None:
        self.given = 0
        self.runs: list[int] = []

    def read(self, offset: int, size: int) -> int:
        self.given += 1
        return self.given * 0x01030507

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        self.runs.append(count * size)
        return super().read_string(offset, size, count)
