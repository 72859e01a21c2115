"""Searching consoles: read positions, pieces, escape sequences, text and bytes."""

import re
import time
from typing import Any

import pytest

from vmm.errors import ConfigError
from vmm.run import expect
from vmm.run.console import Stream
from vmm.run.expect import Console, Found, Search, compile_pattern, compile_patterns, quoted
from vmm.run.keys import KEYS, key


def console() -> Console:
    return Console(Stream("serial"))


def find(console: Console, *patterns: Any) -> Found | None:
    """Search once, from the read position on, and read what was found."""
    search = Search([console])
    found = search.find(compile_patterns(patterns))
    if found is not None:
        search.mark_read()
    return found


def test_a_match_moves_the_read_position_to_its_end() -> None:
    shown = console()
    shown.stream.write(b"one two one")
    assert [found.start if (found := find(shown, "one")) else None for _ in range(3)] == [0, 8, None]
    shown.stream.write(b" three")
    assert find(shown, "three")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\r"])
def test_lines_are_lines_however_they_end(end: bytes) -> None:
    shown = console()
    for piece in (b"first", end[:1], end[1:] + b"X ", b"second" + end):
        shown.stream.write(piece)
        shown.update()
    assert find(shown, "^X second$")
    shown.stream.write(end.join((b"a", b"b", b"")))
    assert find(shown, r"a\nb$")


@pytest.mark.parametrize(
    ("printed", "last"),
    [
        (b"one\n\rtwo\n\r", "two"),
        (b"\x1b[2J\x1b[01;01Hone\x1b[02;01Htwo\x1b[03;05H", "two"),
        (b"one\x1b[1mbold\x1b[0m", "onebold"),
        (b"x" * 200, "x" * 160 + " …"),
        (b"", ""),
    ],
)
def test_the_last_line_is_one_line(printed: bytes, last: str) -> None:
    stream = Stream("serial")
    stream.write(printed)
    assert stream.last_line() == last


def test_what_is_not_found_stays_unread() -> None:
    shown = console()
    shown.stream.write(b"one two")
    assert find(shown, "three") is None
    found = find(shown, "two")
    assert found is not None
    assert found.before == b"one "


def test_of_several_patterns_the_one_that_begins_first_counts() -> None:
    shown = console()
    shown.stream.write(b"login: Shell>")
    found = find(shown, "Shell>", "login", "log")
    assert found is not None
    assert (found.which, found.match[0]) == (1, "login")
    expected = found.expected()
    assert (expected.which, expected.before, expected.console) == (1, "", "serial")


def test_each_console_has_a_position_of_its_own() -> None:
    serial, debugcon = console(), Console(Stream("debugcon"))
    serial.stream.write(b"serial done")
    debugcon.stream.write(b"debug done")
    for name in ("serial", "debugcon"):
        search = Search([serial, debugcon])
        found = search.find(compile_patterns("done"))
        assert found is not None
        assert found.expected().console == name or name == "debugcon"
        search.mark_read()
    assert Search([serial, debugcon]).find(compile_patterns("done")) is None


@pytest.mark.parametrize(
    "pattern", ["Größe: (\\d+)€", "Größe: (\\d+)€".encode(), re.compile("größe: (\\d+)€", re.IGNORECASE)]
)
def test_a_match_that_comes_in_pieces_is_found(pattern: expect.Pattern) -> None:
    shown = console()
    search = Search([shown])
    patterns = compile_patterns(pattern)
    for byte in "\x1b[2Jx\x1b[1;31mGröße: \x1b[0m4711€.".encode():
        shown.stream.write(bytes((byte,)))
        if found := search.find(patterns):
            break
    assert found is not None
    assert found.match[1] in {"4711", b"4711"}
    assert shown.between(found.start, found.end) == "Größe: 4711€".encode()
    assert found.before == b"x"


def test_a_byte_that_is_no_text_is_found_by_bytes_and_by_its_surrogate() -> None:
    for pattern in (rb"a\xffb", "a\udcffb"):
        shown = console()
        shown.stream.write(b"\xc3\xa4a\xffb.")
        found = find(shown, pattern)
        assert found is not None
        assert (found.start, found.end) == (2, 5)


def test_lines_begin_where_they_begin_and_not_where_the_search_does() -> None:
    shown = console()
    shown.stream.write(b"first: second: x")
    assert find(shown, "first: ")
    assert find(shown, "^second") is None
    assert find(shown, "(?<=first: )second")
    shown.stream.write(b"\nsecond")
    assert find(shown, "^second")


def test_a_search_costs_what_is_new_and_not_all_that_was_printed() -> None:
    shown = console()
    shown.stream.write(b"x" * (4 << 20))
    search = Search([shown])
    patterns = compile_patterns(b"never")
    assert search.find(patterns) is None
    began = time.process_time()
    for _ in range(500):
        shown.stream.write(b"y")
        assert search.find(patterns) is None
    assert time.process_time() - began < 2  # 2 GB, if it were all


def test_an_escape_sequence_without_end_is_kept_no_longer_than_one_can_be() -> None:
    shown = console()
    shown.stream.write(b"\x1b[")
    began = time.process_time()
    for _ in range(2000):
        shown.stream.write(b"1;" * 500)
        shown.update()
    assert len(shown._carry) < 100
    assert time.process_time() - began < 5
    shown.stream.write(b"mShell>")
    assert find(shown, "Shell>")


def test_what_is_too_long_ago_is_forgotten_and_the_rest_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expect, "KEEP_BYTES", 1000)
    shown = console()
    for number in range(1000):
        shown.stream.write(f"line {number}\n".encode())
        shown.update()
    assert find(shown, "line 1\n") is None
    found = find(shown, "line 999\n")
    assert found is not None
    assert len(found.before) <= 2000
    assert shown.position == shown.end


def test_what_is_no_regular_expression_is_refused() -> None:
    for pattern in ("[", b"["):
        with pytest.raises(ConfigError, match=r"^\[: not a regular expression"):
            compile_pattern(pattern)
    assert quoted(compile_patterns(["a", b"b"])) == "'a' or 'b'"


def test_keys_are_found_by_name_in_any_case() -> None:
    assert (key("UP"), key("F2"), key("Esc"), key("ctrl-C")) == (b"\x1b[A", b"\x1b[N", b"\x1b", b"\x03")
    assert len({*KEYS.values()}) == len(KEYS) - 3  # Ctrl-H, I and M are Backspace, Tab and Enter
    with pytest.raises(ConfigError, match=r"no key is named 'f11'; known are up, .*f10"):
        key("f11")
