"""CPUs that are plugged in: what firmware and Linux make of them, and what is refused."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import linux_machine
import pytest
import real_mode_rom

from vmm.config.machine import MachineConfig
from vmm.errors import ConfigError, ExitStatus
from vmm.layout import DEFAULT_SMBASE
from vmm.machine import Machine
from vmm.pytest_plugin.plugin import MachineFactory
from vmm.run.expected import SendError
from vmm.run.outcome import Reason

pytestmark = pytest.mark.needs_kvm

DEADLINE = 120.0

SECBOOT = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"

SYSFS = "/sys/devices/system/cpu"

USES_IT = f"""
echo "possible $(cat {SYSFS}/possible), online $(cat {SYSFS}/online)."
echo it waits
while [ ! -d {SYSFS}/cpu2 ]; do sleep 0.1; done
echo 1 > {SYSFS}/cpu2/online
echo "online $(cat {SYSFS}/online)."
echo "it ran on $(taskset 4 awk '{{print $39}}' /proc/self/stat)."
echo "present $(cat {SYSFS}/present)."
"""
"""Fields of that file are numbered in proc(5): 39 is the CPU. Linux numbers CPUs in the order in which they come;
6.12 in that of the MADT."""


def linux(tmp_path: Path, script: str, firmware: str = "none", **fields: Any) -> MachineConfig:
    """A Linux with two CPUs, of five that there may be."""
    own = linux_machine.fields(script, tmp_path / "initrd") | {"direct": firmware == "none"}
    return MachineConfig.create(firmware, **own | {"cpus": 2, "max_cpus": 5} | fields)


@pytest.mark.parametrize(
    ("firmware", "board", "accel"), [("none", "q35", "auto"), ("seabios", "pc", "auto"), ("none", "q35", "softcpu")]
)
def test_linux_uses_a_cpu_that_is_plugged_in(tmp_path: Path, firmware: str, board: str, accel: str) -> None:
    """Also in what is restored from a snapshot, with two of which it has heard nothing yet."""
    with Machine(linux(tmp_path, USES_IT, firmware, machine=board, accel=accel)) as machine:
        machine.expect(r"possible 0-4, online 0-1\.", deadline=DEADLINE)
        machine.expect("it waits", deadline=DEADLINE)
        assert machine.plug_cpu() == 2
        with machine.snapshot() as before:
            machine.expect(r"online 0-2\.\s+it ran on 2\.", deadline=DEADLINE)
            assert machine.run(deadline=DEADLINE).reason is Reason.POWER_OFF
            assert [each is not None for each in machine.started_s()] == [True, True, True, False, False]
            assert machine.platform.cpu_hotplug is not None
            device_check, success = 1, 0
            assert machine.platform.cpu_hotplug.ost[2] == (device_check, success)
            with pytest.raises(SendError):
                machine.plug_cpu()
            with Machine.restore(before) as restored:
                assert restored.present_cpus == [0, 1, 2]
                assert restored.plug_cpu(3) == 3
                restored.expect(r"online 0-2\.", deadline=DEADLINE)
                with restored.snapshot() as after, Machine.restore(after) as again:
                    again.expect(r"it ran on 2\.\s+present 0-3\.", deadline=DEADLINE)
                    assert again.present_cpus == [0, 1, 2, 3]


INTERRUPTS_IT = f"""{USES_IT}
grep ^apicid /proc/cpuinfo
echo 2 > /proc/irq/4/smp_affinity_list
while [ "$(awk '$1 == "4:" {{print $4}}' /proc/interrupts)" = 0 ]; do echo .; done
echo "the port interrupts it."
"""
"""Its columns are the CPUs that are online."""


@pytest.mark.parametrize("number", [255, 300])
def test_linux_uses_a_cpu_whose_id_xapic_does_not_have(tmp_path: Path, number: int) -> None:
    """Without firmware that would have turned x2APIC on; for interrupts of devices, too."""
    with Machine(linux(tmp_path, INTERRUPTS_IT, max_cpus=number + 1, accel="softcpu")) as machine:
        machine.expect("it waits", deadline=DEADLINE)
        machine.plug_cpu(number)
        machine.expect(r"online 0-2\.\s+it ran on 2\.", deadline=DEADLINE)
        machine.expect(rf"apicid\s*: 0\s+apicid\s*: 1\s+apicid\s*: {number}\s", deadline=DEADLINE)
        machine.expect(r"the port interrupts it\.", deadline=DEADLINE)
        assert machine.run(deadline=DEADLINE).reason is Reason.POWER_OFF


LETS_IT_GO = (
    USES_IT
    + f"""
