"""The machine as its users hold it: every way a run ends, and what is left afterwards."""

import copy
import gc
import inspect
import pydoc
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from accelerators import PLAIN
from moments import once_it_runs

import vmm
from vmm import Machine, MachineConfig, Outcome, Reason, layout
from vmm.bus import Device
from vmm.config.topology import Topology
from vmm.cpu import cpuid
from vmm.errors import ConfigError, DeviceError, ExitStatus
from vmm.firmware import guests
from vmm.info import cpu_facts
from vmm.kvm import Kvm
from vmm.pytest_plugin.plugin import MachineFactory

pytestmark = [pytest.mark.needs_kvm, pytest.mark.hw]

GENEROUS = 60.0
"""Seconds; a busy machine must not fail a test that isn't about time."""


def run_guest(vmm_machine: MachineFactory, name: str, **run: Any) -> Outcome:
    outcome: Outcome = vmm_machine(guests.path(name), accel=PLAIN).run(**{"deadline": GENEROUS, **run})
    return outcome


def test_a_guest_powers_off(vmm_machine: MachineFactory) -> None:
    outcome = run_guest(vmm_machine, "exit")
    assert (outcome.reason, outcome.exit_status) == (Reason.POWER_OFF, ExitStatus.OK)
    assert outcome.reached


def test_power_off_before_until_is_a_failure(vmm_machine: MachineFactory) -> None:
    outcome = run_guest(vmm_machine, "exit", until="never printed")
    assert outcome.reason is Reason.POWER_OFF
    assert outcome.missed_until == "never printed"
    assert outcome.message == "the guest powered the machine off, and never showed 'never printed'"
    assert outcome.exit_status is ExitStatus.GUEST_FAILED


def test_what_a_guest_printed_before_it_powered_off_counts(vmm_machine: MachineFactory) -> None:
    assert run_guest(vmm_machine, "probe", until="status: 0").reason is Reason.UNTIL


@pytest.mark.parametrize("cpus", [1, 4, 8])
def test_every_cpu_starts(vmm_machine: MachineFactory, cpus: int) -> None:
    machine = vmm_machine("probe", cpus=cpus, accel=PLAIN)
    assert machine.run(deadline=GENEROUS).reached
    assert f"cpus started: {cpus}\n" in machine.debugcon.text()
    started = machine.started_s()
    assert all(seconds is not None for seconds in started)
    assert len(started) == cpus


@pytest.mark.parametrize("accel", ["kvm", "auto"])
def test_a_cpu_whose_thread_comes_after_its_startup_message_is_counted(
    vmm_machine: MachineFactory, monkeypatch: pytest.MonkeyPatch, accel: str
) -> None:
    machine = vmm_machine("probe", cpus=2, accel=accel)
    with monkeypatch.context() as patch:
        threads = machine._runner._threads
        patch.setattr(threads, "_tasks", threads._tasks[:1])
        assert machine.run(deadline=1).reason is Reason.TIMEOUT
    assert machine.started_s()[1] is None
    assert machine.run(deadline=GENEROUS).reached
    # Not only once the guest had ended: parked in HLT, the CPU leaves KVM no earlier.
    events = [event.event for event in machine.timeline]
    assert events.index("vCPU 1 started") < events.index("power-off")


