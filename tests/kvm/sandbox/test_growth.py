"""Guests that try to make the process grow: what they do over and over costs no more memory the second time."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerators import PLAIN
from efi_memory import table
from real_mode_rom import RESET, image
from vmm._native import lib

from vmm import Machine
from vmm.cpu import processors
from vmm.debug import images
from vmm.devices.fwctl import LOG_LIMIT
from vmm.report import page
from vmm.report.collect import collect
from vmm.run import coverage, lifetime, profile
from vmm.run.console import KEEP_BYTES, KEPT_LINES
from vmm.run.outcome import Outcome

pytestmark = pytest.mark.needs_kvm

MIB = 1 << 20
PAGE = os.sysconf("SC_PAGESIZE")

GENEROUS = 240.0
"""Seconds; a busy machine must not fail a test that isn't about time."""

LOOPS = {
    # The PC's ACPI block: decoded, then moved between 0x600 and 0x700.
    "moving ports": "66 b8 80 0b 00 80 ba f8 0c 66 ef b0 01 ba fc 0c ee 66 b8 40 0b 00 80 ba f8 0c 66 ef ba fc 0c"
    "66 b8 01 06 00 00 66 ef 66 b8 01 07 00 00 66 ef eb f0",
    # PAM0 of the host bridge: 0xf0000 as RAM and as ROM, which are memory slots.
    "mapping memory": "66 b8 58 00 00 80 ba f8 0c 66 ef ba fd 0c b0 30 ee b0 00 ee eb f8",
    # CMOS registers A and B: periodic interrupts and an alarm, over and over.
    "arming timers": "b0 0b e6 70 b0 72 e6 71 b0 0a e6 70 b0 26 e6 71 b0 01 e6 70 b0 59 e6 71 eb e6",
    "selecting items": "ba 10 05 31 c0 ef 40 eb fc",
    "reading items": "ba 10 05 b8 19 00 ef 42 ec ec ec ec eb f2",
    "transfers": "66 31 db ba 14 05 66 31 c0 66 ef ba 18 05 66 89 d8 66 ef 66 43 eb ee",
    "every port": "31 d2 ec 42 81 fa f0 0c 75 f8 eb f4",
    # A disk's registers (PCI 0:5.0), which KVM watches for notifications, between two addresses.
    "moving a disk": "66 b8 04 28 00 80 ba f8 0c 66 ef b0 02 ba fc 0c ee 66 b8 20 28 00 80 ba f8 0c 66 ef"
    "66 b8 00 00 00 e0 ba fc 0c 66 ef 66 b8 00 00 00 e1 66 ef eb eb",
    # PCIEXBAR of Q35's host bridge.
    "moving ECAM": "66 b8 60 00 00 80 ba f8 0c 66 ef 66 b8 01 00 00 b0 ba fc 0c 66 ef 66 b8 01 00 00 c0 66 ef eb eb",
    # The signature is read, and hw.ncpu asked for with one transaction's number after the other.
    "asking fwctl": "ba 10 05 31 c0 ef 42 ec ec ec ec 4a 66 b8 14 00 00 00 66 ef 66 b8 03 00 00 00 66 ef 66 89 d8 66 ef"
    "66 43 66 b8 68 77 2e 6e 66 ef 66 b8 63 70 75 00 66 ef b9 07 00 66 ed e2 fc eb c4",
    # A request of 4 GiB.
    "a request without an end": "ba 10 05 31 c0 ef 42 ec ec ec ec 4a 66 b8 ff ff ff ff 66 ef 66 b8 02 00 00 00 66 ef"
    "66 ef 66 ef eb fc",
    # What an OS says of a processor: of CPU 1, and of ever others, which there are not.
    "telling of processors": "ba 00 af b0 00 ee 66 31 db ba 00 af 66 31 c0 66 40 66 ef ba 05 af b0 01 ee ba 08 af"
    "66 89 d8 66 ef ba 05 af b0 02 ee ba 08 af 66 89 d8 66 ef ba 00 af 66 ef ba 05 af b0 00 ee 66 43 eb cb",
    "the serial port's line": "ba fb 03 b0 80 ee ba f8 03 ee ba fb 03 b0 03 ee ba fc 03 b0 1f ee ba f8 03 ee eb e6",
}
"""Each ends with a jump back."""

DISK = {"devices": ["virtio-blk-pci,drive=disk,addr=5"]}
FWCTL = {"fwcfg": "bhyve", "fwctl_extensions": True}
OF_MACHINES: dict[str, dict[str, Any]] = {
    "moving a disk": DISK,
    "moving ECAM": {"machine": "q35"},
    "telling of processors": {"max_cpus": 2},
    "asking fwctl": FWCTL,
    "a request without an end": FWCTL,
}

