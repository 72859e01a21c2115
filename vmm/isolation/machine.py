"""A machine in a process of its own, as the caller sees it: what is asked of it is asked there.

Plain data comes back as it is. What is none (`Machine.memory`, a console) stays there, and an object that stands for it
here passes on what is asked of that.
"""

import math
import os
import queue
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Self, cast

from vmm.config.parts import Accelerator, Sandboxing
from vmm.errors import ConfigError, HostError, MachineDiedError
from vmm.isolation.channel import Lane, packed
from vmm.run.expect import Compiled, Pattern, compile_patterns
from vmm.run.expected import Expected
from vmm.run.runnable import read_answers, read_goal
from vmm.run.snapshot import Snapshot, without_outputs
from vmm.run.snapshot_memory import SnapshotMemory

if TYPE_CHECKING:
    from vmm.config.machine import MachineConfig
    from vmm.disks.drives import Drive
    from vmm.run.outcome import Outcome
    from vmm.run.resumption import Resumption

_LANES: Final = 4
"""Threads of the caller's that may ask something at a time; others wait."""

_MACHINE: Final = 0

_ERRORS: Final = frozenset({"builtins", "vmm.errors", "vmm.run.expected"})
"""Where exceptions may come from that the other process names."""

_IMAGES: Final = 64 << 20
"""Room for firmware and variables in a snapshot, beside RAM."""

_ALIGNMENT: Final = 2 << 20
"""Of a snapshot's parts (`vmm.run.snapshot_memory`)."""

_MOST_OF_A_FOLDER: Final = 33 << 30

_END_SECONDS: Final = 5.0

_GRACE_SECONDS = 60.0
"""How much longer than its deadline a run may take until its process is taken for one that does not answer."""


class _Link:
    """The other process, and how it is asked."""

    def __init__(self, config: "MachineConfig", resumption: "Resumption | None") -> None:
        here, there = zip(*(socket.socketpair() for _ in range(_LANES)), strict=True)
        self.memory = SnapshotMemory.room(config.memory + _IMAGES + sum(map(_size, config.drives)))
        descriptors = [end.fileno() for end in there]
        passed = [*descriptors, self.memory]
        command = [sys.executable, "-P", "-m", "vmm.isolated", ",".join(map(str, descriptors)), str(self.memory)]
        told: list[Any] | None = None
        if resumption is not None:
            snapshot = resumption.snapshot
            passed.append(snapshot.memory.fd)
            command.append(str(snapshot.memory.fd))
            sizes = {name: size for name, (_, size) in snapshot.memory.parts.items()}
            told = [snapshot.state, sizes, resumption.new_generation, resumption.jump_ns]
        try:
            self.process = subprocess.Popen(command, pass_fds=passed)
        except OSError as error:
            for end in here:
                end.close()
            os.close(self.memory)
            raise HostError(f"sandbox=process: cannot start {sys.executable}: {error.strerror}") from None
        finally:
            for end in there:
                end.close()
        self._released: deque[int] = deque()
        self._lanes: queue.LifoQueue[Lane] = queue.LifoQueue()
        lanes = [Lane(end) for end in here]
        for lane in reversed(lanes):
            self._lanes.put(lane)
        self.end = weakref.finalize(self, _end, self.process, lanes, self.memory)
        self.ask("make", config._replace(sandbox=Sandboxing.WHOLE), told)

    def release(self, handle: int) -> None:
        """Nobody refers to an object of the other process any more."""
        self._released.append(handle)

    def ask(
        self,
        operation: str,
        *values: object,
        on_poll: Callable[[], None] | None = None,
        seconds: float | None = None,
    ) -> Any:
        """Ask, and wait for the answer: plain data, or a `Remote`.

        Args:
            operation: what `vmm.isolated` is to do.
            values: plain data.
            on_poll: called when the other process wants it.
            seconds: how long it may take at its own word; None: for ever.

        Raises:
            MachineDiedError: the other process has ended.
            BaseException: what happened there, or was raised by ``on_poll``.
        """
        try:
            message = packed([None, *values] if operation == "make" else [self._drain(), operation, *values])
        except (ConfigError, TypeError):
            raise ConfigError(
                f"sandbox=process: the machine is in another process, which takes plain data and no code; {_INSTEAD}"
            ) from None
        lane = self._lanes.get()
        whole = False
        try:
            lane.send(message)
            until = math.inf if seconds is None else time.monotonic() + seconds + _GRACE_SECONDS
            found = self._answer(lane, operation, on_poll, until)
            whole = True
        except (EOFError, TimeoutError, *_NONSENSE) as error:
            raise self._died(error) from None
        finally:
            if not whole:
                # It is in the middle of an answer, and nobody can tell what the next one would belong to.
                self.process.kill()
            self._lanes.put(lane)
        if isinstance(found, _Raised):
            raise found.error
        return found

    def _answer(self, lane: Lane, operation: str, on_poll: Callable[[], None] | None, until: float) -> Any:
        raised: BaseException | None = None
        while True:
            try:
                kind, *values = lane.receive(until)
            except KeyboardInterrupt as interrupt:
                self.ask("interrupt")
                if operation not in _RUNS:
                    raised = interrupt
                continue
            if kind != "poll" or on_poll is None:
                break
            try:
                on_poll()
                lane.send(packed(["go"]))
            except BaseException as error:  # noqa: BLE001  # raised again once the run has ended
                raised = error
                lane.send(packed(["end"]))
        return _Raised(raised) if raised is not None else self._understood(kind, values)

    def _understood(self, kind: str, values: list[Any]) -> Any:
        (value,) = values
        if kind == "value":
            return value
        if kind == "object":
            return Remote(self, int(value))
        if kind == "method":
            return _METHOD
        if kind == "error":
            return _Raised(_error(*value))
        raise ValueError(f"{kind}: no answer")

    def _drain(self) -> list[int]:
        return [self._released.popleft() for _ in range(len(self._released))]

    def _died(self, error: BaseException) -> MachineDiedError:
        if isinstance(error, TimeoutError):
            self.process.kill()
            return MachineDiedError("the machine's process did not keep to its deadline, and was ended")
        if isinstance(error, EOFError):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_SECONDS)
        else:
            self.process.kill()
            return MachineDiedError(f"the machine's process said what none of ours does ({error}), and was ended")
        status = self.process.returncode
        how = f"with status {status}"
        if status is not None and status < 0:
            how = f"by signal {-status} ({signal.Signals(-status).name})"
        return MachineDiedError(f"the machine's process {self.process.pid} was ended {how}; other machines go on")