def test_a_cpu_that_nobody_starts_is_not_counted(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine(guests.path("exit"), cpus=3, accel=PLAIN)
    assert machine.run(deadline=GENEROUS).reached
    assert machine.started_s() == [0.0, None, None]


def test_the_deadline_ends_a_guest_that_spins_with_interrupts_off(vmm_machine: MachineFactory) -> None:
    outcome = run_guest(vmm_machine, "hang", until="never printed", deadline=0.3)
    assert (outcome.reason, outcome.exit_status) == (Reason.TIMEOUT, ExitStatus.TIMEOUT)
    assert "never printed" in outcome.message


def test_a_silent_guest_is_called_silent(vmm_machine: MachineFactory) -> None:
    assert "printed nothing" in run_guest(vmm_machine, "silent", until="Shell>", deadline=0.3).message


def test_a_triple_fault_names_the_place(vmm_machine: MachineFactory) -> None:
    outcome = run_guest(vmm_machine, "triple-fault")
    assert (outcome.reason, outcome.exit_status) == (Reason.TRIPLE_FAULT, ExitStatus.GUEST_FAILED)
    if cpu_facts()["virtualization"] == "svm":
        assert "where is not known" in outcome.message
    else:
        assert "RIP 0xffff" in outcome.message
    assert "RAX" in outcome.details


def test_stop_comes_from_another_thread(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine(guests.path("hang"), accel=PLAIN)
    with once_it_runs(machine, machine.stop):
        assert machine.run(deadline=GENEROUS).reason is Reason.STOPPED


def test_ctrl_c_ends_the_run_and_is_reported(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine(guests.path("hang"), accel=PLAIN)
    main = threading.main_thread().ident
    assert main is not None
    with once_it_runs(machine, lambda: signal.pthread_kill(main, signal.SIGINT)):
        outcome = machine.run(deadline=GENEROUS)
    assert (outcome.reason, outcome.exit_status) == (Reason.INTERRUPTED, ExitStatus.INTERRUPTED)


def test_a_stopped_guest_goes_on_where_it_was(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("seabios", accel=PLAIN)
    assert machine.run(until="PCI: init bdf", deadline=GENEROUS).reached
    assert machine.run(until="Space available for UMB", deadline=GENEROUS).reached
    assert machine.debugcon.text().count("Found QEMU fw_cfg") == 1


def test_a_failing_device_stops_the_machine_and_reaches_the_caller(vmm_machine: MachineFactory) -> None:
    class Broken(Device):
        def read(self, offset: int, size: int) -> int:
            raise ZeroDivisionError(offset, size)

        def write(self, offset: int, size: int, value: int) -> None:
            raise ZeroDivisionError(offset, size, value)

    machine = vmm_machine("probe", accel=PLAIN)
    machine.ports.remove(layout.PORT_DEBUG_QEMU.start)
    machine.ports.add(layout.PORT_DEBUG_QEMU.start, layout.PORT_DEBUG_QEMU.start, Broken(), "broken")
    with pytest.raises(DeviceError, match="ZeroDivisionError"):
        machine.run(deadline=GENEROUS)


@pytest.mark.parametrize(
    ("memory", "low", "high"),
    [("16M", 16 << 20, 0), ("2815M", 2815 << 20, 0), ("2816M", 2 << 30, 768 << 20), ("6G", 2 << 30, 4 << 30)],
)
def test_ram_is_split_at_the_pci_hole(vmm_machine: MachineFactory, memory: str, low: int, high: int) -> None:
    machine = vmm_machine(guests.path("probe"), memory=memory, accel=PLAIN)
    assert machine.run(deadline=GENEROUS).reached
    lines = [f"e820: base 0x{0:016x} length 0x{low:016x} type 1"]
    if high:
        lines.append(f"e820: base 0x{1 << 32:016x} length 0x{high:016x} type 1")
        machine.memory.write((1 << 32) + high - 4, b"last")
        with pytest.raises(ValueError, match="no writable memory"):
            machine.memory.write((1 << 32) + high - 2, b"last")
    assert [line for line in machine.debugcon.text().splitlines() if line.startswith("e820:")] == lines


@pytest.mark.usefixtures("kvm_device")
def test_more_cpus_than_kvm_has_are_refused() -> None:
    with Kvm() as kvm, pytest.raises(ConfigError, match="100000"):
        cpuid.check_count(kvm, Topology(cores=100_000))


def test_machines_leave_nothing_behind() -> None:
    def open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    def one_machine() -> None:
        with Machine("probe", cpus=2, accel=PLAIN) as machine:
            machine.run(deadline=GENEROUS)

    one_machine()
    gc.collect()
    files, threads = open_files(), threading.active_count()
    for _ in range(5):
        one_machine()
    gc.collect()
    assert (open_files(), threading.active_count()) == (files, threads)


def test_close_may_be_called_twice(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine(guests.path("exit"), accel=PLAIN)
    machine.close()
    machine.close()


def test_two_machines_run_side_by_side(vmm_machine: MachineFactory) -> None:
    machines = [vmm_machine("probe", cpus=2, accel=PLAIN) for _ in range(2)]
    threads = [threading.Thread(target=machine.run, kwargs={"deadline": GENEROUS}) for machine in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("status: 0" in machine.debugcon.text() for machine in machines)


def test_the_timeline_is_in_order(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("probe", cpus=2, accel=PLAIN)
    began = time.monotonic()
    machine.run(deadline=GENEROUS)
    elapsed = time.monotonic() - began
    times = [event.t_s for event in machine.timeline]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] <= elapsed
    assert machine.timeline[-1].event == "power-off"


@pytest.mark.parametrize("dispatch", ["c", "python"])
def test_the_timeline_has_lines_and_items(vmm_machine: MachineFactory, dispatch: str) -> None:
    machine = vmm_machine("probe", accel=PLAIN, dispatch=dispatch)
    machine.run(deadline=GENEROUS)
    lines = [event.event for event in machine.timeline if event.kind == "console-line"]
    assert lines == [line.strip() for line in machine.debugcon.text().splitlines() if line.strip()]
    items = [event.subject for event in machine.timeline if event.kind == "fw-cfg-item"]
    assert sorted(items) == sorted(item.name for item in machine.trace.items() if item.selects)
    assert items[:2] == ["signature", "id"]


@pytest.mark.parametrize("accel", ["kvm", "auto"])
def test_a_closed_machine_tells_what_it_counted_and_runs_no_more(vmm_machine: MachineFactory, accel: str) -> None:
    machine = vmm_machine("exit", accel=accel, exit_times=True)
    machine.run(deadline=GENEROUS)
    open_machine = (machine.started_s(), machine.exit_counts(), machine.accelerator_report(), len(machine.exit_times()))
    machine.close()
    gc.collect()
    assert (machine.started_s(), machine.exit_counts(), machine.accelerator_report(), len(machine.exit_times())) == (
        open_machine
    )
    assert machine.fw_cfg is not None
    assert machine.fw_cfg.items()
    with pytest.raises(ValueError, match="closed, and its memory gone"):
        machine.memory.read(0, 4)
    with pytest.raises(ValueError, match="the machine is closed"):
        machine.run(deadline=GENEROUS)


def test_options_beside_a_whole_config_are_refused() -> None:
    with pytest.raises(TypeError, match="cpus, memory cannot be given beside it"):
        Machine(MachineConfig.create("exit"), cpus=4, memory="64M")


def test_until_must_be_a_regular_expression(vmm_machine: MachineFactory) -> None:
    with pytest.raises(ConfigError, match=r"\[: not a regular expression"):
        vmm_machine("exit").run(until="[", deadline=GENEROUS)


def test_a_machine_that_cannot_be_built_gives_back_what_it_had(tmp_path: Path) -> None:
    def open_files() -> set[str]:
        return {str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()}

    before = open_files()
    with pytest.raises(ConfigError, match=r"-debugcon file:.*cannot write"):
        Machine("exit", serial=f"file:{tmp_path}/serial", debugcon=f"file:{tmp_path}/no/debugcon")
    assert open_files() == before


def test_what_is_printed_of_a_machine_is_short_and_readable(vmm_machine: MachineFactory) -> None:
    config = MachineConfig.create("ovmf", cpus=2, fw_cfg={"opt/a": bytes(100_000)})
    assert len(repr(config)) < 400
    assert "OVMF_CODE" in repr(config)
    assert "cpus=2" in repr(config)
    assert "memory" not in repr(config)  # as it is anyway
    machine = vmm_machine("triple-fault", accel=PLAIN)
    assert "triple-fault.fd, 1 CPU, not run yet" in repr(machine)
    assert repr(machine.serial) == "<Stream serial: 0 bytes>"
    assert "0x10000000 bytes of RAM from 0" in repr(machine.memory)
    assert "ranges" in repr(machine.ports)
    assert "items" in repr(machine.fw_cfg)
    assert "16-bit code at RIP 0xfff0, CPL 0" in repr(machine.registers())
    assert "RIP 000000000000fff0" in str(machine.registers())
    vcpu = machine.vcpus[0]
    for shown in (
        vcpu.get_sregs(),
        vcpu.get_fpu(),
        vcpu.get_debugregs(),
        vcpu.get_vcpu_events(),
        machine.vm.get_pit2(),
    ):
        assert "cdata" not in repr(shown)
        assert repr(shown).startswith("<struct kvm_")
    assert "rdx=0x" in repr(vcpu.get_regs())
    assert "cs=<struct kvm_segment: base=0xffff0000, limit=0xffff, selector=0xf000" in repr(vcpu.get_sregs())
    assert "xmm=[" + ", ".join(["00" * 16] * 16) + "]" in repr(vcpu.get_fpu())
    assert {"rax", "rip"} < set(dir(vcpu.get_regs()))
    regs = vcpu.get_regs()
    kept, segment = copy.copy(regs), copy.copy(vcpu.get_sregs().cs)
    regs.rip = 1
    assert (kept.rip, segment.selector) == (0xFFF0, 0xF000)
    with pytest.raises(IndexError, match="no vCPU 1: the machine has 1 CPU"):
        machine.registers(1)
    machine.run(deadline=GENEROUS)
    assert "ended: triple-fault" in repr(machine)


def test_memory_that_there_is_not_is_said(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("exit", memory="64M", accel=PLAIN)
    for address, size in ((-1, 4), (1 << 64, 4), (0, 1 << 50), (0, -1)):
        with pytest.raises(ValueError, match=f"no memory of {size} bytes at {address:#x}"):
            machine.memory.read(address, size)
    with pytest.raises(TypeError, match="data: must be bytes or bytearray or memoryview, not str"):
        machine.memory.write(0, "x")  # type: ignore[arg-type]
    machine.memory.write(0x1000, memoryview(b"abc"))
    assert machine.memory.read(0x1000, 3) == b"abc"
    machine.close()
    with pytest.raises(ValueError, match="the machine is closed, and its memory gone"):
        machine.memory.read(0x1000, 3)


def test_the_public_surface_is_shown() -> None:
    assert dir(vmm) == [
        "ExpectError",
        "Expected",
        "Machine",
        "MachineConfig",
        "MachineOptions",
        "Outcome",
        "Reason",
        "SendError",
        "Snapshot",
    ]
    own = ["config", "customize", "alter", "outputs", "resumption", "ahead"]
    assert list(inspect.signature(vmm.Machine).parameters) == [*own, *vmm.MachineOptions.__annotations__]
    create = inspect.signature(vmm.MachineConfig.create)
    assert list(create.parameters) == ["firmware", *vmm.MachineOptions.__annotations__]
    assert "Unpack" not in pydoc.plain(pydoc.render_doc(vmm.MachineConfig.create))
    text = pydoc.plain(pydoc.render_doc(vmm.Machine))
    assert "Unpack" not in text
    for name in ("serial", "debugcon", "fw_cfg", "fwctl", "memory", "vcpus", "run(", "timeline"):
        assert name in text
