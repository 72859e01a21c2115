"""Machines in processes of their own: the same answers, and whatever becomes of one is an exception to its caller."""

import gc
import os
import shlex
import signal
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerators import PLAIN
from waiting_guest import DONE, READY, write_waiting_guest

from vmm import ExpectError, Machine, Reason, SendError
from vmm.bus import Device
from vmm.config.parts import Sandboxing
from vmm.errors import ConfigError, HostError, MachineDiedError, VmmError

pytestmark = pytest.mark.needs_kvm

GENEROUS = 120.0
"""Seconds; a busy machine must not fail a test that isn't about time."""


@pytest.fixture
def waits(tmp_path: Path) -> str:
    return write_waiting_guest(tmp_path)


@pytest.fixture
def make(waits: str, vmm_machine: Callable[..., Machine]) -> Callable[..., Any]:
    """Make a machine whose guest waits for a key."""

    def create(firmware: str = waits, **options: Any) -> Any:
        return vmm_machine(firmware, **({"sandbox": "process", "accel": PLAIN, "memory": "16M"} | options))

    return create


LOOKS: dict[str, Callable[[Machine], Any]] = {
    "outcome": lambda m: m.outcome and m.outcome._replace(elapsed_s=0.0),
    "registers": lambda m: m.registers(1).values,
    "registers as text": lambda m: str(m.registers(1)),
    "memory": lambda m: m.memory.read(0xF_FF00, 64),
    "regions": lambda m: [region[:3] for region in m.memory.regions()],
    "serial": lambda m: m.serial.text(),
    "debugcon": lambda m: m.debugcon.since(0),
    "ports": lambda m: [each[:3] for each in m.ports.ranges()],
    "what was counted": lambda m: m.exit_counts().keys(),
    "items": lambda m: [(item.name, item.size) for item in m.trace.items()],
    "cpus": lambda m: len(m.vcpus),
    "a vcpu": lambda m: m.vcpus[1].index,
    "accelerator": lambda m: m.accelerator,
    "interface": lambda m: m.interface_choice,
    "config": lambda m: m.config._replace(sandbox=Sandboxing.OFF),
    "resets": lambda m: [(each.kind, each.cause) for each in m.resets],
    "timeline": lambda m: [(each.kind, each.event) for each in m.timeline],
    "the report's part": lambda m: m.accelerator_report(),
}


@pytest.mark.usefixtures("kvm_device")  # no count of instructions, which differs
def test_it_tells_what_a_machine_of_this_process_does(make: Callable[..., Any]) -> None:
    found: list[dict[str, Any]] = []
    for sandbox in ("off", "process"):
        machine = make(cpus=2, sandbox=sandbox, accel="kvm")
        machine.memory.write(0x1000, b"written")
        assert machine.memory.read(0x1000, 7) == b"written"
        machine.expect(READY, deadline=GENEROUS)
        machine.reset()
        send = deque([(READY, "x"), ("never", "y")])
        assert machine.run(DONE, GENEROUS, send).reached
        assert list(send) == [("never", "y")]
        found.append({name: look(machine) for name, look in LOOKS.items()})
    assert found[1] == found[0]


def test_it_finds_what_is_waited_for(make: Callable[..., Any]) -> None:
    machine = make()
    first = machine.expect("never", "re(?P<end>a.)y", deadline=GENEROUS)
    assert (first.which, first.match["end"], first.before, first.console) == (1, "ad", "", "debugcon")
    machine.send_line()
    assert machine.expect(rb"d(on)e", deadline=GENEROUS).match[1] == b"on"
    with pytest.raises(ExpectError, match=r"expected 'never': 0\.01 s passed") as caught:
        machine.expect("never", deadline=0.01)
    assert caught.value.outcome.reason is Reason.TIMEOUT
    assert caught.value.exit_status == 3


