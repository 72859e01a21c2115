"""A process beside the one that runs a guest, which writes whole files for it.

What runs a guest gives up the right to open files for writing (`vmm.sandbox`), but a report takes the place of its file
only when there is one. So the places are told to a child process before, and their contents sent later. Whoever has
taken over the sender can write to these places, once each time, and to no other.
"""

import errno
import os
import signal
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from vmm.errors import HostError

_REQUEST: Final = struct.Struct("<IQ")
"""Which place, and how many bytes follow."""

_ANSWER: Final = struct.Struct("<i")
"""0, or the errno of what failed."""

_LONGEST: Final = 256 << 20
"""Bytes of a file: more than any report, or flash chip."""


class Scribe:
    """The other process; it ends with this one, or with `close`. To be made while there is one thread.

    Args:
        places: write their argument as a whole, or raise `OSError`.

    Attributes:
        descriptors: what `write` uses.

    Raises:
        HostError: the host gives no further process.
    """

    def __init__(self, places: Sequence[Callable[[bytes], None]]) -> None:
        self._lock = threading.Lock()
        requests, self._to = os.pipe()
        self._answers, answers = os.pipe()
        self.descriptors = (self._to, self._answers)
        try:
            self._pid = os.fork()
        except OSError as error:
            for end in (requests, answers, *self.descriptors):
                os.close(end)
            raise HostError(
                f"no process that writes reports: {(error.strerror or '').lower()}; raise the limits of processes "
                "(ulimit -u) and of address space (ulimit -v), or use --sandbox off"
            ) from None
        if self._pid == 0:
            status = 1
            try:
                os.close(self._to)
                os.close(self._answers)
                _serve(requests, answers, places)
                status = 0
            finally:
                os._exit(status)
        os.close(requests)
        os.close(answers)

    def write(self, place: int, data: bytes) -> None:
        """Have ``data`` written; any thread may.

        Raises:
            OSError: it could not be.
        """
        with self._lock:
            try:
                _send(self._to, _REQUEST.pack(place, len(data)))
                _send(self._to, data)
            except BrokenPipeError:
                raise OSError(errno.EIO, "the process that writes files has ended") from None
            answer = _receive(self._answers, _ANSWER.size)
        error = _ANSWER.unpack(answer)[0] if answer else errno.EIO
        if error:
            raise OSError(error, os.strerror(error))

    def close(self) -> None:
        """Let the process end, and wait for that."""
        os.close(self._to)
        os.close(self._answers)
        os.waitpid(self._pid, 0)


def _serve(requests: int, answers: int, places: Sequence[Callable[[bytes], None]]) -> None:
    # Interrupts are for the sender, whose end is seen; and nobody is to wait for this process's copy of a pipe.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    while header := _receive(requests, _REQUEST.size):
        place, size = _REQUEST.unpack(header)
        if size > _LONGEST or place >= len(places):
            return  # nothing that vmm sends
        error = 0
        try:
            places[place](_receive(requests, size))
        except OSError as failed:
            error = failed.errno or errno.EIO
        with suppress(BrokenPipeError):
            _send(answers, _ANSWER.pack(error))


def _send(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _receive(fd: int, size: int) -> bytes:
    """All of it; nothing where the other side has ended."""
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            return b""
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
