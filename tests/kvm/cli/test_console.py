"""`vmm boot` on a terminal: the interactive console, its way out, progress."""

import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
import real_mode_rom
from accelerators import PLAIN

from vmm.firmware import guests

pytestmark = pytest.mark.needs_kvm

CONTROL_A = "\x01"


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        waits = ["-c", 'read -r _; exec "$@"', "sh", sys.executable, "-m", "vmm", *arguments]
        self.child = pexpect.spawn("sh", waits, timeout=120, dimensions=(25, 200))
        self.before = termios.tcgetattr(self.child.child_fd)
        self.child.send("\n")

    def local_flags(self) -> int:
        flags = termios.tcgetattr(self.child.child_fd)[3]
        assert isinstance(flags, int)
        return flags

    def status(self) -> int | None:
        self.child.expect(pexpect.EOF)
        self.child.wait()
        assert self.child.signalstatus is None
        return self.child.exitstatus


@pytest.fixture
def hang() -> Iterator[Terminal]:
    """A guest that does nothing, on an interactive console."""
    terminal = Terminal("boot", str(guests.path("hang")), "-accel", PLAIN)
    yield terminal
    terminal.child.close(force=True)


@pytest.mark.hw
def test_control_a_x_ends_the_machine_and_restores_the_terminal(hang: Terminal) -> None:
    assert hang.before[3] & termios.ECHO
    hang.child.expect("Ctrl-A X ends the machine")
    hang.child.expect("\n")
    while hang.local_flags() & termios.ECHO:
        pass
    assert not hang.local_flags() & (termios.ICANON | termios.ISIG)
    hang.child.send(CONTROL_A + "h")
    hang.child.expect("Ctrl-A Ctrl-A types Ctrl-A")
    hang.child.send("\x03")  # goes to the guest, as every key
    hang.child.send(CONTROL_A + "x")
    hang.child.expect("vmm: stopped")
    assert hang.status() == 0


def test_control_a_x_before_until_is_no_success() -> None:
    terminal = Terminal("boot", str(guests.path("hang")), "--until", "no such line")
    terminal.child.expect("Ctrl-A X ends the machine")
    while terminal.local_flags() & termios.ECHO:
        pass
    terminal.child.send(CONTROL_A + "x")
    terminal.child.expect("vmm: stopped")
    assert terminal.status() == 130


@pytest.mark.hw
def test_terminal_is_restored_when_the_process_is_told_to_end(hang: Terminal) -> None:
    hang.child.expect("Ctrl-A X ends the machine")
    while hang.local_flags() & termios.ECHO:
        pass
    hang.child.kill(15)
    hang.child.expect("vmm: interrupted")
    assert termios.tcgetattr(hang.child.child_fd) == hang.before
    assert hang.status() == 130


@pytest.mark.hw
def test_terminal_is_restored_after_a_timeout() -> None:
    terminal = Terminal("boot", str(guests.path("hang")), "-accel", PLAIN, "--timeout", "0.5")
    terminal.child.expect("0.5 s passed")
    assert termios.tcgetattr(terminal.child.child_fd) == terminal.before
    assert terminal.status() == 3


@pytest.mark.hw
def test_control_c_interrupts_where_the_console_is_elsewhere() -> None:
    terminal = Terminal("boot", str(guests.path("hang")), "-accel", PLAIN, "-serial", "none", "-debugcon", "none")
    terminal.child.expect("fw_cfg items read")  # progress: it runs
    terminal.child.send("\x03")
    terminal.child.expect("vmm: interrupted")
    assert terminal.status() == 130


@pytest.mark.hw_long
@pytest.mark.usefixtures("kvm_device")  # slow enough
def test_progress_shows_seconds_and_what_the_guest_said() -> None:
    terminal = Terminal(
        "boot", "seabios", "-accel", "kvm", "-serial", "none", "-debugcon", "none", "--until", "No boot"
    )
    terminal.child.expect(r" \d+\.\d s  \d+ fw_cfg items read: \S")
    terminal.child.expect("vmm: the console showed")
    assert terminal.status() == 0


def test_a_suspended_machine_is_woken_up_by_a_key(tmp_path: Path) -> None:
    rom = tmp_path / "suspends.rom"
    rom.write_bytes(real_mode_rom.image(real_mode_rom.SUSPENDS))
    terminal = Terminal("boot", str(rom), "-machine", "pc,s3=on")
    terminal.child.expect("the machine is suspended: Ctrl-A W wakes it up")
    terminal.child.send(f"x{CONTROL_A}hx{CONTROL_A}w")
    terminal.child.expect("awake")
    terminal.child.expect("powered the machine off")
    assert terminal.status() == 0
    terminal = Terminal("boot", str(rom), "-machine", "pc,s3=on", "--until", "awake")
    terminal.child.expect("the machine is suspended")
    terminal.child.send(f"{CONTROL_A}x")
    assert terminal.status() == 1
