"""The registers by which firmware and OS learn which processors there are, which was plugged in, and which is to go.

QEMU's, with its two faces: from power-on on, a bitmap by APIC id; once somebody writes 0 to its first byte, or there is
a processor that it has no bit for, registers that go by index. Which of them it is outlasts a reset. Source:
docs/specs/acpi_cpu_hotplug and hw/acpi/cpu.c, hw/acpi/cpu_hotplug.c in QEMU.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from vmm.bus import Device

_BITMAP = 32
"""Bytes."""

_SELECTOR, _FLAGS, _COMMAND, _DATA, _REGISTERS = 0, 4, 5, 8, 12
"""Offsets; a read of the selector's gives the high half of the data, and the last is the end."""

_PRESENT, _INSERTING, _REMOVING, _EJECT, _BY_FIRMWARE = (1 << bit for bit in range(5))
"""The flags; what happened is cleared by writing a one, the OS ejects, or firmware is to do so (which is kept)."""

_KEPT = _INSERTING | _REMOVING | _BY_FIRMWARE

_NEXT_EVENT, _OST_EVENT, _OST_STATUS, _APIC_ID, _COMMANDS = range(5)


class CpuHotplug(Device):
    """The registers of one machine.

    Args:
        apic_ids: of every processor that there may be, by index.
        present: which of them there are, by index; the machine's own list.
        notify: lets the OS know that something has happened.
        counted: told how many there are, whenever that changes.
        ejected: told that the guest has let go of one.

    Attributes:
        ost: event and status, the last that the OS said of each processor by ``_OST`` (ACPI 6.5, 6.3.5).
    """

    def __init__(
        self,
        apic_ids: Sequence[int],
        present: list[bool],
        notify: Callable[[], None],
        counted: Callable[[int], None],
        ejected: Callable[[], None],
    ) -> None:
        self._apic_ids = apic_ids
        self._present = present
        self._notify = notify
        self._counted = counted
        self._ejected = ejected
        self._flags = [0] * len(present)
        self._modern = any(map(self._is_beyond, range(len(present))))
        self._selector = self._command = 0
        self.ost = [(0, 0)] * len(present)

    def plug(self, index: int) -> None:
        """A processor is there from now on; the OS is told."""
        self._present[index] = True
        if self._modern:
            self._flags[index] |= _INSERTING
        self._modern |= self._is_beyond(index)
        self._counted(sum(self._present))
        self._notify()

    @property
    def removes(self) -> bool:
        """Whether the OS could be asked to let go of a processor: not as long as it has a bitmap."""
        return self._modern

    def ask_to_remove(self, index: int) -> None:
        """The OS is asked to let go of a processor, and may."""
        self._flags[index] |= _REMOVING
        self._notify()

    def read(self, offset: int, size: int) -> int:
        """Registers, or the bitmap."""
        value, done = 0, 0
        while done < size:
            piece = self._piece(offset + done, size - done)
            mask = (1 << 8 * piece) - 1
            value |= (self._read(offset + done) & mask) << 8 * done
            done += piece
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """A register; or of the bitmap's first byte, what makes registers of it."""
        done = 0
        pieces = []
        while done < size:
            piece = self._piece(offset + done, size - done)
            pieces.append((offset + done, value >> 8 * done & (1 << 8 * piece) - 1))
            done += piece
        for at, part in pieces if self._modern else pieces[:1]:
            self._write(at, part)

    def state(self) -> dict[str, Any]:
        """Which processors there are, what the OS has not seen yet, and the registers."""
        return {
            "present": list(self._present),
            "flags": list(self._flags),
            "modern": self._modern,
            "selector": self._selector,
            "command": self._command,
            "ost": [list(each) for each in self.ost],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `state` gave it."""
        present, flags = list(map(bool, state["present"])), list(map(int, state["flags"]))
        selector, command = int(state["selector"]), int(state["command"])
        ost = [(int(event), int(status)) for event, status in state["ost"]]
        if not len(present) == len(flags) == len(ost) == len(self._present):
            raise ValueError(f"{len(present)} processors instead of {len(self._present)}")
        fits = all(0 <= value < 1 << 32 for value in (selector, *chain(*ost))) and 0 <= command < _COMMANDS
        if not fits or not present[0] or any(value & ~_KEPT for value in flags):
            raise ValueError("registers of CPU hot-plug that none can have")
        self._present[:], self._flags[:] = present, flags
        self._modern = bool(state["modern"])
        self._selector, self._command, self.ost = selector, command, ost
        self._counted(sum(self._present))

    def reset(self) -> None:
        """Nothing: as in QEMU, what is plugged in stays, and so do the registers."""

    def _is_beyond(self, index: int) -> bool:
        return self._present[index] and self._apic_ids[index] >= 8 * _BITMAP

    def _piece(self, at: int, size: int) -> int:
        """How many bytes from there are one access: what is aligned, up to 4, and of the bitmap 1."""
        limit = min(4, at & -at or 4) if self._modern else 1
        return next(width for width in (4, 2, 1) if width <= min(limit, size))

    def _read(self, at: int) -> int:
        if not self._modern:
            ids = (id_ for id_, present in zip(self._apic_ids, self._present, strict=True) if present)
            return sum(1 << id_ % 8 for id_ in ids if id_ // 8 == at)
        if at >= _REGISTERS:
            return -1
        if self._selector >= len(self._present):
            return 0
        if at == _FLAGS:
            return self._flags[self._selector] | (_PRESENT if self._present[self._selector] else 0)
        if at == _DATA and self._command == _NEXT_EVENT:
            return self._selector
        if at == _DATA and self._command == _APIC_ID:
            return self._apic_ids[self._selector]
        return 0

    def _write(self, at: int, value: int) -> None:
        if not self._modern:
            self._modern = (at, value) == (0, 0)
        elif at == _SELECTOR:
            self._selector = value
        elif self._selector >= len(self._present):
            return
        elif at == _FLAGS:
            self._write_flags(self._selector, value)
        elif at == _COMMAND and value < _COMMANDS:
            self._command = value
            if value == _NEXT_EVENT:
                self._select_next()
        elif at == _DATA:
            event, status = self.ost[self._selector]
            if self._command == _OST_EVENT:
                self.ost[self._selector] = value, status
            elif self._command == _OST_STATUS:
                self.ost[self._selector] = event, value

    def _write_flags(self, index: int, value: int) -> None:
        """Of several, the lowest counts."""
        if value & (_INSERTING | _REMOVING):
            self._flags[index] &= ~(_INSERTING if value & _INSERTING else _REMOVING)
        elif not self._present[index] or index == 0:
            return
        elif value & _EJECT:
            self._present[index] = False
            self._flags[index] &= ~_BY_FIRMWARE
            self._counted(sum(self._present))
            self._ejected()
        elif value & _BY_FIRMWARE:
            self._flags[index] |= _BY_FIRMWARE

    def _select_next(self) -> None:
        """Select the next processor of which the OS is to know something, from this one on, and around."""
        count = len(self._present)
        for index in (*range(self._selector, count), *range(self._selector)):
            if self._flags[index]:
                self._selector = index
                return
