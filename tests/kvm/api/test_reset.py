"""Resets in place: by the guest, by Python, again and again; what they keep, and what they bring back."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from accelerators import PLAIN
from real_mode_rom import RESET, image
from vmm._native import ffi, lib

from vmm import Machine, Reason
from vmm.bus import Device
from vmm.errors import DeviceError, ExitStatus, KvmError
from vmm.firmware import guests
from vmm.kvm import Vcpu
from vmm.kvm.structs import Struct
from vmm.pytest_plugin.plugin import MachineFactory
from vmm.run.outcome import ResetKind

pytestmark = pytest.mark.needs_kvm

GENEROUS = 60.0
"""Seconds; a busy machine must not fail a test that isn't about time."""

COUNT_IN_CMOS = "b0 60 e6 70 e4 71 fe c0 e6 71"  # mov al, 60; out 70, al; in al, 71; inc al; out 71, al
SAY_COUNT = "04 40 ba 02 04 ee"  # add al, '@'; mov dx, 402; out dx, al
WAIT = "f4 eb fd"  # hlt; jmp
SPIN = "eb fe"

ACCELERATORS = pytest.mark.parametrize("accel", ["kvm", "auto", "softcpu"])
"""On hosts without hardware virtualization, auto gives an image that is not ours the software CPU."""

with_both_boards = pytest.mark.parametrize("board", ["pc", "q35"])


@pytest.fixture
def create(vmm_machine: MachineFactory, tmp_path: Path) -> Callable[..., Machine]:
    """Make a machine of some machine code in real mode."""

    def create(code: str, **options: Any) -> Machine:
        rom = tmp_path / "rom.bin"
        rom.write_bytes(image(code))
        machine: Machine = vmm_machine(str(rom), **({"machine": "pc", "accel": PLAIN} | options))
        return machine

    return create


@pytest.fixture
def guest(tmp_path: Path) -> str:
    """The guest that resets, as somebody else's."""
    return str(shutil.copy(guests.path("reset"), tmp_path / "reset.fd"))


EVERY_WAY = [
    "boot 0 after power-on, {} CPUs",
    "boot 1 after port cf9, {} CPUs",
    "boot 2 after port 92, {} CPUs",
    "boot 3 after port 64, {} CPUs",
    "boot 4 after a triple fault, {} CPUs",
]


@pytest.mark.parametrize("accel", [pytest.param("kvm", marks=pytest.mark.hw), "auto", "softcpu"])
@with_both_boards
@pytest.mark.parametrize("cpus", [1, 8])
def test_each_way_brings_the_state_after_power_on_back(
    vmm_machine: MachineFactory, guest: str, accel: str, board: str, cpus: int
) -> None:
    machine = vmm_machine(guest, accel=accel, machine=board, cpus=cpus)
    outcome = machine.run(deadline=GENEROUS)
    assert (outcome.reason, machine.reset_count) == (Reason.POWER_OFF, 4), outcome
    assert machine.debugcon.text().splitlines() == [line.format(cpus) for line in EVERY_WAY]
    assert [reset.kind.value for reset in machine.resets] == ["guest"] * 3 + ["triple-fault"]
    causes = [reset.cause for reset in machine.resets]
    assert causes[:3] == ["port 0xcf9 <- 0x06", "port 0x92 <- 0x01", "port 0x64 <- 0xfe"]
    assert causes[3].startswith("triple fault on vCPU 0")
    assert "RIP" in machine.resets[3].details
    times = [reset.t_s for reset in machine.resets]
    assert times == sorted(times)
    assert all(seconds is not None for seconds in machine.started_s())
    events = [event for event in machine.timeline if event.kind == "reset"]
    assert [(event.subject, event.event) for event in events] == [(reset.kind, reset.cause) for reset in machine.resets]
    assert len([event for event in machine.timeline if event.kind == "vcpu-started"]) == 5 * cpus