while [ -d {SYSFS}/cpu2 ]; do sleep 0.1; done
echo "present $(cat {SYSFS}/present) is left."
while [ ! -d {SYSFS}/cpu2 ]; do sleep 0.1; done
echo 1 > {SYSFS}/cpu2/online
echo "again it ran on $(taskset 4 awk '{{print $39}}' /proc/self/stat)."
"""
)


def test_linux_lets_a_cpu_go_which_may_come_again(tmp_path: Path) -> None:
    with Machine(linux(tmp_path, LETS_IT_GO, accel="softcpu")) as machine:
        with pytest.raises(ConfigError, match="nobody listens"):
            machine.unplug_cpu(1)
        machine.expect("it waits", deadline=DEADLINE)
        machine.plug_cpu(2)
        machine.expect(r"it ran on 2\.\s+present 0-2\.", deadline=DEADLINE)
        machine.unplug_cpu(2)
        machine.expect(r"present 0-1 is left\.", deadline=DEADLINE)
        assert machine.present_cpus == [0, 1]
        for index, message in ((0, "CPU 0 is the one"), (2, "there is no CPU 2"), (5, "there is no CPU 5")):
            with pytest.raises(ConfigError, match=message):
                machine.unplug_cpu(index)
        with machine.snapshot() as snapshot, Machine.restore(snapshot) as restored:
            assert restored.present_cpus == [0, 1]
        machine.plug_cpu(2)
        machine.expect(r"again it ran on 2\.", deadline=DEADLINE)
        assert machine.run(deadline=DEADLINE).reason is Reason.POWER_OFF


def test_a_cpu_goes_and_comes_again_within_one_run(tmp_path: Path) -> None:
    asked = False

    def poll(machine: Machine) -> None:
        nonlocal asked
        text = machine.serial.text()
        if not asked and "present 0-2." in text:
            machine.unplug_cpu(2)
            asked = True
        if machine.present_cpus == [0, 1] and (("it waits" in text and not asked) or "is left" in text):
            with suppress(ConfigError):  # its thread may still stop; then it is plugged in next time
                machine.plug_cpu(2)

    with Machine(linux(tmp_path, LETS_IT_GO)) as machine:
        outcome = machine.run(deadline=DEADLINE, on_poll=poll)
        assert "again it ran on 2." in machine.serial.text()
        assert outcome.reason is Reason.POWER_OFF


def plugs(index: int | None) -> Callable[[Machine], None]:
    """For `Machine.run`: plug it in, in the middle of the run."""

    def poll(machine: Machine) -> None:
        if len(machine.present_cpus) == machine.config.cpus:
            machine.plug_cpu(index)

    return poll


def test_it_stays_at_a_reset_and_firmware_counts_it(tmp_path: Path) -> None:
    script = f"""
        echo "online $(cat {SYSFS}/online)."
        while [ ! -d {SYSFS}/cpu2 ]; do sleep 0.1; done
        echo it is there
        read x
        reboot -f
    """
    with Machine(linux(tmp_path, script, "ovmf")) as machine:
        machine.expect(r"online 0-1\.", deadline=DEADLINE)
        assert machine.run("it is there", DEADLINE, on_poll=plugs(2)).reached
        assert [each is not None for each in machine.started_s()] == [True, True, False, False, False]
        machine.send_line()
        machine.expect(r"online 0-2\.", deadline=DEADLINE)
        assert machine.reset_count == 1
        assert [each is not None for each in machine.started_s()] == [True, True, True, False, False]


@pytest.mark.parametrize("board", ["q35", "pc"])
def test_ovmf_counts_cpus_by_the_registers(vmm_machine: MachineFactory, board: str) -> None:
    machine = vmm_machine("ovmf", cpus=2, max_cpus=8, machine=board)
    machine.plug_cpu(5)
    # It waits for as many as it has counted.
    machine.expect("any other key to continue", deadline=DEADLINE)
    started = [index for index, seconds in enumerate(machine.started_s()) if seconds is not None]
    assert started == machine.present_cpus == [0, 1, 5]
    (registers,) = (each for each in machine.ports.ranges() if each.name == "CPU hot-plug")
    assert registers.reads >= machine.config.max_cpus


@pytest.mark.hw
@pytest.mark.parametrize("accel", ["kvm", "softcpu"])
def test_only_those_that_are_there_answer(vmm_machine: MachineFactory, accel: str) -> None:
    machine = vmm_machine("probe", cpus=2, max_cpus=6, accel=accel)
    machine.run(deadline=DEADLINE)
    assert "apic ids: 0 1\n" in machine.debugcon.text()
    machine.reset()
    for index in (4, 2):
        assert machine.plug_cpu(index if index == 4 else None) == index
    mark = machine.debugcon.total
    machine.run(deadline=DEADLINE)
    assert b"apic ids: 0 1 2 4\n" in machine.debugcon.since(mark)
    with pytest.raises(IndexError, match="no vCPU 3: the machine has 4 CPUs"):
        machine.registers(3)


def test_what_cannot_be_plugged_in(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("probe", cpus=1, max_cpus=3)
    for index, message in ((0, "CPU 0 is there already"), (3, "no CPU 3: maxcpus is 3"), (-1, "no CPU -1")):
        with pytest.raises(ConfigError, match=message):
            machine.plug_cpu(index)
    with pytest.raises(TypeError, match="index"):
        machine.plug_cpu("1")  # type: ignore[arg-type]
    assert (machine.plug_cpu(), machine.plug_cpu()) == (1, 2)
    with pytest.raises(ConfigError, match="all 3 CPUs that maxcpus gives room for are there"):
        machine.plug_cpu()
    with pytest.raises(ConfigError, match="no room for another CPU; make the machine with -smp 2,maxcpus=N"):
        vmm_machine("probe", cpus=2).plug_cpu()
    with pytest.raises(ConfigError, match="a bhyve machine has nothing to tell the guest by; take q35 or pc"):
        vmm_machine("probe", cpus=1, max_cpus=2, machine="bhyve").plug_cpu()
    machine.close()
    with pytest.raises(ValueError, match="closed"):
        machine.plug_cpu()


USES_TWO = (
    USES_IT
    + f"""
