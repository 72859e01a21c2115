"""This process's stdin and stdout as the other end of the guest's consoles.

On a terminal the serial port is interactive: keys go to the guest one by one, Ctrl-C included, and Ctrl-A X ends the
machine. Output is passed on by the thread that waits for the machine, never by a vCPU: a reader that stops reading must
not stop the guest, nor keep a deadline from ending it. Where two consoles share stdout, the log (debugcon) is passed on
by whole lines, so that it does not cut into words.
"""

from __future__ import annotations

import contextlib
import os
import select
import time

from vmm.run.console import KEEP_BYTES
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

    from vmm.run.console import Stream

CONTROL_A = 0x01

HELP = "Ctrl-A X ends the machine, Ctrl-A P presses its power button, Ctrl-A Ctrl-A types Ctrl-A, Ctrl-A H prints this"

SUSPENDED = "the machine is suspended: Ctrl-A W wakes it up, Ctrl-A X ends it"

_WAIT_SECONDS = 0.1
"""How long a look for keys may take while nothing else happens."""

DRAIN_SECONDS = 2.0
"""How long a reader of stdout may pause after the guest has ended before the rest is dropped."""

HURRIED_SECONDS = 0.05
"""How long it may take for all of it after an interrupt."""

_AGAIN_SECONDS = 0.01
"""Until the next try to write to a terminal that says it has room, and has too little."""

PIECE = 4096
"""Bytes written at once: what a pipe takes without blocking once it is writable at all (PIPE_BUF of Linux)."""