WARM = {"asking fwctl": 20 * LOG_LIMIT}
"""Accesses until all is kept that ever is; 300 where it is not said."""


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


@pytest.fixture
def rom(tmp_path: Path) -> Callable[[str], str]:
    """Write a ROM; return its path."""

    def write(code: str) -> str:
        (tmp_path / "rom").write_bytes(image(code))
        return str(tmp_path / "rom")

    return write


def accesses(machine: Machine) -> int:
    """How many the guest made, of ports that are somebody's."""
    return sum(each.reads + each.writes for each in machine.ports.ranges())


@pytest.mark.parametrize("loop", LOOPS)
def test_doing_it_again_costs_no_memory(
    vmm_machine: Callable[..., Machine], rom: Callable[[str], str], tmp_path: Path, loop: str
) -> None:
    options: dict[str, Any] = {"machine": "pc", "exit_times": True, "trace": str(tmp_path / "trace")}
    options |= OF_MACHINES.get(loop, {})
    if "devices" in options:
        (tmp_path / "disk").write_bytes(bytes(MIB))
        options["drives"] = [f"file={tmp_path / 'disk'},format=raw,if=none,id=disk"]
    machine = vmm_machine(rom(LOOPS[loop]), accel="kvm", serial="none", **options)

    def run(at_least: int) -> None:
        wanted = accesses(machine) + at_least
        machine.run(deadline=GENEROUS, on_poll=lambda m: m.stop() if accesses(m) >= wanted else None)
        assert accesses(machine) >= wanted, machine.outcome

    run(WARM.get(loop, 300))
    blocks, bytes_ = sys.getallocatedblocks(), resident()
    run(1000)
    # What one access left behind would be one block or more each.
    assert sys.getallocatedblocks() - blocks < 250
    assert resident() - bytes_ < 16 * MIB
    assert len(machine.ports.ranges()) < lib.IO_TABLE_MAX_RANGES
    assert len(machine.exit_times()) <= lib.EXIT_TIMES_ROWS
    if machine.fwctl is not None:
        assert len(machine.fwctl.requests) == (LOG_LIMIT if loop == "asking fwctl" else 0)


TEXTS = {
    "no end of line": b"x" * 0x8000,
    "escape sequences without an end": (b"\x1b[" + b"1;" * 500) * 32,
}


@pytest.fixture
def printing(vmm_machine: Callable[..., Machine], rom: Callable[[str], str]) -> Machine:
    """A guest that prints 32 KiB at 0x8000 on the debug port, over and over."""
    code = "b8 00 08 8e d8 ba 02 04 31 f6 b9 00 80 f3 6e eb f7"
    return vmm_machine(rom(code), machine="pc")


@pytest.mark.parametrize("text", TEXTS)
def test_printing_for_ever_costs_what_is_kept(printing: Machine, text: str) -> None:
    printing.memory.write(0x8000, TEXTS[text][:0x8000])

    def run(until: int) -> None:
        printing.run("never shown", GENEROUS, on_poll=lambda m: m.stop() if m.debugcon.total >= until else None)
        assert printing.debugcon.total >= until, printing.outcome

    run(4 * KEEP_BYTES)
    before = resident()
    run(16 * KEEP_BYTES)
    # Stream and search keep twice KEEP_BYTES each before they drop half of it, and copy what they look at.
    assert resident() - before < 6 * KEEP_BYTES
    assert len(printing.debugcon.since(0)) <= 2 * KEEP_BYTES


def test_printing_lines_for_ever_costs_reports_those_that_are_kept(printing: Machine) -> None:
    printing.memory.write(0x8000, b"so it goes\n" * 2978)

    def run(lines: int) -> tuple[int, int]:
        """Until there are so many in all; the sizes of both reports."""
        until = lines * len("so it goes\n")
        outcome = printing.run(deadline=GENEROUS, on_poll=lambda m: m.stop() if m.debugcon.total >= until else None)
        assert printing.debugcon.total >= until, outcome
        report = collect(printing, outcome)
        assert len(report["timeline"]) <= KEPT_LINES + 10
        return len(json.dumps(report)), len(page.render(report))

    before = run(2 * KEPT_LINES)
    after = run(20 * KEPT_LINES)
    # As many as ever may be kept, at 80 bytes or more each; by now there are 18 times as many more.
    assert all(new - old < 1000 * KEPT_LINES for old, new in zip(before, after, strict=True)), (before, after)


