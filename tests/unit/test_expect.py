"""Searching consoles: read positions, pieces, escape sequences, text and bytes."""

import re
import struct
import time
from random import Random
from typing import Any
from uuid import UUID

import pytest

from vmm.errors import ConfigError
from vmm.run import expect
from vmm.run.console import Stream
from vmm.run.console_terminal import console_terminal
from vmm.run.expect import Console, Found, Search, compile_pattern, compile_patterns, quoted
from vmm.run.keys import TerminalType, check_keys, key


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
    pressed = [key(name, TerminalType.PC_ANSI) for name in ("UP", "F2", "Esc", "ctrl-C")]
    assert pressed == [b"\x1b[A", b"\x1b[N", b"\x1b", b"\x03"]
    assert key("page-up", TerminalType.VT_UTF8) == b"\x1b?"
    with pytest.raises(ConfigError, match=r"no key is named 'f13'; known are up, .*f12"):
        check_keys(["f13"], TerminalType.AUTO)
    check_keys(["F11"], TerminalType.AUTO)
    with pytest.raises(ConfigError, match="key F11: firmware knows no such key of a terminal of type vt100"):
        check_keys(["F11"], TerminalType.VT100)


def con_in(*terminals: str, uid: int = 0) -> bytes:
    """A ConIn variable: one path over a serial port for each type, as text with its node's GUID."""
    paths = b""
    for guid in terminals:
        paths += struct.pack("<BBHII", 2, 1, 12, 0x050141D0, uid) + bytes((3, 14, 19, 0)) + bytes(15)
        paths += bytes((3, 10, 20, 0)) + UUID(guid).bytes_le + b"\x7f\x01\x04\x00"
    return paths


def store(*variables: tuple[int, bytes]) -> bytes:
    """A variable store with ConIn several times, each with its state: what is replaced stays there, marked."""
    body = b""
    for state, data in variables:
        name = "ConIn\0".encode("utf-16-le")
        body += struct.pack("<HBxI28xII", 0x55AA, state, 7, len(name), len(data))
        body += UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le + name + data
        body += b"\xff" * (-len(body) % 4)
    header = bytes(48) + struct.pack("<H", 72) + bytes(22)
    kind = UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
    return header + kind + struct.pack("<IBB6x", 28 + len(body) + 64, 0x5A, 0xFE) + body + b"\xff" * 64


PC_ANSI, VT100 = "e0c14753-f9be-11d2-9a0c-0090273fc14d", "dfa66065-b419-11d3-9a2d-0090273fc14d"


@pytest.mark.parametrize(
    ("contents", "terminal"),
    [
        (store((0x3F, con_in(PC_ANSI))), "pcansi"),
        (store((0x3F, con_in(VT100, PC_ANSI))), "vt100"),
        (store((0x3C, con_in(PC_ANSI)), (0x3F, con_in(VT100)), (0x3C, con_in(PC_ANSI))), "vt100"),
        (store((0x3F, con_in(PC_ANSI, uid=1) + con_in(VT100))), "vt100"),
        (store((0x3F, con_in(str(UUID(int=1))))), "auto"),
        (store(), "auto"),
        (b"", "auto"),
        (b"\xff" * 4096, "auto"),
    ],
)
def test_firmware_says_in_con_in_which_terminal_it_expects(contents: bytes, terminal: str) -> None:
    assert console_terminal(contents) == terminal


def test_a_variable_store_with_any_sizes_is_read_to_an_end() -> None:
    whole = store((0x3F, con_in(PC_ANSI)), (0x3F, con_in(VT100)))
    random = Random(1)
    began = time.process_time()
    for _ in range(2000):
        broken = bytearray(whole[: random.randrange(len(whole))])
        for _ in range(8):
            if broken:
                broken[random.randrange(len(broken))] = random.choice((0, 1, 4, 0x7F, 0xFF))
        assert console_terminal(bytes(broken)) in TerminalType
    assert time.process_time() - began < 5
