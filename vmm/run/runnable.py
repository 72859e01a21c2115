"""What users do with a machine: run it, wait for what it shows, type, stop it."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from vmm.config.parts import parse_choice
from vmm.errors import HostError
from vmm.run.expect import Compiled, Pattern, compile_pattern, compile_patterns, encode, quoted
from vmm.run.outcome import Outcome, Reason, ResetKind
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    import re
    from typing import Any, Self, overload

    from vmm.run.console import Stream
    from vmm.run.expected import Expected
    from vmm.run.keys import TerminalType
    from vmm.run.runner import Runner


class Runnable:
    """The part of a `Machine` that is about time.

    Args:
        runner: runs the machine.
        serial: what its serial port printed.
        poll: called often while it runs; None: nothing needs that.
        find_terminal: which type of terminal the guest expects at its serial port; AUTO: that is not known yet.
        press: presses the power button.

    Attributes:
        outcome: how the last run ended; None before.
    """

    def __init__(
        self,
        runner: Runner,
        serial: Stream,
        poll: Callable[[], None] | None,
        find_terminal: Callable[[], TerminalType],
        press: Callable[[], None],
    ) -> None:
        self.outcome: Outcome | None = None
        self._runner = runner
        self._serial = serial
        self._poll_machine = poll
        self._find_terminal = find_terminal
        self._press = press

    def run(
        self,
        until: Pattern | None = None,
        deadline: float | None = None,
        send: Sequence[tuple[Pattern, str | bytes]] = (),
        on_poll: Callable[[Self], None] | None = None,
    ) -> Outcome:
        """Run until the guest shows ``until`` on a console, ends by itself, or the deadline passes.

        May be called again: the guest goes on where it was stopped, and what it printed meanwhile is not lost. Each
        console has a read position, from which ``until`` and ``send`` are searched and behind which they move it. A
        reset by the guest restarts the machine, and the run goes on; which resets there were is in `Machine.resets`. A
        guest that has ended is not started again, but by `reset`: every later call returns the same outcome.

        Args:
            until: a regular expression to be found in what the serial port or the debug port prints.
            deadline: seconds this call may take; None waits for ever.
            send: pairs (regular expression, text): once the consoles show the expression, the text is typed into
                the serial port, as UTF-8; in order, each searched after the one before it. A single byte from 0x80
                on is its surrogate escape (PEP 383), as in what Python makes of a command line. A deque loses those
                that were typed, so that another run can go on with the rest.
            on_poll: called on this thread some hundred times a second, for progress.

        Raises:
            DeviceError: a device of vmm failed; the guest is stopped. What is no `Exception` comes as it is.
            HostError: likewise, because a console's file could not be written any further.
            KvmError: a vCPU did not stop.
            KeyboardInterrupt: never; Ctrl-C ends the run with `Reason.INTERRUPTED`.
            ConfigError: a pattern is no regular expression, or the deadline no number of seconds.
            TypeError: nor even text, or a number; or ``send`` is no pairs, or ``on_poll`` no function.
            ValueError: the machine is closed.
            RuntimeError: another thread is running it.
        """
        if on_poll is not None and not callable(on_poll):
            raise TypeError(f"on_poll: a function that takes the machine, not {type(on_poll).__name__}: {on_poll!r}")
        answers = deque(read_answers(send))
        self.outcome, _ = self._runner.run(
            [] if until is None else compile_patterns(until, "until"), deadline, answers, partial(self._poll, on_poll)
        )
        if isinstance(send, deque):
            for _ in range(len(send) - len(answers)):
                send.popleft()
        return self.outcome

    if TYPE_CHECKING:

        @overload
        def expect(
            self, *patterns: str | re.Pattern[str] | Sequence[str | re.Pattern[str]], deadline: float | None = None
        ) -> Expected[str]: ...

        @overload
        def expect(
            self,
            *patterns: bytes | re.Pattern[bytes] | Sequence[bytes | re.Pattern[bytes]],
            deadline: float | None = None,
        ) -> Expected[bytes]: ...

        @overload
        def expect(self, *patterns: Pattern | Sequence[Pattern], deadline: float | None = None) -> Expected[Any]: ...

    def expect(self, *patterns: Pattern | Sequence[Pattern], deadline: float | None = None) -> Expected[Any]:
        """Run until the guest shows a pattern on a console, and tell which, where, and what came before.

        The read positions are those of `run`. A match may begin 4 KiB before what is printed last.

        Args:
            patterns: regular expressions, also as a list; of several that show, the one that begins first counts.
            deadline: seconds this call may take, by name; None waits for ever.

        Raises:
            ExpectError: the guest ended first, the deadline passed, or `stop` was called; ``outcome`` says which.
            KeyboardInterrupt: Ctrl-C.
            VmmError: as `run`, and so are TypeError, ValueError and RuntimeError.
        """
        compiled = read_goal(patterns)
        self.outcome, found = self._runner.run(compiled, deadline, deque(), partial(self._poll, None))
        if found is not None:
            return found.expected()
        from vmm.run.expected import ExpectError

        raise ExpectError(quoted(compiled), self.outcome.raise_interrupt())

    def send(self, text: str | bytes) -> None:
        """Type into the serial port; text becomes UTF-8. What the guest does not read yet waits.

        Raises:
            SendError: the guest has ended.
            VmmError: a device of vmm failed, and so `run` would raise this, too.
            ValueError: the machine is closed.
            TypeError: it is no text.
        """
        self._runner.send(encode(text))

    def send_line(self, text: str | bytes = "") -> None:
        """Type a line, ended by the Enter key; raises what `send` does."""
        self.send(encode(text) + b"\r")

    def send_keys(self, *names: str, terminal: str = "auto") -> None:
        """Press keys: ``up``, ``F2``, ``esc``, ``page-down``, ``enter``, ``ctrl-x`` …, as a terminal sends them.

        Args:
            names: what to press; `vmm.run.keys` has all names.
            terminal: a `vmm.run.keys.TerminalType`. ``auto`` is what UEFI firmware says that its serial console is,
                once it has shown something, and ``ttyterm`` for other guests.

        Raises:
            ConfigError: there is no key, or no terminal, of that name; or firmware has not said yet which it expects.
            VmmError: as `send`, and so are ValueError and TypeError.
        """
        from vmm.run.keys import TerminalType, key

        self._runner.check_alive()
        chosen = parse_choice(TerminalType, terminal, "terminal=")
        if chosen is TerminalType.AUTO:
            chosen = self._find_terminal()
        self.send(b"".join(key(name, chosen) for name in names))

    def interact(self, deadline: float | None = None) -> Outcome:
        """Give the serial port to the person at this process's terminal, until Ctrl-A X or the guest's end.

        What was printed before is shown first. Stdin and stdout that are no terminal are passed on as they are.

        Args:
            deadline: seconds this call may take; None waits for ever.

        Raises:
            HostError: stdout did not take all of it.
            VmmError: as `run`, and so are ValueError and RuntimeError.
        """
        from vmm.run.terminal import Terminal

        say = partial(print, file=sys.stderr, flush=True)
        with Terminal([self._serial], self.send, self.stop, say, self.power_button) as terminal:
            outcome = self.run(deadline=deadline, on_poll=lambda _: terminal.poll())
        if terminal.lost:
            raise HostError(terminal.lost)
        self._runner.mark_read(self._serial)
        return outcome

    def stop(self) -> None:
        """End the current `run` from another thread, with `Reason.STOPPED`; if there is none, the next one at once."""
        self._runner.stop()

    def interrupt(self) -> None:
        """End the current `run` from another thread as Ctrl-C does, with `Reason.INTERRUPTED`."""
        self._runner.interrupt()

    def reset(self) -> None:
        """Reset the machine, as its reset button does: at once, or as soon as its vCPUs have stopped if it runs.

        RAM, CMOS and the variable store keep their contents. A guest that has ended starts again with the next run.

        Raises:
            ValueError: the machine is closed.
            VmmError: as `run`.
        """
        self._runner.reset(ResetKind.USER, "machine.reset()")

    def power_button(self) -> None:
        """Press the power button: the guest's OS, if it listens to ACPI's events, powers the machine off in a while.

        Any thread may, in the middle of a run, too. Firmware hears nothing of it.

        Raises:
            SendError: the guest has ended.
            ValueError: the machine is closed.
            VmmError: as `run`.
        """
        self._runner.check_alive()
        self._press()

    def wakeup(self) -> None:
        """Wake a machine up that the guest has suspended to RAM; the next run goes on with it.

        Raises:
            RuntimeError: it is not suspended: the last run did not end with `Reason.SUSPENDED`.
            ValueError: the machine is closed.
            VmmError: as `run`.
        """
        if self.outcome is None or self.outcome.reason is not Reason.SUSPENDED:
            raise RuntimeError("the machine is not suspended; run it until its outcome says so (Reason.SUSPENDED)")
        self._runner.reset(ResetKind.WAKEUP, "machine.wakeup()")
        self.outcome = None

    def _poll(self, on_poll: Callable[[Self], None] | None) -> None:
        if self._poll_machine is not None:
            self._poll_machine()
        if on_poll is not None:
            on_poll(self)


def read_goal(patterns: Sequence[Pattern | Sequence[Pattern]]) -> list[Compiled]:
    """What `Runnable.expect` is given, ready to search with; raises what that does."""
    if len(patterns) > 1 and isinstance(patterns[-1], int | float | None):
        raise TypeError(f"expect: patterns only, not {patterns[-1]!r}; a deadline has its name, deadline=…")
    if not patterns:
        raise TypeError("expect: no pattern to wait for; run() waits for the guest's end")
    return [pattern for each in patterns for pattern in compile_patterns(each, "expect")]


def read_answers(send: Sequence[tuple[Pattern, str | bytes]]) -> list[tuple[Compiled, bytes]]:
    """What `Runnable.run` is given to type, ready to search with; raises what that does."""
    form = "send: pairs (regular expression, text) in a list"
    if isinstance(send, str | bytes) or not isinstance(send, Iterable):
        raise TypeError(f"{form}, not {type(send).__name__}: {send!r}")
    answers = []
    for pair in send:
        if not isinstance(pair, Sequence) or isinstance(pair, str | bytes) or len(pair) != 2:
            raise TypeError(f"{form}, but one of them is {pair!r}")
        answers.append((compile_pattern(pair[0], "send"), encode(pair[1], "send")))
    return answers