def test_printing_to_a_stdout_that_nobody_reads_costs_what_is_kept() -> None:
    program = """
import os, re, sys
from vmm.run.console import Stream
from vmm.run.terminal import Terminal

stream = Stream("serial")
with Terminal([stream], None, lambda: None, print, lambda: None) as terminal:
    for _ in range(128):
        stream.write(b"x" * (1 << 20))
        terminal.poll()
    print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr, flush=True)
    os._exit(0)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.wait(GENEROUS) == 0
        assert run.stderr is not None
        assert int(run.stderr.read()) << 10 < 100 * MIB


def test_resetting_for_ever_costs_what_is_remembered(
    vmm_machine: Callable[..., Machine], rom: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifetime, "KEPT_RESETS", 10)
    monkeypatch.setattr(processors, "_KEPT_STARTS", 20)
    machine = vmm_machine(rom(RESET), machine="pc", accel=PLAIN, max_resets=1 << 30)

    def run(resets: int) -> Outcome:
        """Until there were so many more."""
        wanted = machine.reset_count + resets
        outcome = machine.run(deadline=GENEROUS, on_poll=lambda m: m.stop() if m.reset_count >= wanted else None)
        assert machine.reset_count >= wanted, outcome
        return outcome

    def sizes(outcome: Outcome) -> tuple[int, int]:
        """Of both reports."""
        report = collect(machine, outcome)
        assert len(report["resets"]["latest"]) == 10
        assert len(report["timeline"]) < 40
        return len(json.dumps(report)), len(page.render(report))

    before = sizes(run(50))
    run(1)
    blocks = sys.getallocatedblocks()
    outcome = run(250)
    assert sys.getallocatedblocks() - blocks < 125
    # One more reset would be 100 bytes or more in each.
    assert all(new - old < 5000 for old, new in zip(before, sizes(outcome), strict=True))


ALTER_IMAGE = "b8 00 15 8e d8 ff 06 40 00 eb fa"
"""mov ax, 0x1500; mov ds, ax; again: inc word [0x40]; jmp again: where UEFI's table says that its image is."""

LISTED = 100


@pytest.fixture
def listing(rom: Callable[[str], str], vmm_machine: Callable[..., Machine]) -> Callable[..., Machine]:
    """A guest with a table of loaded images in which there is another at each look."""

    def make(**options: Any) -> Machine:
        machine = vmm_machine(rom(ALTER_IMAGE), machine="pc", **options)
        table(machine.memory.write, wide=True, count=LISTED)
        machine.memory.write(0x13000, struct.pack("<Q", 0x14000) * LISTED)
        return machine

    return make


@pytest.mark.parametrize(
    ("recorder", "options"),
    [("_profiler", {"profile": True, "accel": PLAIN}), ("_coverage", {"coverage": True, "accel": "softcpu"})],
)
def test_loading_images_for_ever_costs_what_is_remembered(
    listing: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch, recorder: str, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(images, "MAX_SEEN", 2 * LISTED)
    for module in (profile, coverage):
        monkeypatch.setattr(module, "_LIST_SECONDS", 0.0)
    machine = listing(**options)
    seen = getattr(machine, recorder)._loaded
    looks = 0

    def until_full(machine: Machine) -> None:
        nonlocal looks
        looks += len(seen) >= 2 * LISTED
        if looks > 10:
            machine.stop()

    outcome = machine.run(deadline=GENEROUS, on_poll=until_full)
    assert looks > 10, outcome
    assert len(seen) == 2 * LISTED


def test_profiling_for_ever_costs_what_is_kept(
    vmm_machine: Callable[..., Machine], rom: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "MAX_SAMPLES", 10)
    monkeypatch.setattr(profile, "_MAX_MARKS", 10)
    monkeypatch.setattr(profile, "_MARK_SECONDS", 0.001)
    machine = vmm_machine(rom("eb fe"), machine="pc", accel=PLAIN, profile=True)
    profiler = machine._profiler
    assert profiler is not None

    def until_beyond(machine: Machine) -> None:
        if profiler._beyond and profiler._mark_s > 0.003:
            machine.stop()

    outcome = machine.run(deadline=GENEROUS, on_poll=until_beyond)
    assert profiler._mark_s > 0.003, outcome
    found = machine.profile()
    assert found is not None
    assert found.lost > 0
    assert len(found.samples) <= 10
    assert len(found.marks) <= 11


def test_executing_ever_other_code_costs_the_blocks_that_are_kept(
    vmm_machine: Callable[..., Machine], rom: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage, "MAX_BLOCKS", 100)
    leap = "ea 00 80 00 00"  # jmp 0:0x8000
    machine = vmm_machine(rom(leap), machine="pc", accel="softcpu", coverage=True)
    machine.memory.write(0x8000, b"\xeb\0" * 2000 + bytes.fromhex(leap))
    kept = machine._coverage
    assert kept is not None
    outcome = machine.run(deadline=GENEROUS, on_poll=lambda m: m.stop() if kept._beyond >= 1900 else None)
    assert kept._beyond >= 1900, outcome
    assert len(kept._blocks) == 100
    covered = machine.coverage()
    assert covered is not None
    assert "blocks of code more than are kept" in covered.notes[-1]
