"""The gdb server beyond what a debugger does: who connects, when, and what it says."""

import contextlib
import socket
import stat
import threading
import time
from pathlib import Path

import pytest
from accelerators import PLAIN
from debug_rig import PATIENCE, Client, Debugged
from real_mode_rom import RESET, START, image

from vmm import Reason
from vmm.cli.machine_config import sandboxing
from vmm.config.parts import Sandboxing
from vmm.errors import ConfigError
from vmm.kvm.structs import MpState
from vmm.machine import Machine
from vmm.pytest_plugin.plugin import MachineFactory
from vmm.run.snapshot import Snapshot
from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = pytest.mark.needs_kvm

BASE = 0xFFFF0000 + START
BOTH = pytest.mark.parametrize(
    "accel",
    [
        "kvm",
        pytest.param("kvm+softcpu", marks=pytest.mark.skipif(has_hardware_virtualization(), reason="runs in KVM")),
        "softcpu",
    ],
)
LOOPS = {
    "counts": "66 40 eb fc",  # inc eax; jmp
    "halts": "fa f4",
    "asks ports": "ba 99 09 ee eb fd",
    "prints": "ba f8 03 b9 ff ff 31 f6 f3 6e eb f7",
}


def rom(folder: Path, code: str) -> str:
    (folder / "rom").write_bytes(image(code))
    return str(folder / "rom")


@BOTH
@pytest.mark.parametrize("code", LOOPS.values(), ids=LOOPS)
def test_a_running_guest_stops_within_150_ms(
    vmm_machine: MachineFactory, tmp_path: Path, accel: str, code: str
) -> None:
    machine = vmm_machine(rom(tmp_path, code), machine="pc", accel=accel, cpus=2, gdb="tcp::0")
    with Debugged(machine), Client(machine) as client:
        assert client.ask(b"?") == b"T02thread:1;"

        def stop_takes() -> float:
            client.send(b"vCont;c")
            time.sleep(0.05)
            asked = time.monotonic()
            client.interrupt()
            assert client.reply() == b"T02thread:1;"
            return time.monotonic() - asked

        # Once is enough: what others do on this host delays most.
        assert any(stop_takes() < 0.15 for _ in range(100))


@pytest.mark.hw
@BOTH
def test_vcpus_step_alone_or_together(vmm_machine: MachineFactory, tmp_path: Path, accel: str) -> None:
    path = rom(tmp_path, "66 40 eb fc")  # inc eax; jmp
    machine = vmm_machine(path, machine="pc", accel=accel, cpus=2, gdb="tcp::0", hold=True)
    machine.vcpus[1].set_mp_state(MpState.RUNNABLE)  # as if it had been started, at the reset vector as well

    def places() -> tuple[int, int]:
        def of(thread: int) -> int:
            assert client.ask(b"Hg%x" % thread) == b"OK"
            return int.from_bytes(bytes.fromhex((client.ask(b"p8") or b"").decode()), "little")

        return of(1), of(2)

    reset = 0xFFFFFFF0
    with Debugged(machine), Client(machine) as client:
        assert client.ask(b"QStartNoAckMode") == b"OK"
        assert client.ask(b"qfThreadInfo") == b"m1,2"
        assert places() == (reset, reset)
        assert client.ask(b"vCont;s:2") == b"T05thread:2;"
        assert places() == (reset, BASE)
        assert client.ask(b"vCont;s:1") == b"T05thread:1;"
        assert places() == (BASE, BASE)
        assert client.ask(b"vCont;s:1;s:2") in {b"T05thread:1;", b"T05thread:2;"}
        assert set(places()) <= {BASE, BASE + 2}
        assert BASE + 2 in places()
        alone = places()[0]
        client.send(b"vCont;c:2")  # what gdb's scheduler-locking makes of a continue
        assert client.is_idle()
        client.interrupt()
        assert client.reply() == b"T02thread:2;"
        assert places()[0] == alone


@pytest.mark.hw
@BOTH
def test_what_is_written_is_what_the_guest_finds(vmm_machine: MachineFactory, tmp_path: Path, accel: str) -> None:
    path = rom(tmp_path, "8b 07 40 f4 90")  # mov ax,[bx]; inc ax; hlt; nop
    machine = vmm_machine(path, machine="pc", accel=accel, gdb="tcp::0", hold=True)
    with Debugged(machine), Client(machine) as client:
        assert client.ask(b"vCont;s:1") == b"T05thread:1;"
        assert client.ask(b"P3=00400000") == b"OK"  # EBX
        assert client.ask(b"M4000,2:3412") == b"OK"
        assert [client.ask(b"vCont;s:1") for _ in range(3)] == [b"T05thread:1;"] * 3
        assert client.ask(b"p0") == b"35120000"
        assert client.ask(b"p8") == (BASE + 4).to_bytes(4, "little").hex().encode()  # behind HLT
        if accel != "kvm":  # which goes on after a stepped HLT
            client.send(b"vCont;s:1")
            client.interrupt()
            assert client.reply() == b"T02thread:1;"


