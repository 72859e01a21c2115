"""Two runs compared by their reports."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from made_up_report import HOSTILE, seabios_report

from vmm.cli import main
from vmm.report.compare import Difference, changes, differences
from vmm.statistics import MIN_ROUNDS


def altered(**seconds: float) -> Any:
    report = copy.deepcopy(seabios_report())
    report["outcome"]["elapsed_s"] = seconds.get("elapsed", report["outcome"]["elapsed_s"])
    return report


def test_a_run_is_like_itself() -> None:
    report = seabios_report()
    assert differences([report], [report]) == []
    assert {change.verdict for change in changes([report], [report])} <= {"equal", "not known"}


def test_what_is_different_is_told() -> None:
    before, after = altered(), altered()
    after["outcome"] |= {"reason": "timeout", "exit_status": 3}
    after["cpus"]["started"] = 1
    after["origin"]["images"][0]["sha256"] = "ab" * 32
    gone = after["fw_cfg"]["items"].pop(0)
    read = after["fw_cfg"]["items"][0]
    read |= {"selects": 1, "reads": 1, "bytes_read": 4, "read_to_end": not read["read_to_end"]}
    found = {(difference.subject, difference.name): difference for difference in differences([before], [after])}
    assert found["outcome", "reason"] == Difference("outcome", "reason", "until", "timeout")
    assert found["machine", "CPUs started"].after == "1"
    assert found["item", gone["name"]].after == "nothing"
    assert found["item", read["name"]].before != found["item", read["name"]].after
    assert found["file", "firmware"].before != found["file", "firmware"].after


def test_what_differs_within_a_series_says_nothing() -> None:
    one, other, after = altered(), altered(), altered()
    other["cpus"]["started"] = 1
    after["cpus"]["started"] = 1
    assert differences([one, other], [after]) == []
    assert [difference.name for difference in differences([one], [after])] == ["CPUs started"]


def test_counted_instructions_need_no_second_run() -> None:
    before, after = altered(), altered()
    for report, dxe, trace in ((before, 100, "00ff"), (after, 90, "00fe")):
        phases = [{"name": "PEI", "instructions": 50}, {"name": "DXE", "instructions": dxe}]
        report["virtual_time"] = {"instructions": 50 + dxe, "phases": phases, "trace_hash": trace}
    found = [change for change in changes([before], [after]) if change.unit == "instructions"]
    assert [(change.name, change.verdict) for change in found] == [
        ("the whole", "less"),
        ("PEI", "equal"),
        ("DXE", "less"),
    ]
    assert [(each.before, each.after) for each in differences([before], [after])] == [("00ff", "00fe")]
    del after["virtual_time"]
    assert not [change for change in changes([before], [after]) if change.unit == "instructions"]


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, "noise"), (2.0, "more"), (0.5, "less")], ids=["noise", "more", "less"]
)
def test_several_runs_tell_noise_from_change(factor: float, verdict: str) -> None:
    times = [1.0, 1.1, 0.9, 1.05, 0.95, 1.02, 0.98, 1.0]
    assert len(times) >= MIN_ROUNDS
    before = [altered(elapsed=each) for each in times]
    after = [altered(elapsed=each * factor) for each in reversed(times)]
    whole = next(change for change in changes(before, after) if change.name == "the whole")
    assert whole.verdict == verdict
    assert whole.ratio == pytest.approx(factor)
    # With fewer, nothing is claimed.
    few = next(change for change in changes(before[:5], after) if change.name == "the whole")
    assert few.verdict == "not known"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = altered(), altered()
    after["firmware"]["interface"] = "bhyve"
    for name, report in (("a", before), ("b", after)):
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    a, b = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    assert main(["diff", a, a]) == 0
    assert "no difference but in time" in capsys.readouterr().out
    assert main(["diff", a, b]) == 1
    said = capsys.readouterr().out
    assert "machine interface: qemu -> bhyve" in said
    assert main(["diff", "--json", str(tmp_path / "found"), a, b]) == 1
    capsys.readouterr()
    found = json.loads((tmp_path / "found").read_text())
    assert found["schema"] == "vmm-diff/1"
    assert found["differences"] == [{"subject": "machine", "name": "interface", "before": "qemu", "after": "bhyve"}]


def test_control_characters_of_a_report_stay_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = altered(), altered()
    after["fw_cfg"]["items"][0]["name"] = HOSTILE
    for name, report in (("a", before), ("b", after)):
        (tmp_path / name).write_text(json.dumps(report))
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "this is no report"),
        ("[]", "this is no report"),
        ('{"schema": "vmm-bench/1"}', "vmm-bench/1 is no report of vmm boot"),
        ('{"schema": "vmm-report/1"}', "this is no report"),
        ('{"schema": "vmm-report/1", "outcome": 5}', "this is no report"),
    ],
)
def test_what_is_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    assert main(["diff", str(path), str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["a"], ["a", "b", "c"], ["nowhere", "nowhere"], ["{tmp}", "{tmp}"]])
def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(["diff", *(word.format(tmp=tmp_path) for word in words)]) == 2
    assert capsys.readouterr().err.startswith("vmm: ")
