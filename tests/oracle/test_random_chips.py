"""Random accesses to the interrupt controllers and the 8254, the same for Debian's QEMU and for our chips.

QEMU's time stands, and so does ours; what time does is tests/unit/test_chips*.py's. VMM_ORACLE_ACCESSES sets how many
steps are compared in all; a failure's seed repeats it. QEMU has no CPU to acknowledge interrupts here: the 8259's
poll command does. It is Debian 12's QEMU alone: 10.0 takes an edge of an 8259's input back that falls before it is
acknowledged, as the data sheet has it and KVM does not.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from chips_rig import IOAPIC, ChipsRig
from qemu_qtest import Qemu

ACCESSES = int(os.environ.get("VMM_ORACLE_ACCESSES", "20000"))
SEEDS = range(1, 5)
BATCH = 200
REMOTE_IRR = 1 << 14

PIC_PORTS = (0x20, 0x21, 0xA0, 0xA1)
LINES = [line for line in range(24) if line not in {0, 2}]
"""Without the 8254's and the cascade."""


class Sides:
    """One step for both; QEMU's are sent in batches."""

    def __init__(self, qemu: Qemu, rig: ChipsRig) -> None:
        self.qemu, self.rig = qemu, rig
        tree = qemu.qmp("human-monitor-command", **{"command-line": "info qom-tree"}).splitlines()
        # The master is made first; the tree is sorted by name, device[10] in front of device[9].
        pics = [path for path, kind in _objects(tree) if kind == "isa-i8259"]
        self._pics = sorted(pics, key=lambda path: int(path.rpartition("[")[2].rstrip("]")))
        (self._ioapic,) = (path for path, kind in _objects(tree) if kind == "ioapic")
        self._steps: list[tuple[str, int | None, int]] = []
        # After a reset, QEMU's 8254 is in mode 3 and ours, as KVM's, in none.
        for port, control in ((0x40, 0x30), (0x41, 0x70), (0x42, 0xB0)):
            for where, value in ((0x43, control), (port, 0), (port, 1)):
                self.write(where, value)
        self.selected = 0
        self._high: set[int] = set()

    def write(self, port: int, value: int) -> None:
        self._steps.append((f"outb {port:#x} {value:#x}", None, 0))
        self.rig.write(port, value)

    def read(self, port: int) -> None:
        self._steps.append((f"inb {port:#x}", self.rig.read(port), 0))

    def store(self, gpa: int, value: int) -> None:
        self._steps.append((f"writel {gpa:#x} {value:#x}", None, 0))
        self.rig.store(gpa, value)

    def load(self, gpa: int) -> None:
        # QEMU's pins await an end of what no local APIC took, too, and there is none here (82093AA, "Remote IRR").
        is_entry = gpa == IOAPIC + 0x10 and self.selected >= 0x10 and self.selected % 2 == 0
        self._steps.append((f"readl {gpa:#x}", self.rig.load(gpa), REMOTE_IRR if is_entry else 0))

    def drive(self, line: int, level: int) -> None:
        # No device drives its wire twice alike; to QEMU that is an edge, after ICW1.
        if level == (line in self._high):
            return
        self._high ^= {line}
        if line < 16:
            chip = self._pics[line // 8]
            self._steps.append((f"set_irq_in {chip} unnamed-gpio-in {line % 8} {level}", None, 0))
        self._steps.append((f"set_irq_in {self._ioapic} unnamed-gpio-in {line} {level}", None, 0))
        self.rig.vm.irq_line(line, bool(level))

    def compare(self) -> str | None:
        """The first step whose outcome differs, with those before it."""
        steps, self._steps = self._steps, []
        replies = self.qemu.commands(command for command, _, _ in steps)
        for at, ((_, ours, ignored), reply) in enumerate(zip(steps, replies, strict=True)):
            if ours is not None and (int(reply, 16) ^ ours) & ~ignored:
                before = "\n".join(command for command, _, _ in steps[: at + 1])
                return f"QEMU {reply}, ours {ours:#x} after\n{before}"
        return None


def _objects(tree: list[str]) -> Iterator[tuple[str, str]]:
    """Path and type of each object."""
    path: list[str] = []
    for line in tree:
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, kind = line.strip().partition(" ")
        path = [*path[:depth], name.lstrip("/")]
        yield "/" + "/".join(part for part in path if part), kind.strip("()")


def _pic_word(chance: random.Random) -> tuple[int, int]:
    port = chance.choice(PIC_PORTS)
    value = chance.getrandbits(8)
    if port & 1 == 0 and value & 0x10 and chance.random() < 0.8:
        value &= ~0x10  # else all is initialized again and again
    return port, value


def _pit_word(chance: random.Random) -> tuple[int, int]:
    port = chance.choice((0x40, 0x41, 0x42, 0x43, 0x43))
    value = chance.getrandbits(8)
    if port == 0x43:
        # QEMU has no BCD, and does not know modes 6 and 7, which are 2 and 3. In 0, 2 and 4 channel 0's output stays
        # low.
        modes = (0, 4, 8) if value < 0x40 else (0, 2, 4, 6, 8, 10)
        value = value & 0xF0 | chance.choice(modes if value < 0xC0 else range(0, 16, 2))
    return port, value


def _step(sides: Sides, chance: random.Random) -> None:
    match chance.randrange(9):
        case 0:
            sides.write(*_pic_word(chance))
        case 1:
            sides.read(chance.choice(PIC_PORTS))
        case 2 | 3:
            sides.drive(chance.choice(LINES), chance.getrandbits(1))
        case 4:
            sides.write(chance.choice((0x4D0, 0x4D1)), chance.getrandbits(8))
            sides.read(chance.choice((0x4D0, 0x4D1)))
        case 5:
            sides.write(*_pit_word(chance))
        case 6:
            sides.read(chance.choice((0x40, 0x41, 0x42)))
        case 7:
            sides.selected = chance.randrange(0x48) if chance.random() < 0.95 else chance.getrandbits(8)
            sides.store(IOAPIC, sides.selected)
            sides.load(IOAPIC)
            sides.load(IOAPIC + 0x10)
        case _:
            # Fixed or lowest priority: QEMU asks its 8259s for ExtINT's vector. And while a pin is edge-triggered QEMU
            # does not know its level, so that it is low whenever that may change.
            value = chance.getrandbits(32) & ~0x600
            if (line := (sides.selected - 0x10) // 2) in LINES:
                sides.drive(line, 0)
            sides.store(IOAPIC + 0x10, value)
            sides.load(IOAPIC + 0x10)


@pytest.mark.timeout(600 + ACCESSES // 100)
@pytest.mark.usefixtures("qemu_of_debian_12")
@pytest.mark.parametrize("seed", SEEDS)
def test_same_answers(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    options = ("-global", "ioapic.version=0x11")
    with Qemu(tmp_path, 4 << 20, options, machine="q35") as qemu, ChipsRig() as rig:
        sides = Sides(qemu, rig)
        for at in range(ACCESSES // len(SEEDS)):
            _step(sides, chance)
            if at % BATCH == 0:
                assert (difference := sides.compare()) is None, difference
        assert (difference := sides.compare()) is None, difference
