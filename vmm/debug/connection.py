"""Where a debugger connects: one at a time, on a socket that nobody waits for."""

import contextlib
import select
import socket
from typing import TYPE_CHECKING

from vmm.debug import packets

if TYPE_CHECKING:
    from vmm.config.listening import DebugSocket

_PIECE = 1 << 16
_UNSENT = 1 << 20
"""Bytes that a debugger may leave unread before it is taken for dead."""

_REFUSED_KEPT = 8
"""How many of those who came second are told so at a time."""


class Listener:
    """Takes debuggers in, one at a time.

    Args:
        opened: the socket where they come; whoever opened it closes it.

    Attributes:
        address: where it is.
    """

    def __init__(self, opened: "DebugSocket") -> None:
        self._refused: list[socket.socket] = []
        self._socket = opened.socket
        self.address = opened.address

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    @property
    def has_one(self) -> bool:
        """Whether a debugger has come."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def accept(self, *, taken: bool) -> "Connection | None":
        """A debugger that has come, if one has; ``taken``: there is one already, so it is told to go."""
        for refused in list(self._refused):
            if _is_over(refused):
                self._refused.remove(refused)
                refused.close()
        try:
            client, _ = self._socket.accept()
        except OSError:
            return None
        client.setblocking(False)
        if not taken:
            return Connection(client)
        # Kept until it has read that and closed: what is unread would take the message with it.
        with contextlib.suppress(OSError):
            client.send(b"+" + packets.encode(b"E.vmm: another debugger is connected to this machine"))
            client.shutdown(socket.SHUT_WR)
        self._refused.append(client)
        while len(self._refused) > _REFUSED_KEPT:
            self._refused.pop(0).close()
        return None

    def close(self) -> None:
        """Take leave of those who were refused; may be called twice."""
        while self._refused:
            self._refused.pop().close()


class Connection:
    """A debugger.

    Args:
        client: its socket, non-blocking.

    Attributes:
        closed: it is gone.
    """

    def __init__(self, client: socket.socket) -> None:
        self.closed = False
        self._socket = client
        self._decoder = packets.Decoder()
        self._unsent = bytearray()
        with contextlib.suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    @property
    def wants_to_write(self) -> bool:
        """Whether something waits until the debugger reads."""
        return bool(self._unsent)

    def receive(self) -> list[packets.Event]:
        """What it has said since the last time."""
        self._send()
        if self.closed:
            return []
        try:
            data = self._socket.recv(_PIECE)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.close()
            return []
        return self._decoder.feed(data)

    def send(self, data: bytes) -> None:
        """Say something; what it does not read yet waits, and too much of that ends the connection."""
        if self.closed:
            return
        self._unsent += data
        self._send()
        if len(self._unsent) > _UNSENT:
            self.close()

    def close(self) -> None:
        """End it; may be called twice."""
        self.closed = True
        self._socket.close()

    def _send(self) -> None:
        if not self._unsent or self.closed:
            return
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()


def wait(listener: Listener, connection: Connection | None, seconds: float) -> None:
    """Sleep until somebody has said something, but not for longer than this."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    if connection is not None and not connection.closed:
        poll.register(connection, select.POLLIN | (select.POLLOUT if connection.wants_to_write else 0))
    poll.poll(seconds * 1000)


def _is_over(client: socket.socket) -> bool:
    try:
        return not client.recv(_PIECE)
    except BlockingIOError:
        return False
    except OSError:
        return True
