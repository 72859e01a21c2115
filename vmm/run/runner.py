"""Lets a machine run until something is shown, something ends it, or the time is up."""

from __future__ import annotations

from vmm.errors import ConfigError
from vmm.legible import shortened
from vmm.options import check_type
from vmm.run import garbage
from vmm.run.expect import Compiled, Console, Found, Search, quoted, text_of
from vmm.run.outcome import EXPLAINED, Outcome, Reason, ResetKind
from vmm.run.threads import JOIN_SECONDS, VcpuThreads
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from vmm.run.console import Stream
    from vmm.run.lifetime import Lifetime

POLL_SECONDS = 0.004
"""How often the waiting thread looks at the consoles: much shorter than what a person notices."""


if TYPE_CHECKING:

    class Debugger(Protocol):
        """Who may hold the machine in the middle of a run, and let it go on; on the thread that is in the run."""

        def begin(self, idle: Callable[[], None], reset: Callable[[], None]) -> None:
            """A run begins, or the machine was reset: start the vCPUs.

            Args:
                idle: called often while the machine is held.
                reset: resets it, if that was asked for.
            """

        def poll(self) -> None:
            """Called often while the machine runs."""

        def end(self) -> None:
            """What the run was for has happened, and no vCPU runs: the last look at it."""


class Runner:
    """Runs one machine, again and again.

    Args:
        lifetime: of the machine.
        threads: of its vCPUs.
        consoles: what it shows: the serial port, and the debug port, whose output comes every few milliseconds anyway.
        feed: types into its serial port; any thread may.
        explain: adds evidence to an outcome, once the vCPUs have stopped.
        reset: brings the machine, whose vCPUs have stopped, to its state after power-on.
        watched: has what it is given called whenever something was printed; None: the waiting thread looks by itself.
        prepare: gets ready, on the waiting thread, what the guest will soon ask for.

    Attributes:
        debugger: starts the vCPUs instead; None: there is none.
    """

    def __init__(
        self,
        lifetime: Lifetime,
        threads: VcpuThreads,
        consoles: Sequence[Console],
        feed: Callable[[bytes], object],
        explain: Callable[[Outcome], Outcome],
        reset: Callable[[ResetKind], None],
        watched: Callable[[Callable[[], object]], None] | None = None,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self._lifetime = lifetime
        self._threads = threads
        self._consoles = list(consoles)
        self._serial = self._consoles[0].stream
        self._explain = explain
        self._feed = feed
        self._reset_machine = reset
        self._watched = watched
        self._prepare = prepare
        self.debugger: Debugger | None = None

    def run(
        self,
        goal: Sequence[Compiled],
        deadline: float | None,
        answers: deque[tuple[Compiled, bytes]],
        on_poll: Callable[[], None],
    ) -> tuple[Outcome, Found | None]:
        """Run until a pattern of ``goal`` shows, the guest ends, or ``deadline`` seconds have passed.

        Args:
            goal: what is waited for; may be empty.
            deadline: None: there is none.
            answers: once a pattern shows, the text is typed; one after the other. Those that were are gone.
            on_poll: called on this thread after each look at the consoles.

        Returns:
            How the run ended, and which pattern was found, where the consoles' read positions now are.

        Raises:
            ConfigError: the deadline is no number of seconds.
            ValueError: the machine is closed.
            RuntimeError: it is already running.
            VmmError: a device failed, or a vCPU did not stop.
        """
        if deadline is not None:
            check_type(deadline, "deadline", int, float)
            if not deadline <= float("inf"):
                raise ConfigError("deadline: NaN is no number of seconds; None waits for ever")
        life = self._lifetime
        with life.turn():
            life.raise_failure()
            watch = _Watch(self._consoles, goal, answers, self._feed)
            # What was printed before the guest ended, or was stopped, comes first.
            executes = not watch.look(answer=life.end is None) and life.end is None
            if executes:
                with garbage.left_to_the_runner():
                    self._execute(watch, deadline, on_poll)
                life.raise_failure()
                if life.end is not None and life.end.reason in EXPLAINED:
                    life.amend(self._explain(life.end))
                watch.look(answer=False)
            if life.final is not None:
                watch.note_unheard()
            watch.mark_read()
            outcome = watch.outcome(life.end, life.run_s)
            if executes:
                life.note_end(outcome)
            return outcome, watch.found

    def send(self, data: bytes) -> None:
        """Type into the serial port of a guest that can still read it; raises what `check_alive` does."""
        self.check_alive()
        self._feed(data)

    def check_alive(self) -> None:
        """Refuse what only a guest that can go on would notice.

        Raises:
            SendError: the guest has ended.
            ValueError: the machine is closed.
            VmmError: a device failed.
        """
        self._lifetime.check_alive()

    def stop(self) -> None:
        """End the run that goes on, or else the next one."""
        self._lifetime.stop()

    def interrupt(self) -> None:
        """End the run that goes on as Ctrl-C does."""
        self._lifetime.finish(Reason.INTERRUPTED, "interrupted")

    def reset(self, kind: ResetKind, cause: str) -> None:
        """Reset the machine: at once, or soon if it runs.

        Raises:
            ValueError: it is closed.
            VmmError: as `run`.
        """
        life = self._lifetime
        life.reset(kind, cause)
        with life.moment() as free:
            if free:  # else who runs it does it
                self._carry_out_reset()
                life.raise_failure()

    def mark_read(self, stream: Stream) -> None:
        """Let no later run find what a console has shown."""
        for console in self._consoles:
            if console.stream is stream:
                console.mark_read()

    def close(self) -> None:
        """End a run that goes on, and allow no other.

        Raises:
            RuntimeError: it is called inside a run.
            KvmError: a vCPU does not stop; what it uses must stay.
        """
        if self._lifetime.is_owner_calling() or self._threads.is_one_calling():
            raise RuntimeError("close() was called inside a run of the machine; call stop(), and close() after the run")
        self._lifetime.close()
        self._threads.close()
        self._lifetime.wait_until_idle(JOIN_SECONDS)

    def _execute(self, watch: _Watch, deadline: float | None, on_poll: Callable[[], None]) -> None:
        life = self._lifetime
        life.note_start()

        def look() -> None:
            if watch.look():
                life.finish(Reason.UNTIL, watch.found_message())

        if self._watched is not None:
            self._watched(look)
        try:
            self._listen()
            self._start(on_poll)
            if self._prepare is not None:
                self._prepare()
                self._prepare = None
            while not life.wait(POLL_SECONDS):
                self._listen()
                resets = life.wants_reset
                if resets:
                    self._threads.stop()
                # Before the guest goes on: it might end, by one reset too many, after it has said what is waited for.
                if (self._watched is None or resets) and watch.look():
                    life.finish(Reason.UNTIL, watch.found_message())
                elif deadline is not None and life.run_s > deadline:
                    life.finish(Reason.TIMEOUT, watch.timeout_message(deadline))
                elif resets:
                    self._start(on_poll)
                elif self.debugger is None and life.take_restart():  # else the debugger does it
                    self._threads.stop()
                    self._threads.start(life.fail)
                on_poll()
                garbage.collect()
                if self.debugger is not None:
                    self.debugger.poll()
            if self.debugger is not None:
                self._threads.stop()
                self.debugger.end()
        except KeyboardInterrupt:
            life.finish(Reason.INTERRUPTED, "interrupted")
        finally:
            try:
                self._threads.stop()
                self._carry_out_reset()
            finally:
                life.elapsed_s += life.run_s

    def _listen(self) -> None:
        """Look around soon after the next output; to be called before a look, which may be just too early for it."""
        if self._watched is None:
            self._serial.printed = self._hear

    def _hear(self) -> None:
        self._serial.printed = None  # once until the next look: a guest may print a million times a second
        self._lifetime.note_output()

    def _start(self, on_poll: Callable[[], None]) -> None:
        self._carry_out_reset()
        if self._lifetime.end is not None:
            return
        if self.debugger is None:
            self._threads.start(self._lifetime.fail)
        else:
            self.debugger.begin(on_poll, self._carry_out_reset)

    def _carry_out_reset(self) -> None:
        """Reset the machine, if that was asked for; one that is interrupted is still asked for."""
        life = self._lifetime
        asked = life.reset_asked
        if asked is None or not life.wants_reset:
            return
        try:
            self._reset_machine(asked.kind)
        except Exception as error:  # noqa: BLE001 - a device's; this machine has no state that it could go on from
            life.fail(error)
        else:
            life.note_reset()


class _Watch:
    """What one run waits for, and what it answers meanwhile."""

    def __init__(
        self,
        consoles: Sequence[Console],
        goal: Sequence[Compiled],
        answers: deque[tuple[Compiled, bytes]],
        feed: Callable[[bytes], object],
    ) -> None:
        self.found: Found | None = None
        self._consoles = consoles
        self._goal = list(goal)
        self._goal_search = Search(consoles)
        self._answers = answers
        self._answer_search = Search(consoles)
        self._feed = feed

    def look(self, *, answer: bool = True) -> bool:
        """Search what was printed since the last call; whether the goal was found."""
        while answer and self._answers and self._answer_search.find([self._answers[0][0]]):
            self._feed(self._answers.popleft()[1])
        if self.found is None and self._goal:
            self.found = self._goal_search.find(self._goal)
        return self.found is not None

    def note_unheard(self) -> None:
        """What showed before the guest ended did show, though nobody reads the answer any more."""
        while self._answers and self._answer_search.find([self._answers[0][0]]):
            self._answers.popleft()

    def mark_read(self) -> None:
        """What was found is read, and so is what was answered."""
        self._answer_search.mark_read()
        if self.found is not None:
            self._goal_search.mark_read()

    def outcome(self, end: Outcome | None, elapsed_s: float) -> Outcome:
        """How the run ended, seen from here: what was printed before the guest ended counts."""
        if self.found is not None:
            ended = end is not None and end.reason is Reason.UNTIL
            return end if ended and end else Outcome(Reason.UNTIL, elapsed_s, self.found_message())
        end = end or Outcome(Reason.STOPPED, elapsed_s, "stopped")
        missing = self._missing()
        if not missing:
            return end
        message = end.message
        if end.reason is Reason.POWER_OFF:  # which alone would look like success
            message += f", and never showed {quoted(missing)}"
        return end._replace(message=message, missed_until=text_of(self._goal or missing))

    def _missing(self) -> Sequence[Compiled]:
        """What has to show next."""
        return [self._answers[0][0]] if self._answers else self._goal

    def found_message(self) -> str:
        """What was found, for people."""
        return f"the console showed {quoted([self._goal[self.found.which]])}" if self.found else ""

    def timeout_message(self, deadline: float) -> str:
        """What was not, and the last that was printed."""
        missing = self._missing()
        spoke = [console.stream for console in self._consoles if console.stream.total]
        last = f"; its last line was {shortened(spoke[0].last_line())!r}" if spoke else "; it printed nothing at all"
        what = f" and the guest never showed {quoted(missing)}" if missing else ""
        return f"{deadline:g} s passed{what}{last}"
