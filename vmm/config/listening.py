"""The socket where a debugger may come: opened, as every file of a run, before the machine is made."""

import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.config.debugger import DebugAddress
from vmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable


class DebugSocket:
    """The socket, listening; nobody waits for it.

    Args:
        address: where.

    Attributes:
        socket: non-blocking.
        address: where it is, with the port that was chosen.
        put: removes the path of a UNIX socket, or raises `OSError`; its argument is empty.

    Raises:
        ConfigError: nobody can listen there.
    """

    def __init__(self, address: DebugAddress) -> None:
        try:
            self.socket, self.address = _listen(address)
        except OSError as error:
            raise ConfigError(f"-gdb: cannot listen at {address}: {error.strerror or error}") from error
        self.socket.setblocking(False)
        self.put: Callable[[bytes], None] = self._remove

    def close(self) -> None:
        """Stop listening."""
        self.socket.close()
        if self.address.path is not None:
            with contextlib.suppress(OSError):
                self.put(b"")

    def _remove(self, _: bytes) -> None:
        Path(self.address.path or "").unlink()


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
