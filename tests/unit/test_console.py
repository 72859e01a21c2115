"""What a console keeps of its lines, and when they came."""

import time
from itertools import pairwise

from vmm.run.console import KEPT_LINES, LINE_BYTES, Stream


def lines(*pieces: bytes) -> list[str]:
    stream = Stream("serial")
    for piece in pieces:
        stream.write(piece)
    return [line for _, _, line in stream.lines()]


def test_lines_have_the_time_of_their_end() -> None:
    stream = Stream("serial")
    before = time.monotonic()
    stream.write(b"first\r\nsec")
    between = time.monotonic()
    stream.write(b"ond\n")
    (first, _, _), (second, _, words) = stream.lines()
    assert before <= first <= between <= second <= time.monotonic()
    assert words == "second"


def test_blank_and_unfinished_lines_are_none() -> None:
    assert lines(b"\r\n\x1b[2J\n \none\n", b"tw") == ["one"]
    assert lines(b"t", b"wo\x1b[0m", b"\n", b"\xff\n") == ["two", "\ufffd"]


def test_an_endless_line_is_kept_in_part() -> None:
    assert lines(b"x" * 1000, b"y" * (1 << 20), b"\nnext\n") == ["x" * LINE_BYTES, "next"]
    assert lines(b"x" * (LINE_BYTES - 1), b"yz", b"z\n") == ["x" * (LINE_BYTES - 1) + "y"]


def test_of_too_many_lines_an_even_choice_is_kept() -> None:
    kept = [int(line) for line in lines(*(f"{number}\n".encode() for number in range(10_000)))]
    assert KEPT_LINES / 2 <= len(kept) <= KEPT_LINES
    assert kept[0] == 0
    steps = {after - before for before, after in pairwise(kept)}
    assert steps == {32}
    assert 10_000 - kept[-1] <= 32
