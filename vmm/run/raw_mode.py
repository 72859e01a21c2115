"""A terminal whose keys come one by one, as they are typed."""

from __future__ import annotations

import termios
from contextlib import contextmanager

from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


@contextmanager
def raw_mode(fd: int) -> Iterator[None]:
    """Let a terminal be in raw mode inside the block, and as it was before when its output is out."""
    saved = termios.tcgetattr(fd)
    try:
        termios.tcsetattr(fd, termios.TCSADRAIN, _raw(saved))
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)


def _raw(attributes: list[Any]) -> list[Any]:
    """Return terminal attributes without line editing, echo, signals and flow control.

    Output processing stays on, so that a guest's bare line feeds do not make a staircase.
    """
    iflag, oflag, cflag, lflag, ispeed, ospeed, characters = attributes
    iflag &= ~(termios.ICRNL | termios.IXON | termios.INLCR | termios.IGNCR | termios.ISTRIP | termios.BRKINT)
    lflag &= ~(termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN)
    return [iflag, oflag, cflag, lflag, ispeed, ospeed, characters]
