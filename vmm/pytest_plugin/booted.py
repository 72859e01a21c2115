"""Machines that are booted once, and given to each test as they were then."""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from vmm.config.machine import MachineConfig
from vmm.errors import ConfigError
from vmm.machine import Machine
from vmm.run import snapshot_file, snapshot_plain
from vmm.run.expect import Pattern
from vmm.run.snapshot import Snapshot

Until = Pattern | Callable[[Machine], object]
"""A pattern that a console shows once the machine is where tests begin, or what brings it there."""

BOOT_SECONDS = 300.0
"""How long a boot may take unless the test says otherwise."""


class Snapshots:
    """The snapshots of one session; a context manager that gives their memory back.

    Args:
        directory: where they are kept for other sessions, and for other workers of this one; None: nowhere.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._taken: dict[object, Snapshot] = {}

    def close(self) -> None:
        """Give the memory back."""
        for snapshot in self._taken.values():
            snapshot.close()

    def get(
        self, config: MachineConfig, until: Until, send: Sequence[tuple[Pattern, str | bytes]], deadline: float
    ) -> Snapshot:
        """The snapshot of such a machine; the first call boots it, unless a file has it.

        Args:
            config: the machine.
            until: where it is to be.
            send: as `Machine.run` takes it, where ``until`` is a pattern.
            deadline: seconds that the boot may take; likewise.
        """
        key = config, until, tuple(send)
        if key not in self._taken:
            self._taken[key] = self._from_file(config, until, tuple(send), deadline)
        return self._taken[key]

    def _from_file(
        self, config: MachineConfig, until: Until, send: Sequence[tuple[Pattern, str | bytes]], deadline: float
    ) -> Snapshot:
        # What a function does, no name of a file can say.
        if self._directory is None or callable(until):
            return _boot(config, until, send, deadline)
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"{_digest(config, until, send)}.snapshot"
        with _locked(path.with_suffix(".lock")):
            if (snapshot := _load(path)) is not None:
                return snapshot
            snapshot = _boot(config, until, send, deadline)
            snapshot.save(path)
            return snapshot


def _boot(
    config: MachineConfig, until: Until, send: Sequence[tuple[Pattern, str | bytes]], deadline: float
) -> Snapshot:
    with Machine(config) as machine:
        if callable(until):
            until(machine)
        else:
            outcome = machine.run(until, deadline, send)
            if not outcome.reached:
                pytest.fail(f"vmm_booted: {outcome.message}\n{machine.serial.text()[-2000:]}", pytrace=False)
        return machine.snapshot()


def _load(path: Path) -> Snapshot | None:
    """What is in a file, if that can go on here."""
    if not path.exists():
        return None
    try:
        snapshot = Snapshot.load(path)
    except ConfigError:
        return None
    try:
        Machine.restore(snapshot).close()
    except ConfigError:
        snapshot.close()
        return None
    return snapshot


def _digest(config: MachineConfig, until: Pattern, send: Sequence[tuple[Pattern, str | bytes]]) -> str:
    """The name of a machine at a point, of all that decides what it is: image, configuration, dialogue, versions."""
    text, blobs = snapshot_plain.encode(config)
    digest = sha256(text)
    digest.update(blobs)
    digest.update(repr((until, send, snapshot_file.VERSION, _version(), os.uname().release)).encode())
    return digest.hexdigest()[:32]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("firmware-vmm")
    except PackageNotFoundError:
        return ""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time boot the machine; the others then find its file."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def as_config(firmware: Any, options: dict[str, Any]) -> MachineConfig:
    """The machine that a test describes."""
    return firmware if isinstance(firmware, MachineConfig) else MachineConfig.create(firmware, **options)
