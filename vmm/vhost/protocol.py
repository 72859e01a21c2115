"""The frontend's side of the vhost-user protocol: messages over a UNIX socket, one asked and one answered at a time.

Who answers is not trusted to answer, or to say what makes sense: every wait ends, every answer has a size that is known
before. Specification: QEMU's docs/interop/vhost-user.rst, whose names the constants have. All numbers are in the host's
byte order, which is little-endian.
"""

import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from vmm.errors import HostError

GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL = 8, 9, 10, 11, 12, 13
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE, GET_CONFIG = 15, 16, 17, 18, 24

F_PROTOCOL_FEATURES: Final = 1 << 30
PROTOCOL_F_MQ, PROTOCOL_F_REPLY_ACK, PROTOCOL_F_CONFIG = 1 << 0, 1 << 3, 1 << 9

_VERSION, _REPLY, _NEED_REPLY = 1, 1 << 2, 1 << 3
_HEADER = struct.Struct("<III")
"""Request, flags, bytes of the payload."""

_VALUE, _RING = struct.Struct("<Q"), struct.Struct("<II")
_REGION, _RING_ADDRESSES = struct.Struct("<QQQQ"), struct.Struct("<IIQQQQ")
_CONFIG = struct.Struct("<III")
"""Offset, size, flags."""

_USER_BASE = 1 << 46
"""What guest physical addresses are called in messages, less these; who serves a queue wants addresses in the
frontend's process there, which it has no use for but to find its own by them. Not 0, which some take for none."""

ANSWER_S: Final = 20.0
"""How long an answer may take: far more than any does, on a busy host, too."""


class VhostError(HostError):
    """The other process ended, did not answer, or answered what makes no sense."""


class Region(NamedTuple):
    """Guest memory in a memfd: where the guest has it, and where it is in the file; in bytes."""

    gpa: int
    size: int
    offset: int


class Ring(NamedTuple):
    """A queue: how many entries, and the guest physical addresses of its three parts."""

    size: int
    descriptors: int
    available: int
    used: int