@BOTH
def test_a_debugger_that_goes_lets_the_machine_go_on(vmm_machine: MachineFactory, tmp_path: Path, accel: str) -> None:
    # Writes a dot to COM1 for ever.
    machine = vmm_machine(rom(tmp_path, "ba f8 03 b0 2e ee eb fd"), machine="pc", accel=accel, gdb="tcp::0", hold=True)
    with Debugged(machine):
        for farewell in (b"D", b"", b"vCont;c"):
            with Client(machine) as client:
                assert client.ask(b"Z0,%x,1" % (BASE + 5)) == b"OK"
                before = machine.serial.total
                if farewell:
                    client.send(farewell)
                if farewell == b"vCont;c":
                    assert client.reply() == b"T05thread:1;"  # the breakpoint
                if farewell == b"D":
                    assert client.reply() == b"OK"
                    assert client.reply() is None
            deadline = time.monotonic() + PATIENCE
            while machine.serial.total < before + 100:
                assert time.monotonic() < deadline
            assert machine.debugger is not None


@BOTH
def test_vcpus_that_were_held_alone_go_on_without_a_debugger(
    vmm_machine: MachineFactory, tmp_path: Path, accel: str
) -> None:
    """Its farewell is heard while the other vCPU runs."""
    machine = vmm_machine(rom(tmp_path, "66 40 eb fc"), machine="pc", accel=accel, cpus=2, gdb="tcp::0", hold=True)
    machine.vcpus[1].set_mp_state(MpState.RUNNABLE)
    with Debugged(machine):
        with Client(machine) as client:
            assert client.ask(b"QStartNoAckMode") == b"OK"
            client.send(b"vCont;c:2")
            assert client.is_idle()
        deadline = time.monotonic() + PATIENCE
        while True:
            with Client(machine) as client:
                assert client.ask(b"Hg1") == b"OK"
                if client.ask(b"p8") != b"f0ffffff":
                    break
            assert time.monotonic() < deadline, "the first vCPU is where it was held"


