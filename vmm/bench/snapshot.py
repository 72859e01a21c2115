"""What snapshots cost: taking one, going on from one to the first new byte on a console, and a test that begins there.

OVMF stands at its shell's prompt. vmm works in this process, as a test suite does; QEMU (`-accel tcg`) is a process
that has booted already, with ``savevm`` and ``loadvm`` on its monitor. A cold boot of vmm takes part in the rounds.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from vmm.bench.contenders import (
    DEADLINE_S,
    QEMU_TCG,
    Contender,
    ContenderFailedError,
    InThisProcess,
    started,
)
from vmm.firmware import search
from vmm.machine import Machine
from vmm.run.console import strip_escapes

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.run.snapshot import Snapshot

MEMORY_MIB = 512
"""Of the machine that all cases but the last ones have."""

SIZES_MIB = (64, 512, 4096, 16384)
"""RAM of the machines that show how a restore grows with it."""

_PROMPT, _COUNTDOWN = "Shell> ", "any other key to continue"
_MONITOR_PROMPT = b"(qemu) "
_VMM = "vmm, in a warm Python"


@dataclass(frozen=True)
class SnapshotCase:
    """One thing to do, and who does it."""

    key: str
    title: str
    contenders: tuple[Contender, ...]


class Subjects:
    """The machines that stand at the prompt, each booted when it is first needed; a context manager."""

    def __init__(self) -> None:
        self._snapshots: dict[int, Snapshot] = {}
        self._machine: Machine | None = None
        self._qemu: _QemuAtPrompt | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._machine is not None:
            self._machine.close()
        for snapshot in self._snapshots.values():
            snapshot.close()
        if self._qemu is not None:
            self._qemu.close()

    def cases(self) -> tuple[SnapshotCase, ...]:
        """What is measured."""
        first = (
            InThisProcess("vmm", _VMM, lambda _: self._first_byte(MEMORY_MIB)),
            _Qemu("qemu-tcg", QEMU_TCG.name, lambda _: self._at_prompt().load(), QEMU_TCG),
            InThisProcess("vmm-cold", "vmm, a cold boot", self._cold),
        )
        take = (
            InThisProcess("vmm", _VMM, lambda _: self._take()),
            _Qemu("qemu-tcg", QEMU_TCG.name, lambda _: self._at_prompt().save(), QEMU_TCG),
        )
        test = (InThisProcess("vmm", _VMM, lambda _: self._test()),)
        cases = [
            SnapshotCase("first", f"OVMF, {MEMORY_MIB} MiB, at its prompt: restored, to its first new byte", first),
            SnapshotCase("take", "a snapshot taken (savevm) there", take),
            SnapshotCase("test", "a test that begins there: restore, 'ver', its answer, close", test),
        ]
        for size in SIZES_MIB:
            restore = InThisProcess("vmm", _VMM, lambda _, size=size: self._first_byte(size))  # type: ignore[misc]
            cases.append(SnapshotCase(f"ram-{size}", f"the first case with {size} MiB", (restore,)))
        return tuple(cases)

    def _snapshot(self, memory_mib: int) -> Snapshot:
        if memory_mib not in self._snapshots:
            with _boot(memory_mib) as machine:
                self._snapshots[memory_mib] = machine.snapshot()
        return self._snapshots[memory_mib]

    def _at_prompt(self) -> _QemuAtPrompt:
        if self._qemu is None:
            self._qemu = _QemuAtPrompt()
        return self._qemu

    def _first_byte(self, memory_mib: int) -> float:
        snapshot = self._snapshot(memory_mib)
        began = time.monotonic()
        with Machine.restore(snapshot) as machine:
            total = machine.serial.total
            machine.serial.sink = lambda _: machine.stop()
            machine.send("v")
            machine.run(deadline=DEADLINE_S)
            if machine.serial.total == total:
                raise ContenderFailedError("vmm: a restored machine printed nothing")
            return time.monotonic() - began

    def _cold(self, _limit_s: float) -> float:
        began = time.monotonic()
        with _boot(MEMORY_MIB):
            return time.monotonic() - began

    def _take(self) -> float:
        if self._machine is None:
            self._machine = _boot(MEMORY_MIB)
        began = time.monotonic()
        with self._machine.snapshot():
            return time.monotonic() - began

    def _test(self) -> float:
        snapshot = self._snapshot(MEMORY_MIB)
        began = time.monotonic()
        with Machine.restore(snapshot) as machine:
            machine.send_line("ver")
            machine.expect("Interactive Shell v", deadline=DEADLINE_S)
        return time.monotonic() - began


@dataclass(frozen=True)
class _Qemu(InThisProcess):
    """Something that QEMU does on its monitor."""

    program: Contender

    def missing(self) -> str | None:
        return self.program.missing()


def _boot(memory_mib: int) -> Machine:
    with contextlib.ExitStack() as closers:
        machine = closers.enter_context(Machine("ovmf", memory=memory_mib << 20))
        outcome = machine.run(_PROMPT, DEADLINE_S, [(_COUNTDOWN, "\r")])
        if not outcome.reached:
            raise ContenderFailedError(f"vmm: {outcome.message}")
        closers.pop_all()
    return machine


class _QemuAtPrompt:
    """A QEMU whose guest stands at the prompt, and that has been saved there."""

    def __init__(self) -> None:
        located = search.locate("ovmf")
        with contextlib.ExitStack() as closers:
            scratch = Path(closers.enter_context(tempfile.TemporaryDirectory(prefix="vmm-bench-")))
            variables = scratch / "variables.fd"
            assert located.variables is not None  # noqa: S101  # OVMF's
            shutil.copyfile(located.variables, variables)
            command = QEMU_TCG.boot_command(located, MEMORY_MIB, variables)
            # An overlay of its own, in QEMU's format, which takes snapshots where a raw file cannot.
            command = [f"{word},snapshot=on" if word.endswith(str(variables)) else word for word in command]
            monitor = scratch / "monitor"
            command += ["-monitor", f"unix:{monitor},server=on,wait=off"]
            process = closers.enter_context(started(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL))
            assert process.stdin is not None  # noqa: S101  # Popen was given pipes
            assert process.stdout is not None  # noqa: S101
            self._input: IO[bytes] = process.stdin
            self._output: IO[bytes] = process.stdout
            self._wait_for(_COUNTDOWN)
            self._input.write(b"\r")
            self._wait_for(_PROMPT)
            self._monitor = closers.enter_context(socket.socket(socket.AF_UNIX))
            self._monitor.connect(str(monitor))
            self._monitor.settimeout(DEADLINE_S)
            self._answer()
            self._command("savevm prompt")
            self._closers = closers.pop_all()

    def close(self) -> None:
        self._closers.close()

    def save(self) -> float:
        """Seconds that savevm takes."""
        began = time.monotonic()
        self._command("savevm other")
        return time.monotonic() - began

    def load(self) -> float:
        """Seconds from loadvm to the first new byte."""
        while select.select([self._output], [], [], 0)[0]:
            os.read(self._output.fileno(), 65536)
        began = time.monotonic()
        self._command("loadvm prompt")
        self._input.write(b"v")
        self._read(DEADLINE_S)
        return time.monotonic() - began

    def _command(self, text: str) -> None:
        self._monitor.sendall(f"{text}\n".encode())
        answer = self._answer()
        if b"rror" in answer:
            raise ContenderFailedError(f"QEMU, {text}: {answer.decode('ascii', 'replace').splitlines()[-2]}")

    def _answer(self) -> bytes:
        answer = b""
        while not answer.endswith(_MONITOR_PROMPT):
            try:
                data = self._monitor.recv(65536)
            except TimeoutError:
                data = b""
            if not data:
                raise ContenderFailedError("QEMU: its monitor does not answer")
            answer += data
        return answer

    def _wait_for(self, pattern: str) -> None:
        text, ends_at = b"", time.monotonic() + DEADLINE_S
        while not re.search(pattern.encode(), strip_escapes(text)):
            text += self._read(ends_at - time.monotonic())

    def _read(self, seconds: float) -> bytes:
        if not select.select([self._output], [], [], max(0.0, seconds))[0]:
            raise ContenderFailedError("QEMU: it printed nothing in time")
        data = os.read(self._output.fileno(), 65536)
        if not data:
            raise ContenderFailedError("QEMU: it ended")
        return data


def measure(contender: Contender, limit_s: float) -> float:
    """Do it once; return seconds.

    Raises:
        ContenderFailedError: it failed.
    """
    if not isinstance(contender, InThisProcess):
        raise TypeError(contender)
    once: Callable[[float], float] = contender.once
    return once(limit_s)
