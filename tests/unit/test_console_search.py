"""The search of a console for patterns, against guests that print to hurt it."""

import re

from vmm.run import console
from vmm.run.console import Stream, Watcher, strip_escapes

PIECE = 64 << 10


def test_an_escape_sequence_that_never_ends_is_text() -> None:
    endless = b"\x1b[" + b"0" * PIECE
    assert strip_escapes(endless + b"Shell>").endswith(b"0Shell>")
    longest = b"\x1b[" + b"0" * console.MAX_PARAMETERS + b"m"
    assert strip_escapes(b"a" + longest + b"b") == b"ab"


def test_the_search_waits_for_no_end_that_never_comes() -> None:
    stream = Stream("debugcon")
    watcher = Watcher([stream], [re.compile(b"Shell>")])
    stream.write(b"\x1b[")
    for _ in range(100):
        stream.write(b"0" * PIECE)
        assert watcher.poll() == 0
        kept = max(len(searched.carry) for searched in watcher._searched)
        assert kept <= console.MAX_PARAMETERS + 2
    stream.write(b"Shell>")
    assert watcher.poll() == 1


def test_a_sequence_in_two_pieces_is_still_one() -> None:
    stream = Stream("serial")
    watcher = Watcher([stream], [re.compile(b"^ab$")])
    stream.write(b"a\x1b[1;3")
    assert watcher.poll() == 0
    stream.write(b"1mb")
    assert watcher.poll() == 1


def test_what_was_dropped_unsearched_is_not_searched_twice() -> None:
    """More than is kept arrives between two looks; the next look begins after it."""
    stream = Stream("serial")
    watcher = Watcher([stream], [re.compile(b"once")] * 2)
    stream.write(b"." * (2 * console.KEEP_BYTES))
    stream.write(b".once")
    assert watcher.poll() == 1
    assert watcher.poll() == 0
    stream.write(b"." * 8192)
    assert watcher.poll() == 0
