"""The time of one guest, which every counter and deadline of its devices goes by."""

import time

from vmm._native import ffi

_MASK_64 = (1 << 64) - 1

VIRTUAL_START_NS = 1_000_000_000
"""Where virtual time (`vmm.run.virtual_time`) begins: not at 0, which some timers take for none."""

VIRTUAL_UTC_NS = 1_767_225_600 * 1_000_000_000
"""What the real-time clock shows then: 2026-01-01 00:00:00."""


class GuestClock:
    """Nanoseconds, counted on by the host's CLOCK_MONOTONIC.

    At first it is that clock itself. A machine that is restored goes on from where its time stood.

    Attributes:
        core: where C reads the same time, a ``struct guest_clock *``; valid as long as this object.
    """

    def __init__(self) -> None:
        self.core = ffi.new("struct guest_clock *")

    def __call__(self) -> int:
        """Return the time."""
        offset = int(self.core.offset_ns)
        return offset if self.core.stands else (time.monotonic_ns() + offset) & _MASK_64

    def set(self, nanoseconds: int) -> None:
        """Go on from there. Deadlines that are waited for are to be armed again."""
        self.core.offset_ns = (nanoseconds - (0 if self.core.stands else time.monotonic_ns())) & _MASK_64

    def stand(self, nanoseconds: int) -> None:
        """Stay there until the next call."""
        self.core.stands = True
        self.core.offset_ns = nanoseconds
