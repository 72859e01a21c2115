"""What is kept of benchmarks, and when a ratio got worse."""

import json
from pathlib import Path
from typing import Any

import bench_history
import pytest

HOST = {"cpu": "A CPU", "cpus": 2, "virtualization": "svm", "kvm_module": "kvm_amd", "kernel": "6.1"}


def result(low: float, high: float, *, rounds: int = 30, kind: str = "pio", **host: Any) -> dict[str, Any]:
    """A result of one case with one ratio to the floor, and one that is nobody's business."""
    ratio = {"median": (low + high) / 2, "low": low, "high": high, "rounds": rounds}
    ours = {"median": 0.5, "low": 0.1, "high": 0.9, "rounds": rounds}
    return {
        "schema": "vmm-bench/1",
        "kind": kind,
        "began": "2026-01-02T03:04:05+00:00",
        "rounds": rounds,
        "settings": {"mode": "long64"},
        "host": HOST | host,
        "warnings": [],
        "targets": [{"case": "in8", "of": "vmm", "to": "bare-loop", "limit": 1.02, "text": "IN next to the bare loop"}],
        "cases": [
            {
                "key": "in8",
                "title": "IN AL",
                "unit": "ns",
                "measured": {"vmm": {"summary": {"median": 812.3456}}, "bare-loop": {"summary": {"median": 800.0}}},
                "ratios": [
                    {"of": "vmm", "to": "bare-loop", "ratio": ratio},
                    {"of": "vmm-python", "to": "vmm", "ratio": ours},
                ],
            }
        ],
    }


def history(*results: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for release, found in results:
        bench_history.keep(kept, bench_history.entry(found, release))
    return kept


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ((1.00, 1.02), (1.03, 1.05), "worse: pio in8 next to bare-loop: 1.01 (1 to 1.02), now 1.04 (1.03 to 1.05)"),
        ((1.03, 1.05), (1.00, 1.02), "better: pio in8 next to bare-loop: 1.04 (1.03 to 1.05), now 1.01 (1 to 1.02)"),
        ((1.00, 1.04), (1.03, 1.09), None),  # noise: both may be 1.035
        ((1.00, 1.04), (1.00, 1.04), None),
    ],
)
def test_worse_is_what_no_noise_explains(
    before: tuple[float, float], now: tuple[float, float], said: str | None
) -> None:
    found = [*bench_history.changes(history(("1", result(*before)), ("2", result(*now))))]
    assert [str(change) for change in found] == ([said] if said else [])
    assert [change.worse for change in found] == ([said.startswith("worse")] if said else [])


@pytest.mark.parametrize(
    "other", [{"kind": "exits"}, {"cpu": "another"}, {"cpus": 4}, {"kvm_module": "kvm_intel"}, {"rounds": 5}]
)
def test_what_cannot_be_compared_is_not(other: dict[str, Any]) -> None:
    assert [*bench_history.changes(history(("1", result(1.0, 1.02)), ("2", result(1.3, 1.5, **other))))] == []


def test_the_release_before_is_the_last_of_that_host() -> None:
    kept = history(
        ("1", result(1.0, 1.1)),
        ("2", result(1.2, 1.3)),
        ("3", result(1.0, 1.1, cpu="another")),
        ("4", result(1.25, 1.35, kernel="6.12")),
    )
    assert [*bench_history.changes(kept)] == []  # with 2; 1 would make it worse


def test_a_release_is_kept_once() -> None:
    kept = history(("1", result(1.0, 1.1)), ("1", result(1.2, 1.3)), ("1", result(1.0, 1.1, kind="exits")))
    assert [(found["kind"], found["cases"]["in8"]["ratios"]["bare-loop"][1]) for found in kept] == [
        ("pio", 1.2),
        ("exits", 1.0),
    ]
    assert kept[0]["cases"]["in8"]["medians"] == {"vmm": 812.3, "bare-loop": 800.0}
    assert set(kept[0]["cases"]["in8"]["ratios"]) == {"bare-loop"}


def test_files_and_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, file = tmp_path / "benchmarks.md", tmp_path / "result.json"
    page.write_text(f"# Numbers\n\n{bench_history.BEGIN}\nold\n{bench_history.END}\nmore\n", "utf-8")
    for release, bounds, status in (("1", (1.0, 1.02), 0), ("2", (1.1, 1.2), 1)):
        file.write_text(json.dumps(result(*bounds)), "utf-8")
        assert bench_history.main(["--release", release, str(file)], tmp_path) == status
    assert "worse: pio in8 next to bare-loop" in capsys.readouterr().out
    text = page.read_text("utf-8")
    assert "| IN next to the bare loop | 1.02 | 1.01 (1 to 1.02) | 1.15 (1.1 to 1.2) |" in text
    assert "1 (2026-01-02, Linux 6.1) | 2 (2026-01-02, Linux 6.1)" in text
    assert "old" not in text
    assert text.startswith("# Numbers\n")
    assert text.endswith("more\n")
    assert bench_history.main([], tmp_path) == 1
    assert len(json.loads((tmp_path / "benchmarks.json").read_text("utf-8"))) == 2


def test_another_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "benchmarks.md").write_text(f"{bench_history.BEGIN}{bench_history.END}", "utf-8")
    (tmp_path / "other.json").write_text('{"schema": "another"}', "utf-8")
    assert bench_history.main([str(tmp_path / "other.json")], tmp_path) == 2
    assert "no result of vmm bench" in capsys.readouterr().err
    assert not (tmp_path / "benchmarks.json").exists()


def test_the_documents_table_is_that_of_its_data() -> None:
    kept = json.loads((bench_history.DOCS / "benchmarks.json").read_text("utf-8"))
    text = (bench_history.DOCS / "benchmarks.md").read_text("utf-8")
    assert bench_history.with_table(text, bench_history.table(kept)) == text