def test_errors_come_as_they_are(make: Callable[..., Any]) -> None:
    machine = make("exit")
    assert machine.run(deadline=GENEROUS).reason is Reason.POWER_OFF
    with pytest.raises(SendError, match="powered the machine off"):
        machine.send("x")
    with pytest.raises(IndexError, match="no vCPU 7"):
        machine.registers(7)
    with pytest.raises(ValueError, match="no memory"):
        machine.memory.read(1 << 40, 1)
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = machine.nothing_such
    with pytest.raises(AttributeError, match="not a public name"):
        _ = machine._parts
    with pytest.raises(ConfigError, match="empty pattern"):
        machine.run("")
    with pytest.raises(TypeError, match="deadline"):
        machine.run(deadline="soon")
    machine.close()
    machine.close()
    with pytest.raises(ValueError, match="closed"):
        machine.run()
    assert machine.outcome.reason is Reason.POWER_OFF


def test_a_death_is_an_exception_and_harms_no_other(make: Callable[..., Any]) -> None:
    other = make()
    with make() as machine:
        machine.expect(READY, deadline=GENEROUS)
        threading.Timer(0.05, os.kill, (machine.pid, signal.SIGKILL)).start()
        with pytest.raises(MachineDiedError, match=r"by signal 9 \(SIGKILL\)") as caught:
            machine.run(deadline=GENEROUS)
        assert isinstance(caught.value, VmmError)
        with pytest.raises(MachineDiedError, match="SIGKILL"):
            machine.serial.text()
    other.expect(READY, deadline=GENEROUS)


def test_other_threads_ask_and_stop_meanwhile(make: Callable[..., Any]) -> None:
    machine = make()
    shown: list[str] = []

    def look() -> None:
        while READY not in machine.debugcon.text():
            time.sleep(0.01)
        shown.append(machine.debugcon.text())
        machine.stop()

    thread = threading.Thread(target=look)
    thread.start()
    assert machine.run(deadline=GENEROUS).reason is Reason.STOPPED
    thread.join()
    assert READY in shown[0]


def test_a_function_that_is_called_meanwhile_is_this_processes(make: Callable[..., Any]) -> None:
    machine = make()
    seen: list[bool] = []

    def look(given: Any) -> None:
        seen.append(given is machine)
        if READY in machine.debugcon.text():
            given.stop()

    assert machine.run(deadline=GENEROUS, on_poll=look).reason is Reason.STOPPED
    assert all(seen)

    def fail(_: Any) -> None:
        pytest.fail("on purpose")

    with pytest.raises(pytest.fail.Exception, match="on purpose"):
        machine.run(deadline=GENEROUS, on_poll=fail)
    machine.send("x")
    assert machine.run(DONE, GENEROUS).reached


def test_an_interrupt_ends_the_run_alone(make: Callable[..., Any]) -> None:
    machine = make()
    machine.expect(READY, deadline=GENEROUS)
    main = threading.get_ident()

    def interrupt() -> None:
        while "running" not in repr(machine):
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert machine.run(deadline=GENEROUS).reason is Reason.INTERRUPTED
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        machine.expect("never", deadline=GENEROUS)
    machine.send("x")
    assert machine.run(DONE, GENEROUS).reached


class Mine(Device):
    """Code of the test."""


def test_code_of_the_caller_is_refused_in_a_line(make: Callable[..., Any], waits: str) -> None:
    for option in ("customize", "alter"):
        with pytest.raises(ConfigError, match=rf"^sandbox=process: {option}= is of this process.*sandbox=threads.*$"):
            Machine(waits, sandbox="process", **{option: print})  # type: ignore[arg-type]
    machine = make()
    with pytest.raises(ConfigError, match=r"^sandbox=process: .* no code; sandbox=threads.*$"):
        machine.ports.add(0x580, 0x580, Mine(), "mine")
    machine.expect(READY, deadline=GENEROUS)
    with pytest.raises(AttributeError, match="sandbox=threads"):
        machine.outcome = None


