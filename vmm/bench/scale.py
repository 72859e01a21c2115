"""How the cost of a machine grows with its CPUs, its fw_cfg items, its RAM, its initial RAM disk.

Each point is the whole process, from before the fork until our guest has powered the machine off; points are visited in
random order, round after round. Files and RAM are sparse: what is measured is what we do with them, not the disk.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.bench.contenders import QEMU_KVM, VMM_C, Contender, run
from vmm.bench.result import Scale
from vmm.bench.rounds import run_rounds
from vmm.errors import ConfigError
from vmm.firmware import guests
from vmm.options import parse_size
from vmm.statistics import median, percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.bench.rounds import Goal

CONTENDERS = (VMM_C, QEMU_KVM)


@dataclass(frozen=True)
class Axis:
    """Something that can be more.

    Attributes:
        key: the option's name.
        guest: which of our guests runs: ``probe`` looks at what there is more of.
        unit: of the values.
        usual: what the option stands for without a list.
    """

    key: str
    title: str
    guest: str
    unit: str
    usual: str


AXES = {
    "cpus": Axis("cpus", "CPUs started", "probe", "CPUs", "1,2,4,8,16,32,64"),
    "items": Axis("items", "fw_cfg items listed by the guest", "probe", "items", "1,10,100,1000"),
    "memory": Axis("memory", "guest RAM", "exit", "bytes", "64M,256M,1G,4G,16G,64G"),
    "initrd": Axis("initrd", "initial RAM disk offered in fw_cfg", "exit", "bytes", "1M,4M,16M,64M,256M,1G"),
}

MAX_VALUES = {"cpus": 255, "items": 16000, "memory": 1 << 45, "initrd": 0xFFFFFFFF}


def parse_values(axis: Axis, text: str) -> list[int]:
    """Read ``1,2,4`` or ``64M,1G``.

    Raises:
        ConfigError: a value that is none, or too large, or fewer than three different ones.
    """
    option = f"--{axis.key}"
    values = []
    for word in text.split(","):
        value = parse_size(word, option, unit="b") if axis.unit == "bytes" else _parse_count(word, option)
        if not 0 < value <= MAX_VALUES[axis.key]:
            raise ConfigError(f"{option} {word}: from 1 to {MAX_VALUES[axis.key]}")
        if axis.key == "memory" and value % (1 << 20):
            raise ConfigError(f"{option} {word}: guest RAM is whole MiB")
        values.append(value)
    if len(set(values)) < 3:
        raise ConfigError(f"{option} {text}: a curve needs three different values")
    return sorted(set(values))


def _parse_count(word: str, option: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ConfigError(f"{option} {word}: not a number") from None


@dataclass(frozen=True)
class _Point:
    """One contender at one value."""

    contender: Contender
    axis: Axis
    value: int

    @property
    def key(self) -> str:
        return f"{self.contender.key} at {self.value}"

    @property
    def name(self) -> str:
        return f"{self.axis.title}: {self.contender.name}"

    def missing(self) -> str | None:
        return self.contender.missing()


def run_scale(
    axis: Axis,
    values: Sequence[int],
    contenders: Sequence[Contender],
    goal: Goal,
    seed: int,
    progress: Callable[[str, float, int], None],
) -> Scale:
    """Measure one axis; a contender that fails at a value has no point there, and says why."""
    result = Scale(axis.key, axis.title, axis.unit)
    points = [_Point(contender, axis, value) for contender in contenders for value in values]
    with tempfile.TemporaryDirectory(prefix="vmm-bench-") as scratch:
        found = run_rounds(points, partial(_time_once, scratch=Path(scratch)), goal, seed, progress)
    result.rounds, result.failed = found.count, found.failed
    for point in points:
        if point.key in found.values:
            ordered = sorted(found.values[point.key])
            result.points.setdefault(point.contender.key, []).append((float(point.value), median(ordered)))
            result.spreads.setdefault(point.contender.key, []).append(
                (percentile(ordered, 25), percentile(ordered, 75))
            )
    result.fit()
    return result


def _time_once(point: _Point, limit_s: float, scratch: Path) -> float:
    """Return milliseconds."""
    command = [
        *point.contender.guest_command(guests.path(point.axis.guest)),
        *_options(point.axis, point.value, scratch),
    ]
    began = time.monotonic()
    run(point.contender, command, limit_s)
    return (time.monotonic() - began) * 1000


def _options(axis: Axis, value: int, scratch: Path) -> list[str]:
    if axis.key == "cpus":
        return ["-smp", str(value)]
    if axis.key == "memory":
        return ["-m", f"{value >> 20}M"]
    if axis.key == "items":
        return [
            word for number in range(value) for word in ("-fw_cfg", f"name=opt/org.example/item{number},string=hello")
        ]
    image = scratch / f"initrd-{value}"
    if not image.exists():
        with image.open("wb") as file:
            file.truncate(value)
    return ["-m", "2048M", "-fw_cfg", f"name=opt/org.example/initrd,file={image}"]
