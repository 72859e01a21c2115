"""The legacy ROM area and its PAM registers: for each segment of 0xc0000-0xfffff, is it ROM or RAM?

Intel 440FX (290549) 3.2.17 and 3 Series (316966) 5.1.24-5.1.30 define the same seven registers.
"""

from __future__ import annotations

from vmm import layout
from vmm.bus import Device
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

    from vmm.devices.signals import MemoryMapper

PAM_REGISTERS = 7

_READ_RAM = 1
_WRITE_RAM = 2
_SEGMENT = 0x4000


class _Backing(NamedTuple):
    gpa: int
    size: int
    kind: str


class ShadowArea:
    """Maps ROM or RAM as the PAM registers say.

    Reads and writes are switched apart: RAM, read-only RAM, ROM, and ROM with RAM behind it that takes the stores.

    Args:
        memory: where to map.
        rom: the BIOS, a multiple of 16 KiB of page-aligned memory; its last byte is at 0xfffff.
    """

    def __init__(self, memory: MemoryMapper, rom: memoryview) -> None:
        self._memory = memory
        self._rom = rom
        self._rom_start = layout.LEGACY_END - len(rom)
        self._modes: list[int] = []
        self._mapped: set[_Backing] = set()

    def update(self, pam: bytes) -> None:
        """Apply the seven PAM registers."""
        modes = [pam[1 + i // 2] >> (4 * (i % 2)) & 3 for i in range(12)] + [pam[0] >> 4 & 3] * 4
        if modes == self._modes:
            return
        self._modes = modes
        wanted = set(self._backings())
        for old in self._mapped - wanted:
            self._memory.unmap(old.gpa)
        for new in sorted(wanted - self._mapped, key=lambda backing: backing.gpa):
            self._map(new)
        self._mapped = wanted

    def store(self, gpa: int, data: bytes) -> None:
        """The guest stored where no writable memory is mapped."""
        if self._modes and self._modes[(gpa - layout.LEGACY_ROM.start) // _SEGMENT] & _WRITE_RAM:
            self._memory.store_behind(gpa, data)

    def _kind(self, segment: int, gpa: int) -> str | None:
        mode = self._modes[segment]
        if mode & _READ_RAM:
            return "ram" if mode & _WRITE_RAM else "read-only ram"
        return "rom" if gpa >= self._rom_start else None

    def _backings(self) -> list[_Backing]:
        result: list[_Backing] = []
        for segment, gpa in enumerate(range(layout.LEGACY_ROM.start, layout.LEGACY_ROM.stop, _SEGMENT)):
            kind = self._kind(segment, gpa)
            if kind is None:
                continue
            last = result[-1] if result else None
            if last is not None and last.kind == kind and last.gpa + last.size == gpa:
                result[-1] = _Backing(last.gpa, last.size + _SEGMENT, kind)
            else:
                result.append(_Backing(gpa, _SEGMENT, kind))
        return result

    def _map(self, backing: _Backing) -> None:
        if backing.kind != "rom":
            self._memory.map_ram(backing.gpa, backing.size, read_only=backing.kind == "read-only ram")
        else:
            start = backing.gpa - self._rom_start
            self._memory.map_rom(backing.gpa, self._rom[start : start + backing.size])


class LegacyArea(Device):
    """What is left of the area's accesses once memory is mapped: stores to ROM, and everything where nothing is.

    Args:
        shadow: takes the stores that PAM sends to RAM.
    """

    def __init__(self, shadow: ShadowArea) -> None:
        self._shadow = shadow

    def read(self, offset: int, size: int) -> int:
        """All-ones: nobody answers."""
        return -1

    def write(self, offset: int, size: int, value: int) -> None:
        """Into the RAM behind, or nowhere."""
        self._shadow.store(layout.LEGACY_ROM.start + offset, value.to_bytes(size, "little"))

    def state(self) -> dict[str, Any]:
        """Nothing: what is mapped where is the chipset's state."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing."""
