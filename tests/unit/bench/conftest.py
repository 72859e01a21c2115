"""Results of every kind, made up, to be shown."""

import random
from collections.abc import Callable

import pytest

from vmm.bench.experiments import PAIRS, TARGETS
from vmm.bench.host import Noise, facts
from vmm.bench.result import CaseResult, Measured, Result, Scale
from vmm.statistics import fit_growth

NAMES = {"vmm": "vmm", "vmm-python": "vmm, Python dispatch", "bare-loop": "bare KVM_RUN loop", "qemu-kvm": "QEMU, KVM"}


@pytest.fixture
def made_up() -> Callable[..., Result]:
    """A result whose vmm needs ``factor`` times what the bare loop needs."""

    def make(kind: str = "pio", *, factor: float = 1.01, rounds: int = 20, noise: Noise | None = None) -> Result:
        chance = random.Random(6)
        result = Result(kind, 1, facts(), dict(NAMES), targets=list(TARGETS[kind]), rounds=rounds, elapsed_s=60.0)
        keys = {
            "pio": ["in8-fwcfg", "out8-log/10000", "insb-up/1024", "insb-up/4096"],
            "dma": ["dma-read/16", "dma-read/67108864"],
        }
        for key in keys.get(kind, ["exit", "seabios", "ovmf"]):
            case = CaseResult(key, f"case {key}", "ms" if kind == "boot" else "ns")
            case.bytes_moved = int(key.partition("/")[2] or 0)
            for name, cost in {"vmm": factor, "vmm-python": 1.8, "bare-loop": 1.0, "qemu-kvm": 6.0}.items():
                values = [[8000 * cost * chance.gauss(1, 0.003) for _ in range(30)] for _ in range(rounds)]
                case.measured[name] = Measured.of(values, 1)
            case.compare(PAIRS, 1)
            result.cases.append(case)
        result.noise = noise or Noise(0.1, 0.0, 0.01)
        if kind == "boot":
            result.timelines = {"ovmf vmm": [(0.5, "first byte"), (1.2, "done")], "ovmf qemu-kvm": [(3.0, "done")]}
            points = [(float(n), 100.0 + 4 * n) for n in (1, 2, 4, 8)]
            curve = fit_growth([x for x, _ in points], [y for _, y in points])
            spreads = [(y - 1, y + 1) for _, y in points]
            result.scales = [Scale("cpus", "CPUs started", "CPUs", {"vmm": points}, {"vmm": spreads}, {"vmm": curve})]
        return result

    return make