class Terminal:
    """Passes consoles on to stdout, and stdin to the serial port; a context manager that restores the terminal.

    Args:
        streams: the consoles to show, the one that is typed into first.
        keys: gets what is typed; None: nothing is read.
        quit_: called at Ctrl-A X, and where stdout cannot be written any more.
        say: prints a line for the user to stderr.
        press: called at Ctrl-A P.
        out: what `unblocking_stdout` gave.

    Attributes:
        lost: what stdout lacks of what the consoles printed, and why; "" if nothing.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        keys: Callable[[bytes], object] | None,
        quit_: Callable[[], object],
        say: Callable[[str], object],
        press: Callable[[], object],
        out: int = 1,
    ) -> None:
        self._streams = list(streams)
        self._out = out
        self._shown = [0] * len(self._streams)
        self._pending = b""
        self._skipped = 0
        self.lost = ""
        self._last = b"\n"
        self._keys = keys
        self._quit = quit_
        self._say = say
        self._press = press
        self._after_control_a = False
        self._wakes: bool | None = None
        self._mode = contextlib.ExitStack()
        self._interactive = False
        self._closed = False
        self._until = float("inf")

    def __enter__(self) -> Self:
        if self._keys is not None and is_foreground_terminal():
            from vmm.run.raw_mode import raw_mode  # few runs have a terminal

            self._say(f"vmm: this terminal is the guest's serial console: {HELP}")
            self._mode.enter_context(raw_mode(0))
            self._interactive = True
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._drain()
        finally:
            self._interactive = False
            self._mode.close()

    @property
    def interactive(self) -> bool:
        """Whether keys typed on a terminal go to the guest."""
        return self._interactive

    @property
    def shows_on_terminal(self) -> bool:
        """Whether a console is shown on a terminal, where nothing else should be drawn."""
        return bool(self._streams) and os.isatty(1)

    def poll(self) -> None:
        """Pass on what there is now, without waiting."""
        self._read_keys()
        if len(self._pending) < KEEP_BYTES:  # else what comes next waits in its stream, which drops what is too old
            self._collect()
        while self._pending and not self._closed and _ready(self._out, write=True):
            if not self._write(self._pending[:PIECE]):
                break

    def hurry(self) -> None:
        """Wait for no reader of stdout much longer: somebody wants this to end."""
        self._until = time.monotonic() + HURRIED_SECONDS

    def asks_to_wake(self, on_wait: Callable[[], object]) -> bool:
        """Ask the person at the terminal whether a machine that the guest has suspended is to go on.

        Args:
            on_wait: called again and again meanwhile.
        """
        if not self.interactive:
            return False
        self._say(f"\nvmm: {SUSPENDED}")
        self._wakes = None
        while self._wakes is None and self._keys is not None and not self._closed:
            on_wait()
            _ready(0, seconds=_WAIT_SECONDS)
        return bool(self._wakes)

    def _collect(self, *, final: bool = False) -> None:
        for index, stream in enumerate(self._streams):
            total = stream.total
            if total == self._shown[index]:
                continue
            data = stream.since(self._shown[index])
            # More than the stream keeps may have been printed while nobody read our output.
            lost = max(0, total - self._shown[index] - len(data))
            if index and not final:
                data = data[: data.rfind(b"\n") + 1]
            self._skipped += lost
            self._shown[index] += lost + len(data)
            self._pending += data

    def _write(self, data: bytes) -> bool:
        """False: nothing could be written now, as on a terminal with room for half a line's end."""
        try:
            done = os.write(self._out, data)
        except BlockingIOError:
            return False
        except OSError as error:
            self._closed = True
            self.lost = f"cannot write all of the output: {error.strerror}"
            self._quit()
            return False
        self._last = data[:done][-1:]
        self._pending = self._pending[done:]
        return True

    def _drain(self) -> None:
        self._collect(final=True)
        until = time.monotonic() + self._patience()
        while self._pending and not self._closed:
            left = until - time.monotonic()
            if not _ready(self._out, write=True, seconds=max(0.0, left)):
                break
            if self._write(self._pending[:PIECE]):
                until = time.monotonic() + self._patience()
            elif left < 0:
                break
            else:
                time.sleep(_AGAIN_SECONDS)
        self._skipped += len(self._pending)
        if self._skipped and not self._closed:
            self.lost = f"{self._skipped} bytes of console output were not shown: stdout was not read fast enough"
        if not self._closed and not self._pending and os.isatty(1) and any(self._shown):
            # Firmware leaves colours behind, and seldom ends its last line.
            self._write(b"\x1b[0m" + (b"" if self._last == b"\n" else b"\n"))

    def _patience(self) -> float:
        return max(0.0, min(DRAIN_SECONDS, self._until - time.monotonic()))

    def _read_keys(self) -> None:
        if self._keys is None or not _ready(0):
            return
        try:
            data = os.read(0, PIECE)
        except OSError:
            data = b""
        if data and self._interactive:
            data = self._without_commands(data)
        elif not data:
            self._keys = None
        if data and self._keys is not None:
            _tell_guest(self._keys, data)

    def _without_commands(self, data: bytes) -> bytes:
        """Obey what follows Ctrl-A; return what is for the guest."""
        typed = bytearray()
        for key in data:
            if not self._after_control_a:
                self._after_control_a = key == CONTROL_A
                if not self._after_control_a:
                    typed.append(key)
                continue
            self._after_control_a = False
            if key in b"xX":
                self._wakes = False
                self._quit()
            elif key in b"pP":
                _tell_guest(self._press)
            elif key in b"wW":
                self._wakes = True
            elif key in b"hH":
                self._say(f"\nvmm: {HELP}")
            elif key in b"aA\x01":
                typed.append(CONTROL_A)
        return bytes(typed)


@contextlib.contextmanager
def unblocking_stdout() -> Iterator[int]:
    """A descriptor of stdout that makes nobody wait who writes to it; to be opened before the sandbox.

    A terminal that nobody reads (Ctrl-S) says that it has room, and then blocks. It is opened anew, for what is set of
    stdout itself is set for the other programs that have it, too. A pipe takes a `PIECE` if it takes anything.
    """
    try:
        out = os.open(os.ttyname(1), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        yield 1
        return
    try:
        yield out
    finally:
        os.close(out)


def is_foreground_terminal() -> bool:
    """Whether stdin and stdout are a terminal that this process may use."""
    with contextlib.suppress(OSError):
        return os.isatty(0) and os.isatty(1) and os.tcgetpgrp(0) == os.getpgrp()
    return False


def _tell_guest(act: Callable[..., object], *values: bytes) -> None:
    from vmm.run.expected import SendError  # few guests are told anything

    with contextlib.suppress(SendError):  # the guest has ended; its last words are still to be shown
        act(*values)


def _ready(fd: int, *, write: bool = False, seconds: float = 0) -> bool:
    readers, writers = ([], [fd]) if write else ([fd], [])
    try:
        return any(select.select(readers, writers, [], seconds))
    except (OSError, ValueError):
        return True  # the read or the write will tell
