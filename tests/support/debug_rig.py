"""A machine with its gdb server, running on a thread of its own, and what talks to it: real debugger, or a socket."""

import re
import select
import socket
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from vmm import Machine, Outcome

PATIENCE = 60.0
"""Seconds; a busy machine must not fail a test that isn't about time."""


def address_of(machine: Machine) -> str:
    assert machine.debugger is not None
    return str(machine.debugger.address)


class Debugged:
    """Runs a machine until the block's end, at the latest.

    Args:
        machine: made with ``gdb="tcp::0"``, or another address.
        until: as `Machine.run` takes it.
    """

    def __init__(self, machine: Machine, until: str | None = None) -> None:
        self.machine = machine
        self.outcome: Outcome | None = None
        self._until = until
        self._thread = threading.Thread(target=self._run)

    def gdb(self, *commands: str, symbols: Path | None = None) -> str:
        """Let Debian's gdb run commands after it has connected; what it printed."""
        words = ["gdb", "-q", "-batch", "-nx", "-ex", "set confirm off", "-ex", "set width 0"]
        if symbols is not None:
            words += ["-ex", f"file '{symbols}'"]
        words += ["-ex", f"target remote {address_of(self.machine)}"]
        for command in commands:
            words += ["-ex", command]
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
        return done.stdout + done.stderr

    def lldb(self, *commands: str) -> str:
        """The same with lldb, whose commands are others."""
        words = ["lldb", "--no-lldbinit", "--batch", "--no-use-colors", "-o", f"gdb-remote {address_of(self.machine)}"]
        for command in commands:
            words += ["-o", command]
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
        return done.stdout + done.stderr

    def join(self) -> Outcome:
        """Wait for the run's end."""
        self._thread.join(PATIENCE)
        assert self.outcome is not None
        return self.outcome

    def _run(self) -> None:
        self.outcome = self.machine.run(self._until, deadline=PATIENCE)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.machine.stop()
        self._thread.join(PATIENCE)


class Client:
    """Speaks the protocol as no debugger would."""

    def __init__(self, machine: Machine) -> None:
        host, _, port = address_of(machine).rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=PATIENCE)
        self._received = b""

    def send(self, packet: bytes) -> None:
        self.socket.sendall(b"$%s#%02x" % (packet, sum(packet) & 0xFF))

    def reply(self) -> bytes | None:
        """The next packet, but for what it prints; None: the connection is closed."""
        packet = self._packet()
        return self.reply() if packet is not None and re.fullmatch(rb"O[0-9a-f]+", packet) else packet

    def _packet(self) -> bytes | None:
        while (match := re.search(rb"\$([^#]*)#[0-9a-f]{2}", self._received)) is None:
            data = self.socket.recv(1 << 16)
            if not data:
                return None
            self._received += data
        self._received = self._received[match.end() :]
        return match[1]

    def ask(self, packet: bytes) -> bytes | None:
        self.send(packet)
        return self.reply()

    def monitor(self, command: str) -> str:
        """What a ``monitor`` command prints."""
        self.send(b"qRcmd," + command.encode().hex().encode())
        printed = ""
        while (packet := self._packet()) is not None and packet.startswith(b"O") and packet != b"OK":
            printed += bytes.fromhex(packet[1:].decode()).decode()
        return printed

    def is_idle(self) -> bool:
        """Whether nothing has come, and nothing comes in a moment."""
        return not select.select([self.socket], [], [], 0.05)[0]

    def interrupt(self) -> None:
        self.socket.sendall(b"\x03")

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
