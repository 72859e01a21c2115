"""The pictures of a run, from made-up reports."""

import pytest
from made_up_report import Report, event, histogram, text_of
from report_schema import check_report

from vmm.report import page as report_page
from vmm.report import text
from vmm.report.phases import phases
from vmm.report.pictures import DRAWN_ITEMS, Lane, bar, events, memory, sparks, ticks, timeline


def lane_of(report: Report, kind: str) -> Lane:
    (lane,) = [lane for lane in timeline(report).lanes if lane.kind == kind]
    return lane


def test_many_vcpus_are_one_line_and_a_staircase(report: Report) -> None:
    report["cpus"] |= {"requested": 255, "started": 255, "max": 255}
    started = [event(number / 100, "vcpu-started", number, f"vCPU {number} started") for number in range(255)]
    report["timeline"] = [*started, event(2.6, "end", "until")]
    assert events(report) == [(0.0, "255 vCPUs started, number 0 first, 254 last at 2.54 s"), (2.6, "until")]
    lane = lane_of(report, "cpus")
    assert (lane.note, lane.marks) == ("255 of 255", ())
    corners = [tuple(map(float, corner.split(","))) for corner in lane.area.split()]
    assert corners[0][1] == corners[-1][1] == 100
    assert min(y for _, y in corners) == 0
    text_of(report)


def test_resets_are_told_drawn_and_begin_the_vcpus_again(report: Report) -> None:
    causes = [("guest", "port 0xcf9 <- 0x06"), ("triple-fault", "triple fault on vCPU 1 at RIP 0xfff0")]
    resets: list[Report] = [
        {"t_s": number / 100, "kind": kind, "cause": cause, "details": ""}
        for number, (kind, cause) in enumerate(causes)
    ]
    report["resets"] = {"count": 7, "latest": resets}
    report["timeline"] = [
        event(-0.01, "vcpu-started", 0, "vCPU 0 started"),
        *(event(reset["t_s"], "reset", reset["kind"], reset["cause"]) for reset in resets),
        event(0.02, "vcpu-started", 0, "vCPU 0 started"),
    ]
    check_report(report)
    assert lane_of(report, "cpus").note == "1 of 2"
    (lane,) = (lane for lane in timeline(report).lanes if lane.name == "resets")
    assert [mark.tip for mark in lane.marks] == [f"0 ms: {causes[0][1]}", f"10 ms: {causes[1][1]}"]
    assert (0.0, "guest: port 0xcf9 <- 0x06") in events(report)
    words = dict(text.rows(report))["resets"]
    assert words == "7: … port 0xcf9 <- 0x06 at 0 ms; triple fault on vCPU 1 at RIP 0xfff0 at 10 ms"


def test_few_vcpus_are_told_one_by_one(report: Report) -> None:
    lines = {"console-line": "debugcon: {}"}
    assert events(report) == [
        (event["t_s"], lines.get(event["kind"], "{}").format(event["event"])) for event in report["timeline"]
    ]


def test_marks_lie_where_their_time_is(report: Report) -> None:
    picture = timeline(report)
    assert [lane.name for lane in picture.lanes] == ["firmware", "vCPUs", "debugcon", "signature", "numa", "end"]
    _, vcpus, debugcon, signature, _, end = picture.lanes
    assert [mark.x for mark in vcpus.marks] == [0, 50]
    assert debugcon.lines == (50, 90)  # two lines came together
    assert [(mark.x, mark.label) for mark in signature.marks] == [(10, "6 ms")]
    assert [(mark.x, mark.label, mark.is_late) for mark in end.marks] == [(100, "until, 60 ms", True)]
    assert picture.ticks[:2] == ((0, "0 ms"), (picture.step, "10 ms"))
    assert picture.step == pytest.approx(100 / 6, abs=0.001)
    assert picture.undrawn == 0


def test_phases_begin_with_their_first_sign(report: Report) -> None:
    assert [(phase.name, phase.t_s) for phase in phases(report)] == [("POST", 0.0), ("boot", 0.054)]
    (lane,) = [lane for lane in timeline(report).lanes if lane.kind == "phases"]
    assert [(span.name, span.x, span.width) for span in lane.spans] == [("POST", 0, 90), ("boot", 90, 10)]
    report["firmware"]["kind"] = "unknown"
    assert phases(report) == []
    assert timeline(report).lanes[0].kind == "cpus"


