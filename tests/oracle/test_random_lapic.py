"""Random accesses to a local APIC by a guest's CPU, the same for QEMU without KVM and for our software CPU and chips.

The guest's list is in its image, and it reports what it read and which interrupts it took. VMM_ORACLE_ACCESSES sets how
many steps are compared in all; a failure's seed repeats it. What QEMU does that the data sheet (Intel SDM volume 3,
chapter 11) and KVM do not is not asked for:

- QEMU 7.2's registers keep all bits that are written, ours those that exist: only these are written here;
- its error status register is not latched by a write, and nothing reaches the error entry: neither is read or unmasked;
- it leaves the local vector table alone while software has the APIC disabled: it stays enabled here;
- to it, a logical destination of all ones is no broadcast (11.6.2.2, "Cluster Model"): it is only physical here; to
  10.0, any of cluster 15 names the others' CPUs, too;
- as an MSR, QEMU 10.0's command has no upper half when it is read, and what can only be read or only be written, both.
"""

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lapic_guest import LOAD, MOST_STEPS, RDMSR, STORE, TAKE, WRMSR, Step, image, reports, values

from vmm.run.outcome import Reason

ACCESSES = int(os.environ.get("VMM_ORACLE_ACCESSES", "20000"))
SEEDS = range(1, 3)

ID, VERSION, TPR, APR, PPR, EOI, LDR, DFR, SPURIOUS = (0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0)
ISR, TMR, IRR = (range(first, first + 0x80, 0x10) for first in (0x100, 0x180, 0x200))
COMMAND, COMMAND_HIGH = 0x300, 0x310
TIMER, THERMAL, COUNTER, LINT0, LINT1, ERROR = range(0x320, 0x380, 0x10)
INITIAL, DIVIDE = 0x380, 0x3E0

MASKED = 1 << 16
LEVEL, ASSERT = 1 << 15, 1 << 14
LOGICAL = 1 << 11
LOWEST = 1 << 8
BROADCAST, LAST_CLUSTER = 0xFF, 0xF0
SELF, ALL, OTHERS = (which << 18 for which in (1, 2, 3))

READ = (ID, VERSION, TPR, PPR, LDR, DFR, SPURIOUS, *ISR, *TMR, *IRR, COMMAND, COMMAND_HIGH)
READ += (TIMER, THERMAL, COUNTER, LINT0, LINT1, ERROR, INITIAL, DIVIDE)
IN_VECTORS = (*ISR, *TMR, *IRR)


SELF_IPI = 0x3F0
NO_MSRS = {DFR, COMMAND, COMMAND_HIGH}
NONE = (0x800, 0x801, 0x804, 0x807, 0x829, 0x82E, 0x83A, 0x83D)
APIC_BASE = 0x1B
BSP, X2APIC, ENABLED = 1 << 8, 1 << 10, 1 << 11

PREPARED = 20
"""Steps at the most, before those at random."""


def msr(offset: int) -> int:
    return 0x800 + (offset >> 4)


