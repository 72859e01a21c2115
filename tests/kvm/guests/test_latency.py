"""The latency guest: that it times every test in every mode, and says so in the format that the README documents."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vmm.firmware import guests

MODES = ["real16", "protected32", "long64", "user64"]
SINGLE = [
    *("empty", "in8-nobody", "in16-nobody", "in32-nobody", "out8-nobody", "out16-nobody", "out32-nobody"),
    *("in8-fwcfg", "out16-select", "in8-rtc", "out8-rtc", "in8-pic", "out8-pic"),
]


def options(text: str) -> list[str]:
    return ["-fw_cfg", f"name=opt/vmm/latency,string={text}"]


def measured(text: str) -> dict[tuple[str, str, int], tuple[int, list[int]]]:
    """Mode, test and size, with iterations and the ticks of each batch."""
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["vmm", "latency", "1"]
    assert lines[-1] == ["end", "0"]
    found = {}
    for kind, *words in lines[1:-1]:
        assert kind in {"machine", "tsc-khz", "bulk", "result", "skip"}, words
        if kind == "result":
            mode, test, size, iterations, *ticks = words
            found[mode, test, int(size)] = (int(iterations), [int(n) for n in ticks])
    return found


@pytest.mark.parametrize("accelerator", ["tcg", pytest.param("kvm", marks=pytest.mark.needs_kvm)])
def test_every_mode_measures_everything(qemu: Callable[..., str], accelerator: str) -> None:
    command = options("batch=2 samples=3 max-size=1024")
    found = measured(qemu(guests.path("latency"), *command, accelerator=accelerator))
    wanted = {(mode, test, 0) for mode in MODES for test in SINGLE}
    wanted |= {(m, t, s) for m in MODES for t in ("insb-up", "insb-down", "dma-read") for s in (16, 64, 256, 1024)}
    assert found.keys() == wanted
    for iterations, ticks in found.values():
        assert iterations == 2
        assert len(ticks) == 3
        assert all(ticks)


@pytest.mark.needs_kvm
def test_ours_measures_everything_that_qemu_does(qemu: Callable[..., str], ours: Callable[..., str]) -> None:
    words = "batch=1 samples=1 max-size=64"
    found = measured(ours("latency", fw_cfg={"opt/vmm/latency": words}))
    assert found.keys() == measured(qemu(guests.path("latency"), *options(words))).keys()


def test_batches_grow_to_the_goal(qemu: Callable[..., str]) -> None:
    command = options("goal=1000000 samples=5 mode=long64 test=in8-fwcfg test=empty")
    found = measured(qemu(guests.path("latency"), *command))
    assert list(found) == [("long64", "empty", 0), ("long64", "in8-fwcfg", 0)]
    for iterations, ticks in found.values():
        assert iterations & (iterations - 1) == 0
        # Both runs that were compared to the goal took that long; of five later ones, one will come near.
        assert max(ticks) > 500_000


def test_large_transfers_of_real_data(qemu: Callable[..., str], tmp_path: Path) -> None:
    bulk = tmp_path / "bulk"
    bulk.write_bytes(b"bulk" * (1 << 20))
    command = [*options("batch=1 samples=1 mode=protected32 test=dma-read"), "-m", "64"]
    text = qemu(guests.path("latency"), *command, "-fw_cfg", f"name=opt/vmm/bulk,file={bulk}")
    assert f"bulk {4 << 20}" in text.splitlines()
    assert max(size for _mode, _test, size in measured(text)) == 16 << 20
    assert "skip protected32 dma-read 67108864 not enough RAM" in text.splitlines()


def test_without_dma_the_rest_is_measured(qemu: Callable[..., str]) -> None:
    command = [*options("batch=1 samples=1 mode=long64 max-size=16"), "-global", "fw_cfg.dma_enabled=off"]
    text = qemu(guests.path("latency"), *command)
    assert {test for _mode, test, _size in measured(text)} == {*SINGLE, "insb-up", "insb-down"}
    assert "skip long64 dma-read 16 no DMA" in text.splitlines()


@pytest.mark.parametrize(
    "word", ["goal", "samples=", "samples=4097", "mode=long32", "test=in8", "goal=12x", "nonsense=1"]
)
def test_an_option_that_is_not_understood_ends_it(qemu: Callable[..., str], word: str) -> None:
    lines = qemu(guests.path("latency"), *options(f"batch=1 {word}"), status=1).splitlines()
    assert lines[1].startswith("error option ")
    assert lines[2] == "end 1"
