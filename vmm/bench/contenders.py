"""The contenders: this program, the least that a VMM can be, and Debian's QEMU.

A contender knows how to run a ROM image to its end, and how to start firmware with a console on its stdin and stdout.
Each is a process of its own, so that all pay for what they need.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import vmm
from vmm.errors import ConfigError, HostError
from vmm.firmware import guests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO

    from vmm.firmware.search import Located

DEADLINE_S = 120.0
"""How long one run may take if nobody asks for less: far more than any does."""

GRACE_S = 5.0
"""How long a process may take to go when it is asked to."""

QEMU = "qemu-system-x86_64"

OPTIONS_ITEM = "opt/vmm/latency"
BULK_ITEM = "opt/vmm/bulk"


class ContenderFailedError(HostError):
    """A contender can't run this here; the message has its last words."""


@dataclass(frozen=True)
class Contender:
    """One of them.

    Attributes:
        key: what ``--contender`` takes.
        name: for people.
    """

    key: str
    name: str

    def latency_command(self, options: str, memory_mib: int, cpus: int, bulk: Path | None) -> list[str]:
        """Return the command that runs the latency guest and prints its debug port on stdout."""
        raise NotImplementedError

    def boot_command(
        self,
        firmware: Located,
        memory_mib: int,
        variables: Path | None,
        disk: Path | None = None,
        *,
        smm: bool = False,
    ) -> list[str]:
        """Return the command that boots firmware with COM1 on stdin and stdout.

        Args:
            firmware: what to boot.
            memory_mib: RAM.
            variables: a VARS file that may be written.
            disk: a raw image that stays as it is.
            smm: the firmware lives in system management mode, and only that may write its variables.
        """
        raise NotImplementedError

    def guest_command(self, guest: Path) -> list[str]:
        """Return the command that runs one of our guests and ends when it powers the machine off."""
        raise NotImplementedError

    def missing(self) -> str | None:
        """Say why it can't take part; None if it can."""
        return None

    def needs_kvm(self, *, boots: bool) -> bool:
        """Whether it does, to boot firmware or to run the latency guest."""
        del boots
        return False

    def run_latency(self, options: str, memory_mib: int, cpus: int, bulk: Path | None, limit_s: float) -> str:
        """Run the latency guest; return what it printed.

        Raises:
            ContenderFailedError: it did not come to its end, or not in so many seconds.
        """
        return run(self, self.latency_command(options, memory_mib, cpus, bulk), limit_s)


@dataclass(frozen=True)
class InThisProcess(Contender):
    """Not a process: something done by the library, its modules loaded.

    Attributes:
        once: does it, in so many seconds at the most; returns those that it took.
    """

    once: Callable[[float], float]


@dataclass(frozen=True)
class Vmm(Contender):
    """This program, from the command line.

    Attributes:
        dispatch: of fw_cfg.
        accel: who executes; "" is plain KVM wherever an exit is measured, and what vmm chooses for a boot.
    """

    dispatch: str = "c"
    accel: str = ""

    def needs_kvm(self, *, boots: bool) -> bool:
        """See `Contender.needs_kvm`."""
        return not boots and not self.accel

    def latency_command(self, options: str, memory_mib: int, cpus: int, bulk: Path | None) -> list[str]:
        """See `Contender.latency_command`."""
        command = [*self._boot(), str(guests.path("latency")), "-accel", self.accel or "kvm"]
        command += ["--dispatch", self.dispatch]
        command += ["-m", f"{memory_mib}M", "-smp", str(cpus), "-serial", "none", "-debugcon", "stdio", "-q"]
        return [*command, *_items(options, bulk)]

    def boot_command(
        self,
        firmware: Located,
        memory_mib: int,
        variables: Path | None,
        disk: Path | None = None,
        *,
        smm: bool = False,
    ) -> list[str]:
        """See `Contender.boot_command`."""
        command = [*self._boot(), "-m", f"{memory_mib}M", "-serial", "stdio", "-debugcon", "none", "-q"]
        command += ["-accel", self.accel or "auto"]
        return [*command, *_images(firmware, variables), *_disk(disk)]

    def guest_command(self, guest: Path) -> list[str]:
        """See `Contender.guest_command`."""
        return [*self._boot(), str(guest), "-accel", self.accel or "kvm", "-q", "-serial", "none", "-debugcon", "none"]

    @staticmethod
    def _boot() -> list[str]:
        return [sys.executable, "-m", "vmm", "boot", "-no-reboot"]


@dataclass(frozen=True)
class BareLoop(Contender):
    """`native/bench/bare_loop.c`: KVM_RUN and one switch. Runs the latency guest only."""

    def latency_command(self, options: str, memory_mib: int, cpus: int, bulk: Path | None) -> list[str]:
        """See `Contender.latency_command`."""
        command = [str(tool("bare_loop")), str(guests.path("latency")), str(memory_mib), str(cpus), options]
        return [*command, *([] if bulk is None else [str(bulk)])]

    def missing(self) -> str | None:
        """See `Contender.missing`."""
        try:
            tool("bare_loop")
        except ConfigError as error:
            return str(error)
        return None

    def needs_kvm(self, *, boots: bool) -> bool:
        """See `Contender.needs_kvm`."""
        del boots
        return True


