"""The guest's console streams (serial port, debug port): kept, and passed on.

Devices append from vCPU threads and must not be slowed down: escape sequences are taken out, and patterns searched
(`vmm.run.expect`), by the thread that waits for the machine.
"""

from __future__ import annotations

import re
import threading
import time

from vmm.options import check_type
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

KEEP_BYTES = 4 << 20
"""How much of a stream is kept for reports and searches; a guest may print for ever."""

KEPT_LINES = 512
"""Lines of a stream whose times are kept; of more, every second, then every fourth, and so on, of the whole run."""

LINE_BYTES = 200
"""How much of such a line is kept, for a guest may never end one."""

_LAST_LINE_BYTES = 8192
"""Where the last line is looked for."""

_LAST_LINE_CHARACTERS = 160
"""How much of it is shown."""

MAX_PARAMETERS = 64
"""Bytes between CSI and the letter that ends it; what is longer is text, so that a guest cannot make us wait for an end
that never comes."""

_ESCAPE_SEQUENCE = rb"\x1b(?:\[[0-9;?=]{0,%d}[@-~]|[()][0-9A-Za-z]|[=>78c])" % MAX_PARAMETERS
_CURSOR_MOVED = rb"\x1b\[[0-9;]{0,%d}[HfJ]" % MAX_PARAMETERS
_ESCAPE_BEGUN = rb"\x1b(?:\[[0-9;?=]{0,%d}|[()])?\Z" % MAX_PARAMETERS


def strip_escapes(data: bytes) -> bytes:
    """``data`` without terminal escape sequences (ECMA-48 CSI, and the two- and three-byte ones)."""
    return re.sub(_ESCAPE_SEQUENCE, b"", data)


def split_escapes(data: bytes) -> tuple[bytes, bytes]:
    """``data`` without escape sequences, and apart from it one that begins at its end and may go on."""
    begun = re.search(_ESCAPE_BEGUN, data)
    end = begun.start() if begun else len(data)
    return strip_escapes(data[:end]), data[end:]


class Stream:
    """What one device printed.

    Args:
        name: "serial" or "debugcon".
        sink: gets each piece as it arrives, on a vCPU thread.
    """

    def __init__(self, name: str, sink: Callable[[bytes], object] | None = None) -> None:
        self.name = name
        self.sink = sink
        self.total = 0
        self.first_at: float | None = None
        """`time.monotonic` at the first byte."""
        self.instructions: Callable[[], int] | None = None
        """How many the guest has executed, where they are counted as it prints."""
        self.printed: Callable[[], None] | None = None
        """Told after each piece, on a vCPU thread."""
        self._kept = bytearray()
        self._line_begin = 0
        self._lines: list[tuple[float, int | None, bytes]] = []
        self._lines_ended = 0
        self._lines_stride = 1
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        last = f", the last line {self.last_line()!r}; text() has all" if self.total else ""
        return f"<Stream {self.name}: {self.total} bytes{last}>"

    def write(self, data: bytes) -> None:
        """Append what the guest printed."""
        with self._lock:
            if self.first_at is None:
                self.first_at = time.monotonic()
            self._kept += data
            self.total += len(data)
            if b"\n" in data:
                self._note_lines(data)
            if len(self._kept) > 2 * KEEP_BYTES:
                del self._kept[:-KEEP_BYTES]
        if self.sink is not None:
            self.sink(data)
        if self.printed is not None:
            self.printed()

    def since(self, position: int) -> bytes:
        """The bytes from ``position`` (counted from the first ever printed) on, as far as they are kept."""
        return self.after(position)[1]

    def after(self, position: int) -> tuple[int, bytes]:
        """What `since` gives, behind the position of its first byte: a later one where older bytes were dropped."""
        with self._lock:
            first = self.total - len(self._kept)
            start = min(max(position, first), self.total)
            return start, bytes(self._kept[start - first :])

    def lines(self) -> list[tuple[float, int | None, str]]:
        """When lines ended (`time.monotonic`, and instructions), and `LINE_BYTES` of them without escape sequences.

        Blank ones are missing, and of more than `KEPT_LINES` it is an even choice.
        """
        with self._lock:
            lines = list(self._lines)
        texts = ((at, count, strip_escapes(line).decode("utf-8", "replace").strip()) for at, count, line in lines)
        return [(at, count, text) for at, count, text in texts if text]

    def text(self) -> str:
        """All that is kept, without escape sequences."""
        return strip_escapes(self.since(0)).decode("utf-8", "replace")

    def state(self) -> dict[str, Any]:
        """What is kept, and how much there ever was."""
        with self._lock:
            return {"total": self.total, "kept": bytes(self._kept)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on behind what another machine printed; times of its lines are not this one's.

        Raises:
            TypeError: that gave something else.
        """
        check_type(state["total"], "total", int)
        check_type(state["kept"], "kept", bytes)
        with self._lock:
            self.total = self._line_begin = state["total"]
            self._kept = bytearray(state["kept"])

    def _note_lines(self, data: bytes) -> None:
        """Keep the lines that end in ``data``, which was just appended, and when."""
        now = time.monotonic()
        count = None if self.instructions is None else self.instructions()
        first, at = self.total - len(self._kept), self.total - len(data)
        end = data.find(b"\n")
        while end >= 0:
            if self._lines_ended % self._lines_stride == 0:
                begin = max(self._line_begin - first, 0)
                line = bytes(self._kept[begin : min(at + end - first, begin + LINE_BYTES)])
                self._lines.append((now, count, line))
                if len(self._lines) > KEPT_LINES:
                    del self._lines[1::2]
                    self._lines_stride *= 2
            self._lines_ended += 1
            self._line_begin = at + end + 1
            end = data.find(b"\n", end + 1)

    def last_line(self) -> str:
        """The last line that is not blank, without escape sequences; "" if there is none.

        Moving the cursor to another place, or erasing the screen, begins a line.
        """
        end = re.sub(_CURSOR_MOVED, b"\n", self.since(self.total - _LAST_LINE_BYTES))
        lines = [line.strip() for line in strip_escapes(end).decode("utf-8", "replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "")
        return last if len(last) <= _LAST_LINE_CHARACTERS else f"{last[:_LAST_LINE_CHARACTERS]} …"
