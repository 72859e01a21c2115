"""Stderr where somebody may read it slowly, or not at all: a pipe, a terminal, a socket.

A message must not hold up who says it: the thread that waits for a machine looks for Ctrl-C and for the end of
`--timeout`, and a progress line or a log on a terminal that stands (Ctrl-S) kept it from that. What cannot be written
at once is kept, up to `KEEP_BYTES`, and written with what comes next, or at the end of the process.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import stat
import sys
import threading
import time

from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

_STDERR: Final = 2

KEEP_BYTES = 1 << 20
"""What is not read is kept up to here; what comes behind it is dropped, and counted."""

DRAIN_SECONDS = 2.0
"""How long a reader may pause after all has been said before the rest is dropped."""

HURRIED_SECONDS = 0.05
"""How long after an interrupt."""

_AGAIN_SECONDS: Final = 0.01
"""Until the next try to write to a terminal that says it has room, and has too little."""

_PIECE: Final = 4096
"""Bytes written at once: what a pipe takes without blocking once it is writable at all (PIPE_BUF of Linux)."""


class _Unblocking(io.RawIOBase):
    """Takes everything at once, and writes it as it is read."""

    def __init__(self) -> None:
        super().__init__()
        self._pending = b""
        self._dropped = 0
        self._lock = threading.Lock()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return _STDERR

    def isatty(self) -> bool:
        return os.isatty(_STDERR)

    def write(self, data: bytes, /) -> int:  # type: ignore[override]  # who calls it is TextIOWrapper
        """Take all of it."""
        with self._lock:
            if not self._pending:
                self._say_dropped()
            if self._dropped or len(self._pending) >= KEEP_BYTES:
                self._dropped += len(data)
            else:
                self._pending += data
            while self._pending and ready():
                if not self._write():
                    break
        return len(data)

    def drain(self, patience: float) -> None:
        """Wait for the reader of what is left, as long as it reads at all."""
        with self._lock:
            self._say_dropped()
            until = time.monotonic() + patience
            while self._pending and ready(max(0.0, until - time.monotonic())):
                if self._write():
                    until = time.monotonic() + patience
                elif time.monotonic() > until:
                    break
                else:
                    time.sleep(_AGAIN_SECONDS)

    def _say_dropped(self) -> None:
        if self._dropped:
            self._pending += b"\nvmm: %d bytes are missing here: stderr was not read fast enough\n" % self._dropped
            self._dropped = 0

    def _write(self) -> bool:
        """False: nothing could be written now."""
        try:
            done = os.write(_STDERR, self._pending[:_PIECE])
        except BlockingIOError:
            return False
        except OSError:
            self._pending = b""  # nobody will ever read it
            raise
        self._pending = self._pending[done:]
        return True


def ready(seconds: float = 0) -> bool:
    """Whether stderr takes something within so many seconds, or says at once that it never will."""
    try:
        return bool(select.select([], [_STDERR], [], seconds)[1])
    except (OSError, ValueError):
        return True


def unblock() -> None:
    """Have nobody in this process wait who writes to `sys.stderr`; to be called before anything is written there.

    A terminal that nobody reads says that it has room, and then blocks. It is opened anew, for what is set of stderr
    itself is set for the other programs that have it, too.
    """
    try:
        mode = os.fstat(_STDERR).st_mode
        if os.isatty(_STDERR):
            own = os.open(os.ttyname(_STDERR), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            os.dup2(own, _STDERR)
            os.close(own)
        elif not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            return
    except OSError:
        pass  # its own user may not open it; a pipe's rules are better than none
    raw = _Unblocking()
    sys.stderr = io.TextIOWrapper(
        raw,  # it takes all that it is given, as a buffer does
        encoding=sys.stderr.encoding,
        errors=sys.stderr.errors,
        write_through=True,
    )


def drain(*, hurried: bool) -> None:
    """Write what is left, at the end of the process; wait for a slow reader a little, or hardly at all."""
    raw = getattr(sys.stderr, "buffer", None)
    if isinstance(raw, _Unblocking):
        with contextlib.suppress(OSError):
            raw.drain(HURRIED_SECONDS if hurried else DRAIN_SECONDS)