def test_phases_of_edk2(report: Report) -> None:
    report["firmware"]["kind"] = "ovmf"
    read = {"signature": 0.1, "etc/smbios/smbios-anchor": 0.3, "etc/table-loader": 0.4, "boot_menu": 0.5}
    report["timeline"] = [
        event(0.0, "vcpu-started", 0, "vCPU 0 started"),
        *(event(t_s, "fw-cfg-item", name, f"fw_cfg item {name} selected") for name, t_s in read.items()),
        event(0.6, "console-line", "serial", "BdsDxe: loading Boot0001"),
        event(0.7, "console-line", "serial", "UEFI Interactive Shell v2.2"),
    ]
    found = [(phase.name, phase.t_s) for phase in phases(report)]
    assert found == [("SEC", 0.0), ("PEI", 0.1), ("DXE", 0.3), ("BDS", 0.4), ("shell", 0.7)]


def test_many_items_are_drawn_in_part_and_all_listed(report: Report) -> None:
    names = [f"opt/item-{number:04}" for number in range(100)]
    report["timeline"] = [event(0.01, "fw-cfg-item", name, f"fw_cfg item {name} selected") for name in names]
    assert len([lane for lane in timeline(report).lanes if lane.kind == "item"]) == DRAWN_ITEMS
    assert [words for _, words in events(report)] == [f"fw_cfg item {name} selected" for name in names]
    assert f"{100 - DRAWN_ITEMS} more items are in the list." in text_of(report)


def test_a_run_of_no_time_has_an_axis(report: Report) -> None:
    report["outcome"]["elapsed_s"] = 0.0
    report["timeline"] = [event(0.0, "end", "until")]
    assert lane_of(report, "end").marks[0].x == 0
    text_of(report)


@pytest.mark.parametrize(("value", "percent"), [(14_800_000, 100.0), (2027, 46.1), (1, 4.2), (0, 0.0)])
def test_bars_are_logarithmic(value: int, percent: float) -> None:
    assert bar(value, 14_800_000) == percent


@pytest.mark.parametrize(
    ("end", "step", "last"),
    [(0.06, 0.01, "60 ms"), (7.9, 1.0, "7 s"), (8.1, 2.0, "8 s"), (3600, 500, "3500 s"), (2e-6, 5e-7, "2 µs")],
)
def test_ticks_are_round_numbers(end: float, step: float, last: str) -> None:
    found = ticks(end)
    assert [at for at, _ in found[:2]] == [0, pytest.approx(step)]
    assert found[-1][1] == last
    assert found[-1][0] <= end * 1.000001


def test_the_memory_map_has_gaps_and_merges_neighbours(report: Report) -> None:
    assert [(row.first, row.last, row.kind) for row in reversed(memory(report))] == [
        (0, 0x9FFFF, "ram"),
        (0xA0000, 0xBFFFF, "gap"),
        (0xC0000, 0xFFFFF, "protected"),
        (0x100000, 0x7FFFFFF, "ram"),
        (0x8000000, 0xFFFBFFFF, "gap"),
        (0xFFFC0000, 0xFFFFFFFF, "rom"),
    ]


def test_histograms_share_an_axis(report: Report) -> None:
    found = sparks(report["exits"]["times"])
    assert found is not None
    assert (found.low_ns, found.high_ns) == (8, 4096)
    (one,), (left, right) = found.bars
    assert left[0] == 0 < one[0] < right[0] == pytest.approx(found.width - found.bar)
    assert one[1] == right[1] == found.height > left[1] > 0
    assert sparks([]) is None


def test_a_single_bucket_of_no_time_has_a_place(report: Report) -> None:
    report["exits"]["times"] = [histogram("in 0x71", "port", 0x71, (0, 1))]
    assert "1 ns to 2 ns, both logarithmic" in text_of(report)


def test_a_page_of_memory_is_its_devices(report: Report) -> None:
    report["exits"]["by_device"].append(
        {"name": "HPET", "first": 0xFED00000, "last": 0xFED003FF, "reads": 1, "writes": 0}
    )
    report["exits"]["times"] = [
        histogram("load 0xfed00000", "MMIO", 0xFED00000, (64, 1)),
        histogram("exit mmio", "exit", 0x402, (64, 1)),
    ]
    text = text_of(report)
    assert "load 0xfed00000 HPET 1" in text
    assert "exit mmio 1" in text


@pytest.mark.parametrize(("value", "words"), [(0, "0 ns"), (960, "960 ns"), (1536, "1.54 µs"), (2.5e9, "2.5 s")])
def test_short_times_for_people(value: float, words: str) -> None:
    assert report_page.nanoseconds(value) == words