def test_ctrl_c_right_behind_a_continue_is_heard(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    machine = vmm_machine(rom(tmp_path, LOOPS["counts"]), machine="pc", accel=PLAIN, gdb="tcp::0")
    with Debugged(machine), Client(machine) as client:
        assert client.ask(b"QStartNoAckMode") == b"OK"
        client.socket.sendall(b"$vCont;c#a8\x03")  # read at once
        assert client.reply() == b"T02thread:1;"
        client.socket.sendall(b"\x03$vCont;c#a8")  # of a machine that stands still, that says nothing
        assert client.is_idle()
        client.interrupt()
        assert client.reply() == b"T02thread:1;"


def test_who_disconnects_may_connect_again_at_once(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    machine = vmm_machine(rom(tmp_path, LOOPS["counts"]), machine="pc", accel=PLAIN, gdb="tcp::0")
    with Debugged(machine):
        for goes_on in (False, True) * 20:
            with Client(machine) as client:
                assert client.ask(b"QStartNoAckMode") == b"OK"
                if goes_on:
                    client.send(b"vCont;c")


def test_a_second_debugger_is_told_to_go(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    machine = vmm_machine(rom(tmp_path, LOOPS["counts"]), machine="pc", accel=PLAIN, gdb="tcp::0")
    assert machine.debugger is not None
    with Debugged(machine) as debugged:
        with Client(machine) as first:
            assert first.ask(b"?") == b"T02thread:1;"
            assert "another debugger is connected to this machine" in debugged.gdb("info registers")
            for _ in range(20):
                with Client(machine) as second:
                    assert second.reply() == b"E.vmm: another debugger is connected to this machine"
                    assert second.reply() is None
            assert first.ask(b"?") == b"T02thread:1;"
        deadline = time.monotonic() + PATIENCE
        while machine.debugger.connected:
            assert time.monotonic() < deadline, "the first one has hung up"
            time.sleep(0.01)


def test_rubbish_changes_nothing(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    machine = vmm_machine(rom(tmp_path, LOOPS["counts"]), machine="pc", accel=PLAIN, gdb="tcp::0")
    with Debugged(machine), Client(machine) as client:
        for rubbish in (
            b"GET / HTTP/1.1\r\n\r\n",
            bytes(range(4, 36)),
            b"$no end" * 20000,
            b"$m0,4#00",
            b"$" + b"a" * 100000 + b"#00",
        ):
            client.socket.sendall(rubbish)
        assert client.ask(b"?") == b"T02thread:1;"
        for packet, answer in {
            b"unknown": b"",
            b"m": b"E16",
            b"m0": b"E16",
            b"m-1,4": b"E16",
            b"m80000000,4": b"E0e",
            b"Mfffffff0,1:00": b"E0e",
            b"M1000,2:00": b"E16",
            b"p999": b"E16",
            b"P0=zz": b"E16",
            b"Z9,0,1": b"",
            b"Z2,0,0": b"E16",
            b"Hg7": b"E16",
            b"T3": b"E16",
            b"vCont;x": b"E16",
            b"vCont;s:9": b"E16",
            b"qXfer:features:read:other.xml:0,10": b"E00",
            b"qXfer:features:read:target.xml:zz": b"E16",
            b"qRcmd,f": b"E16",
            b"qRcmd,68656c70": b"OK",  # help
            b"G00": b"E16",
        }.items():
            assert client.ask(packet) == answer, packet


def test_a_debugger_that_never_reads_stops_nobody(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    machine = vmm_machine(rom(tmp_path, LOOPS["counts"]), machine="pc", accel=PLAIN, gdb="tcp::0")
    with Debugged(machine) as debugged, Client(machine) as client:
        client.socket.settimeout(0.2)
        with contextlib.suppress(OSError):  # it is thrown out
            for _ in range(100000):
                client.send(b"m0,1f00")
        asked = time.monotonic()
        machine.stop()
        assert debugged.join().reason is Reason.STOPPED
        assert time.monotonic() - asked < PATIENCE / 2
        assert machine.debugger is not None
        assert not machine.debugger.connected


@BOTH
def test_monitor_reset_leaves_the_machine_at_its_first_instruction(
    vmm_machine: MachineFactory, tmp_path: Path, accel: str
) -> None:
    machine = vmm_machine(rom(tmp_path, LOOPS["counts"]), machine="pc", accel=accel, cpus=2, gdb="tcp::0", hold=True)
    with Debugged(machine), Client(machine) as client:
        for _ in range(2):
            assert [client.ask(b"vCont;s:1") for _ in range(3)] == [b"T05thread:1;"] * 3
            assert client.ask(b"p8") != b"f0ffffff"
            assert client.ask(b"qRcmd," + b"reset".hex().encode()) == b"OK"
            assert client.ask(b"p8") == b"f0ffffff"
    assert machine.reset_count == 2


@BOTH
def test_monitor_snapshot_keeps_the_machine_where_it_is_held(
    vmm_machine: MachineFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accel: str
) -> None:
    monkeypatch.chdir(tmp_path)
    machine = vmm_machine(rom(tmp_path, LOOPS["counts"]), machine="pc", accel=accel, cpus=2, gdb="tcp::0", hold=True)
    with Debugged(machine), Client(machine) as client:
        assert [client.ask(b"vCont;s:1") for _ in range(5)] == [b"T05thread:1;"] * 5
        rip = client.ask(b"p8")
        assert rip is not None
        assert client.monitor("snapshot held") == "the machine is in held: vmm boot --from held\n"
        for name in ("held", "", ".", "a/b", "../x", "a\nb"):
            assert client.monitor(f"snapshot {name}").startswith("the name of a new file is wanted")
        assert client.ask(b"p8") == rip
        assert client.ask(b"vCont;s:1") == b"T05thread:1;"
        assert client.ask(b"p8") != rip
    with Snapshot.load("held") as snapshot, Machine.restore(snapshot) as restored:
        assert restored.vcpus[0].get_regs().rip + restored.vcpus[0].get_sregs().cs.base == int.from_bytes(
            bytes.fromhex(rip.decode()), "little"
        )


@BOTH
def test_a_debugger_looks_at_a_machine_that_goes_on(vmm_machine: MachineFactory, tmp_path: Path, accel: str) -> None:
    machine = vmm_machine(rom(tmp_path, LOOPS["counts"]), machine="pc", accel=accel, cpus=2, gdb="tcp::0", hold=True)
    with Debugged(machine), Client(machine) as client:
        assert [client.ask(b"vCont;s:1") for _ in range(4)] == [b"T05thread:1;"] * 4
        there = client.ask(b"p8")
        with machine.snapshot_while_held() as snapshot:
            snapshot.save(tmp_path / "held.snap")
    with Snapshot.load(tmp_path / "held.snap") as snapshot:
        restored = Machine.restore(snapshot, gdb="tcp::0", hold=True)
    with restored, Debugged(restored), Client(restored) as client:
        assert client.ask(b"?") == b"T05thread:1;"
        assert client.ask(b"p8") == there
        assert client.ask(b"vCont;s:1") == b"T05thread:1;"
        assert client.ask(b"p8") != there


def test_monitor_snapshot_says_how_a_process_may_make_files(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    machine = vmm_machine(rom(tmp_path, LOOPS["counts"]), machine="pc", accel=PLAIN, gdb="tcp::0", hold=True)
    machine.config = machine.config._replace(sandbox=Sandboxing.WHOLE)
    with Debugged(machine), Client(machine) as client:
        answer = client.monitor("snapshot held")
    refusal, _, remedy = answer.partition(": start it with ")
    assert refusal == "this process may make no file"
    option, value = remedy.split()
    assert option == "--sandbox"
    assert sandboxing(value, Sandboxing.WHOLE) is Sandboxing.OFF


def test_kill_ends_the_run(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    machine = vmm_machine(rom(tmp_path, LOOPS["counts"]), machine="pc", accel=PLAIN, gdb="tcp::0")
    with Debugged(machine) as debugged:
        assert "killed" in debugged.gdb("kill")
        outcome = debugged.join()
    assert (outcome.reason, outcome.message) == (Reason.STOPPED, "the debugger ended the machine")


def test_an_end_that_nobody_wanted_can_be_looked_at(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    machine = vmm_machine(rom(tmp_path, RESET), machine="pc", accel=PLAIN, reboot=False, gdb="tcp::0", hold=True)
    with Debugged(machine) as debugged:
        printed = debugged.gdb("continue", "p/x $edx & 0xffff", "continue")
        assert debugged.join().reason is Reason.RESET
    assert "the guest reset the machine" in printed
    assert "received signal SIGTERM" in printed
    assert "$1 = 0xcf9" in printed
    assert "exited with code 01" in printed


def test_time_stands_still_while_the_machine_is_held(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    machine = vmm_machine(rom(tmp_path, LOOPS["counts"]), machine="pc", accel=PLAIN, gdb="tcp::0", hold=True)

    def look() -> None:
        with Client(machine) as client:
            time.sleep(1.5)
            client.ask(b"D")

    thread = threading.Thread(target=look)
    thread.start()
    outcome = machine.run(deadline=1)
    thread.join()
    assert outcome.reason is Reason.TIMEOUT
    assert 1 <= outcome.elapsed_s < PATIENCE
    assert machine.run(deadline=0.1).reason is Reason.TIMEOUT  # nobody is waited for a second time


def test_a_held_machine_can_be_stopped(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    machine = vmm_machine(rom(tmp_path, LOOPS["counts"]), machine="pc", accel=PLAIN, gdb="tcp::0", hold=True)
    with Debugged(machine) as debugged, Client(machine) as client:
        assert client.ask(b"?") == b"T05thread:1;"
        machine.stop()
        assert debugged.join().reason is Reason.STOPPED


def test_a_unix_socket(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    path = tmp_path / "gdb socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # and left behind by a process that was killed
    made = rom(tmp_path, LOOPS["counts"])
    machine = vmm_machine(made, machine="pc", accel=PLAIN, gdb=f"unix:{path}", hold=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Debugged(machine) as debugged:
        printed = debugged.gdb("detach")
        assert "0xfffffff0" in printed
        with pytest.raises(ConfigError, match="Address already in use"):
            vmm_machine(made, machine="pc", accel=PLAIN, gdb=f"unix:{path}")
    machine.close()
    assert not path.exists()


def test_who_debugs_nothing_pays_nothing(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    """What a machine with a debugger that has gone executes is what one without executes."""
    # Two million stores and loads, then a reset.
    code = "31 c0 8e d8 66 b9 80 84 1e 00 a3 00 20 a1 00 20 66 49 75 f6 ba f9 0c b0 06 ee fa f4"

    def instructions(**options: object) -> int:
        machine = vmm_machine(rom(tmp_path, code), machine="pc", reboot=False, **options)
        if options:
            with Debugged(machine) as debugged, Client(machine) as client:
                assert client.ask(b"Z0,1,1") == b"OK"
                assert client.ask(b"Z2,2000,1") == b"OK"
                client.ask(b"D")
                debugged.join()
        else:
            machine.run(deadline=PATIENCE)
        assert machine.softcpu is not None
        return machine.softcpu.counters().instructions

    if has_hardware_virtualization():
        pytest.skip("counts instructions of the software CPU")
    assert instructions(gdb="tcp::0", hold=True) == instructions()
