"""bhyve's fwctl: a request/response protocol by which firmware reads sysctl-like values from its VMM.

Two ports, 0x510 and 0x511, the same as fw_cfg's; a machine has one device of the two. The firmware writes the 16-bit
value 0 to 0x510, reads four bytes that must be "BHYV", and from then on exchanges messages of 32-bit words,
little-endian:

```
request   size  opcode  txid  data…          size: bytes of the whole message, the header's 12 included
response  size  opcode  txid  error  data…   size: 16 + data, rounded up to 4; opcode and txid echoed
```

GET and GET_LEN carry the name of a value, an OID such as "hw.ncpu", with its NUL. They answer with the value's length
(u64), and GET with the value behind it. Errors are FreeBSD's errno numbers. Reads work alike at both ports.

Source: FreeBSD, usr.sbin/bhyve/amd64/fwctl.c; the only client is edk2's OvmfPkg/Library/BhyveFwCtlLib.

Where bhyve ends its own process or would touch memory out of bounds, this model does otherwise:

====================================== ================================ =============================================
guest does                             bhyve                            here
====================================== ================================ =============================================
sends a size below 12                  prints a message and exits       takes the header, answers EINVAL
writes to port 0x511                   aborts the VM (no such handler)  ignores it
resets amid a request or a response    once: CVE-2023-3494, an overflow forgets the request and the response entirely
====================================== ================================ =============================================
"""

import struct
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from vmm.bus import Bus, Device
from vmm.devices.fwctl_format import (
    OID_LIMIT,
    REQUEST_HEADER,
    RESPONSE_HEADER,
    VALUE_LIMIT,
    Error,
    FwctlRequest,
    Operation,
    Value,
    encode_value,
    pad,
    text_of,
)
from vmm.errors import ConfigError
from vmm.layout import PORT_FWCTL

SIGNATURE = b"BHYV"

LOG_LIMIT = 1024
"""Requests remembered for the report; older ones are dropped and counted."""

ValueSource = Value | Callable[[], Value]
Setter = Callable[[bytes], None]


class State(Enum):
    """Where the conversation stands."""

    WAIT = "nobody has asked for the signature yet"
    IDENT = "the signature is being read"
    REQUEST = "a request is expected, or half received"
    RESPONSE = "a response is being read"


class _Node(NamedTuple):
    source: ValueSource
    setter: Setter | None
    was_set: bool = False
    """By the guest, to bytes."""

    def read(self) -> bytes:
        return encode_value(self.source() if callable(self.source) else self.source)


class _Request:
    """A request while it arrives. Holds at most as much of the payload as its operation may have."""

    def __init__(self) -> None:
        self.header: list[int] = []
        self.payload = bytearray()
        self.left = 0
        self.limit = 0

    @property
    def too_big(self) -> bool:
        return self.header[0] - REQUEST_HEADER > self.limit


