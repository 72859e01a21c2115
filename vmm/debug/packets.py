"""How the gdb remote protocol frames what is said: GDB's manual, appendix E.1.

A packet is ``$``, its text, ``#`` and two hexadecimal digits: the sum of the text's bytes modulo 256. Beside packets
there are single bytes: ``+`` and ``-`` acknowledge, 0x03 asks for a stop.
"""

from enum import Enum
from typing import NamedTuple

PACKET_BYTES = 1 << 14
"""The longest text of a packet, told to the debugger, who never sends more; what is longer is not listened to."""

_BEGIN = ord("$")
_ESCAPE = 0x7D
_TO_ESCAPE = b"#$}*"


class Kind(Enum):
    """What arrived."""

    PACKET = "packet"
    BROKEN = "broken"
    """A packet whose checksum is wrong, or that is too long."""
    ACK = "+"
    NAK = "-"
    INTERRUPT = "Ctrl-C"


class Event(NamedTuple):
    """One thing that arrived; ``text`` is a packet's, its escapes resolved."""

    kind: Kind
    text: bytes = b""


_SINGLE = {ord("+"): Kind.ACK, ord("-"): Kind.NAK, 3: Kind.INTERRUPT}


class Decoder:
    """Takes bytes as they arrive, in pieces of any size, and gives what they say.

    It never keeps more than one packet and one piece, and ignores what stands between packets and means nothing.
    """

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Event]:
        """What ends in ``data``."""
        held = self._held
        held += data
        events: list[Event] = []
        while held:
            if held[0] != _BEGIN:
                if held[0] in _SINGLE:
                    events.append(Event(_SINGLE[held[0]]))
                del held[0]
                continue
            end = held.find(b"#")
            if end < 0:
                del held[PACKET_BYTES + 2 :]  # too long; the end is still waited for
                break
            if len(held) < end + 3:
                break
            # A second $ begins anew: the debugger gave up on the first.
            events.append(_decoded(bytes(held[held.rfind(b"$", 0, end) + 1 : end]), bytes(held[end + 1 : end + 3])))
            del held[: end + 3]
        return events


def _decoded(text: bytes, digits: bytes) -> Event:
    if len(text) > PACKET_BYTES or digits.lower() != b"%02x" % (sum(text) & 0xFF):
        return Event(Kind.BROKEN)
    return Event(Kind.PACKET, _unescape(text))


def _unescape(text: bytes) -> bytes:
    first, *rest = text.split(bytes([_ESCAPE]))
    return first + b"".join(bytes([piece[0] ^ 0x20]) + piece[1:] for piece in rest if piece)


def escape(data: bytes) -> bytes:
    """Binary data as it may stand in a packet."""
    return b"".join(bytes([_ESCAPE, byte ^ 0x20]) if byte in _TO_ESCAPE else bytes([byte]) for byte in data)


def encode(text: bytes) -> bytes:
    """A packet; binary data in ``text`` is escaped already."""
    return b"$%s#%02x" % (text, sum(text) & 0xFF)