class Connection:
    """A socket with a backend behind it.

    Args:
        channel: the socket, connected; closed with this object.
        who: what messages for users call the backend.
        answer_s: how long an answer may take.

    Attributes:
        who: the same.
        features: virtio's feature bits that the backend offers.
    """

    def __init__(self, channel: socket.socket, who: str, answer_s: float = ANSWER_S) -> None:
        self.who = who
        self._channel = channel
        self._answer_s = answer_s
        self._protocol = 0
        self.features = 0

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._channel.fileno()

    def close(self) -> None:
        """Hang up; the backend stops serving. May be called twice."""
        self._channel.close()

    def introduce(self, queues: int) -> None:
        """Find out what the backend can do; the first thing to be done.

        Raises:
            VhostError: it is no backend, or one that serves fewer queues.
        """
        self.features = self._ask(GET_FEATURES)
        if self.features & F_PROTOCOL_FEATURES:
            offered = self._ask(GET_PROTOCOL_FEATURES)
            self._protocol = offered & (PROTOCOL_F_MQ | PROTOCOL_F_REPLY_ACK | PROTOCOL_F_CONFIG)
            # Not acknowledged, for that begins with this message.
            self._send(SET_PROTOCOL_FEATURES, _VALUE.pack(self._protocol))
        if self._protocol & PROTOCOL_F_MQ and (most := self._ask(GET_QUEUE_NUM)) < queues:
            raise VhostError(f"{self.who}: it serves {most} queues, and the device has {queues}")
        self._tell(SET_OWNER, b"")

    def configuration(self, size: int) -> bytes:
        """Return so many bytes of the device's configuration.

        Raises:
            VhostError: it has none, or failed.
        """
        if not self._protocol & PROTOCOL_F_CONFIG:
            raise VhostError(
                f"{self.who}: it does not tell the device's configuration; it serves another kind of device"
            )
        asked = _CONFIG.pack(0, size, 0) + bytes(size)
        self._send(GET_CONFIG, asked)
        answer = self._receive(GET_CONFIG, len(asked))
        if _CONFIG.unpack_from(answer)[:2] != (0, size):
            raise VhostError(f"{self.who}: it told another part of the configuration than it was asked for")
        return answer[_CONFIG.size :]

    def share(self, memory: int, regions: Sequence[Region]) -> None:
        """Give it guest memory, a memfd, of which these parts are the guest's.

        Raises:
            VhostError: it failed.
        """
        parts = [_REGION.pack(each.gpa, each.size, each.gpa + _USER_BASE, each.offset) for each in regions]
        self._tell(SET_MEM_TABLE, _RING.pack(len(regions), 0) + b"".join(parts), [memory] * len(regions))

    def choose(self, features: int) -> None:
        """Tell it which feature bits the driver took.

        Raises:
            VhostError: it failed.
        """
        self._tell(SET_FEATURES, _VALUE.pack(features | self.features & F_PROTOCOL_FEATURES))

    def start(self, index: int, ring: Ring, base: int, kick: int, call: int) -> None:
        """Let it serve a queue.

        Args:
            index: of the queue.
            ring: where it is.
            base: how many chains were taken from it already, modulo 65536.
            kick: the eventfd that says that there are more.
            call: the eventfd by which it wants an interrupt.

        Raises:
            VhostError: it failed.
        """
        self._tell(SET_VRING_NUM, _RING.pack(index, ring.size))
        self._tell(SET_VRING_BASE, _RING.pack(index, base))
        addresses = (ring.descriptors, ring.used, ring.available)
        self._tell(SET_VRING_ADDR, _RING_ADDRESSES.pack(index, 0, *(each + _USER_BASE for each in addresses), 0))
        self._tell(SET_VRING_CALL, _VALUE.pack(index), [call])
        self._tell(SET_VRING_KICK, _VALUE.pack(index), [kick])
        if self.features & F_PROTOCOL_FEATURES:
            self._tell(SET_VRING_ENABLE, _RING.pack(index, 1))

    def stop(self, index: int) -> int:
        """Let it serve a queue no more; return how many chains it has taken, modulo 65536.

        Raises:
            VhostError: it failed.
        """
        self._send(GET_VRING_BASE, _RING.pack(index, 0))
        its, base = _RING.unpack(self._receive(GET_VRING_BASE, _RING.size))
        if its != index or base > 0xFFFF:
            raise VhostError(f"{self.who}: it stopped queue {its} at {base} where it was told to stop queue {index}")
        return int(base)

    def look(self) -> None:
        """Find out why the socket is readable where nothing was asked.

        Raises:
            VhostError: always: the backend is gone, or talks out of turn.
        """
        self._receive(0, 0)

    def _ask(self, request: int) -> int:
        self._send(request, b"")
        return int(_VALUE.unpack(self._receive(request, _VALUE.size))[0])

    def _tell(self, request: int, payload: bytes, files: Sequence[int] = ()) -> None:
        """Send what has no answer, and wait until it has taken effect."""
        acknowledges = bool(self._protocol & PROTOCOL_F_REPLY_ACK)
        self._send(request, payload, files, _NEED_REPLY if acknowledges else 0)
        if not acknowledges:
            # Messages are served in order: where this is answered, that one was served.
            self._ask(GET_FEATURES)
        elif error := _VALUE.unpack(self._receive(request, _VALUE.size))[0]:
            raise VhostError(f"{self.who}: it refused request {request}, with error {error:#x}")

    def _send(self, request: int, payload: bytes, files: Sequence[int] = (), flags: int = 0) -> None:
        message = _HEADER.pack(request, _VERSION | flags, len(payload)) + payload
        deadline = time.monotonic() + self._answer_s
        try:
            self._channel.settimeout(self._answer_s)
            sent = socket.send_fds(self._channel, [message], list(files)) if files else 0
            while sent < len(message):
                self._channel.settimeout(self._left(deadline))
                sent += self._channel.send(message[sent:])
        except TimeoutError:
            raise self._silent() from None
        except OSError as error:
            raise self._gone(error) from None

    def _receive(self, request: int, size: int) -> bytes:
        """Return the payload of an answer of this size to this request."""
        deadline = time.monotonic() + self._answer_s
        its, flags, length = _HEADER.unpack(self._exactly(_HEADER.size, deadline))
        if its != request or flags & 3 != _VERSION or not flags & _REPLY or length != size:
            raise VhostError(
                f"{self.who}: it does not speak vhost-user, or not in turn: message {its} of {length} bytes, flags "
                f"{flags:#x}, where the answer to {request} was to come"
            )
        return self._exactly(size, deadline)

    def _exactly(self, size: int, deadline: float) -> bytes:
        data = b""
        try:
            while len(data) < size:
                self._channel.settimeout(self._left(deadline))
                part = self._channel.recv(size - len(data))
                if not part:
                    raise self._gone(None)
                data += part
        except TimeoutError:
            raise self._silent() from None
        except OSError as error:
            raise self._gone(error) from None
        return data

    @staticmethod
    def _left(deadline: float) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _silent(self) -> VhostError:
        return VhostError(f"{self.who}: it has not answered for {self._answer_s:g} s")

    def _gone(self, error: OSError | None) -> VhostError:
        why = "it hung up" if error is None else f"it is gone: {os.strerror(error.errno or 0).lower()}"
        return VhostError(f"{self.who}: {why}")
