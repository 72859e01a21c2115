"""What a result says, and the shape of its JSON."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from vmm.bench.host import Noise
from vmm.bench.result import KEPT_SAMPLES, Measured, Result, Scale
from vmm.bench.table import show

Make = Callable[..., Result]


def test_a_target_is_reached_missed_or_open(made_up: Make) -> None:
    def verdict(**options: Any) -> str:
        result = made_up(**options)
        return result.judge(next(t for t in result.targets if t.to == "bare-loop" and t.case == "in8-fwcfg"))[1]

    assert verdict(factor=1.01) == "reached"
    assert verdict(factor=1.05) == "missed"
    assert verdict(factor=1.02) == "open"
    assert verdict(factor=1.01, rounds=3) == "open"


def test_a_target_without_rival_is_a_value(made_up: Make) -> None:
    result = made_up("boot")
    target = next(target for target in result.targets if not target.to)
    assert result.judge(target) == (None, "not measured")
    result.cases[0].key = target.case
    result.cases[0].alone[target.of] = result.cases[0].alone["vmm"]
    ratio, verdict = result.judge(target)
    assert ratio is not None
    assert ratio.median == pytest.approx(8080, rel=0.01)
    assert verdict == "missed"


def test_noise_is_told_with_its_limits(made_up: Make) -> None:
    assert made_up().warnings == []
    loud = made_up(noise=Noise(load=1.5, steal=0.1, spread=0.2)).warnings
    assert len(loud) == 3
    assert "limit 0.5" in loud[0]
    assert "(limit 2%)" in loud[1]
    assert "(limit 5%)" in loud[2]
    assert any("too few rounds" in warning for warning in made_up(rounds=4).warnings)


def test_numbers_come_from_all_samples_even_if_not_all_are_kept() -> None:
    values = [[float(n) for n in range(1000)]] * 5
    values[0][0] = 1e6
    found = Measured.of(values, 1)
    assert len(found.samples) == KEPT_SAMPLES
    assert found.samples == sorted(found.samples)
    assert found.summary.count == 5000
    assert found.summary.maximum == 1e6


def scale(rounds: int) -> Scale:
    points = {
        key: [(float(n), 100.0 + 4 * n) for n in ns] for key, ns in {"vmm": (1, 2, 4), "qemu-kvm": (2, 4, 8)}.items()
    }
    spreads = {key: [(y - 1, y + 1) for _, y in found] for key, found in points.items()}
    result = Scale("cpus", "CPUs started", "CPUs", points, spreads, rounds=rounds)
    result.fit()
    return result


def test_a_law_of_growth_needs_rounds_and_a_quiet_machine() -> None:
    assert set(scale(3).growth) == {"vmm", "qemu-kvm"}
    few = scale(2)
    assert (few.growth, few.no_growth) == ({}, "fewer than 3 rounds")
    noisy = scale(3)
    noisy.drop_growth("too noisy to say")
    assert noisy.growth == {}


def test_the_table_of_growth_has_what_only_one_contender_has(made_up: Make, capsys: pytest.CaptureFixture[str]) -> None:
    result = made_up("boot", noise=Noise(load=1.5, steal=0.1, spread=0.2))
    result.scales = [scale(3)]
    result.scales[0].drop_growth("too noisy to say")
    show(result)
    printed = capsys.readouterr().out
    table = printed[printed.index("CPUs started: whole process") :].splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in table if line.startswith("│")]
    assert rows[:5] == [
        ["1", "104 ms", ""],
        ["2", "108 ms", "108 ms"],
        ["4", "116 ms", "116 ms"],
        ["8", "", "132 ms"],
        ["grows as", "too noisy to say", "too noisy to say"],
    ]
    assert "n^" not in printed


@pytest.mark.parametrize("kind", ["pio", "dma", "boot"])
def test_json_has_what_its_readers_rely_on(made_up: Make, kind: str) -> None:
    found = json.loads(json.dumps(made_up(kind).as_json()))
    assert found["schema"] == "vmm-bench/1"
    assert found["kind"] == kind
    assert {"began", "elapsed_s", "seed", "rounds", "settings", "noise", "warnings", "failed", "scales"} <= found.keys()
    assert {"cpu", "kernel", "kvm", "virtualization", "governor", "load_average", "vmm", "qemu"} <= found["host"].keys()
    for case in found["cases"]:
        assert case["unit"] in {"ns", "ms"}
        for measured in case["measured"].values():
            assert len(measured["rounds"]) == found["rounds"]
            assert {"count", "median", "p90", "p99", "maximum", "iqr", "mad"} <= measured["summary"].keys()
        for ratio in case["ratios"]:
            assert ratio["verdict"] in {"tie", "less", "more", "too few rounds"}
            assert ratio["ratio"]["low"] <= ratio["ratio"]["median"] <= ratio["ratio"]["high"]
    assert {target["verdict"] for target in found["targets"]} <= {"reached", "missed", "open", "not measured"}
