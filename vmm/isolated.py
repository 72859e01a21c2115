"""The process of a machine: makes it, restricts itself once the guest is to run, and answers the caller's process.

usage: python -m vmm.isolated LANE,LANE,… MEMORY [SNAPSHOT]      descriptors that it was started with

The first message on the first lane is the machine. Each lane then has a thread, so that one can wait for a run and
another stop it. When the caller has ended, so does this.
"""

import os
import re
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from vmm import host_threads
from vmm.errors import ConfigError, DeviceError
from vmm.isolation.channel import Lane, packed
from vmm.machine import Machine
from vmm.run.resumption import Resumption
from vmm.run.snapshot import Snapshot
from vmm.run.snapshot_memory import SnapshotMemory

MACHINE = 0
"""The handle of the machine itself."""

SPECIAL = frozenset({"__len__", "__getitem__", "__contains__", "__str__", "__repr__"})
"""What may be asked of an object beside its public names."""


class _Abandoned(BaseException):
    """The caller's function raised: its run ends, and the caller raises that."""


class _Server:
    """Answers for one machine.

    Args:
        machine: the machine.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._lock = threading.Lock()
        self._objects: dict[int, Any] = {MACHINE: machine}
        self._next = MACHINE + 1

    def serve(self, lane: Lane) -> None:
        """Answer what comes on a lane, until the caller has ended."""
        try:
            while True:
                released, operation, *values = lane.receive()
                with self._lock:
                    for handle in released:
                        self._objects.pop(handle, None)
                _reply(lane, lambda: self._answer(lane, operation, values))  # noqa: B023  # called before the next
        finally:
            os._exit(0)

    def _answer(self, lane: Lane, operation: str, values: list[Any]) -> list[Any]:
        machine = self._machine
        match operation, values:
            case "get", [handle, name]:
                found = getattr(self._object(handle), _allowed(name))
                return ["method", None] if callable(found) else self._told(found)
            case "call", [handle, name, arguments, options]:
                method = getattr(self._object(handle), _allowed(name))
                given = [self._taken(one) for one in arguments]
                return self._told(method(*given, **{key: self._taken(one) for key, one in options.items()}))
            case "run", [until, deadline, send, polls]:
                answers = deque((_pattern(pattern), text) for pattern, text in send)
                on_poll = (lambda _: _poll(lane)) if polls else None
                # As `compile_patterns` takes it: one, or several.
                patterns: Any = None if until is None else [_pattern(one) for one in until]
                outcome = machine.run(patterns, deadline, answers, on_poll)
                return ["value", [outcome, len(send) - len(answers)]]
            case "expect", [patterns, deadline]:
                found = machine.expect([_pattern(one) for one in patterns], deadline=deadline)
                match = found.match
                return ["value", [found.which, match.string, match.pos, match.endpos, found.before, found.console]]
            case "snapshot", []:
                with machine.snapshot() as snapshot:
                    sizes = {name: size for name, (_, size) in snapshot.memory.parts.items()}
                    return ["value", [snapshot.state, sizes]]
            case "interrupt", []:
                machine.interrupt()
                return ["value", None]
        raise ConfigError(f"{operation}: no such request")

    def _object(self, handle: int) -> Any:
        with self._lock:
            return self._objects[handle]

    def _taken(self, argument: list[Any]) -> Any:
        kind, value = argument
        return self._object(value) if kind == "object" else value

    def _told(self, value: object) -> list[Any]:
        """Plain data as it is; of what is none, a handle."""
        if not _is_plain(value):
            with self._lock:
                handle, self._next = self._next, self._next + 1
                self._objects[handle] = value
            return ["object", handle]
        return ["value", value]


def _reply(lane: Lane, answer: Callable[[], list[Any]]) -> None:
    try:
        said = answer()
    except (Exception, KeyboardInterrupt, _Abandoned) as error:  # noqa: BLE001  # the caller's, whatever it is
        said = _described(error)
    lane.send(packed(said))
    lane.flush()


def _described(error: BaseException) -> list[Any]:
    if isinstance(error, DeviceError):
        error.add_note("in the machine's process:\n" + "".join(traceback.format_exception(error)).rstrip())
    kinds = [f"{kind.__module__}:{kind.__qualname__}" for kind in type(error).__mro__]
    arguments = list(error.args) if _is_plain(list(error.args)) else [str(error)]
    attributes = {name: value for name, value in vars(error).items() if _is_plain(value)}
    return ["error", [kinds, arguments, attributes]]


def _is_plain(value: object) -> bool:
    try:
        packed(value)
    except (ConfigError, TypeError):
        return False
    return True


def _allowed(name: str) -> str:
    if name.startswith("_") and name not in SPECIAL:
        raise AttributeError(f"{name}: not a public name, and the machine is in another process")
    return name


def _pattern(told: list[Any]) -> "re.Pattern[Any]":
    text, flags = told
    return re.compile(text, flags)


def _poll(lane: Lane) -> None:
    """Let the caller's function look at the machine, by way of another lane."""
    lane.send(packed(["poll", None]))
    if lane.receive() != ["go"]:
        raise _Abandoned


def main() -> None:
    """Make the machine, and answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller's to see
    lanes = [Lane(socket.socket(fileno=int(number))) for number in sys.argv[1].split(",")]
    SnapshotMemory.given = int(sys.argv[2])
    try:
        _, config, resumed = lanes[0].receive()
    except EOFError:
        return
    servers: list[_Server] = []

    def make() -> list[Any]:
        resumption = None
        if resumed is not None:
            state, sizes, new_generation, jump_ns = resumed
            snapshot = Snapshot(config, state, SnapshotMemory.around(int(sys.argv[3]), sizes))
            resumption = Resumption(snapshot, config, new_generation, jump_ns)
        server = _Server(Machine(config, resumption=resumption))
        for lane in lanes[1:]:
            host_threads.start(threading.Thread(target=server.serve, args=(lane,), daemon=True), "callers")
        servers.append(server)
        return ["value", None]

    _reply(lanes[0], make)
    for server in servers:
        server.serve(lanes[0])


if __name__ == "__main__":
    main()