_METHOD: Final = object()
_RUNS: Final = frozenset({"run", "expect"})
"""What an interrupt ends, and tells so."""
_NONSENSE: Final = (ValueError, LookupError, TypeError, AttributeError, OverflowError, ConfigError)
"""What becomes of an answer that is none."""
_INSTEAD: Final = "sandbox=threads keeps it in this one"


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def _end(process: "subprocess.Popen[bytes]", lanes: Sequence[Lane], memory: int) -> None:
    """Give everything back; the process has nothing that it would have to bring to an end."""
    for lane in lanes:
        lane.close()
    os.close(memory)
    process.kill()
    process.wait()


def _error(kinds: Sequence[str], arguments: Sequence[Any], attributes: dict[str, Any]) -> BaseException:
    """The exception that was raised there: of a kind that vmm or Python has."""
    for kind in kinds:
        module, _, name = kind.partition(":")
        found = getattr(import_module(module), name, None) if module in _ERRORS else None
        if isinstance(found, type) and issubclass(found, Exception | KeyboardInterrupt):
            made: BaseException = found.__new__(found, *arguments)
            made.args = tuple(arguments)
            made.__dict__.update(attributes)
            return made
    raise ValueError(f"{kinds}: no exception")


class Remote:
    """Something in the process of a machine.

    Args:
        link: to the process.
        handle: what it is called there.
    """

    __slots__ = ("__weakref__", "_handle", "_link")

    def __init__(self, link: _Link, handle: int) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_handle", handle)
        if handle != _MACHINE:
            weakref.finalize(self, link.release, handle)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{name}: not a public name, and the machine is in another process")
        found = self._link.ask("get", self._handle, name)
        if found is not _METHOD:
            return found
        return lambda *values, **options: self._call(name, *values, **options)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} is in the machine's process, and cannot be set from here; {_INSTEAD}")

    def __repr__(self) -> str:
        return str(self._call("__repr__"))

    def __str__(self) -> str:
        return str(self._call("__str__"))

    def __len__(self) -> int:
        return int(self._call("__len__"))

    def __getitem__(self, key: Any) -> Any:
        return self._call("__getitem__", key)

    def __contains__(self, key: Any) -> bool:
        return bool(self._call("__contains__", key))

    def _call(self, name: str, *values: Any, **options: Any) -> Any:
        return self._link.ask(
            "call", self._handle, name, list(map(_given, values)), {key: _given(one) for key, one in options.items()}
        )


