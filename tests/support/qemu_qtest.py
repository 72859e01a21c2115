"""Debian's QEMU as an oracle: a stopped machine whose ports are driven through its qtest socket.

Guest RAM is a shared file, mapped here, so that memory costs no messages; port
accesses are sent in batches. Source: docs/devel/testing/qtest.rst in QEMU.
"""

import json
import mmap
import socket
import struct
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Self

BATCH = 256
"""Commands in flight: their replies fit into the socket's buffer, so that neither side waits for the other."""

DESCRIPTOR = 0x1000
"""Where `QemuSide.dma` puts its descriptor."""

_WIDTH = {1: "b", 2: "w", 4: "l"}


class Qemu:
    """One stopped QEMU.

    Args:
        directory: where its sockets and RAM file go.
        memory: bytes of RAM.
        arguments: further arguments, such as ``-fw_cfg``.
        machine: the ``-machine`` to build.
        accelerator: of QEMU's.
        shared: whether RAM is that file; not with NUMA nodes that name memory of their own.
    """

    def __init__(
        self,
        directory: Path,
        memory: int,
        arguments: Sequence[str] = (),
        machine: str = "pc",
        *,
        shared: bool = True,
        accelerator: str = "tcg",
    ) -> None:
        self.memory = memory
        self._events: list[str] = []
        backing = directory / "ram"
        with backing.open("wb") as file:
            file.truncate(memory)
        self._closers = ExitStack()
        servers = [self._listen(directory / name) for name in ("qtest", "qmp")]
        file_ram = ("-object", f"memory-backend-file,id=ram,size={memory},mem-path={backing},share=on")
        command = [
            *("qemu-system-x86_64", "-machine", f"{machine},memory-backend=ram" if shared else machine),
            *("-accel", accelerator, "-S", "-nodefaults", "-display", "none", "-vga", "none"),
            *("-m", str(memory >> 20), "-cpu", "qemu64", *(file_ram if shared else ())),
            *("-qtest", f"unix:{directory / 'qtest'}", "-qtest-log", "none", "-qmp", f"unix:{directory / 'qmp'}"),
            *arguments,
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._closers.callback(self._process.wait, timeout=60)
        self._closers.callback(self._process.terminate)
        try:
            self._qtest, self._replies = self._accept(servers[0])
            self._qmp, self._messages = self._accept(servers[1])
            self._messages.readline()
            self.qmp("qmp_capabilities")
            with backing.open("r+b") as file:
                self.ram = self._closers.enter_context(mmap.mmap(file.fileno(), memory))
        except BaseException:
            self._closers.close()
            raise

    def _listen(self, path: Path) -> socket.socket:
        server = self._closers.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(str(path))
        server.listen(1)
        server.settimeout(60)
        return server

    def _accept(self, server: socket.socket) -> tuple[socket.socket, BinaryIO]:
        connection = self._closers.enter_context(server.accept()[0])
        connection.settimeout(60)
        return connection, self._closers.enter_context(connection.makefile("rb"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._closers.close()

    def commands(self, lines: Iterable[str]) -> list[str]:
        """Send qtest commands, many at a time; what follows "OK" in each reply."""
        lines = list(lines)
        replies = []
        for first in range(0, len(lines), BATCH):
            batch = lines[first : first + BATCH]
            self._qtest.sendall("".join(line + "\n" for line in batch).encode())
            for line in batch:
                reply = self._replies.readline().decode().split()
                if not reply or reply[0] != "OK":
                    raise RuntimeError(f"qtest answered {reply} to {line}")
                replies.append(reply[1] if len(reply) > 1 else "")
        return replies

    def qmp(self, command: str, **arguments: Any) -> Any:
        """One QMP command."""
        self._qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            message = self._message()
            if "return" in message:
                return message["return"]

    def reset(self) -> None:
        """Reset the machine, and wait until that is done; its event may come before the command's reply."""
        self._events.clear()
        self.qmp("system_reset")
        while "RESET" not in self._events:
            self._message()

    def _message(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._messages.readline())
        if "error" in message:
            raise RuntimeError(str(message["error"]))
        if "event" in message:
            self._events.append(message["event"])
        return message

    def read(self, gpa: int, size: int) -> bytes:
        """Memory as a device sees it, ROM included."""
        return bytes.fromhex(self.commands([f"read {gpa:#x} {size:#x}"])[0][2:])

    def item(self, key: int, size: int) -> bytes:
        """The first bytes of an fw_cfg item, through the data port."""
        replies = self.commands([f"outw 0x510 {key:#x}", *["inb 0x511"] * size])
        return bytes(int(reply, 16) for reply in replies[1:])

    def files(self) -> dict[str, tuple[int, int]]:
        """The directory: name to (key, size)."""
        count = int.from_bytes(self.item(0x19, 4), "big")
        raw = self.item(0x19, 4 + 64 * count)[4:]
        entries = [raw[at : at + 64] for at in range(0, len(raw), 64)]
        return {
            entry[8:].split(b"\0")[0].decode(): (
                int.from_bytes(entry[4:6], "big"),
                int.from_bytes(entry[:4], "big"),
            )
            for entry in entries
        }


def in_command(port: int, size: int) -> str:
    """The qtest command of one IN."""
    return f"in{_WIDTH[size]} {port:#x}"


def out_command(port: int, size: int, value: int) -> str:
    """The qtest command of one OUT."""
    return f"out{_WIDTH[size]} {port:#x} {value:#x}"


class QemuSide:
    """The same words for QEMU as the rig of our device has."""

    def __init__(self, qemu: Qemu) -> None:
        self.qemu = qemu

    def out(self, port: int, size: int, data: bytes) -> None:
        self.qemu.commands([out_command(port, size, int.from_bytes(data, "little"))])

    def trigger(self, at: int, *, high: bool = True) -> None:
        if high:
            self.out(0x514, 4, struct.pack(">I", at >> 32))
        self.out(0x518, 4, struct.pack(">I", at & 0xFFFFFFFF))

    def dma(self, control: int, length: int, address: int) -> int:
        self.qemu.ram[DESCRIPTOR : DESCRIPTOR + 16] = struct.pack(">IIQ", control, length, address)
        self.trigger(DESCRIPTOR)
        return int.from_bytes(self.qemu.ram[DESCRIPTOR : DESCRIPTOR + 4], "big")