while [ ! -d {SYSFS}/cpu3 ]; do sleep 0.1; done
echo 1 > {SYSFS}/cpu3/online
echo "then $(taskset 4 awk '{{print $39}}' /proc/self/stat) and $(taskset 8 awk '{{print $39}}' /proc/self/stat)."
read x
"""
)


def apm_writes(machine: Machine) -> int:
    """What ACPI and firmware send SMIs by."""
    (apm,) = (each for each in machine.ports.ranges() if each.name == "APM")
    return apm.writes


def test_firmware_in_system_management_mode_takes_it_in(tmp_path: Path) -> None:
    """The SMI for the second one is for the first, too, which comes back from it."""
    with Machine(linux(tmp_path, USES_TWO, SECBOOT)) as machine:
        with pytest.raises(ConfigError, match=r"and has not .* agreed to be told of CPUs"):
            machine.plug_cpu()
        machine.expect("it waits", deadline=DEADLINE)
        default = DEFAULT_SMBASE.start
        assert not [region for region in machine.memory.regions() if region.gpa <= default < region.gpa + region.size]
        before = apm_writes(machine)
        machine.plug_cpu()
        machine.expect(r"it ran on 2\.", deadline=DEADLINE)
        assert apm_writes(machine) == before + 1
        machine.plug_cpu()
        machine.expect(r"then 2 and 3\.", deadline=DEADLINE)
        assert apm_writes(machine) == before + 2


def test_firmware_that_leaves_that_mode_alone_gets_it(vmm_machine: MachineFactory) -> None:
    assert vmm_machine("seabios", cpus=1, max_cpus=2, smm="on", machine="q35").plug_cpu() == 1


def test_a_script_plugs_one_in(tmp_path: Path) -> None:
    """In the sandbox that the command line has."""
    initrd, script, report = tmp_path / "initrd", tmp_path / "script", tmp_path / "report.json"
    fields = linux_machine.fields(USES_IT, initrd)
    script.write_text("timeout 100\nexpect it waits\nplug-cpu\nexpect it ran on 2\\.\npower-off\n")
    words = ["-direct", "-kernel", fields["kernel"], "-initrd", initrd, "-append", fields["append"]]
    command = [sys.executable, "-m", "vmm", "boot", *words, "-smp", "2,maxcpus=3", "--script", script, "--json", report]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert run.returncode == ExitStatus.OK, run.stdout + run.stderr
    assert "2 asked for, 1 plugged in, 3 started" in run.stderr
    cpus = json.loads(report.read_text())["cpus"]
    assert (cpus["requested"], cpus["max"], cpus["plugged"], cpus["started"]) == (2, 3, [2], 3)


def test_a_run_that_begins_while_one_is_plugged_in_has_its_thread(
    vmm_machine: MachineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = vmm_machine("probe", cpus=1, max_cpus=2)
    threads = machine._threads
    launch = threads.launch

    def begin_behind_it(index: int) -> None:
        launch(index)
        monkeypatch.undo()
        threads.start(machine._lifetime.fail)

    monkeypatch.setattr(threads, "launch", begin_behind_it)
    machine.plug_cpu(1)
    assert threads.has(1)
    threads.stop()


def test_none_is_plugged_in_whose_thread_still_stops(
    vmm_machine: MachineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run may be about to end, or the others to go on without it."""
    machine = vmm_machine("probe", cpus=2, max_cpus=3)
    threads, kick = machine._threads, machine._threads.kick
    left, kicked = threading.Event(), threading.Event()

    def note() -> None:
        kick()
        kicked.set()

    def linger() -> None:
        left.wait()

    threads._tasks[1] = linger
    threads.start(machine._lifetime.fail)
    monkeypatch.setattr(threads, "kick", note)
    stops = threading.Thread(target=threads.stop)
    stops.start()
    try:
        kicked.wait()
        machine._present[1] = False  # as the guest lets go of it
        with pytest.raises(ConfigError, match="CPU 1 was taken out just now, and still stops"):
            machine.plug_cpu(1)
        assert machine.plug_cpu() == 2
        with pytest.raises(ConfigError, match="CPU 1 was taken out just now, and still stops"):
            machine.plug_cpu()
    finally:
        left.set()
        stops.join()
    assert machine.plug_cpu(1) == 1