@with_both_boards
def test_the_guest_finds_the_same_on_qemu(board: str) -> None:
    output = subprocess.run(
        [
            *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-bios", guests.path("reset"), "-smp", "4"),
            *("-machine", board, "-accel", "tcg", "-cpu", "qemu64", "-serial", "null"),
            *("-chardev", "stdio,id=out", "-device", "isa-debugcon,iobase=0x402,chardev=out"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    # QEMU's PIT keeps the guest's access mode, bits 4 and 5, and its clock the guest's UIE: where the host is busy, a
    # second is over before the guest has looked at everything, and IRQ 8 is requested.
    of_qemu = {"PIT mode 0: 36, not 6", "PIC requests 1: 1, not 0"}
    assert [line for line in output.splitlines() if line not in of_qemu] == [line.format(4) for line in EVERY_WAY]


def struct_bytes(struct: Any) -> str:
    """A struct of KVM's as it is in memory."""
    cdata = struct.cdata if isinstance(struct, Struct) else struct
    return bytes(ffi.buffer(cdata)).hex()


def kvm_state(machine: Machine) -> dict[str, Any]:
    """All that KVM tells of a machine's CPUs and chips, but for clocks that run."""
    state: dict[str, Any] = {}
    # The TSC, and Hyper-V's run time and clock.
    clocks = {0x10, 0x40000010, 0x40000020}
    indices = [index for index in machine.kvm.msr_index_list() if index not in clocks]
    with machine.io_lock:
        for chip in (lib.KVM_IRQCHIP_PIC_MASTER, lib.KVM_IRQCHIP_PIC_SLAVE, lib.KVM_IRQCHIP_IOAPIC):
            state[f"chip {chip}"] = struct_bytes(machine.vm.get_irqchip(chip))
        pit = machine.vm.get_pit2()
        state["pit"] = [[getattr(c, name) for name in ("count", "mode", "gate", "rw_mode")] for c in pit.channels]
    for index, vcpu in enumerate(machine.vcpus):
        pending = list(indices)
        msrs: dict[int, int] = {}
        while pending:
            got = vcpu.get_msrs(pending)
            msrs |= got
            pending = pending[len(got) + 1 :]
        state |= {f"MSR {msr:#x} of {index}": value for msr, value in msrs.items()}
        for name in ("regs", "sregs", "debugregs", "vcpu_events", "lapic"):
            state[f"{name} {index}"] = struct_bytes(getattr(vcpu, f"get_{name}")())
        state[f"xsave {index}"] = bytes(vcpu.get_xsave()).hex()
        state[f"xcrs {index}"] = vcpu.get_xcrs()
        state[f"mp {index}"] = vcpu.get_mp_state()
    return state


@pytest.mark.hw_long
@ACCELERATORS
def test_kvms_state_is_that_of_a_new_machine(vmm_machine: MachineFactory, guest: str, accel: str) -> None:
    machine = vmm_machine(guest, accel=accel, cpus=3, machine="q35")
    expected = kvm_state(machine)
    assert machine.run(deadline=GENEROUS).reason is Reason.POWER_OFF
    assert kvm_state(machine) != expected
    # What no guest of ours does: an FPU in use, a pending NMI, an AP between INIT and SIPI.
    area = machine.vcpus[0].get_xsave()
    area[32:48] = b"\x55" * 16
    area[160:176] = b"\xaa" * 16
    machine.vcpus[0].set_xsave(area)
    machine.vcpus[1].nmi()
    machine.reset()
    found = kvm_state(machine)
    assert {name: value for name, value in found.items() if value != expected[name]} == {}


def use_msrs(machine: Machine, vcpu: Vcpu) -> list[int]:
    """Give every MSR of a vCPU that takes one another value; which ones did.

    But for Hyper-V's, which no guest has, and KVM's TSC: from outside, it is written for all vCPUs to come.
    """
    used = []
    for index in machine.kvm.msr_index_list():
        if index >> 8 == 0x400000 or (index == 0x10 and machine.softcpu is None):
            continue
        before = vcpu.get_msrs([index])
        for value in (0x5A5A5A5A5A5A5A5A, 0x12345000, 0xFFFF, 7, 2, 1, 0):
            with suppress(KvmError):
                if vcpu.set_msrs({index: value}) and vcpu.get_msrs([index]) != before:
                    used.append(index)
                    break
    return used


@pytest.mark.hw_long
@pytest.mark.parametrize("accel", sorted({PLAIN, "softcpu"}))
def test_a_cpu_that_comes_again_is_a_new_one(vmm_machine: MachineFactory, guest: str, accel: str) -> None:
    machine = vmm_machine(guest, accel=accel, machine="q35", cpus=2, max_cpus=3)
    expected, vcpu = kvm_state(machine), machine.vcpus[1]
    assert set(use_msrs(machine, vcpu)) >= {0x174, 0x17A, 0x277}
    area = vcpu.get_xsave()
    area[32:48] = b"\x55" * 16
    area[160:176] = b"\xaa" * 16
    area[512] |= 3
    vcpu.set_xsave(area)
    debug = vcpu.get_debugregs()
    debug.db[0], debug.dr7 = 0x1234, 0x401
    vcpu.set_debugregs(debug)
    lapic = vcpu.get_lapic()
    ffi.buffer(lapic)[0x80] = b"\x40"  # task priority
    vcpu.set_lapic(lapic)
    vcpu.nmi()
    registers = machine.platform.cpu_hotplug
    assert registers is not None
    with machine.io_lock:
        registers.write(0, 4, 0)
        registers.write(0, 4, 1)  # selects CPU 1
        registers.write(4, 1, 1 << 3)  # ejects it
    assert machine.present_cpus == [0]
    assert machine.plug_cpu() == 1
    found = kvm_state(machine)
    assert {name: value for name, value in found.items() if value != expected[name]} == {}
    clocks = [machine.vcpus[index].get_msrs([0x10])[0x10] for index in (0, 1, 0)]
    assert clocks == sorted(clocks)


def test_a_stop_that_was_asked_for_outlasts_a_reset(create: Callable[..., Machine]) -> None:
    machine = create(SPIN)
    machine.stop()
    machine.reset()
    assert machine.run(deadline=GENEROUS).reason is Reason.STOPPED


@ACCELERATORS
def test_a_loop_of_resets_ends_and_says_so(create: Callable[..., Machine], accel: str) -> None:
    machine = create(COUNT_IN_CMOS + SAY_COUNT + RESET, accel=accel)
    outcome = machine.run(deadline=GENEROUS)
    assert (outcome.reason, outcome.exit_status) == (Reason.RESET_LOOP, ExitStatus.GUEST_FAILED)
    assert "after 10 resets" in outcome.message
    assert "port 0xcf9 <- 0x06" in outcome.message
    assert "--max-resets" in outcome.message
    assert machine.debugcon.text() == "ABCDEFGHIJK"
    assert machine.reset_count == 10
    assert machine.run(deadline=GENEROUS) == outcome


def test_how_many_resets_a_loop_has_is_counted_for_each_run(create: Callable[..., Machine]) -> None:
    machine = create(COUNT_IN_CMOS + SAY_COUNT + RESET, max_resets=3)
    for letter in "CEGI":
        assert machine.expect(letter, deadline=GENEROUS)
    assert machine.reset_count >= 8


def test_the_deadline_covers_all_boots(create: Callable[..., Machine]) -> None:
    machine = create(RESET, max_resets=1_000_000)
    began = time.monotonic()
    assert machine.run(deadline=1).reason is Reason.TIMEOUT
    assert time.monotonic() - began < 1 + GENEROUS / 2
    assert machine.reset_count >= 2
    assert len(machine.resets) == min(100, machine.reset_count)
    stopper = threading.Timer(0.2, machine.stop)
    stopper.start()
    assert machine.run(deadline=GENEROUS).reason is Reason.STOPPED
    stopper.join()


@ACCELERATORS
@pytest.mark.parametrize("code", [WAIT, SPIN, "e4 71 eb fc"], ids=["halted", "computes", "uses a device"])
def test_python_resets_a_guest_whatever_it_does(create: Callable[..., Machine], accel: str, code: str) -> None:
    machine = create(COUNT_IN_CMOS + SAY_COUNT + code, accel=accel, cpus=2)
    machine.expect("A", deadline=GENEROUS)
    machine.reset()
    assert machine.registers().linear_rip == 0xFFFFFFF0
    machine.expect("B", deadline=GENEROUS)

    asked = iter([True])

    def on_poll(machine: Machine) -> None:
        if next(asked, False):
            machine.reset()

    assert machine.run("C", deadline=GENEROUS, on_poll=on_poll).reached
    thread = threading.Timer(0.05, machine.reset)
    thread.start()
    assert machine.run("D", deadline=GENEROUS).reached
    thread.join()
    assert [reset.kind for reset in machine.resets] == [ResetKind.USER] * 3


def test_a_guest_that_has_ended_starts_again(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("probe", accel=PLAIN, cpus=2)
    first = machine.run(deadline=GENEROUS)
    printed = machine.debugcon.text()
    assert machine.run(deadline=GENEROUS) == first
    machine.reset()
    assert "stopped" in repr(machine)
    assert machine.run(deadline=GENEROUS).reason is Reason.POWER_OFF
    assert machine.debugcon.text() == printed * 2
    machine.close()
    with pytest.raises(ValueError, match="closed"):
        machine.reset()


def test_without_reboot_a_reset_ends_the_machine(create: Callable[..., Machine], vmm_machine: MachineFactory) -> None:
    machine = create(COUNT_IN_CMOS + SAY_COUNT + RESET, reboot=False)
    outcome = machine.run(deadline=GENEROUS)
    assert (outcome.reason, outcome.message) == (Reason.RESET, "the guest reset the machine: port 0xcf9 <- 0x06")
    assert machine.debugcon.text() == "A"
    guest = str(guests.path("triple-fault"))
    assert vmm_machine(guest, accel=PLAIN).run(deadline=GENEROUS).reason is Reason.TRIPLE_FAULT
    looping = vmm_machine(guest, accel=PLAIN, reboot=True, max_resets=2)
    outcome = looping.run(deadline=GENEROUS)
    assert outcome.reason is Reason.RESET_LOOP
    assert "triple fault on vCPU 0" in outcome.message
    assert "RIP" in outcome.details


def test_a_pattern_counts_that_the_guest_prints_before_it_resets(create: Callable[..., Machine]) -> None:
    machine = create(COUNT_IN_CMOS + SAY_COUNT + RESET, max_resets=100)
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ":
        found = machine.expect(letter, deadline=GENEROUS)
        assert found.before == ""


def test_devices_of_the_user_are_reset_too(create: Callable[..., Machine]) -> None:
    class Counter(Device):
        resets = 0

        def read(self, offset: int, size: int) -> int:
            return self.resets

        def reset(self) -> None:
            self.resets += 1
            if self.resets == 4:
                raise ZeroDivisionError

    # in al, 0x80; or '0'; out 0x402
    machine = create("e4 80 0c 30 ba 02 04 ee" + RESET)
    machine.ports.add(0x80, 0x80, Counter(), "counter")
    with pytest.raises(DeviceError) as caught:
        machine.run(deadline=GENEROUS)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert machine.debugcon.text() == "0123"


def test_what_the_guest_wrote_into_fw_cfg_is_forgotten(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("conformance-fw-cfg", accel=PLAIN, devices="vmcoreinfo")
    fw_cfg = machine.fw_cfg
    assert fw_cfg is not None
    before = fw_cfg.contents("etc/vmcoreinfo")
    assert machine.run(deadline=GENEROUS).reason is Reason.POWER_OFF
    assert fw_cfg.contents("etc/vmcoreinfo") != before
    machine.reset()
    assert fw_cfg.contents("etc/vmcoreinfo") == before
    assert machine.vmcoreinfo is None
    assert machine.run(deadline=GENEROUS).reason is Reason.POWER_OFF
    assert "not ok" not in machine.debugcon.text()


def test_boot_once_is_for_the_first_boot(create: Callable[..., Machine]) -> None:
    # CMOS 0x3d: low half first, QEMU's codes: c is 2, d is 3, n is 4.
    say = "b0 3d e6 70 e4 71 ba 02 04 ee"
    machine = create(say + RESET, boot="order=cn,once=d", max_resets=3)
    assert machine.run(deadline=GENEROUS).reason is Reason.RESET_LOOP
    assert machine.debugcon.since(0) == bytes((0x03, 0x42, 0x42, 0x42))


@pytest.mark.parametrize(
    ("words", "reason", "status"),
    [
        ((), "reset-loop", 1),
        (("--max-resets", "2"), "reset-loop", 1),
        (("-no-reboot",), "reset", 1),
        (("--no-reboot",), "reset", 1),
        (("-action", "reboot=shutdown,shutdown=poweroff"), "reset", 1),
        (("--until", "C"), "until", 0),
    ],
)
def test_from_the_command_line(tmp_path: Path, words: tuple[str, ...], reason: str, status: int) -> None:
    rom, report = tmp_path / "rom.bin", tmp_path / "report.json"
    rom.write_bytes(image(COUNT_IN_CMOS + SAY_COUNT + RESET))
    command = [sys.executable, "-m", "vmm", "boot", str(rom), "-machine", "pc", "-accel", PLAIN, "--json", str(report)]
    ended = subprocess.run([*command, *words], capture_output=True, text=True, timeout=GENEROUS, check=False)
    assert ended.returncode == status, ended.stderr
    written = json.loads(report.read_text(encoding="utf-8"))
    assert written["outcome"]["reason"] == reason
    resets = written["resets"]
    # By the time that the pattern is seen, the guest may have got further.
    assert resets["count"] in {"reset": [0], "until": range(2, 11)}.get(reason, [2 if words else 10])
    assert {(reset["kind"], reset["cause"]) for reset in resets["latest"]} <= {("guest", "port 0xcf9 <- 0x06")}
    assert len(resets["latest"]) == resets["count"]
    assert [event["kind"] for event in written["timeline"]].count("reset") == resets["count"]
    assert (f"resets        {resets['count']}: " in ended.stderr) == bool(resets["count"])


@ACCELERATORS
def test_ctrl_c_amid_resets(tmp_path: Path, accel: str) -> None:
    rom = tmp_path / "rom.bin"
    rom.write_bytes(image("b0 2e ba 02 04 ee b0 0a ee" + RESET))
    command = [sys.executable, "-m", "vmm", "boot", str(rom), "-machine", "pc", "-accel", accel, "-smp", "4"]
    command += ["--max-resets", "1000000", "--timeout", str(GENEROUS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(10)] == [".\n"] * 10
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=GENEROUS)
    assert process.returncode == ExitStatus.INTERRUPTED
    assert "Traceback" not in told
    assert re.search(r"resets +\d+: …", told)


def test_an_interrupted_reset_is_carried_out_by_the_next_run(create: Callable[..., Machine]) -> None:
    class Interrupting(Device):
        times = 0

        def reset(self) -> None:
            self.times += 1
            if self.times == 1:
                raise KeyboardInterrupt

    machine = create(COUNT_IN_CMOS + SAY_COUNT + RESET, max_resets=2)
    machine.ports.add(0x80, 0x80, Interrupting(), "interrupting")
    assert machine.run(deadline=GENEROUS).reason is Reason.INTERRUPTED
    assert machine.reset_count <= 1
    assert machine.run("B", deadline=GENEROUS).reached


def usage() -> tuple[int, int, int]:
    """File descriptors, threads, and mappings of this process."""
    maps = Path("/proc/self/maps").read_text(encoding="ascii").count("\n")
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), maps


def resident() -> int:
    """KiB of this process in RAM."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))[0])


@ACCELERATORS
def test_nothing_leaks(create: Callable[..., Machine], accel: str) -> None:
    machine = create(RESET, cpus=2, accel=accel, max_resets=20)
    machine.run(deadline=GENEROUS)
    before, memory = usage(), resident()
    for _ in range(20):
        machine.reset()
        assert machine.run(deadline=GENEROUS).reason is Reason.RESET_LOOP
    assert machine.reset_count == 20 * 21 + 20
    assert usage()[:2] == before[:2]
    assert usage()[2] <= before[2] + 8
    assert resident() < memory + 4096
