"""Plain data that somebody else may have written: a snapshot's file, or a machine's process that a guest took over."""

import json
import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from vmm.isolation.channel import Lane, packed
from vmm.run import snapshot_plain


def test_bytes_come_back_from_wherever_they_were() -> None:
    value = [b"ab", {"key": (b"", b"cd"), "path": Path("x")}, [bytearray(b"e")]]
    assert snapshot_plain.decode(*snapshot_plain.encode(value)) == [b"ab", value[1], [b"e"]]


@pytest.mark.parametrize(
    "places",
    [
        [[0, 4], [0, 4]],
        [[0, 3], [2, 2]],
        [[1, 3]],
        [[0, 5]],
        [[0, -1]],
        [[4, 0]],
        [[0.0, 4.0]],
        [["", 4]],
    ],
)
def test_bytes_belong_to_one_value_each(places: list[list[Any]]) -> None:
    """Or a file of a few MiB stood for as many TiB."""
    with pytest.raises(ValueError, match=r"bytes|description"):
        snapshot_plain.decode(json.dumps([{"bytes": place} for place in places]).encode(), b"abcd")


@pytest.mark.parametrize("sizes", [((64 << 20) + 1, 0), (2, (256 << 20) - 1), (0xFFFFFFFF, 0xFFFFFFFF)])
def test_a_message_that_is_too_long_is_refused_before_it_has_come(sizes: tuple[int, int]) -> None:
    here, there = socket.socketpair()
    lane = Lane(here)
    with here, there:
        there.sendall(packed(["value", b"x" * 1000]))
        assert lane.receive() == ["value", b"x" * 1000]
        there.sendall(struct.pack("<II", *sizes))
        with pytest.raises(ValueError, match="a message of"):
            lane.receive(until=time.monotonic() + 30)
