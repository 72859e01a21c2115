"""Where a debugger connects: one at a time, on a socket that nobody waits for."""

import contextlib
import select
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.config.debugger import DebugAddress
from vmm.debug import packets
from vmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

_PIECE = 1 << 16
_UNSENT = 1 << 20
"""Bytes that a debugger may leave unread before it is taken for dead."""

_REFUSED_KEPT = 8
"""How many of those who came second are told so at a time."""


class Listener:
    """The socket, listening.

    Args:
        address: where.

    Attributes:
        address: where it is, with the port that was chosen.
        put: removes the path of a UNIX socket, or raises `OSError`; its argument is empty.

    Raises:
        ConfigError: nobody can listen there.
    """

    def __init__(self, address: DebugAddress) -> None:
        self._refused: list[socket.socket] = []
        try:
            self._socket, self.address = _listen(address)
        except OSError as error:
            raise ConfigError(f"-gdb: cannot listen at {address}: {error.strerror or error}") from error
        self._socket.setblocking(False)
        self.put: Callable[[bytes], None] = self._remove

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

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
        """Stop listening."""
        for refused in self._refused:
            refused.close()
        self._socket.close()
        if self.address.path is not None:
            with contextlib.suppress(OSError):
                self.put(b"")

    def _remove(self, _: bytes) -> None:
        Path(self.address.path or "").unlink()


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


def _listen(address: DebugAddress) -> tuple[socket.socket, DebugAddress]:
    if address.path is None:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        made = socket.create_server((address.host, address.port), family=family, backlog=4)
        return made, address._replace(port=made.getsockname()[1])
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_left_over(address.path):
            Path(address.path).unlink()
        made.bind(address.path)
        # Whoever connects can do to the machine what its owner can.
        Path(address.path).chmod(0o600)
        made.listen(4)
    except OSError:
        made.close()
        raise
    return made, address


def _is_left_over(path: str) -> bool:
    """Whether a socket is there that nobody listens at any more."""
    try:
        if not Path(path).is_socket():
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _is_over(client: socket.socket) -> bool:
    try:
        return not client.recv(_PIECE)
    except BlockingIOError:
        return False
    except OSError:
        return True