def _given(value: Any) -> list[Any]:
    if isinstance(value, Remote):
        return ["object", value._handle]  # noqa: SLF001  # not public, for public names are the other object's
    return ["value", value]


class ProcessMachine(Remote):
    """A machine in another process, with the names of `vmm.Machine`.

    Args:
        config: what it is.
        resumption: what it goes on from.

    Raises:
        ConfigError: it has something that only code of this process gives.
        HostError: as `vmm.Machine`, or there is no process.
    """

    __slots__ = ("config",)

    config: "MachineConfig"

    def __init__(self, config: "MachineConfig", resumption: "Resumption | None" = None) -> None:
        super().__init__(_Link(config, resumption), _MACHINE)
        object.__setattr__(self, "config", config)

    @classmethod
    def made(cls, config: "MachineConfig | str", /, **options: Any) -> Self:
        """What `vmm.Machine` makes of its arguments.

        Raises:
            ConfigError: they need code of this process, or make no sense.
            HostError: the host lacks something.
        """
        for name in ("customize", "alter", "outputs"):
            if options.pop(name, None) is not None:
                raise ConfigError(f"sandbox=process: {name}= is of this process, where the machine is not; {_INSTEAD}")
        resumption = options.pop("resumption", None)
        from vmm.config.machine import MachineConfig

        if not isinstance(config, MachineConfig):
            config = MachineConfig.create(config, **options)
        elif options:
            raise TypeError(f"a MachineConfig is whole: {', '.join(options)} cannot be given beside it")
        return cls(config, resumption)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # After its death there is nothing to close, and who is told that twice misses the first.
        with suppress(MachineDiedError):
            self.close()

    @property
    def pid(self) -> int:
        """The process."""
        link: _Link = self._link
        return link.process.pid

    def run(
        self,
        until: Pattern | None = None,
        deadline: float | None = None,
        send: Sequence[tuple[Pattern, str | bytes]] = (),
        on_poll: Callable[[Any], None] | None = None,
    ) -> "Outcome":
        """As `vmm.Machine.run`; ``on_poll`` is called in this process.

        Raises:
            MachineDiedError: its process has ended.
        """
        if on_poll is not None and not callable(on_poll):
            raise TypeError(f"on_poll: a function that takes the machine, not {type(on_poll).__name__}: {on_poll!r}")
        goal = None if until is None else _told(compile_patterns(until, "until"))
        answers = [[_told([pattern])[0], text] for pattern, text in read_answers(send)]
        poll = None if on_poll is None else lambda: on_poll(self)
        wanted = [goal, deadline, answers, poll is not None]
        outcome, typed = self._link.ask("run", *wanted, on_poll=poll, seconds=_seconds(deadline))
        if isinstance(send, deque):
            for _ in range(typed):
                send.popleft()
        return cast("Outcome", outcome)

    def expect(self, *patterns: Pattern | Sequence[Pattern], deadline: float | None = None) -> Expected[Any]:
        """As `vmm.Machine.expect`.

        Raises:
            MachineDiedError: its process has ended.
        """
        compiled = read_goal(patterns)
        which, text, begin, end, before, console = self._link.ask(
            "expect", _told(compiled), deadline, seconds=_seconds(deadline)
        )
        match = compiled[which].search(text, begin, end)
        if match is None:
            raise MachineDiedError("the machine's process found what does not match")
        return Expected(which, match, before, console)

    def snapshot(self) -> Snapshot:
        """As `vmm.Machine.snapshot`."""
        state, sizes = self._link.ask("snapshot")
        memory = SnapshotMemory.copied(self._link.memory, sizes)
        return Snapshot(without_outputs(self.config, Accelerator(state["accelerator"])), state, memory)


def _size(drive: "Drive") -> int:
    """Room for a disk in a snapshot: of a folder, all that a disk made of one may have."""
    with suppress(OSError):
        return _MOST_OF_A_FOLDER if drive.folder else drive.path.stat().st_size + _ALIGNMENT
    return 0  # the machine will say why


def _seconds(deadline: object) -> float | None:
    """What the other process does not refuse as a deadline, or None."""
    return deadline if isinstance(deadline, int | float) and deadline >= 0 else None


def _told(patterns: Sequence[Compiled]) -> list[list[Any]]:
    return [[pattern.pattern, pattern.flags] for pattern in patterns]
