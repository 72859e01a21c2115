"""Runs a UEFI application under OVMF to its end, by the help of a launcher of ours (`firmware/run/launcher.c`)."""

from __future__ import annotations

import math
import re
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.config.machine import MachineConfig
from vmm.debug.efi import reader
from vmm.debug.secure_boot import refusals
from vmm.devices.fw_cfg_format import Key
from vmm.efi import status as efi_status
from vmm.efi.image import check_application
from vmm.efi.paths import KERNEL_IMAGE
from vmm.errors import ConfigError, ExitStatus
from vmm.firmware import guests
from vmm.firmware.images import FirmwareKind
from vmm.machine import Machine
from vmm.run.console import strip_escapes
from vmm.run.outcome import Outcome, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Unpack

    from vmm.config.keywords import MachineOptions
    from vmm.devices.fw_cfg import FwCfg

_REQUEST, _PROGRESS = "opt/vmm/run", "opt/vmm/run-progress"
_RECORD: Final = struct.Struct("<IIQQQ")
"""What the launcher says: stage, 0, EFI_STATUS, where the application is, its size."""
_STARTED, _RETURNED, _NOT_LOADED = 1, 2, 3
_LONGEST_REQUEST: Final = 0xFFFE
_MOST_ARGUMENTS: Final = 0x1000
"""Bytes, and arguments, that the launcher has room for."""

_CRASH: Final = re.compile(rb"!!!! X64 Exception Type - \w+\(([^)]*)\)(?s:.*?)RIP\s+-\s+([0-9A-F]{16})")
_CRASH_END: Final = re.compile(rb"!!!! (?:Find|Can't find) image .*\n")
"""What OVMF's exception handler prints before it waits for ever (edk2, CpuExceptionHandlerLib)."""
_CRASH_SECONDS: Final = 1.0
"""How long the rest of that may take, for an OVMF that ends it in other words."""
_CRASH_BYTES: Final = 4096
"""How far before what was searched already a match may begin."""
_REFUSED_SECONDS: Final = 0.5
"""How often firmware is asked whether it refused the launcher, until that says something."""


class Ended(NamedTuple):
    """How a run of an application ended.

    Attributes:
        outcome: of the machine.
        started: whether the application was started.
        status: the EFI_STATUS that it returned, or with which it could not be loaded; None: it never returned.
        crash: what the processor's exception was, and where; "" for none.
        output: what it printed on the console, without terminal escapes; lines end with LF.
        refused: Secure Boot refused what starts it.
    """

    outcome: Outcome
    started: bool
    status: int | None
    crash: str
    output: str
    refused: bool = False

    @property
    def exit_status(self) -> int:
        """What a process returns for it: `vmm.efi.status.exit_status`, or if there is none an `ExitStatus`."""
        if self.crash or self.refused or (self.status is not None and not self.started):
            return ExitStatus.GUEST_FAILED
        if self.status is not None:
            return efi_status.exit_status(self.status)
        if self.outcome.reason is Reason.POWER_OFF:
            return ExitStatus.OK if self.started else ExitStatus.GUEST_FAILED
        return self.outcome.exit_status

    def message(self, name: str) -> str:
        """Return one line about it for people; "" where it succeeded.

        Args:
            name: of the application.
        """
        if self.crash:
            return f"{name if self.started else 'the firmware'} crashed: {self.crash}"
        if self.status is not None:
            what = "returned" if self.started else "was not started:"
            return "" if self.started and not self.status else f"{name} {what} {efi_status.name(self.status)}"
        if self.refused:
            return (
                f"{name} was not started: Secure Boot refuses the launcher of vmm run, which is not signed; give the "
                "machine variables without keys, or boot the application from a disk: vmm boot --esp"
            )
        if not self.started:
            return f"{name} was not started: {self.outcome.message}"
        if self.outcome.reason is Reason.TIMEOUT:
            return f"{name} did not end: {self.outcome.message}"
        return "" if self.outcome.reason is Reason.POWER_OFF else f"{name} did not return: {self.outcome.message}"