def test_a_machine_goes_on_from_a_snapshot_in_other_processes(make: Callable[..., Any]) -> None:
    machine = make()
    machine.expect(READY, deadline=GENEROUS)
    with machine.snapshot() as first:
        machine.memory.write(0x2000, b"changed")
        second = machine.snapshot()
        machine.send("x")
        machine.expect(DONE, deadline=GENEROUS)
        pids = {machine.pid}
        for snapshot, kept in ((first, bytes(7)), (second, b"changed"), (first, bytes(7))):
            with Machine.restore(snapshot) as restored:
                pids.add(restored.pid)  # type: ignore[attr-defined]
                assert restored.memory.read(0x2000, 7) == kept
                restored.send("x")
                restored.expect(DONE, deadline=GENEROUS)
    second.close()
    assert len(pids) == 4


def test_the_process_is_restricted_and_ends_with_its_machine(waits: str) -> None:
    machine: Any = Machine(waits, sandbox="process", accel=PLAIN)
    machine.expect(READY, deadline=GENEROUS)
    pid = machine.pid
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    assert "NoNewPrivs:\t1" in status
    assert machine.sandbox.missing or "Seccomp:\t2" in status
    del machine
    gc.collect()
    assert not Path(f"/proc/{pid}").exists()


HOSTILE = {
    "rubbish": "lane.sendall(b'\\xff' * 64)",
    "an endless message": "lane.sendall(struct.pack('<II', 1 << 31, 1 << 31))",
    "nested too deep": "told(b'[' * 100000)",
    "no list": "told(b'7')",
    "an unknown kind": """told(b'["unheard-of",null]')""",
    "another exception": """told(b'["error",[["os:system"],["exit 1"],{"":[]}]]')""",
    "what is no exception": """told(b'["error",[["builtins:print"],["x"],{"":[]}]]')""",
    "another class": """told(b'["value",{"named":["subprocess:Popen",["exit 1"]]}]')""",
    "an impossible machine": """told(b'["value",{"named":["vmm.config.machine:MachineConfig",[1]]}]')""",
    "bytes that are not there": """told(b'["value",{"bytes":[0,100]}]')""",
}
"""What a process says that a guest has taken over."""


@pytest.mark.parametrize("attack", HOSTILE)
def test_nothing_that_the_process_says_does_harm(
    waits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    program = tmp_path / "program"
    program.write_text(
        f"""
import socket, struct, sys, time
lane = socket.socket(fileno=int(sys.argv[4].split(",")[0]))
def told(text):
    lane.sendall(struct.pack("<II", len(text), 0) + text)
{HOSTILE[attack]}
time.sleep(600)
""",
        encoding="utf-8",
    )
    hostile = tmp_path / "hostile"
    hostile.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {program} "$@"\n', encoding="utf-8")
    hostile.chmod(hostile.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(hostile))
    with pytest.raises(MachineDiedError, match="said what none of ours does"):
        Machine(waits, sandbox="process")


def test_a_process_that_cannot_be_started_leaves_nothing(waits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(sys, "executable", "/no/python")
    with pytest.raises(HostError, match="cannot start /no/python: No such file"):
        Machine(waits, sandbox="process")
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_process_that_does_not_answer_is_ended_after_the_deadline(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = make()
    machine.expect(READY, deadline=GENEROUS)
    monkeypatch.setattr("vmm.isolation.machine._GRACE_SECONDS", 0.5)
    os.kill(machine.pid, signal.SIGSTOP)
    with pytest.raises(MachineDiedError, match="did not keep to its deadline"):
        machine.run(deadline=0.1)


def test_a_snapshot_has_room_for_disks(make: Callable[..., Any], tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"sector".ljust(512, b"\0") * 2048)
    os.truncate(disk, 256 << 20)
    machine = make(drives=[f"file={disk},format=raw,snapshot=on"])
    machine.expect(READY, deadline=GENEROUS)
    with machine.snapshot() as snapshot, Machine.restore(snapshot) as restored:
        restored.send("x")
        restored.expect(DONE, deadline=GENEROUS)
