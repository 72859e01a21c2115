"""fwctl's messages: numbers, errors, how a value and a name look on the wire, and one request with its answer.

Source: FreeBSD, usr.sbin/bhyve/amd64/fwctl.c; the protocol itself is described in `vmm.devices.fwctl`.
"""

import time
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from vmm.errors import ConfigError

REQUEST_HEADER = 12
RESPONSE_HEADER = 16

OID_LIMIT = 80
"""Bytes of an OID in a request, its NUL included (FGET_STRSZ); more is E2BIG."""

VALUE_LIMIT = 4096
"""Bytes of a value: what both upstream's and the client's buffer hold behind the length."""

Value = bytes | str | int
"""What can be offered: bytes as they are, text (sent with a NUL, as sysctl's strings), an integer (4 or 8 bytes)."""


class Operation(IntEnum):
    """The opcodes; bhyve reserves the numbers of NULL, ECHO and SET, and handles none of them."""

    NULL = 1
    ECHO = 2
    GET = 3
    GET_LEN = 4
    SET = 5


class Error(IntEnum):
    """FreeBSD's errno numbers.

    The client tells OK, ENOENT, E2BIG and EMSGSIZE apart; any other is a protocol error to it.
    """

    OK = 0
    EPERM = 1
    ENOENT = 2
    EIO = 5
    E2BIG = 7
    EINVAL = 22
    EMSGSIZE = 40


@dataclass(frozen=True)
class FwctlRequest:
    """One complete request and what it got, for traces and reports.

    Attributes:
        operation: The opcode as the guest sent it; any 32-bit value.
        txid: The guest's transaction number, which the response echoes.
        oid: The name asked for, without NUL, undecodable bytes escaped; "" where the operation has none.
        error: The response's error word.
        matched: The registered OID that answered; it is longer than ``oid`` if the guest sent a prefix without a NUL.
        value: What went to the guest (GET, ECHO) or came from it (SET), padding included.
        time_ns: When it was complete, CLOCK_MONOTONIC.
    """

    operation: int
    txid: int
    oid: str
    error: Error
    matched: str | None = None
    value: bytes = b""
    time_ns: int = field(default_factory=time.monotonic_ns, compare=False)

    @property
    def operation_name(self) -> str:
        """The opcode's name, or its number if there is no such opcode."""
        try:
            return Operation(self.operation).name
        except ValueError:
            return f"{self.operation:#x}"

    def as_dict(self, start_ns: int) -> dict[str, Any]:
        """Types that JSON knows: the value in hexadecimal, seconds from ``start_ns`` of CLOCK_MONOTONIC on."""
        return {
            "t_s": round((self.time_ns - start_ns) / 1e9, 6),
            "operation": self.operation_name,
            "txid": self.txid,
            "oid": self.oid,
            "error": self.error.name,
            "matched": self.matched,
            "value": self.value.hex(),
        }

    def __str__(self) -> str:
        words = [self.operation_name, self.oid, self.error.name, self.value.hex(" ")]
        return " ".join(word for word in words if word)


def encode_value(value: Value) -> bytes:
    """Return a value as it goes over the wire, little-endian and padded with zeros to a multiple of 4 bytes.

    The padding counts as part of the value. It must: the client reads whole words until the length that it has left,
    an unsigned number, is 0. With a value of 5 bytes in a buffer of 5, that number steps from 1 over 0, and the loop
    does not end (edk2, BhyveFwCtl_MsgRecv).

    Raises:
        ConfigError: An integer beyond 64 bits, or more than VALUE_LIMIT bytes.
        TypeError: Neither bytes, nor text, nor an integer.
    """
    if isinstance(value, bytes | bytearray):
        data = bytes(value)
    elif isinstance(value, str):
        data = value.encode("utf-8", "surrogateescape") + b"\0"
    elif isinstance(value, int):
        size = 4 if -(1 << 31) <= value < 1 << 32 else 8
        if not -(1 << 63) <= value < 1 << 64:
            raise ConfigError(f"fwctl: the integer {value} does not fit into 64 bits; offer it as bytes")
        data = value.to_bytes(size, "little", signed=value < 0)
    else:
        raise TypeError(f"fwctl: a value is bytes, str or int, not {type(value).__name__}")
    if len(data) > VALUE_LIMIT:
        raise ConfigError(f"fwctl: a value has {len(data)} bytes; the firmware's buffer holds {VALUE_LIMIT}")
    return pad(data)


def pad(data: bytes) -> bytes:
    """Fill up with zeros to a multiple of 4 bytes."""
    return data + bytes(-len(data) % 4)


def text_of(payload: bytes) -> str:
    """Return the name in a payload, up to its NUL, with bytes that are not printable ASCII escaped."""
    name = payload.split(b"\0", 1)[0]
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in name)