class Application:
    """An application, to be run once: what there is of it in a machine with an EFI system partition.

    Args:
        path: of the file.
        arguments: what it gets: load options, as the UEFI shell makes them, and the shell's list of arguments.
        config: the machine, with an ``esp`` that `partition_of` returned for the file.

    Raises:
        ConfigError: other firmware than OVMF, a kernel beside it, or arguments that are no UTF-8, or too many.
    """

    def __init__(self, path: Path, arguments: Sequence[str], config: MachineConfig) -> None:
        if config.firmware.kind is not FirmwareKind.OVMF:
            raise ConfigError(f"run: applications run under OVMF, and {config.firmware.path} is another firmware")
        if config.kernel is not None:
            raise ConfigError("run: -kernel is taken, the application starts that way; leave it out")
        self.name = path.name
        folder = next(drive.path for drive in config.drives if drive.folder)
        inside = path.resolve().relative_to(folder.resolve()) if folder.is_dir() else path.name
        words = [str(inside).replace("/", "\\"), *arguments]
        strings = ["\\" + words[0], " ".join(map(_quoted, words)), *words]
        try:
            self._request = b"".join(text.encode("utf-16-le") + b"\0\0" for text in strings)
        except UnicodeEncodeError:
            raise ConfigError("run: an argument is not UTF-8, and UEFI has no other bytes") from None
        if len(self._request) > _LONGEST_REQUEST or len(words) > _MOST_ARGUMENTS:
            raise ConfigError(
                f"run: the arguments are too many: {_MOST_ARGUMENTS} at the most, and {_LONGEST_REQUEST // 4} "
                "characters"
            )
        self._machine: Machine | None = None
        self._console: Callable[[bytes], object] | None = None
        self._stage = self._status = self._base = self._size = 0
        self._begin = self._end = 0
        self._searched = [0, 0]
        self._crash: re.Match[bytes] | None = None
        self._crashed_at = 0.0
        self._refused = False
        self._ask_at = 0.0

    def customize(self, fw_cfg: FwCfg) -> None:
        """Let firmware start the launcher, and the launcher find the application: `vmm.Machine` takes this."""
        image = guests.efi("launcher").read_bytes()
        fw_cfg.add_item(Key.KERNEL_SIZE, struct.pack("<I", len(image)))
        fw_cfg.add_item(Key.KERNEL_DATA, image)
        fw_cfg.add_file(_REQUEST, self._request)
        fw_cfg.add_file(_PROGRESS, bytes(_RECORD.size), writable=True, on_write=self._progress)

    def attach(self, machine: Machine, console: Callable[[bytes], object] | None = None) -> None:
        """Follow a machine that was made with `customize`, before it runs.

        Args:
            machine: the machine.
            console: gets what the application prints on the serial port, on a vCPU's thread.
        """
        self._machine = machine
        if console is None:
            return
        before = machine.serial.sink

        def sink(data: bytes) -> None:
            if before is not None:
                before(data)
            if self._stage == _STARTED:
                console(data)

        machine.serial.sink = sink

    def poll(self, machine: Machine) -> None:
        """Stop a machine whose processor ended in an exception, or that starts nothing: to be called while it runs."""
        now = time.monotonic()
        if not self._stage and now >= self._ask_at:
            self._ask_at = now + _REFUSED_SECONDS
            found = refusals(reader(machine.memory), machine.memory.low_size)
            if any(refusal.image == KERNEL_IMAGE for refusal in found):
                self._refused = True
                machine.stop()
        for index, stream in enumerate((machine.serial, machine.debugcon)):
            if stream.total == self._searched[index]:
                continue
            data = stream.since(self._searched[index] - _CRASH_BYTES)
            self._searched[index] = stream.total
            if self._crash is None:
                self._crash = _CRASH.search(data)
                self._crashed_at = time.monotonic()
            if self._crash is not None and _CRASH_END.search(data):
                self._crashed_at = -math.inf
        if self._crash is not None and time.monotonic() >= self._crashed_at + _CRASH_SECONDS:
            machine.stop()

    def ended(self, machine: Machine, outcome: Outcome) -> Ended:
        """Tell what became of it."""
        started = self._stage in {_STARTED, _RETURNED}
        end = self._end if self._stage == _RETURNED else machine.serial.total
        first, data = machine.serial.after(self._begin)
        output = strip_escapes(data[: end - first] if started else b"").replace(b"\r", b"").decode("utf-8", "replace")
        status = self._status if self._stage in {_RETURNED, _NOT_LOADED} else None
        return Ended(outcome, started, status, self._where(), output, self._refused)

    def _where(self) -> str:
        if self._crash is None:
            return ""
        what, rip = self._crash[1].decode("ascii", "replace"), int(self._crash[2], 16)
        inside = self._base <= rip < self._base + self._size
        return f"{what} at RIP {rip:#x}" + (f", {rip - self._base:#x} bytes into its image" if inside else "")

    def _progress(self, _offset: int, data: bytes) -> None:
        if len(data) != _RECORD.size or self._machine is None:
            return
        self._stage, _, self._status, self._base, self._size = _RECORD.unpack(data)
        if self._stage == _STARTED:
            self._begin = self._machine.serial.total
        self._end = self._machine.serial.total


def run_application(
    application: Path | str,
    *arguments: str,
    firmware: str | Path = "ovmf",
    deadline: float | None = None,
    **options: Unpack[MachineOptions],
) -> Ended:
    """Run a UEFI application under OVMF to its end.

    Args:
        application: the file; with ``esp=``, one in that folder.
        arguments: what it gets.
        firmware: an OVMF.
        deadline: seconds; None waits for ever.
        options: of the machine; but a reset ends it, unless they have ``reboot``.

    Raises:
        ConfigError: it is no UEFI application, or the machine makes no sense.
        HostError: KVM or mtools is missing.
        KeyboardInterrupt: Ctrl-C.
    """
    path, options["esp"] = partition_of(Path(application), options.get("esp"))
    options.setdefault("reboot", False)
    config = MachineConfig.create(firmware, **options)
    run = Application(path, arguments, config)
    with Machine(config, customize=run.customize) as machine:
        run.attach(machine)
        outcome = machine.run(deadline=deadline, on_poll=run.poll).raise_interrupt()
        return run.ended(machine, outcome)


def partition_of(application: Path, esp: Path | str | None) -> tuple[Path, Path]:
    """Return an application's file, and what is to be on the EFI system partition: its folder, or it alone.

    Args:
        application: as the user named it; with ``esp`` perhaps from there.
        esp: the folder that the user named.

    Raises:
        ConfigError: it is no UEFI application, or not in the folder.
    """
    if esp is None:
        check_application(application, str(application))
        return application, application
    folder = Path(esp)
    path = application if application.exists() else folder / application
    check_application(path, str(path))
    if not folder.is_dir() or not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{path}: is not in {folder}, which is what the guest sees of files; copy it there")
    return path, folder


def _quoted(word: str) -> str:
    """Return a word as it has to be in a command line of the UEFI shell (UEFI Shell 2.2, 3.2)."""
    escaped = re.sub(r'["^]', r"^\g<0>", word)
    return f'"{escaped}"' if not word or re.search(r"[\s\"^]", word) else word
