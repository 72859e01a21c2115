"""Several runs of one machine, in several threads: nothing is lost between them, and nothing is freed under a vCPU."""

import random
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerators import PLAIN

from vmm import Machine, Reason, layout
from vmm.bus import Device
from vmm.devices.fw_cfg import FwCfg
from vmm.errors import ConfigError, DeviceError, KvmError
from vmm.firmware import guests
from vmm.pytest_plugin.plugin import MachineFactory
from vmm.run import threads
from vmm.run.lifetime import Power

pytestmark = [pytest.mark.needs_kvm, pytest.mark.hw]

GENEROUS = 60.0
"""Seconds; a busy machine must not fail a test that isn't about time."""

both_accelerators = pytest.mark.parametrize("accel", ["kvm", "auto"])


class Calls(Device):
    """Calls a function at each access."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def read(self, offset: int, size: int) -> int:
        self._function()
        return 0xE9

    def write(self, offset: int, size: int, value: int) -> None:
        self._function()


def with_debug_port(machine: Machine, function: Callable[[], object]) -> Machine:
    """Let a function be called when the guest prints."""
    port = layout.PORT_DEBUG_QEMU.start
    machine.ports.remove(port)
    machine.ports.add(port, port, Calls(function), "calls")
    return machine


def in_thread(function: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Call it in a thread of its own; the list gets its result, or what it raised."""
    results: list[object] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            results.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    return thread, results


def wait_until_it_runs(machine: Machine) -> None:
    while machine.started_s()[0] is None:
        time.sleep(0.001)


def test_a_power_off_between_the_match_and_the_stop_is_told_to_the_next_run(vmm_machine: MachineFactory) -> None:
    for _ in range(10):
        machine = vmm_machine("probe", accel=PLAIN)
        assert machine.run(until="vmm probe", deadline=GENEROUS).reason is Reason.UNTIL
        assert machine.run(deadline=GENEROUS).reason is Reason.POWER_OFF


