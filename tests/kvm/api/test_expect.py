"""`Machine.expect` and what types into the machine, in OVMF's shell; keys as OVMF reads them."""

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import debian
import pexpect
import pytest
from accelerators import PLAIN
from moments import once_it_runs

from vmm import ExpectError, Reason, SendError
from vmm.errors import ConfigError
from vmm.firmware import guests
from vmm.pytest_plugin.plugin import MachineFactory
from vmm.run.keys import TerminalType

pytestmark = pytest.mark.needs_kvm

ROOT = Path(__file__).parents[3]
GENEROUS = 120.0

SCAN_CODES = {
    **{
        name: number
        for number, name in enumerate(("up", "down", "right", "left", "home", "end", "insert", "delete"), 1)
    },
    "page-up": 9,
    "page-down": 10,
    **{f"F{number}": 10 + number for number in range(1, 13)},
    "esc": 23,
}
"""UEFI 2.10, table 12.10 (EFI scan codes)."""

CHARACTERS = {"enter": "\r", "tab": "\t", "backspace": "\b", "ctrl-a": "\x01", "ctrl-z": "\x1a"}

TERMINALS = [terminal for terminal in TerminalType if terminal is not TerminalType.AUTO]
"""In the order of tests/support/keys.c."""

LACKING = {
    **dict.fromkeys(("pcansi", "vt100"), ("F11", "F12")),
    **dict.fromkeys(("linux", "xtermr6", "vt400", "sco"), ("home", "end", "insert", "page-up", "page-down")),
}
"""Keys that firmware does not know of a type of terminal."""


def test_a_dialogue_with_the_uefi_shell(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("ovmf")
    assert machine.expect("any other key to continue", deadline=GENEROUS).console == "serial"
    machine.send_keys("esc")
    machine.expect("Shell> ", deadline=GENEROUS)
    machine.send_line("ver")
    version = machine.expect(["nothing", re.compile(r"Shell v(\d)\.(\d+)")], deadline=GENEROUS)
    assert (version.which, version.match[1]) == (1, "2")
    assert version.before.startswith("ver\n")
    machine.expect(b"Shell> ", deadline=GENEROUS)
    machine.send_line(b"echo from history")
    machine.expect("\nfrom history", deadline=GENEROUS)
    machine.expect("Shell> ", deadline=GENEROUS)
    machine.send_keys("up", "enter")
    machine.expect("\nfrom history", deadline=GENEROUS)
    with pytest.raises(ExpectError, match=r"expected 'never' or 'at all': 0.2 s passed and .* never showed") as late:
        machine.expect(["never", "at all"], deadline=0.2)
    assert (late.value.outcome.reason, late.value.exit_status) == (Reason.TIMEOUT, 3)
    machine.send_line("reset -s")
    with pytest.raises(ExpectError, match="expected 'never': the guest powered the machine off") as ended:
        machine.expect("never", deadline=GENEROUS)
    assert (ended.value.outcome.reason, ended.value.exit_status) == (Reason.POWER_OFF, 1)


def test_a_stop_ends_a_wait(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine(guests.path("hang"), accel=PLAIN)
    machine.stop()
    with pytest.raises(ExpectError, match="expected 'x': stopped"):
        machine.expect("x")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"send": [("a",)]}, r"send: pairs \(regular expression, text\) in a list, but one of them is \('a',\)$"),
        ({"send": ["ab"]}, "send: pairs .* but one of them is 'ab'$"),
        ({"send": "ab"}, "send: pairs .*, not str: 'ab'$"),
        ({"send": 5}, "send: pairs .*, not int: 5$"),
        ({"send": [("a", 5)]}, "send: must be str or bytes, not int: 5$"),
        ({"send": [(5, "a")]}, "send: must be str or bytes or Pattern, not int: 5$"),
        ({"on_poll": 5}, "on_poll: a function that takes the machine, not int: 5$"),
    ],
)
def test_what_is_wrong_for_a_run_is_said_by_its_name(
    vmm_machine: MachineFactory, options: dict[str, Any], complaint: str
) -> None:
    machine = vmm_machine(guests.path("exit"), accel=PLAIN)
    with pytest.raises(TypeError, match=complaint):
        machine.run(deadline=GENEROUS, **options)


@pytest.mark.parametrize("wrong", [("a", 5), ("a", None), (), (5,)])
def test_expect_takes_patterns_and_a_deadline_by_its_name(vmm_machine: MachineFactory, wrong: tuple[Any, ...]) -> None:
    machine = vmm_machine("probe", accel=PLAIN)
    with pytest.raises(TypeError, match=r"^expect: "):
        machine.expect(*wrong)
    with pytest.raises(ConfigError, match="a list without a pattern"):
        machine.expect([], deadline=GENEROUS)
    found = machine.expect("never", ["nowhere", "vmm (probe)"], b"never", deadline=GENEROUS)
    assert (found.which, found.match[1]) == (2, "probe")