class Fwctl(Device):
    """The device: offset 0 is port 0x510, offset 1 is port 0x511.

    Guest input never raises and never makes it hold more than a few KiB. A registered callable that fails does raise,
    after the guest's request has been answered with EIO: it is the host program that is wrong, not the guest.

    Args:
        extensions: Also answer NULL (success), ECHO (its payload) and SET, whose payload is modelled on GET's response:
            the OID with its NUL, padded to 4 bytes; the value's length as u64; the value, padded. Without them these
            get ENOENT, as from bhyve.
        on_request: Called with each completed request.
    """

    def __init__(self, *, extensions: bool = False, on_request: Callable[[FwctlRequest], None] | None = None) -> None:
        self.extensions = extensions
        self.on_request = on_request
        self.requests: deque[FwctlRequest] = deque(maxlen=LOG_LIMIT)
        self.request_count = 0
        self.probes = 0
        self._nodes: dict[str, _Node] = {}
        self.reset()

    @property
    def oids(self) -> tuple[str, ...]:
        """What is registered, in the order of registration."""
        return tuple(self._nodes)

    @property
    def never_asked(self) -> list[str]:
        """What is registered and appears in none of the requests remembered."""
        asked = {request.matched for request in self.requests}
        return [oid for oid in self._nodes if oid not in asked]

    @property
    def stage(self) -> State:
        """Where the conversation stands."""
        return self._state

    def register(self, oid: str, value: ValueSource, setter: Setter | None = None) -> None:
        """Offer a value under a name; a name that is offered already is replaced. Allowed at any time.

        Args:
            oid: ASCII, at most 79 characters, by convention dotted like a sysctl's name.
            value: The value, or a callable that is asked anew for each request.
            setter: Makes the value writable by SET: called with the new value's bytes before they are stored (a
                callable's value is not stored), it may refuse them by raising ValueError.

        Raises:
            ConfigError: A name or a value that the protocol cannot carry.
        """
        if not oid or not oid.isascii() or not oid.isprintable() or len(oid) >= OID_LIMIT:
            raise ConfigError(f"fwctl: the name {oid!r} must be 1 to {OID_LIMIT - 1} printable ASCII characters")
        if not callable(value):
            encode_value(value)
        self._nodes[oid] = _Node(value, setter)

    def unregister(self, oid: str) -> None:
        """Stop offering a value; one that is not offered is ignored."""
        self._nodes.pop(oid, None)

    def attach(self, ports: Bus) -> None:
        """Answer the ports.

        Raises:
            ConfigError: Another device has some of them, such as fw_cfg.
        """
        ports.add(PORT_FWCTL.start, PORT_FWCTL.stop - 1, self, "fwctl")

    def reset(self) -> None:
        """Machine reset: the conversation is forgotten, what is offered and what was logged stays."""
        self._state = State.WAIT
        self._forget()

    def read(self, offset: int, size: int) -> int:
        """Serve an IN of 1, 2 or 4 bytes; all-ones where there is nothing to read."""
        if offset in {0, 1}:
            if size == 1 and self._state is State.IDENT:
                return self._next_signature_byte()
            if size == 4 and self._state is State.RESPONSE:
                return self._next_response_word()
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Serve an OUT: 2 bytes of 0 restart, 4 bytes are a word of a request, anything else does nothing."""
        if offset != 0:
            return
        if size == 2 and value == 0:
            # Unconditional, and with nothing left of what was going on: firmware that tries fw_cfg first does the same
            # write to select fw_cfg's signature, at any moment.
            self._state = State.IDENT
            self._forget()
        elif size == 4 and self._state is State.REQUEST:
            self._take_word(value & 0xFFFFFFFF)

    def _forget(self) -> None:
        self._identified: int = 0
        self._request = _Request()
        self._response = b""
        self._sent = 0

    def state(self) -> dict[str, Any]:
        """The conversation, and the values that the guest has set; what is offered besides is the machine's."""
        request = self._request
        return {
            "stage": self._state.name,
            "identified": self._identified,
            "header": list(request.header),
            "payload": bytes(request.payload),
            "left": request.left,
            "limit": request.limit,
            "response": self._response,
            "sent": self._sent,
            "probes": self.probes,
            "values": {oid: node.source for oid, node in self._nodes.items() if node.was_set},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `state` gave it."""
        self._state = State[state["stage"]]
        self._forget()
        self._identified = state["identified"]
        self._request.header = list(state["header"])
        self._request.payload = bytearray(state["payload"])
        self._request.left = state["left"]
        self._request.limit = state["limit"]
        self._response = state["response"]
        self._sent = state["sent"]
        self.probes = state["probes"]
        for oid, value in state["values"].items():
            if oid in self._nodes:
                self._nodes[oid] = self._nodes[oid]._replace(source=value, was_set=True)

    def _next_signature_byte(self) -> int:
        byte = SIGNATURE[self._identified]
        self._identified += 1
        if self._identified == len(SIGNATURE):
            self.probes += 1
            self._state = State.REQUEST
        return byte

    def _next_response_word(self) -> int:
        (word,) = struct.unpack_from("<I", self._response, self._sent)
        self._sent += 4
        if self._sent == len(self._response):
            self._state = State.REQUEST
            self._forget()
        return int(word)

    def _take_word(self, word: int) -> None:
        request = self._request
        if len(request.header) < 3:
            request.header.append(word)
            if len(request.header) == 3:
                request.left = max(request.header[0] - REQUEST_HEADER, 0)
                request.limit = self._payload_limit(request.header[1])
                if request.left == 0:
                    self._complete(request)
            return
        # As upstream: 1 to 3 bytes alone take a word, but what is left behind a full word is not waited for.
        request.left = max(request.left - 4, 0)
        if not request.too_big:
            request.payload += struct.pack("<I", word)
        if request.left < 4:
            self._complete(request)

    def _payload_limit(self, operation: int) -> int:
        if operation in {Operation.GET, Operation.GET_LEN}:
            return OID_LIMIT
        if self.extensions and operation == Operation.ECHO:
            return VALUE_LIMIT
        if self.extensions and operation == Operation.SET:
            return OID_LIMIT + 8 + VALUE_LIMIT
        return 0  # bytes that no handler will look at are not kept

    def _complete(self, request: _Request) -> None:
        _size, operation, txid = request.header
        data = b""
        record = FwctlRequest(operation, txid, "", Error.EIO)
        try:
            record, data = self._answer(request)
        finally:
            self._response = struct.pack("<IIII", RESPONSE_HEADER + len(data), operation, txid, record.error) + data
            self._sent = 0
            self._state = State.RESPONSE
            self.requests.append(record)
            self.request_count += 1
            if self.on_request is not None:
                self.on_request(record)

    def _answer(self, request: _Request) -> tuple[FwctlRequest, bytes]:
        """Return the record of a complete request, and the data of its response."""
        size, operation, txid = request.header
        payload = bytes(request.payload)
        if size < REQUEST_HEADER:
            return FwctlRequest(operation, txid, "", Error.EINVAL), b""
        if operation in {Operation.GET, Operation.GET_LEN}:
            if request.too_big:
                return FwctlRequest(operation, txid, "", Error.E2BIG), b""
            return self._get(operation, txid, payload)
        if self.extensions and operation == Operation.NULL:
            return FwctlRequest(operation, txid, "", Error.OK), b""
        if self.extensions and operation in {Operation.ECHO, Operation.SET}:
            if request.too_big:
                return FwctlRequest(operation, txid, "", Error.E2BIG), b""
            if operation == Operation.SET:
                return self._set(txid, payload), b""
            return FwctlRequest(operation, txid, "", Error.OK, value=payload), payload
        return FwctlRequest(operation, txid, "", Error.ENOENT), b""

    def _get(self, operation: int, txid: int, payload: bytes) -> tuple[FwctlRequest, bytes]:
        asked = text_of(payload)
        matched = self._locate(payload)
        if matched is None:
            return FwctlRequest(operation, txid, asked, Error.ENOENT), b""
        try:
            value = self._nodes[matched].read()
        except ConfigError:
            return FwctlRequest(operation, txid, asked, Error.EMSGSIZE, matched), b""
        length = struct.pack("<Q", len(value))
        if operation == Operation.GET_LEN:
            return FwctlRequest(operation, txid, asked, Error.OK, matched, length), length
        return FwctlRequest(operation, txid, asked, Error.OK, matched, value), length + value

    def _locate(self, payload: bytes) -> str | None:
        """Find as upstream's strncmp does: up to a NUL or the payload's end, so that a prefix without a NUL matches.

        An empty payload matches whatever was registered first.
        """
        name, nul, _rest = payload.partition(b"\0")
        for oid in self._nodes:
            if oid.encode() == name or (not nul and oid.encode().startswith(name)):
                return oid
        return None

    def _set(self, txid: int, payload: bytes) -> FwctlRequest:
        name, nul, _rest = payload.partition(b"\0")
        oid = text_of(payload)
        start = len(pad(name + nul))
        if not nul or len(payload) < start + 8:
            return FwctlRequest(Operation.SET, txid, oid, Error.EMSGSIZE)
        (length,) = struct.unpack_from("<Q", payload, start)
        value = payload[start + 8 : start + 8 + length]
        if length > VALUE_LIMIT or len(payload) != start + 8 + len(pad(value)) or len(value) != length:
            return FwctlRequest(Operation.SET, txid, oid, Error.EMSGSIZE)
        node = self._nodes.get(oid)
        if node is None:
            return FwctlRequest(Operation.SET, txid, oid, Error.ENOENT, value=value)
        if node.setter is None:
            return FwctlRequest(Operation.SET, txid, oid, Error.EPERM, oid, value)
        try:
            node.setter(value)
        except ValueError:
            return FwctlRequest(Operation.SET, txid, oid, Error.EINVAL, oid, value)
        if not callable(node.source):
            self._nodes[oid] = node._replace(source=value, was_set=True)
        return FwctlRequest(Operation.SET, txid, oid, Error.OK, oid, value)