def test_an_end_after_the_match_and_before_the_stop_is_told_to_the_next_run(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("probe", accel=PLAIN)
    matched = threading.Event()

    def serve() -> None:
        if matched.is_set():
            return
        machine.debugcon.write(b"now")
        assert matched.wait(GENEROUS)
        Power(machine._lifetime).reset("not what the guest does later")

    def on_poll(machine: Machine) -> None:
        if machine._lifetime.end is not None:
            matched.set()

    with_debug_port(machine, serve)
    assert machine.run(until="now", deadline=GENEROUS, on_poll=on_poll).reason is Reason.UNTIL
    assert machine.run(deadline=GENEROUS).reason is Reason.RESET


def test_text_between_the_match_and_the_stop_is_found_by_the_next_run(vmm_machine: MachineFactory) -> None:
    for _ in range(10):
        machine = vmm_machine("probe", cpus=2, accel=PLAIN)
        for text in ("vmm probe", "cpus at boot", re.compile("status: 0")):
            outcome = machine.run(until=text, deadline=GENEROUS)
            assert outcome.reason is Reason.UNTIL, outcome


def test_a_match_is_found_once(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("probe", accel=PLAIN)
    assert machine.run(until="vmm probe", deadline=GENEROUS).reached
    outcome = machine.run(until="vmm probe", deadline=GENEROUS)
    assert (outcome.reason, outcome.missed_until, outcome.reached) == (Reason.POWER_OFF, "vmm probe", False)


@pytest.mark.parametrize(("guest", "reason"), [("exit", Reason.POWER_OFF), ("triple-fault", Reason.TRIPLE_FAULT)])
def test_a_guest_that_has_ended_says_so_every_time(vmm_machine: MachineFactory, guest: str, reason: Reason) -> None:
    machine = vmm_machine(guests.path(guest), accel=PLAIN)
    first = machine.run(deadline=GENEROUS)
    assert first.reason is reason
    began = time.monotonic()
    assert [machine.run(), machine.run(deadline=GENEROUS)] == [first, first]
    assert machine.run(until="more").missed_until == "more"
    assert time.monotonic() - began < GENEROUS
    assert [event.event for event in machine.timeline].count(reason.value) == 1


def test_what_was_stopped_before_it_showed_its_text_has_not_reached_it(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine(guests.path("hang"), accel=PLAIN)
    machine.stop()
    outcome = machine.run(until="never", deadline=GENEROUS)
    assert (outcome.reason, outcome.reached, outcome.exit_status) == (Reason.STOPPED, False, 130)


@both_accelerators
def test_a_stop_ends_the_run_that_it_finds_or_the_next_one(vmm_machine: MachineFactory, accel: str) -> None:
    machine = vmm_machine(guests.path("hang"), cpus=4, accel=accel)
    machine.stop()
    assert machine.run(deadline=GENEROUS).reason is Reason.STOPPED
    assert machine.run(deadline=0.05).reason is Reason.TIMEOUT  # it was for one run
    seeded = random.Random(1)
    for _ in range(100):
        timer = threading.Timer(seeded.random() * 0.005, machine.stop)
        timer.start()
        assert machine.run(deadline=GENEROUS).reason is Reason.STOPPED
        timer.join()


@pytest.mark.parametrize("deadline", ["5", True, b"1"])
def test_a_deadline_is_a_number(vmm_machine: MachineFactory, deadline: Any) -> None:
    machine = vmm_machine(guests.path("exit"), accel=PLAIN)
    with pytest.raises(TypeError, match="deadline: must be int or float, not"):
        machine.run(deadline=deadline)
    assert machine.run(deadline=GENEROUS).reason is Reason.POWER_OFF  # it is as it was


def test_a_deadline_that_never_passes_is_refused(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine(guests.path("exit"), accel=PLAIN)
    with pytest.raises(ConfigError, match="deadline: NaN"):
        machine.expect("never", deadline=float("nan"))


@pytest.mark.parametrize("wrong", [5, bytearray(b"x"), [None]])
def test_what_is_no_text_is_neither_typed_nor_waited_for(vmm_machine: MachineFactory, wrong: Any) -> None:
    machine = vmm_machine(guests.path("exit"), accel=PLAIN)
    with pytest.raises(TypeError, match="text: must be str or bytes, not"):
        machine.send(wrong)
    with pytest.raises(TypeError, match="until: must be str or bytes or Pattern, not"):
        machine.run(until=wrong, deadline=GENEROUS)
    with pytest.raises(ConfigError, match="not text that can be encoded"):
        machine.send("\ud800")
    with pytest.raises(ConfigError, match="empty pattern"):
        machine.run(until="", deadline=GENEROUS)
    with pytest.raises(ConfigError, match="empty pattern"):
        machine.expect(["now", ""], deadline=GENEROUS)


def test_a_second_thread_is_told_that_the_machine_runs(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine(guests.path("hang"), accel=PLAIN)
    thread, results = in_thread(lambda: machine.run(deadline=GENEROUS).reason)
    wait_until_it_runs(machine)
    with pytest.raises(RuntimeError, match="already running"):
        machine.run(deadline=GENEROUS)
    with pytest.raises(RuntimeError, match="the machine is running"):
        machine.registers()
    machine.stop()
    thread.join()
    assert results == [Reason.STOPPED]


@both_accelerators
def test_close_ends_a_run_of_another_thread(vmm_machine: MachineFactory, accel: str) -> None:
    for _ in range(5):
        machine = vmm_machine("seabios", cpus=3, memory="64M", accel=accel)
        thread, results = in_thread(lambda machine=machine: machine.run(deadline=GENEROUS))  # type: ignore[misc]
        wait_until_it_runs(machine)
        machine.close()
        thread.join()
        assert "closed while it ran" in results[0].message  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="the machine is closed"):
            machine.run()


@both_accelerators
def test_memory_stays_as_long_as_a_vcpu_does_not_stop(
    vmm_machine: MachineFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, accel: str
) -> None:
    monkeypatch.setattr(threads, "JOIN_SECONDS", 0.3)
    entered, let_go = threading.Event(), threading.Event()

    def serve() -> None:
        entered.set()
        let_go.wait()

    def stop_when_entered(machine: Machine) -> None:
        if entered.is_set():
            machine.stop()

    # The access log must not wait for the device either.
    machine = with_debug_port(vmm_machine("probe", cpus=2, accel=accel, trace=str(tmp_path / "log")), serve)
    try:
        with pytest.raises(KvmError, match=r"vcpu0\b.* did not stop within 0.3 s"):
            machine.run(deadline=GENEROUS, on_poll=stop_when_entered)
        with pytest.raises(KvmError, match=r"vcpu0\b.* did not stop within 0.3 s"):
            machine.close()
        assert len(machine.memory.read(0, 4)) == 4
    finally:
        let_go.set()
    monkeypatch.undo()
    machine.close()
    with pytest.raises(ValueError, match="closed, and its memory gone"):
        machine.memory.read(0, 4)


def raises(error: BaseException) -> Callable[..., None]:
    def function(*_: object) -> None:
        raise error

    return function


@both_accelerators
@pytest.mark.parametrize("error", [pytest.fail.Exception("a finding"), SystemExit(7), KeyboardInterrupt()])
def test_what_a_device_raises_reaches_the_caller(vmm_machine: MachineFactory, error: BaseException, accel: str) -> None:
    machine = with_debug_port(vmm_machine("probe", accel=accel), raises(error))
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            machine.run(deadline=GENEROUS)
        assert caught.value is error


def test_what_an_items_callback_raises_reaches_the_caller(vmm_machine: MachineFactory) -> None:
    error = pytest.fail.Exception("a finding")

    def customize(fw_cfg: FwCfg) -> None:
        fw_cfg.add_file("genroms/callback.bin", bytes(512), on_select=raises(error))

    machine = vmm_machine("seabios", accel=PLAIN, customize=customize)
    with pytest.raises(pytest.fail.Exception, match="a finding"):
        machine.run(deadline=GENEROUS)


def test_what_a_timer_raises_reaches_the_caller(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine(guests.path("hang"), accel=PLAIN)
    timers = machine.platform.timers
    with machine.io_lock:
        timers.timer(raises(SystemExit(7))).arm(timers.clock())
    with pytest.raises(SystemExit):
        machine.run(deadline=GENEROUS)


def test_what_on_poll_raises_reaches_the_caller_and_the_guest_can_go_on(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("probe", accel="kvm")  # which does not end before a poll
    with pytest.raises(SystemExit):
        machine.run(deadline=GENEROUS, on_poll=raises(SystemExit(7)))
    assert machine.run(until="status: 0", deadline=GENEROUS).reached


def test_close_inside_a_run_is_refused(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine(guests.path("hang"), accel=PLAIN)
    with pytest.raises(RuntimeError, match="inside a run"):
        machine.run(deadline=GENEROUS, on_poll=lambda machine: machine.close())
    assert machine.run(deadline=0.05).reason is Reason.TIMEOUT
    device = vmm_machine("probe", accel=PLAIN)
    with_debug_port(device, device.close)
    with pytest.raises(DeviceError) as caught:
        device.run(deadline=GENEROUS)
    assert "inside a run" in str(caught.value.__cause__)
    assert len(device.memory.read(0, 4)) == 4
