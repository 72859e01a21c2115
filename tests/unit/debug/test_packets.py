"""Framing: what GDB's manual (appendix E.1) says, and whatever else may arrive."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.debug.packets import PACKET_BYTES, Decoder, Event, Kind, encode, escape

PACKETS = st.lists(st.binary(max_size=300), max_size=8)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


@given(PACKETS, st.lists(st.integers(min_value=0), max_size=20))
def test_packets_survive_any_cut(texts: list[bytes], cuts: list[int]) -> None:
    decoder = Decoder()
    stream = b"+".join(encode(escape(text)) for text in texts)
    events = [event for piece in pieces(stream, cuts) for event in decoder.feed(piece)]
    assert [event.text for event in events if event.kind is Kind.PACKET] == texts
    assert {event.kind for event in events} <= {Kind.PACKET, Kind.ACK}


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_rubbish_is_bounded_and_does_not_hide_what_follows(rubbish: list[bytes]) -> None:
    decoder = Decoder()
    for piece in rubbish:
        decoder.feed(piece)
    # Whatever was begun ends here, with two digits that may be the checksum of it.
    decoder.feed(b"#00")
    assert decoder.feed(encode(b"qC"))[-1:] == [Event(Kind.PACKET, b"qC")]


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"+-\x03", [Event(Kind.ACK), Event(Kind.NAK), Event(Kind.INTERRUPT)]),
        (b"$OK#9a", [Event(Kind.PACKET, b"OK")]),
        (b"$OK#9A", [Event(Kind.PACKET, b"OK")]),
        (b"$OK#9b", [Event(Kind.BROKEN)]),
        (b"$OK#zz", [Event(Kind.BROKEN)]),
        (b"$half$OK#9a", [Event(Kind.PACKET, b"OK")]),
        (b"$#00", [Event(Kind.PACKET, b"")]),
        (b"$}\x03#80", [Event(Kind.PACKET, b"#")]),
        (b"$}\x5d}\x0a#61", [Event(Kind.PACKET, b"}*")]),
        (b"$}#7d", [Event(Kind.PACKET, b"")]),
        (b"text between\r\n$?#3f", [Event(Kind.PACKET, b"?")]),
    ],
)
def test_events(data: bytes, events: list[Event]) -> None:
    assert Decoder().feed(data) == events


def test_the_longest_packet_is_taken_and_a_longer_one_is_not() -> None:
    decoder = Decoder()
    assert decoder.feed(encode(b"x" * PACKET_BYTES)) == [Event(Kind.PACKET, b"x" * PACKET_BYTES)]
    longer = encode(b"x" * (PACKET_BYTES + 1))
    assert decoder.feed(longer) == [Event(Kind.BROKEN)]
    events = [event for _ in range(100) for event in decoder.feed(b"$" + b"x" * PACKET_BYTES)]
    assert events == []
    assert len(decoder._held) <= 2 * PACKET_BYTES + 3