LETS_GO_OF_1 = (
    "ba 00 af 66 31 c0 66 ef 66 b8 01 00 00 00 66 ef"  # registers, and selects CPU 1
    "ba 04 af b0 08 ee eb fe"  # ejects it
)


@pytest.mark.parametrize("gdb", [None, "tcp::0"])
def test_its_thread_stops_without_a_debugger_and_with_one(tmp_path: Path, gdb: str | None) -> None:
    """Which starts and stops them by itself."""
    rom = tmp_path / "rom"
    rom.write_bytes(real_mode_rom.image(LETS_GO_OF_1))
    again = False

    def poll(machine: Machine) -> None:
        nonlocal again
        if machine.present_cpus == [0] and not again:
            with suppress(ConfigError):  # its thread still stops
                machine.plug_cpu(1)
                again = True
                machine.stop()

    with Machine(str(rom), machine="pc", cpus=2, max_cpus=3, gdb=gdb) as machine:
        assert machine.run(deadline=DEADLINE, on_poll=poll).reason is Reason.STOPPED
        assert machine.present_cpus == [0, 1]


def test_one_that_comes_and_is_to_go_at_once_goes(tmp_path: Path) -> None:
    """There is one event of both, and none behind it."""

    def poll(machine: Machine) -> None:
        if machine.present_cpus == [0, 1]:
            machine.stop()

    with Machine(linux(tmp_path, "echo it waits\nread x\n")) as machine:
        machine.expect("it waits", deadline=DEADLINE)
        machine.plug_cpu(3)
        machine.unplug_cpu(3)
        assert machine.run(deadline=DEADLINE, on_poll=poll).reason is Reason.STOPPED
