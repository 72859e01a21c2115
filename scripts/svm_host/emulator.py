"""QEMU as the emulated host: start it, show its console, notice when it stalls, take the results from its disk."""

from __future__ import annotations

import enum
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

STALLED_AFTER = 90.0
"""Seconds without the sign of life, which comes every eight seconds; on a busy machine, every few tens."""

RESULTS_SIZE = 64 << 20
"""Bytes of the disk that takes the results."""

HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""For QEMU, whose table of translations is large, and looked into after every exit of a guest inside: 14 % faster."""

COMMAND_LINE = "console=ttyS0 quiet mitigations=off nokaslr tsc=reliable panic=-1"


class End(enum.Enum):
    """How the emulated host ended."""

    POWERED_OFF = "powered itself off"
    ABORTED = "ended with QEMU, which failed: see qemu.log"
    STALLED = "stalled: its kernel gave no sign of life for a while"
    DEADLINE = "was still busy at the deadline"
    INTERRUPTED = "was interrupted"


@dataclass(frozen=True)
class Host:
    """One emulated host.

    Attributes:
        kernel: the kernel's image.
        root: the initial RAM file system.
        preload: a library for QEMU's process.
        results: the directory that takes the console, and what the host hands over.
        model: QEMU's name of the CPU model, with SVM.
        cpus: how many the host has.
        deadline: seconds until it is ended from outside.
    """

    kernel: Path
    root: Path
    preload: Path
    results: Path
    model: str
    cpus: int
    deadline: float

    def run(self) -> End:
        """Run it to its end, its console on stdout; leaves the results in their directory."""
        disk, alive, monitor = (self.results / name for name in ("results.tar", "alive", "monitor"))
        disk.write_bytes(b"")
        with disk.open("r+b") as file:
            file.truncate(RESULTS_SIZE)
        alive.write_bytes(b"")
        command = ["qemu-system-x86_64", "-M", "pc", "-accel", "tcg,thread=multi", "-cpu", self.model]
        command += ["-smp", str(self.cpus), "-m", "1536", "-nodefaults", "-display", "none", "-no-reboot"]
        command += ["-kernel", str(self.kernel), "-initrd", str(self.root), "-append", COMMAND_LINE]
        command += ["-serial", "stdio", "-serial", f"file:{alive}", "-serial", "file:report.jsonl"]
        command += ["-qmp", f"unix:{monitor.name},server=on,wait=off"]
        command += ["-drive", f"if=virtio,format=raw,file={disk}"]
        with (self.results / "qemu.log").open("wb") as log:
            # In the directory of the socket: the path of one may have 107 bytes, and clones lie deep.
            qemu = subprocess.Popen(
                command,
                cwd=self.results,
                env={**os.environ, "LD_PRELOAD": str(self.preload), "GLIBC_TUNABLES": HUGE_PAGES},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        console = threading.Thread(target=_copy_console, args=(qemu, self.results), daemon=True)
        console.start()
        try:
            end = self._watch(qemu, alive)
            if end is End.STALLED:
                (self.results / "stall.txt").write_text(_state(self.results / monitor.name), encoding="utf-8")
        except KeyboardInterrupt:
            end = End.INTERRUPTED
        finally:
            qemu.kill()
            qemu.wait()
            console.join(5)
        with suppress(tarfile.TarError, OSError), tarfile.open(disk) as archive:
            # Python has it since 3.11.4, and Debian 12 has 3.11.2.
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            # Half written, if the host ended in the middle of it: what is whole counts.
            for member in archive:
                archive.extract(member, self.results)
        for path in (disk, alive, monitor):
            path.unlink(missing_ok=True)
        return end

    def _watch(self, qemu: subprocess.Popen[bytes], alive: Path) -> End:
        began = changed = time.monotonic()
        seen = 0
        while True:
            with suppress(subprocess.TimeoutExpired):
                return End.ABORTED if qemu.wait(1) else End.POWERED_OFF
            now = time.monotonic()
            if (size := alive.stat().st_size) != seen:
                seen, changed = size, now
            if now - changed > STALLED_AFTER:
                return End.STALLED
            if now - began > self.deadline:
                return End.DEADLINE


def _copy_console(qemu: subprocess.Popen[bytes], results: Path) -> None:
    assert qemu.stdout is not None  # noqa: S101 - the caller asked for a pipe
    name = f"{results.name}: ".encode()
    with (results / "console.txt").open("wb") as copy:
        for line in qemu.stdout:
            text = line.replace(b"\r", b"")
            copy.write(text)
            copy.flush()
            sys.stdout.buffer.write(name + text)
            sys.stdout.buffer.flush()


def _state(monitor: Path) -> str:
    """Ask QEMU for its CPUs' registers, a few times, and their interrupt controllers, to look into a stall."""
    parts = []
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(monitor))
            stream = connection.makefile("rw", encoding="utf-8")
            stream.readline()  # the greeting
            for line in ["info cpus", *["info registers -a"] * 5, "info lapic 0", "info lapic 1", "info pic"]:
                for command in (
                    {"execute": "qmp_capabilities"},
                    {"execute": "human-monitor-command", "arguments": {"command-line": line}},
                ):
                    stream.write(json.dumps(command) + "\n")
                    stream.flush()
                    answer = json.loads(stream.readline())
                    while "event" in answer:
                        answer = json.loads(stream.readline())
                parts.append(f"(qemu) {line}\n{answer.get('return', answer)}")
                time.sleep(0.2)
    except (OSError, ValueError) as error:
        parts.append(f"QEMU's monitor does not answer: {error}")
    return "\n".join(parts)