@dataclass(frozen=True)
class Qemu(Contender):
    """QEMU with no device that the command line does not name.

    The CPU model is qemu64: "host" aborts where KVM's CPUID suggests an MSR that KVM then refuses.
    """

    accelerator: str = "kvm"

    def latency_command(self, options: str, memory_mib: int, cpus: int, bulk: Path | None) -> list[str]:
        """See `Contender.latency_command`."""
        command = [*self.machine("q35"), "-m", str(memory_mib), "-smp", str(cpus), "-bios", str(guests.path("latency"))]
        command += ["-chardev", "stdio,id=out", "-device", "isa-debugcon,iobase=0x402,chardev=out"]
        return [*command, *_items(options, bulk)]

    def boot_command(
        self,
        firmware: Located,
        memory_mib: int,
        variables: Path | None,
        disk: Path | None = None,
        *,
        smm: bool = False,
    ) -> list[str]:
        """See `Contender.boot_command`."""
        board = "q35" if firmware.variables else "pc"
        command = [*self.machine(f"{board},smm=on" if smm else board), "-m", str(memory_mib), "-serial", "stdio"]
        if smm:
            command += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
        return [*command, *_images(firmware, variables), *_disk(disk)]

    def guest_command(self, guest: Path) -> list[str]:
        """See `Contender.guest_command`."""
        return [*self.machine("pc"), "-bios", str(guest)]

    def missing(self) -> str | None:
        """See `Contender.missing`."""
        return None if shutil.which(QEMU) else f"{QEMU} is not installed: apt-get install qemu-system-x86"

    def needs_kvm(self, *, boots: bool) -> bool:
        """See `Contender.needs_kvm`."""
        del boots
        return self.accelerator == "kvm"

    def machine(self, board: str) -> list[str]:
        """Return the beginning of a command line: a board without devices."""
        # graphics=off makes SeaBIOS use the serial port.
        command = [QEMU, "-nodefaults", "-display", "none", "-no-reboot", "-machine", f"{board},graphics=off"]
        return [*command, "-accel", self.accelerator, "-cpu", "qemu64"]


def tool(name: str) -> Path:
    """Return one of the programs in C that measurements need.

    Raises:
        ConfigError: it is not there.
    """
    for place in vmm.__path__:
        path = Path(place, "_bench", name)
        if path.is_file():
            return path
    raise ConfigError(f"{name} is not built; install the package again")


def _items(options: str, bulk: Path | None) -> list[str]:
    # QEMU's option grammar, which vmm shares.
    items = ["-fw_cfg", f"name={OPTIONS_ITEM},string={options}"]
    return items if bulk is None else [*items, "-fw_cfg", f"name={BULK_ITEM},file={str(bulk).replace(',', ',,')}"]


def _images(firmware: Located, variables: Path | None) -> list[str]:
    if variables is None:
        return ["-bios", str(firmware.code)]
    flash = "if=pflash,format=raw"
    code, own = (str(path).replace(",", ",,") for path in (firmware.code, variables))
    return ["-drive", f"{flash},unit=0,readonly=on,file={code}", "-drive", f"{flash},unit=1,file={own}"]


def _disk(disk: Path | None) -> list[str]:
    if disk is None:
        return []
    return ["-drive", f"if=virtio,format=raw,snapshot=on,file={str(disk).replace(',', ',,')}"]


VMM_C = Vmm("vmm", "vmm")
VMM_PYTHON = Vmm("vmm-python", "vmm, Python dispatch", "python")
VMM_ALONE = Vmm("vmm-softcpu", "vmm without KVM", accel="softcpu")
BARE_LOOP = BareLoop("bare-loop", "bare KVM_RUN loop")
QEMU_KVM = Qemu("qemu-kvm", "QEMU, KVM")
QEMU_TCG = Qemu("qemu-tcg", "QEMU, TCG", "tcg")


def environment() -> dict[str, str]:
    """Return the environment of contenders: this one, with Python's bytecode kept, as an installed program's is."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


@contextmanager
def started(command: list[str], *, stdin: int, stderr: int | IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a contender with its stdout on a pipe; whatever happens, it is gone when the context ends.

    Raises:
        OSError: it cannot be started.
    """
    with contextlib.ExitStack() as closers:
        with _interrupts_held():
            process = subprocess.Popen(
                command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, bufsize=0, env=environment()
            )
            closers.enter_context(process)
            closers.callback(_end, process)
        yield process


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let signals that interrupt wait for the end of what starts a process: then there is somebody to end it."""
    came: list[int] = []
    held = [number for number in signal.valid_signals() if signal.getsignal(number) is signal.default_int_handler]
    for number in held:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number in held:
            signal.signal(number, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.kill()
        process.wait()


def run(contender: Contender, command: list[str], limit_s: float) -> str:
    """Run a command to its end; return its stdout.

    Raises:
        ContenderFailedError: it failed, or took longer than ``limit_s`` or `DEADLINE_S`.
    """
    limit_s = min(limit_s, DEADLINE_S)
    try:
        with started(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            output, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        lines = [line.strip() for line in (error.stdout or b"").decode(errors="replace").splitlines() if line.strip()]
        said = f"its last line was '{lines[-1]}'" if lines else "it printed nothing"
        raise ContenderFailedError(f"{contender.name}: no end after {limit_s:.0f} s; {said}") from None
    except OSError as error:
        raise ContenderFailedError(f"{contender.name}: {command[0]}: {error.strerror}") from None
    if process.returncode != 0:
        raise ContenderFailedError(f"{contender.name}: exit status {process.returncode}: {last_words(errors)}")
    return output.decode("ascii", errors="replace")


def last_words(output: bytes) -> str:
    """Return what a process said of its end in a line: the first that speaks of an error, else the last."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    # The message about the signal that we sent explains nothing.
    lines = [line for line in lines if "terminating on signal" not in line]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors[:1] or lines[-1:] or ["it said nothing"])[0]
