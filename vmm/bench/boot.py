"""How long whole processes take: firmware until it shows that it is done, a guest that exits at once, a warm Machine.

Every contender is started from its command line with COM1 on a pipe; the clock runs from before the fork until the text
has come through the pipe, or until the process is gone where there is nothing to show.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from vmm import directories
from vmm.bench.contenders import (
    QEMU_KVM,
    QEMU_TCG,
    VMM_C,
    Contender,
    ContenderFailedError,
    InThisProcess,
    last_words,
    run,
    started,
)
from vmm.bench.start import STAGES
from vmm.errors import HostError
from vmm.firmware import guests, search
from vmm.run.console import strip_escapes
from vmm.verify import linux_guest

if TYPE_CHECKING:
    from collections.abc import Sequence

CONTENDERS = (VMM_C, QEMU_KVM, QEMU_TCG)

DEADLINE_S = 30.0
"""How long a boot of firmware may take."""


@dataclass(frozen=True)
class BootCase:
    """One thing to boot.

    Attributes:
        firmware: one of `vmm.firmware.search.NAMES`, or None for the guest that exits at once.
        until: what its console shows when it is done; None: it ends by itself.
        answers: (pattern, text typed into COM1 once it shows), in order.
        milestones: (pattern, what it means), for the timeline.
        contenders: who takes part.
        weight: its part of the time, next to the other cases'.
        deadline_s: how long it may take; one that takes longer has failed.
        guest_disk: boot what `scripts/make-guest` has made; only if it is asked for.
        secure: OVMF is the one with Secure Boot, SMM and keys that this host's descriptors name; likewise.
        linux: the firmware is given the kernel that `vmm fetch-linux` has fetched; likewise.
    """

    key: str
    title: str
    firmware: str | None
    until: str | None
    answers: tuple[tuple[str, str], ...] = ()
    milestones: tuple[tuple[str, str], ...] = ()
    memory_mib: int = 256
    contenders: tuple[Contender, ...] = CONTENDERS
    weight: int = 1
    deadline_s: float = DEADLINE_S
    guest_disk: bool = False
    secure: bool = False
    linux: bool = False

    @property
    def is_extra(self) -> bool:
        """Whether it needs what may not be there."""
        return self.guest_disk or self.secure or self.linux


def _machine_once(limit_s: float) -> float:
    """Make a machine in this process and let the guest that exits at once run to its end; return seconds."""
    from vmm.machine import Machine  # loads the native module

    image = str(guests.path("exit"))
    began = time.monotonic()
    with Machine(image, accel="kvm") as machine:
        outcome = machine.run(deadline=min(limit_s, DEADLINE_S)).raise_interrupt()
        elapsed = time.monotonic() - began
    if not outcome.reached:
        raise ContenderFailedError(f"Machine() in a warm Python: {outcome.message}")
    return elapsed


WARM = InThisProcess("vmm-warm", "Machine() in a warm Python", _machine_once)

EXIT = BootCase("exit", "a guest that exits at once, whole process", None, None)
WARM_EXIT = BootCase(
    "machine", "Machine(), run() and the same guest's end, warm Python", None, None, contenders=(WARM,)
)
START = BootCase("start", "what that process is made of, one added to the other", None, None, contenders=STAGES)
SEABIOS = BootCase(
    "seabios",
    "SeaBIOS to 'No bootable device.'",
    "seabios",
    "No bootable device",
    milestones=((r"SeaBIOS \(version", "SeaBIOS prints its version"), ("Booting from|No bootable", "tries to boot")),
    weight=2,
)
OVMF = BootCase(
    "ovmf",
    "OVMF to 'Shell>', a key pressed at the countdown",
    "ovmf",
    "Shell> ",
    answers=(("any other key to continue", "\r"),),
    milestones=(
        ("BdsDxe: loading", "BDS loads the first boot option"),
        ("UEFI Interactive Shell", "the shell starts"),
        ("any other key to continue", "countdown; a key is pressed"),
    ),
    weight=10,
)
DEBIAN = BootCase(
    "debian",
    "Debian to its login, by OVMF",
    "ovmf",
    "login: ",
    milestones=(
        ("BdsDxe: loading", "BDS loads the first boot option"),
        ("Welcome to GRUB", "GRUB starts"),
        ("Booting `Debian'", "GRUB loads Linux"),
    ),
    memory_mib=512,
    weight=60,
    deadline_s=240.0,
    guest_disk=True,
)
SECBOOT = BootCase(
    "secboot",
    "OVMF with SMM and Secure Boot to its Boot Manager",
    "ovmf",
    "Boot Manager Menu",
    milestones=(("BdsDxe: loading", "BDS loads the first boot option"),),
    weight=10,
    secure=True,
)
LINUX = BootCase(
    "linux",
    "Linux to its /init, by SeaBIOS",
    "seabios",
    "bench: /init runs",
    milestones=(("Booting from ROM", "SeaBIOS starts the kernel"),),
    weight=8,
    deadline_s=120.0,
    linux=True,
)
CASES = (EXIT, START, WARM_EXIT, SEABIOS, OVMF, DEBIAN, SECBOOT, LINUX)


@dataclass(frozen=True)
class BootRun:
    """Seconds until the end, and (seconds, what) on the way."""

    elapsed_s: float
    timeline: list[tuple[float, str]] = field(default_factory=list)


def measure(contender: Contender, limit_s: float, case: BootCase) -> BootRun:
    """Boot once, for so many seconds at the most, or as long as the case may take.

    Raises:
        ContenderFailedError: the firmware is missing, the process failed, or it never showed the text.
    """
    limit_s = min(limit_s, case.deadline_s)
    if isinstance(contender, InThisProcess):
        return BootRun(contender.once(limit_s))
    if case.firmware is None:
        return _run_to_its_end(contender, contender.guest_command(guests.path("exit")), limit_s)
    located = _secure_boot() if case.secure else search.locate(case.firmware)
    with tempfile.TemporaryDirectory(prefix="vmm-bench-") as scratch:
        variables = None
        if located.variables is not None:
            variables = Path(scratch, "variables.fd")
            shutil.copyfile(located.variables, variables)
        disk = _guest_disk() if case.guest_disk else None
        command = contender.boot_command(located, case.memory_mib, variables, disk, smm=case.secure)
        if case.linux:
            command += _linux(Path(scratch, "initrd"))
        return _run_until(contender, command, case, limit_s)


def _secure_boot() -> search.Located:
    for descriptor in search.descriptors():
        if {"requires-smm", "enrolled-keys"} <= descriptor.features and "x86_64" in descriptor.architectures:
            return search.Located(descriptor.code, descriptor.variables)
    raise ContenderFailedError("no descriptor of QEMU's on this host names an OVMF with SMM and keys (Debian: ovmf)")


def _guest_disk() -> Path:
    disks = sorted(directories.cache().glob("guest-*/disk.img"))
    if not disks:
        raise ContenderFailedError("there is no disk with Debian; scripts/make-guest of a clone makes it")
    return disks[0]


def _linux(initrd: Path) -> list[str]:
    """Write a RAM disk whose /init says that it runs; return the options that boot it, which QEMU and vmm share."""
    try:
        files = linux_guest.LinuxFiles.find()
    except HostError as error:
        raise ContenderFailedError(str(error)) from None
    initrd.write_bytes(linux_guest.build_script_initramfs(files, "echo bench: /init runs", modules=()))
    return ["-kernel", str(files.kernel), "-initrd", str(initrd), "-append", linux_guest.COMMAND_LINE]


def _run_to_its_end(contender: Contender, command: list[str], limit_s: float) -> BootRun:
    began = time.monotonic()
    run(contender, command, limit_s)
    return BootRun(time.monotonic() - began)


def _run_until(contender: Contender, command: list[str], case: BootCase, limit_s: float) -> BootRun:
    with tempfile.TemporaryFile() as errors:
        began = time.monotonic()
        with started(command, stdin=subprocess.PIPE, stderr=errors) as process:
            timeline = _Dialogue(process, case).follow(began, limit_s)
        if timeline is None:
            errors.seek(0)
            said = last_words(errors.read())
            raise ContenderFailedError(f"{contender.name}: no {case.until!r} on the console; {said}")
    return BootRun(timeline[-1][0], timeline)


class _Dialogue:
    """What is said on a console: read, answered, and noted with its time."""

    def __init__(self, process: subprocess.Popen[bytes], case: BootCase) -> None:
        assert process.stdout is not None  # noqa: S101  # Popen was given pipes
        assert process.stdin is not None  # noqa: S101
        self._output: IO[bytes] = process.stdout
        self._input: IO[bytes] = process.stdin
        self._until = re.compile((case.until or "").encode())
        self._answers = [(re.compile(pattern.encode()), text.encode()) for pattern, text in case.answers]
        self._milestones = [(re.compile(pattern.encode()), name) for pattern, name in case.milestones]
        self._text = b""
        self._raw = b""

    def follow(self, began: float, limit_s: float) -> list[tuple[float, str]] | None:
        """Read until the text shows; return the timeline, or None if it never did."""
        timeline: list[tuple[float, str]] = []
        answered = 0
        while (left := began + limit_s - time.monotonic()) > 0:
            if not select.select([self._output], [], [], left)[0]:
                break
            data = os.read(self._output.fileno(), 65536)
            now = time.monotonic() - began
            if not data:
                break
            if not self._raw:
                timeline.append((now, "first byte on the console"))
            self._raw += data
            self._text = strip_escapes(self._raw)
            timeline += [(now, name) for pattern, name in self._milestones if pattern.search(self._text)]
            self._milestones = [pair for pair in self._milestones if not pair[0].search(self._text)]
            if self._answers and (shown := self._answers[0][0].search(self._text, answered)):
                answered = shown.end()
                self._input.write(self._answers.pop(0)[1])
            if self._until.search(self._text, answered):
                return [*timeline, (now, "done")]
        return None


def select_cases(names: Sequence[str]) -> tuple[BootCase, ...]:
    """Return the cases with these keys; if none is named, those that need nothing but what is installed."""
    return tuple(case for case in CASES if (case.key in names if names else not case.is_extra))
