"""Reading what the latency guest prints."""

from pathlib import Path

import pytest

from vmm.bench.contenders import Contender, ContenderFailedError
from vmm.bench.latency import DMA, EXITS, PIO, Case, Plan, measure, parse, select_cases, size_words

TEXT = """\
vmm latency 1
machine q35
tsc-khz 2596247


bulk 4194304
result long64 empty 0 1 100 104 102
result long64 in8-fwcfg 0 1 1102 1103 4294967295 90
result long64 insb-up 64 4 8000 8400 8800
skip long64 dma-read 16 no DMA
end 0
"""


def test_ticks_by_test_and_size_without_the_loop() -> None:
    run = parse(TEXT, "long64")
    assert run.tsc_khz == 2596247
    assert run.cost(Case("in8-fwcfg", 0, "")) == [1000, 1001, 0]
    assert run.cost(Case("insb-up", 64, "")) == [1898, 1998, 2098]


def test_what_the_guest_could_not_do_is_told() -> None:
    assert parse(TEXT, "long64").skipped == {("dma-read", 16): "no DMA"}
    assert parse(TEXT, "real16").skipped == {}


def test_exits_have_a_word_and_an_empty_test_of_their_own() -> None:
    words = EXITS.options("protected32").split()
    assert {"exit=nothing", "exit=cpuid", "mode=protected32"} <= {*words}
    assert not [word for word in words if word.startswith("test=")]
    run = parse(TEXT.replace("empty", "nothing"), "long64")
    assert run.cost(Case("in8-fwcfg", 0, ""), EXITS.empty) == [1000, 1001, 0]


def test_other_modes_are_not_ours() -> None:
    assert parse(TEXT, "real16").ticks == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a whole output"),
        (TEXT.replace("end 0\n", ""), "not a whole output"),
        (TEXT.replace("end 0", "error option nonsense\nend 1"), "error option nonsense"),
    ],
)
def test_what_is_not_whole_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text, "long64")


def test_what_others_kept_from_the_processor_is_a_failure(tmp_path: Path) -> None:
    class Slow(Contender):
        def run_latency(self, options: str, memory_mib: int, cpus: int, bulk: Path | None, limit_s: float) -> str:
            return TEXT.replace("8000 8400 8800", "4294967295 4294967295")

    plan = Plan("pio", (Case("insb-up", 64, ""),), 3, 64, 0)
    with pytest.raises(ContenderFailedError, match=r"slow: 2\*\*32 TSC ticks or more, each time: insb-up/64"):
        measure(Slow("slow", "slow"), 1.0, plan, "long64", tmp_path / "bulk")


def test_plans_fit_the_guests_option_buffer() -> None:
    for plan in (PIO, DMA, EXITS):
        assert len(plan.options("protected32")) < 1024
        assert len({case.key for case in plan.cases}) == len(plan.cases)
    assert {case.test for case in select_cases(PIO, ["insb-up"]).cases} == {"insb-up"}
    assert select_cases(PIO, []) == PIO


def test_sizes_in_words() -> None:
    assert [size_words(n) for n in (16, 4096, 64 << 20)] == ["16 B", "4 KiB", "64 MiB"]
