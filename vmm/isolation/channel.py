"""What the caller's process and a machine's say to each other: plain data, for a guest may have taken over the latter.

A message is a description in JSON and the bytes that it refers to (`vmm.run.snapshot_plain`), behind their two sizes.
"""

import math
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from vmm.run import snapshot_plain

_SIZES: Final = struct.Struct("<II")
"""Bytes of the description, and bytes that it refers to."""

_LONGEST: Final = 256 << 20
"""Bytes of a message that is taken; the longest are what somebody reads of a guest's memory."""

_LONGEST_TEXT: Final = 64 << 20
"""Of its description, of which far more may be made; the longest are consoles full of what JSON escapes."""

_PIECE: Final = 1 << 20

_LONGEST_WAIT: Final = 3600.0
"""Seconds, of a wait that may be repeated."""


class Lane:
    """One of several connections, for one question at a time.

    Args:
        end: this process's end of it.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._unsent = bytearray()
        self._received = bytearray()

    def send(self, message: bytes) -> None:
        """Say what `packed` gave; it leaves while `receive` waits for the answer."""
        self._unsent += message

    def flush(self) -> None:
        """Let it leave now.

        Raises:
            EOFError: the other side has ended.
        """
        while self._unsent:
            self._move()

    def receive(self, until: float = math.inf) -> Any:
        """The next message. An interrupt loses nothing: it may be called again.

        Args:
            until: when to give up, of `time.monotonic`.

        Raises:
            TimeoutError: it is later than that.
            EOFError: the other side has ended.
            ValueError: it sent what it never should.
        """
        while True:
            if len(self._received) >= _SIZES.size:
                sizes = _SIZES.unpack_from(self._received)
                if sum(sizes) > _LONGEST or sizes[0] > _LONGEST_TEXT:
                    raise ValueError(f"a message of {sum(sizes)} bytes")
                begin, end = _SIZES.size, _SIZES.size + sum(sizes)
                if len(self._received) >= end:
                    text = bytes(self._received[begin : begin + sizes[0]])
                    blobs = bytes(self._received[begin + sizes[0] : end])
                    del self._received[:end]
                    return snapshot_plain.decode(text, blobs)
            if time.monotonic() > until:
                raise TimeoutError("no answer")
            self._move(min(_LONGEST_WAIT, max(0.0, until - time.monotonic())))

    def close(self) -> None:
        """Give it back; may be called twice."""
        self._socket.close()

    def _move(self, seconds: float = _LONGEST_WAIT) -> None:
        """Wait, but not for longer than this, then send and receive what is possible."""
        self._poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        ready = self._poll.poll(seconds * 1000)
        with _uninterrupted():
            for _, events in ready:
                try:
                    if events & select.POLLOUT:
                        del self._unsent[: self._socket.send(memoryview(self._unsent)[:_PIECE])]
                    if events & ~select.POLLOUT:
                        piece = self._socket.recv(_PIECE)
                        if not piece:
                            raise EOFError
                        self._received += piece
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise EOFError from error


def packed(message: object) -> bytes:
    """A message, ready to send.

    Raises:
        ConfigError: there is something in it that is no plain data.
        TypeError: likewise.
    """
    text, blobs = snapshot_plain.encode(message)
    return _SIZES.pack(len(text), len(blobs)) + text + blobs


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put Ctrl-C off until the end, for what must not be done by half."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    came: list[tuple[Any, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if came:
        previous(*came[0])