def test_what_nobody_can_read_any_more_is_not_typed(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("probe", accel=PLAIN)
    machine.send("x")
    assert machine.run(deadline=GENEROUS).reached
    for send in (machine.send, machine.send_line, machine.send_keys):
        with pytest.raises(
            SendError, match="the guest has ended, and notices nothing any more: the guest powered the machine off"
        ):
            send("up")
    flash = vmm_machine("ovmf")
    for closed in (machine, flash):
        closed.close()
        for send in (closed.send, closed.send_keys):
            with pytest.raises(ValueError, match="the machine is closed; type inside"):
                send("f1")


def test_a_pattern_that_was_to_be_answered_and_never_came_is_no_success(vmm_machine: MachineFactory) -> None:
    outcome = vmm_machine("probe", accel=PLAIN).run(deadline=GENEROUS, send=[("vmm probe", "x"), ("never", "y")])
    assert (outcome.reason, outcome.missed_until, outcome.exit_status) == (Reason.POWER_OFF, "never", 1)
    assert outcome.message.endswith("powered the machine off, and never showed 'never'")
    for pattern in ("vmm probe", "status: 0"):  # the last one comes when nobody reads an answer any more
        assert vmm_machine("probe", accel=PLAIN).run(deadline=GENEROUS, send=[(pattern, "x")]).reached
    wanted = vmm_machine("probe", accel=PLAIN).run("vmm probe", GENEROUS, [("never", "y")])
    assert (wanted.reason, wanted.reached) == (Reason.UNTIL, True)


@pytest.fixture(scope="module")
def key_reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UEFI driver that prints what keys firmware reads."""
    directory = tmp_path_factory.mktemp("keys")
    firmware = ROOT / "firmware"
    flags = (
        "-m64 -march=x86-64 -mgeneral-regs-only -Os -std=c11 -ffreestanding -fno-stack-protector -fpie -mno-red-zone "
    )
    flags += "-fno-asynchronous-unwind-tables -fcf-protection=none -fvisibility=hidden -fshort-wchar -Wall -Werror "
    flags += "-nostdlib -static -Wl,--emit-relocs,--build-id=none,-z,noexecstack"
    source = ROOT / "tests" / "support" / "keys.c"
    elf, image = directory / "keys.elf", directory / "keys.efi"
    script = firmware / "efi.ld"
    command = ["gcc", *flags.split(), f"-I{firmware / 'lib'}", f"-Wl,-T,{script}", "-o", str(elf), str(source)]
    subprocess.run(command, check=True)
    subprocess.run([sys.executable, firmware / "efi_image.py", elf, image, "driver"], check=True)
    return image


@pytest.mark.parametrize("firmware", ["ovmf", "another"])
def test_every_key_of_every_terminal_arrives_in_ovmf_as_the_key_of_its_name(
    vmm_machine: MachineFactory, key_reader: Path, firmware: str
) -> None:
    path = debian.firmware("ovmf" if firmware == "ovmf" else "ovmf-trixie")
    machine = vmm_machine(path, kernel=key_reader)
    expected: list[str] = []

    def press(terminal: str, own: str) -> None:
        pressed = [name for name in SCAN_CODES if name not in LACKING.get(own, ())]
        machine.send_keys(*pressed, *CHARACTERS, terminal=terminal)
        expected.extend(f"{SCAN_CODES[name]:04x} 0000" for name in pressed)
        expected.extend(f"0000 {ord(character):04x}" for character in CHARACTERS.values())

    machine.expect("ready for keys", deadline=GENEROUS)
    new = firmware == "another" or debian.version("ovmf") >= (2025, 2)
    press("auto", "vtutf8" if new else "pcansi")
    for letter, terminal in zip("abcdefghi", TERMINALS, strict=True):
        machine.send(letter)
        machine.expect(f"terminal {letter}", deadline=GENEROUS)
        press(terminal, terminal)
    machine.send("q")
    assert machine.run(deadline=GENEROUS).reason is Reason.POWER_OFF
    assert re.findall("key (.*)", machine.debugcon.text()) == [*expected, "0000 0071"]


def test_a_key_that_depends_on_a_terminal_that_is_not_known_yet_is_refused(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("ovmf")
    machine.send_keys("up", "enter")
    with pytest.raises(ConfigError, match=r"key F2: .* firmware has not said that yet; wait first .*: pcansi, vt100,"):
        machine.send_keys("F2")
    machine.send_keys("F2", terminal="vt100plus")
    with pytest.raises(ConfigError, match="key F11: firmware knows no such key of a terminal of type pcansi"):
        machine.send_keys("up", "F11", terminal="pcansi")
    with pytest.raises(ConfigError, match="terminal=vt52: not known; known are auto, pcansi, "):
        machine.send_keys("up", terminal="vt52")
    with pytest.raises(TypeError, match="a key: must be str, not int: 2"):
        machine.send_keys("up", 2)  # type: ignore[arg-type]


INTERACT = """
from vmm import Machine

with Machine("seabios", accel={accel!r}, serial="none", fw_cfg={{}}) as machine:
    machine.expect("No bootable", deadline=60)
    print("it was", machine.interact().reason.value)
    print("again", machine.interact(deadline=0.1).reason.value)
"""


def test_interact_gives_the_serial_port_to_the_terminal() -> None:
    child = pexpect.spawn(sys.executable, ["-c", INTERACT.format(accel=PLAIN)], timeout=120, encoding="utf-8")
    child.expect("Ctrl-A X ends the machine")
    child.send("\x01x")
    child.expect("it was stopped")
    child.expect("again timeout")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0


def test_ctrl_c_during_expect_is_ctrl_c(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine(guests.path("hang"), accel=PLAIN)
    main = threading.main_thread().ident
    assert main is not None
    with once_it_runs(machine, lambda: signal.pthread_kill(main, signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        machine.expect("never", deadline=GENEROUS)
