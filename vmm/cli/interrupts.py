"""SIGINT, SIGTERM and SIGHUP while a machine runs."""

from __future__ import annotations

import signal
from contextlib import contextmanager, suppress

from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Turns these signals into KeyboardInterrupt at a place of our choice; a context manager.

    An exception out of a signal handler may come between any two instructions, between starting the vCPUs and being
    ready to stop them too. The first signal is therefore only remembered, for :meth:`check`; a second one is for when
    that does not help.

    Args:
        note: told that there is one.
    """

    def __init__(self, note: Callable[[], object]) -> None:
        self._note = note
        self._pending = False
        self._at_once = False
        self._saved: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._saved = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._saved.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise the interrupt that a signal asked for.

        Raises:
            KeyboardInterrupt: a signal came since the last call.
        """
        if self._pending:
            self._pending = False
            self._note()
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Have the first signal raise wherever it comes, for what takes long and may be left at any instruction.

        Raises:
            KeyboardInterrupt: a signal came, or had come before.
        """
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False

    def _handle(self, _number: int, _frame: object) -> None:
        if self._pending:
            raise KeyboardInterrupt
        self._pending = True
        if self._at_once:
            self.check()


@contextmanager
def every_end_interrupts() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise KeyboardInterrupt as SIGINT does, for what has processes and files to clean up.

    They stay as they are where somebody handles or ignores them, and on threads that handle no signals.
    """
    saved = []
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                with suppress(ValueError):  # not the main thread
                    saved.append((number, signal.signal(number, signal.default_int_handler)))
        yield
    finally:
        for number, handler in saved:
            signal.signal(number, handler)