class Walk:
    """Random steps."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._high = 0

    def vector(self) -> int:
        return self._random.randrange(0x10, 0x100)

    def command(self) -> int:
        """An interrupt to this CPU, to nobody, or to all."""
        choose = self._random.choice
        mode = choose((0, 0, LOWEST)) | (0 if self._high >= LAST_CLUSTER else choose((0, LOGICAL)))
        trigger = choose((ASSERT, LEVEL | ASSERT))
        return choose((0, 0, SELF, SELF, ALL, OTHERS)) | mode | trigger | self.vector()

    def entry(self, offset: int) -> int:
        """For the local vector table; wires and errors bring nothing here."""
        bits = {TIMER: 0xFF | 1 << 17, ERROR: 0xFF}.get(offset, 0xFF | (0xA000 if offset in {LINT0, LINT1} else 0))
        return MASKED | self._random.getrandbits(32) & bits

    def store(self) -> tuple[int, int]:
        """A register, and what is written to it."""
        choose, bits = self._random.choice, self._random.getrandbits
        offset = choose(
            (TPR, EOI, EOI, LDR, DFR, SPURIOUS, COMMAND, COMMAND, COMMAND, COMMAND_HIGH, INITIAL, DIVIDE, TIMER)
        )
        offset = choose((offset, offset, offset, choose((THERMAL, COUNTER, LINT0, LINT1, ERROR))))
        match offset:
            case 0x80:
                value = choose((0, bits(8)))
            case 0xB0:
                value = 0
            case 0xD0:
                value = bits(8) << 24
            case 0xE0:
                value = choose((0xFFFFFFFF, 0x0FFFFFFF))
            case 0xF0:
                value = 0x100 | bits(8)
            case 0x300:
                value = self.command()
            case 0x310:
                self._high = choose((0, BROADCAST, 1, bits(8)))
                value = self._high << 24
            case 0x380:
                value = bits(32)
            case 0x3E0:
                value = choose((0, 1, 2, 3, 8, 9, 10, 11))
            case _:
                value = self.entry(offset)
        return offset, value

    def msr_steps(self, count: int) -> Iterator[Step]:
        """The same registers as MSRs, among others that are none."""
        choose, bits = self._random.choice, self._random.getrandbits
        yield Step(WRMSR, APIC_BASE, 0xFEE00000 | ENABLED | X2APIC | BSP)
        yield Step(RDMSR, APIC_BASE)
        yield Step(WRMSR, msr(SPURIOUS), 0x1FF)
        for entry in range(TIMER, ERROR + 1, 0x10):
            yield Step(WRMSR, msr(entry), MASKED)
        for _ in range(count):
            match self._random.randrange(10):
                case 0:
                    yield Step(TAKE)
                case 1 | 2 | 3 | 4:
                    offset, value = self.store()
                    match offset:
                        case 0x300:
                            high = choose((0, 1, 0xFFFFFFFF, bits(17)))
                            yield Step(WRMSR, msr(COMMAND), value & ~(LOGICAL if high == 0xFFFFFFFF else 0), high)
                        case 0x310:
                            yield Step(WRMSR, msr(SELF_IPI), self.vector())
                        case 0xD0 | 0xE0:
                            yield Step(RDMSR, choose(NONE))
                        case _:
                            yield Step(WRMSR, msr(offset), value)
                case 5 | 6:
                    yield Step(RDMSR, msr(choose(IN_VECTORS)))
                case _:
                    yield Step(RDMSR, msr(choose(tuple(register for register in READ if register not in NO_MSRS))))

    def steps(self, count: int) -> Iterator[Step]:
        yield Step(STORE, SPURIOUS, 0x1FF)
        for entry in range(TIMER, ERROR + 1, 0x10):
            yield Step(STORE, entry, MASKED)
        for offset in (COMMAND_HIGH, LDR):
            yield Step(STORE, offset, 0)
        for _ in range(count):
            match self._random.randrange(10):
                case 0:
                    yield Step(TAKE)
                case 1 | 2 | 3 | 4:
                    yield Step(STORE, *self.store())
                case 5 | 6:
                    yield Step(LOAD, self._random.choice(IN_VECTORS))
                case _:
                    yield Step(LOAD, self._random.choice(READ))


def on_qemu(rom: Path, *, cpu: str) -> list[int]:
    report = rom.with_suffix(".qemu")
    command = [
        "qemu-system-x86_64",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-bios",
        str(rom),
        "-machine",
        "pc",
    ]
    command += ["-accel", "tcg", "-cpu", cpu, "-chardev", f"file,id=debugcon,path={report}"]
    command += ["-device", "isa-debugcon,iobase=0x402,chardev=debugcon"]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    return values(report.read_bytes())


def on_ours(create: Callable[..., Any], rom: Path, **options: object) -> list[int]:
    machine = create(str(rom), accel="softcpu", reboot=False, serial="none", **options)
    outcome = machine.run(deadline=120)
    assert outcome.reason is Reason.RESET, outcome.message
    return values(machine.debugcon.since(0))


Side = Callable[[Path], list[int]]


def compare(seed: int, make: Callable[["Walk", int], Iterator[Step]], rom: Path, qemu: Side, ours: Side) -> None:
    """Steps in as many images as they need."""
    walk = Walk(seed)
    for left in range(ACCESSES // len(SEEDS), 0, -MOST_STEPS):
        steps = list(make(walk, min(left, MOST_STEPS) - PREPARED))
        rom.write_bytes(image(steps))
        wanted, found = reports(steps, qemu(rom)), reports(steps, ours(rom))
        for at, (one, other) in enumerate(zip(wanted, found, strict=True)):
            before = "\n".join(map(str, steps[: at + 1][-100:]))
            assert one == other, f"QEMU {one}, ours {other}, seed {seed}, after\n{before}"


@pytest.mark.needs_kvm
@pytest.mark.usefixtures("each_qemu")
@pytest.mark.parametrize("seed", SEEDS)
def test_in_memory(seed: int, tmp_path: Path, vmm_machine: Callable[..., Any]) -> None:
    ours = partial(on_ours, vmm_machine, machine="pc")
    compare(seed, Walk.steps, tmp_path / "lapic.rom", partial(on_qemu, cpu="qemu64"), ours)


@pytest.mark.needs_kvm
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.usefixtures("qemu_of_debian_13")
def test_as_msrs(seed: int, tmp_path: Path, vmm_machine: Callable[..., Any]) -> None:
    """x2APIC, which QEMU has from 9.0 on, and we for APIC IDs that need it."""
    qemu = partial(on_qemu, cpu="qemu64,+x2apic")
    compare(seed, Walk.msr_steps, tmp_path / "lapic.rom", qemu, partial(on_ours, vmm_machine, max_cpus=260))
