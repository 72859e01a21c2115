"""Finds patterns in what the guest prints, as pexpect does in what a program prints.

Each console has a read position. A pattern is looked for from there on, and a match moves it to the match's end: what
was printed between two waits is found by the second one, and nothing is found twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from vmm.errors import ConfigError
from vmm.options import check_type, typed_bytes
from vmm.run.console import KEEP_BYTES, Stream, split_escapes
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from vmm.run.expected import Expected

Pattern = str | bytes | re.Pattern[str] | re.Pattern[bytes]
"""What can be waited for: a regular expression (lines are ``^`` to ``$``), in UTF-8 or in bytes, compiled or not."""

Compiled = re.Pattern[str] | re.Pattern[bytes]

SPAN = 4096
"""Bytes that a match may begin before what was printed since the last look, which comes every few milliseconds."""

_CONTEXT = 64
"""Bytes before those where a match may begin, for what looks back: ``^``, ``\\b``, ``(?<=…)``."""


def compile_pattern(pattern: Pattern, what: str = "a pattern") -> Compiled:
    """A pattern, ready to search a console with.

    Args:
        pattern: a regular expression.
        what: the parameter that it was given for, for a TypeError.

    Raises:
        ConfigError: the text is no regular expression, or empty.
        TypeError: it is no text.
    """
    check_type(pattern, what, str, bytes, re.Pattern)
    if not pattern:
        raise ConfigError("'': an empty pattern matches before anything is shown; is a variable unset?")
    if isinstance(pattern, re.Pattern):
        return pattern
    try:
        return re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise ConfigError(f"{_text(pattern)}: not a regular expression: {error}") from None


def check_pattern(pattern: str, option: str) -> None:
    """See, before anything runs, that a command line's option has a pattern.

    Raises:
        ConfigError: as `compile_pattern`, and names the option.
    """
    try:
        compile_pattern(pattern)
    except ConfigError as error:
        raise ConfigError(f"{option} {error}") from None


def compile_patterns(patterns: Pattern | Sequence[Pattern], what: str = "a pattern") -> list[Compiled]:
    """One pattern, or each of several.

    Raises:
        ConfigError: as `compile_pattern`, or there is none.
        TypeError: as `compile_pattern`.
    """
    if not isinstance(patterns, Iterable) or isinstance(patterns, str | bytes):
        return [compile_pattern(patterns, what)]
    compiled = [compile_pattern(pattern, what) for pattern in patterns]
    if not compiled:
        raise ConfigError(f"{what}: a list without a pattern, which nothing can match")
    return compiled


def text_of(patterns: Sequence[Compiled]) -> str:
    """Patterns as they were written."""
    return " or ".join(_text(pattern.pattern) for pattern in patterns)


def quoted(patterns: Sequence[Compiled]) -> str:
    """Patterns within a sentence."""
    return " or ".join(repr(_text(pattern.pattern)) for pattern in patterns)


def _text(pattern: str | bytes) -> str:
    return pattern if isinstance(pattern, str) else pattern.decode("latin-1")


class Found:
    """A match, and where it is.

    Attributes:
        which: of the patterns it was.
        match: its match.
        console: the one that showed it.
        start: where it begins in the console's text, in bytes.
        end: where it ends.
        before: the unread text in front of it.
    """

    def __init__(
        self, which: int, match: re.Match[str] | re.Match[bytes], console: Console, start: int, end: int
    ) -> None:
        self.which = which
        self.match = match
        self.console = console
        self.start = start
        self.end = end
        self.before = b""

    def expected(self) -> Expected[Any]:
        """The same for users: text for a pattern of text, bytes for one of bytes."""
        from vmm.run.expected import Expected

        before = self.before if isinstance(self.match.re.pattern, bytes) else decode(self.before)
        return Expected(self.which, self.match, before, self.console.stream.name)


class Console:
    """What a stream shows without its terminal escape sequences and carriage returns, and how far that was read.

    Lines end with LF for patterns' ``^`` and ``$``, whether the guest writes CR LF, LF CR or LF.

    Args:
        stream: what the guest prints.

    Attributes:
        position: bytes of the text that were read.
        end: bytes of the text that there are.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.position = 0
        self.end = 0
        self._text = bytearray()
        self._taken = 0
        self._carry = b""

    def update(self) -> None:
        """Take what was printed since the last time; what is too long ago is forgotten, read or not."""
        start, fresh = self.stream.after(self._taken)
        if not fresh:
            return
        self._taken = start + len(fresh)
        text, self._carry = split_escapes(self._carry + fresh)
        text = text.replace(b"\r", b"")
        self._text += text
        self.end += len(text)
        if len(self._text) > 2 * KEEP_BYTES:
            del self._text[:-KEEP_BYTES]

    def mark_read(self) -> None:
        """Mark all that there is as read."""
        self.update()
        self.position = self.end

    def state(self) -> dict[str, Any]:
        """The stream's state, how much of it is text by now, and how far that was read."""
        self.update()
        return {
            "stream": self.stream.state(),
            "position": self.position,
            "end": self.end,
            "text": bytes(self._text),
            "taken": self._taken,
            "carry": self._carry,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `state` gave it; the stream, too.

        Raises:
            TypeError: that gave something else.
        """
        for name, kind in (("position", int), ("end", int), ("taken", int), ("text", bytes), ("carry", bytes)):
            check_type(state[name], name, kind)
        self.stream.restore(state["stream"])
        self.position = state["position"]
        self.end = state["end"]
        self._text = bytearray(state["text"])
        self._taken = state["taken"]
        self._carry = state["carry"]

    def between(self, start: int, end: int) -> bytes:
        """The text from ``start`` to ``end``, as far as it is kept."""
        first = self.end - len(self._text)
        return bytes(self._text[max(0, start - first) : max(0, end - first)])


class _Cursor:
    """How far a console was searched."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.start = console.position
        self.searched = console.position


class Search:
    """Looks for patterns in what consoles show from their read positions on.

    Args:
        consoles: where to look, the first one first.
    """

    def __init__(self, consoles: Sequence[Console]) -> None:
        self._cursors = [_Cursor(console) for console in consoles]

    def find(self, patterns: Sequence[Compiled]) -> Found | None:
        """The earliest match; of those that begin at the same place, the first pattern's. The next search begins there.

        As long as nothing is found, the next call takes the same patterns.
        """
        for cursor in self._cursors:
            cursor.console.update()
            matches = [match for which, pattern in enumerate(patterns) if (match := _match(cursor, which, pattern))]
            cursor.searched = cursor.console.end
            if matches:
                found = min(matches, key=lambda match: match.start)
                found.before = cursor.console.between(cursor.start, found.start)
                cursor.start = found.end
                for each in self._cursors:
                    each.searched = each.start
                return found
        return None

    def mark_read(self) -> None:
        """Move the consoles' read positions behind what was found."""
        for cursor in self._cursors:
            cursor.console.position = max(cursor.console.position, cursor.start)


def _match(cursor: _Cursor, which: int, pattern: Compiled) -> Found | None:
    console = cursor.console
    if cursor.searched == console.end and cursor.searched > cursor.start:
        return None
    start = max(cursor.start, cursor.searched - SPAN)
    before = console.between(start - _CONTEXT, start)
    fresh = console.between(start, console.end)
    start = console.end - len(fresh)
    match: re.Match[str] | re.Match[bytes] | None
    if isinstance(pattern.pattern, bytes):
        match = pattern.search(before + fresh, len(before))
        if match is None:
            return None
        first, last = match.start() - len(before), match.end() - len(before)
    else:
        skipped = decode(before)
        text = skipped + decode(fresh)
        match = pattern.search(text, len(skipped))
        if match is None:
            return None
        first, last = (len(encode(text[len(skipped) : at])) for at in match.span())
    return Found(which, match, console, start + first, start + last)


def decode(text: bytes) -> str:
    """What a console showed, as UTF-8; a byte that is none becomes a surrogate (PEP 383), and so none is lost."""
    return text.decode("utf-8", "surrogateescape")


def encode(text: str | bytes, what: str = "text") -> bytes:
    """The reverse of `decode`; bytes are as they are.

    Args:
        text: what is to be typed.
        what: the parameter that it was given for, for a TypeError.

    Raises:
        TypeError: it is neither.
        ConfigError: surrogates that no byte became.
    """
    check_type(text, what, str, bytes)
    return text if isinstance(text, bytes) else typed_bytes(text)
