"""How long a stop takes, and a host that gives no threads."""

import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from accelerators import PLAIN

from vmm import Reason, host_threads
from vmm.firmware import guests
from vmm.pytest_plugin.plugin import MachineFactory

pytestmark = pytest.mark.needs_kvm

GENEROUS = 60.0
"""Seconds; a busy machine must not fail a test that isn't about time."""

RESET_VECTOR = 0xFFF0


def bios_image(code: str) -> bytes:
    """64 KiB below 4 GiB and 1 MiB, whose first instruction leads to the code at its beginning, in real mode."""
    begin = bytes.fromhex(code).ljust(RESET_VECTOR, b"\x90")
    return (begin + bytes.fromhex("ea 00 00 00 f0")).ljust(0x10000, b"\0")  # jmp 0xf000:0


@pytest.mark.parametrize("accel", ["kvm", "auto", "softcpu"])
@pytest.mark.parametrize(
    "code",
    [
        pytest.param("fa f4", id="halted for good"),
        pytest.param("ba 99 09 ee eb fd", id="writes to a port that nobody has"),
        pytest.param("ba f8 03 b9 ff ff 31 f6 f3 6e eb f7", id="REP OUTS to a device in Python"),
        pytest.param("ba 71 00 b9 ff ff 31 ff f3 6c eb f7", id="REP INS from a device in Python"),
        pytest.param("ba 11 05 b9 ff ff 31 ff f3 6c eb f7", id="REP INS from fw_cfg"),
    ],
)
def test_any_guest_stops_within_150_ms(vmm_machine: MachineFactory, tmp_path: Path, accel: str, code: str) -> None:
    (tmp_path / "rom").write_bytes(bios_image(code))
    machine = vmm_machine(str(tmp_path / "rom"), machine="pc", accel=accel, cpus=2)

    def stop_takes() -> float:
        asked: list[float] = []

        def stop() -> None:
            asked.append(time.monotonic())
            machine.stop()

        timer = threading.Timer(0.05, stop)
        timer.start()
        assert machine.run(deadline=GENEROUS).reason is Reason.STOPPED
        timer.join()
        return time.monotonic() - asked[0]

    # Once is enough: what others do on this host delays most.
    assert any(stop_takes() < 0.15 for _ in range(100))


def test_a_line_without_end_does_not_make_the_message_one(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    (tmp_path / "rom").write_bytes(bios_image("ba f8 03 b0 78 ee eb fd"))  # mov dx, 0x3f8; mov al, 'x'; out; jmp
    machine = vmm_machine(str(tmp_path / "rom"), machine="pc", accel=PLAIN)
    deadline = 0.25
    while machine.serial.total < 1000:
        outcome = machine.run("never", deadline=deadline)
        assert outcome.reason is Reason.TIMEOUT
    assert outcome.message.endswith("; its last line was '" + "x" * 79 + "…'")


@pytest.mark.parametrize("accel", ["kvm", "auto", "softcpu"])
@pytest.mark.parametrize("code", ["fa f4", "eb fe", "ba 99 09 ee eb fd"])
def test_ctrl_c_ends_the_whole_process_within_150_ms(tmp_path: Path, accel: str, code: str) -> None:
    (tmp_path / "rom").write_bytes(bios_image(code))
    words = ["boot", str(tmp_path / "rom"), "-smp", "2", "-accel", accel, "-q", "-serial", "none", "-debugcon", "none"]

    def takes() -> float:
        with subprocess.Popen([sys.executable, "-m", "vmm", *words], stderr=subprocess.DEVNULL) as process:
            tasks = Path(f"/proc/{process.pid}/task")
            began = time.monotonic()
            while len(list(tasks.iterdir())) < 3:
                assert time.monotonic() - began < GENEROUS
                time.sleep(0.02)
            time.sleep(0.1)
            asked = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(GENEROUS) == 130
            return time.monotonic() - asked

    assert any(takes() < 0.15 for _ in range(50))  # as above


def test_ctrl_c_does_not_wait_for_who_reads_no_output(tmp_path: Path) -> None:
    (tmp_path / "rom").write_bytes(bios_image("ba 02 04 b0 78 ee eb fd"))  # mov dx, 0x402; mov al, 'x'; out; jmp
    program = """
import sys
from vmm.cli import main
from vmm.run import terminal

terminal.DRAIN_SECONDS = 1000
sys.exit(main())
"""
    words = ["boot", str(tmp_path / "rom"), "-accel", PLAIN, "-q", "-serial", "none", "-debugcon", "stdio"]
    command = [sys.executable, "-c", program, *words]
    reader, writer = os.pipe()
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True) as process:
        try:
            began = time.monotonic()
            while select.select([], [writer], [], 0)[1]:
                assert time.monotonic() - began < GENEROUS
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=GENEROUS)
        finally:
            process.kill()
            os.close(writer)
            os.close(reader)
    assert process.returncode == 130
    assert re.fullmatch(r"vmm: interrupted\n(vmm: \d+ bytes of console output were not shown: .*\n)?", told)


def test_a_terminal_that_nobody_reads_does_not_keep_a_deadline_from_ending_the_run(tmp_path: Path) -> None:
    # mov dx, 0x402; mov cx, 0xffff; xor si, si; rep outsb; jmp
    (tmp_path / "rom").write_bytes(bios_image("ba 02 04 b9 ff ff 31 f6 f3 6e eb f7"))
    words = ["boot", str(tmp_path / "rom"), "-accel", PLAIN, "-q", "-serial", "none", "-debugcon", "stdio"]
    reader, writer = os.openpty()
    command = [sys.executable, "-m", "vmm", *words, "--timeout", "2"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, timeout=GENEROUS, check=False
        )
    finally:
        os.close(writer)
        os.close(reader)
    assert done.returncode == 4
    assert b"bytes of console output were not shown: stdout was not read fast enough" in done.stderr


@pytest.mark.parametrize("sandbox", ["off", "threads"])
@pytest.mark.parametrize("spare_mib", [4, 12, 100])
def test_a_host_that_gives_no_threads_is_told_and_the_machine_stays(sandbox: str, spare_mib: int) -> None:
    """From none on: the threads of vCPUs are not the first ones."""
    program = f"""
import resource
from vmm import Machine
from vmm.errors import HostError

with Machine({str(guests.path("probe"))!r}, cpus=60, accel={PLAIN!r}, sandbox={sandbox!r}) as machine:
    used = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + ({spare_mib} << 20), resource.RLIM_INFINITY))
    try:
        machine.run(deadline=60)
    except HostError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(machine.run(deadline=60).message)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    told = r"no thread for (vCPU \d+|modules|the devices' timers): .*address space \(ulimit -v\).*"
    assert re.fullmatch(told + r"\nthe guest powered the machine off\n", run.stdout), run.stdout + run.stderr


@pytest.mark.parametrize("begins", [False, True], ids=["before it", "while it begins"])
def test_ctrl_c_at_the_start_of_a_vcpus_thread_ends_the_run_and_the_machine_stays(
    vmm_machine: MachineFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, begins: bool
) -> None:
    (tmp_path / "rom").write_bytes(bios_image("eb fe"))
    machine = vmm_machine(str(tmp_path / "rom"), machine="pc", accel=PLAIN)
    really_start = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name != "vcpu0":
            really_start(thread)
            return
        if begins:
            threading.Thread(target=really_start, args=(thread,)).start()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        patched.setattr(host_threads, "_BEGINS_SECONDS", GENEROUS if begins else 0)
        assert machine.run(deadline=GENEROUS).reason is Reason.INTERRUPTED
    assert machine.run(deadline=0.01).reason is Reason.TIMEOUT
