"""The guest's console streams (serial port, debug port): kept, passed on, searched.

Devices append from vCPU threads and must not be slowed down, so the search for
``--until`` and ``--send`` patterns runs on the thread that waits for the machine.
"""

import re
import threading
import time
from collections.abc import Callable, Sequence

from vmm.errors import ConfigError

KEEP_BYTES = 4 << 20
"""How much of a stream is kept for reports and searches; a guest may print for ever."""

_SEARCH_OVERLAP = 4096
"""How far back a pattern may have begun in what was searched before."""

MAX_PARAMETERS = 64
"""Bytes between CSI and the letter that ends it; what is longer is text, so that a guest cannot make us wait for an end
that never comes."""

_ESCAPE_SEQUENCE = rb"\x1b(?:\[[0-9;?=]{0,%d}[@-~]|[()][0-9A-Za-z]|[=>78c])" % MAX_PARAMETERS
_ESCAPE_BEGUN = rb"\x1b(?:\[[0-9;?=]{0,%d}|[()])?\Z" % MAX_PARAMETERS


def strip_escapes(data: bytes) -> bytes:
    """``data`` without terminal escape sequences (ECMA-48 CSI, and the two- and three-byte ones)."""
    return re.sub(_ESCAPE_SEQUENCE, b"", data)


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
        self._kept = bytearray()
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Append what the guest printed."""
        with self._lock:
            if self.first_at is None:
                self.first_at = time.monotonic()
            self._kept += data
            self.total += len(data)
            if len(self._kept) > 2 * KEEP_BYTES:
                del self._kept[:-KEEP_BYTES]
        if self.sink is not None:
            self.sink(data)

    def since(self, position: int) -> bytes:
        """The bytes from ``position`` (counted from the first ever printed) on, as far as they are kept."""
        return self.fresh(position)[0]

    def fresh(self, position: int) -> tuple[bytes, int]:
        """`since`, and the position from which to ask next."""
        with self._lock:
            first = self.total - len(self._kept)
            return bytes(self._kept[max(0, position - first) :]), self.total

    def text(self) -> str:
        """All that is kept, without escape sequences."""
        return strip_escapes(self.since(0)).decode("utf-8", "replace")

    def last_line(self) -> str:
        """The last line that is not blank, without escape sequences; "" if there is none."""
        lines = [line.strip() for line in self.text()[-_SEARCH_OVERLAP:].splitlines()]
        return next((line for line in reversed(lines) if line), "")


class _Searched:
    """How far a stream was searched."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.position = stream.total
        self.carry = b""
        self.tail = b""


class Watcher:
    """Looks for one pattern after the other in the streams, each in what came after the match before it.

    Args:
        streams: where to look.
        patterns: regular expressions, as bytes are: the text is decoded as Latin-1.
    """

    def __init__(self, streams: Sequence[Stream], patterns: Sequence[re.Pattern[bytes]]) -> None:
        self._searched = [_Searched(stream) for stream in streams]
        self._patterns = list(patterns)

    @property
    def waiting_for(self) -> str | None:
        """The pattern that is to come next; None when all came."""
        return self._patterns[0].pattern.decode("latin-1") if self._patterns else None

    def poll(self) -> int:
        """Search what was printed since the last call; how many patterns were found, in order."""
        found = 0
        for searched in self._searched:
            found += self._poll_stream(searched)
        return found

    def _poll_stream(self, searched: _Searched) -> int:
        fresh, searched.position = searched.stream.fresh(searched.position)
        if not fresh:
            return 0
        fresh = searched.carry + fresh
        begun = re.search(_ESCAPE_BEGUN, fresh)
        searched.carry = fresh[begun.start() :] if begun else b""
        text = searched.tail + strip_escapes(fresh[: len(fresh) - len(searched.carry)])
        found = 0
        while self._patterns and (match := self._patterns[0].search(text)):
            self._patterns.pop(0)
            found += 1
            text = text[match.end() :]
        searched.tail = text[-_SEARCH_OVERLAP:]
        return found


def compile_pattern(text: str) -> re.Pattern[bytes]:
    """A regular expression to search a console with.

    Raises:
        ConfigError: the text is none.
    """
    try:
        return re.compile(text.encode("utf-8", "surrogateescape"), re.MULTILINE)
    except re.error as error:
        raise ConfigError(f"{text}: not a regular expression: {error}") from None
