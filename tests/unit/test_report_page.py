"""The page of a run, from made-up reports: what it says, what it draws, and that nothing in it gets out of hand."""

import json
from typing import Any

import pytest
from html_page import check_self_contained, read
from report_schema import check_report

from vmm.report import page as report_page
from vmm.report import text
from vmm.report.phases import phases
from vmm.report.pictures import DRAWN_ITEMS, Lane, bar, events, memory, sparks, ticks, timeline
from vmm.run.outcome import Reason

Report = Any
"""Made up, and then checked by the schema."""

HOSTILE = "<script>alert(1)</script>\"'&\x1b\u202e\udcff"


ORIGIN = {
    "vmm": "1.2.3",
    "date": "2026-01-02T03:04:05+00:00",
    "command": "vmm boot seabios -append 'a <b>'",
    "host": {"cpu": "An & CPU", "cpus": 2, "virtualization": None, "kernel": "6.1"},
    "images": [{"role": "firmware", "path": HOSTILE, "size": 262144, "sha256": "0f" * 32}],
}


def item(name: str, key: int, **counts: Any) -> Report:
    nothing = {"selects": 0, "reads": 0, "bytes_read": 0, "writes": 0, "read_to_end": False}
    return {"name": name, "key": key, "size": 4, **nothing, **counts}


def request(oid: str, **answer: Any) -> Report:
    return {"t_s": 0.1, "operation": "GET", "txid": 1, "oid": oid, "error": "OK", "matched": oid, "value": "", **answer}


def event(t_s: float, kind: str, subject: int | str, words: str | None = None) -> Report:
    return {"t_s": t_s, "kind": kind, "subject": subject, "event": str(subject) if words is None else words}


def histogram(name: str, kind: str, address: int, *buckets: tuple[int, int]) -> Report:
    numbers = dict.fromkeys(("total_ns", "p50_ns", "p90_ns", "p99_ns", "max_ns"), 2048)
    count = sum(count for _, count in buckets)
    shown = {"name": name, "kind": kind, "address": address, "is_write": name.startswith("out")}
    return {**shown, "count": count, **numbers, "buckets": [list(bucket) for bucket in buckets]}


@pytest.fixture
def report() -> Report:
    """What SeaBIOS on two CPUs might leave."""
    times = [histogram("out 0x402", "port", 0x402, (64, 3)), histogram("exit io", "exit", 2, (8, 1), (4096, 9))]
    return {
        "schema": "vmm-report/1",
        "origin": ORIGIN,
        "outcome": {
            "reason": "until",
            "exit_status": 0,
            "elapsed_s": 0.06,
            "message": "the console showed 'No bootable'",
            "details": "",
        },
        "firmware": {
            "path": "/usr/share/seabios/bios-256k.bin",
            "kind": "seabios",
            "interface": "qemu",
            "interface_why": "SeaBIOS speaks fw_cfg",
            "variables": None,
            "variables_persist": False,
            "notes": [],
        },
        "machine": "pc",
        "cpus": {"requested": 2, "max": 2, "started": 2, "all_started_s": 0.03, "madt": None},
        "memory": {
            "size": 128 << 20,
            "regions": [
                {"gpa": 0, "size": 0xA0000, "kind": "ram", "read_only": False},
                {"gpa": 0xC0000, "size": 0x20000, "kind": "ram", "read_only": True},
                {"gpa": 0xE0000, "size": 0x20000, "kind": "ram", "read_only": True},
                {"gpa": 0x100000, "size": 127 << 20, "kind": "ram", "read_only": False},
                {"gpa": 0xFFFC0000, "size": 0x40000, "kind": "rom", "read_only": True},
            ],
        },
        "consoles": {"serial": 0, "debugcon": 20},
        "console_tails": {"serial": "", "debugcon": "No bootable device"},
        "fw_cfg": {
            "items": [
                item("signature", 0, selects=3, reads=4, bytes_read=4, read_to_end=True),
                item("numa", 0xD, size=40, selects=1, reads=1, bytes_read=8),
                item("etc/e820", 0x20),
            ],
            "never_read": ["etc/e820"],
            "probes": 3,
        },
        "exits": {
            "by_reason": {"io": 1234},
            "by_device": [{"name": "debugcon", "first": 0x402, "last": 0x402, "reads": 1, "writes": 2178}],
            "times": times,
            "times_lost": 0,
        },
        "accelerator": {"name": "kvm", "why": "asked for", "instructions": 0, "kvm_steps": 0, "interrupts": 0},
        "timeline": [
            event(0.0, "vcpu-started", 0, "vCPU 0 started"),
            event(0.001, "first-output", "debugcon", "first output on debugcon"),
            event(0.006, "fw-cfg-item", "signature", "fw_cfg item signature selected"),
            event(0.012, "fw-cfg-item", "numa", "fw_cfg item numa selected"),
            event(0.03, "vcpu-started", 1, "vCPU 1 started"),
            event(0.03, "console-line", "debugcon", "SeaBIOS (version 1)"),
            event(0.030001, "console-line", "debugcon", "Found 2 cpu(s)"),
            event(0.054, "console-line", "debugcon", "enter handle_19:"),
            event(0.06, "end", "until"),
        ],
    }


def with_fwctl(report: Report, *requests: Report, probes: int = 1) -> Report:
    del report["fw_cfg"]
    report["firmware"]["interface"] = "bhyve"
    report["fwctl"] = {
        "requests": list(requests),
        "count": len(requests),
        "probes": probes,
        "oids": ["hw.ncpu"],
        "never_asked": ["hw.ncpu"],
    }
    return report


def lane_of(report: Report, kind: str) -> Lane:
    (lane,) = [lane for lane in timeline(report).lanes if lane.kind == kind]
    return lane


def text_of(report: Report) -> str:
    """The page's text, single-spaced, of a report that came through JSON."""
    read_again = json.loads(json.dumps(report))
    check_report(read_again)
    html = report_page.render(read_again)
    check_self_contained(html)
    return " ".join(read(html).text.split())


def test_the_page_says_what_the_run_did(report: Report) -> None:
    text = text_of(report)
    for words in (
        "the console showed 'No bootable' until after 60 ms, exit status 0.",
        "firmware seabios: /usr/share/seabios/bios-256k.bin machine pc, 128 MiB of RAM",
        "interface QEMU's fw_cfg (SeaBIOS speaks fw_cfg)",
        "CPUs 2 asked for, 2 started, the last after 30 ms",
        "signature 3 times and used 2 of 3 items, 12 bytes in all",
        "signature 0x0 4 3 4 4 yes",
        "numa 0xd 40 1 1 8 no",
        "does not know it from here. etc/e820",
        "debugcon: 20 bytes No bootable device",
        "serial: nothing",
        "debugcon 0x402 1 2,178",
        "of all vCPUs together: io 1,234.",
        "out 0x402 debugcon 3 2.05 µs",
        "ROM or flash 0xfffc0000-0xffffffff 256 KiB",
        "Not used (asked for)",
    ):
        assert words in text


def test_nothing_of_guest_or_user_is_markup(report: Report) -> None:
    report["outcome"] |= {"message": HOSTILE, "details": HOSTILE, "exit_status": 1}
    report["firmware"] |= {"path": HOSTILE, "kind": HOSTILE, "interface_why": HOSTILE, "notes": [HOSTILE]}
    report["fw_cfg"]["items"].append(item(HOSTILE, 0x21, selects=1))
    report["fw_cfg"]["never_read"].append(HOSTILE)
    report["console_tails"]["debugcon"] = HOSTILE
    report["timeline"].append(event(0.07, "end", HOSTILE))
    report["exits"]["by_device"][0]["name"] = HOSTILE
    report["accelerator"]["why"] = HOSTILE
    html = report_page.render(report)
    check_self_contained(html)
    # Once in each of the above, and where they show twice: title, facts and picture.
    shown = read(html).text
    assert shown.count(r"""<script>alert(1)</script>"'&\x1b\u202e\udcff""") >= 13
    assert "\x1b" not in html
    html.encode("utf-8")


def test_nothing_of_an_fwctl_guest_is_markup(report: Report) -> None:
    with_fwctl(report, request(HOSTILE, operation=HOSTILE, matched=HOSTILE, error=HOSTILE))
    report["timeline"].append(event(0.07, "fwctl-request", HOSTILE, f"fwctl GET {HOSTILE}"))
    report["fwctl"]["never_asked"] = [HOSTILE]
    html = report_page.render(report)
    check_self_contained(html)
    assert read(html).text.count(r"""<script>alert(1)</script>"'&\x1b\u202e\udcff""") == 5


def test_nothing_of_guest_or_user_steers_the_terminal_that_shows_the_text(report: Report) -> None:
    report["outcome"] |= {"message": HOSTILE, "details": f"one\ntwo {HOSTILE}"}
    report["firmware"] |= {"path": HOSTILE, "interface_why": HOSTILE}
    report["fw_cfg"]["items"].append(item(HOSTILE, 0x21, selects=1))
    report["accelerator"]["why"] = HOSTILE
    shown = text.text(report)
    assert shown.replace("\n", "").isprintable()
    assert shown.count(r"\x1b\u202e\udcff") == 6
    shown = text.text(with_fwctl(report, request(HOSTILE)))
    assert shown.replace("\n", "").isprintable()


@pytest.mark.parametrize("reason", [reason.value for reason in Reason])
def test_every_end_is_explained(report: Report, reason: str) -> None:
    report["outcome"] |= {"reason": reason, "exit_status": 1, "details": "RIP 0000"}
    html = report_page.render(report)
    assert 'class="verdict"' in html
    explained = read(html).text.partition("exit status 1. ")[2]
    assert explained[0].isupper()
    assert "RIP 0000" in explained


def test_a_guest_that_reads_without_looking_for_the_signature(report: Report) -> None:
    report["fw_cfg"] |= {"probes": 0}
    assert "asked for the device's signature 0 times and used 2 of 3 items" in text_of(report)
    shown = text.text(report)
    assert "fw_cfg        2 of 3 items read, 12 bytes" in shown
    assert "never looked" not in shown


def test_counts_of_what_was_read(report: Report) -> None:
    selected = item("selected", 0x21, selects=1)
    again = item("again", 0x22, size=16, selects=4, reads=4, bytes_read=32)
    report["fw_cfg"]["items"] += [selected, again]
    shown = text.text(report)
    assert "3 of 5 items read" in shown
    assert "never read  etc/e820, selected\n" in shown
    assert "numa [8 of 40 bytes]" in shown
    assert "again (4 times) [not all of 16 bytes]" in shown


def test_the_madt_that_firmware_left_is_told(report: Report) -> None:
    report["cpus"]["madt"] = {"address": 0xF77A000, "oem": "BHYVE", "enabled": [0], "possible": 1}
    assert "2 started, the last after 30 ms; 1 in the MADT that firmware left" in text.text(report)


def test_a_guest_that_does_nothing(report: Report) -> None:
    report["consoles"] = {"serial": 0, "debugcon": 0}
    report["console_tails"] = {"serial": "", "debugcon": ""}
    report["fw_cfg"] |= {"items": [item("signature", 0)], "never_read": ["signature"], "probes": 0}
    report["exits"] = {"by_reason": {}, "by_device": [], "times": [], "times_lost": 0}
    report["cpus"] |= {"started": 0, "all_started_s": None}
    report["timeline"] = []
    report["memory"]["regions"] = []
    text = text_of(report)
    assert "The guest never looked for it: it selected nothing" in text
    assert "The guest printed nothing" in text
    assert "None at all." in text
    assert "it never did." in text
    assert "vCPUs 0 of 2" in text
    assert "Time spent in vmm" not in text


def test_a_machine_with_neither_interface(report: Report) -> None:
    del report["fw_cfg"]
    text = text_of(report)
    assert "fw_cfg: what" not in text
    assert "fwctl: what" not in text


def test_fwctl_instead_of_fw_cfg(report: Report) -> None:
    asked = [
        request("hw.ncpu", value="04000000"),
        request("hw.n", matched="hw.ncpu", value="aa" * 40),
        request("no.such", matched=None, error="ENOENT"),
    ]
    text = text_of(with_fwctl(report, *asked))
    assert "read the device's signature 1 time and made 3 requests" in text
    assert "0.10 s GET hw.ncpu OK 04 00 00 00" in text
    assert f"hw.n (answered as hw.ncpu) OK {'aa ' * 32}… (40 bytes)" in text
    assert "no.such ENOENT" in text
    assert "Never asked for" in text
    assert "Only the last" not in text
    report["fwctl"]["count"] = 2000
    assert "made 2000 requests" in text_of(report)
    assert "Only the last 3 were kept." in text_of(report)


def test_fwctl_that_nobody_looked_for(report: Report) -> None:
    assert "The guest never looked for it." in text_of(with_fwctl(report, probes=0))


def test_a_thousand_items_are_all_there_and_mostly_folded(report: Report) -> None:
    names = [f"opt/item-{number:04}" for number in range(1000)]
    report["fw_cfg"]["items"] = [item(name, 0x20, selects=1) for name in names] + [item(name, 0x20) for name in names]
    report["fw_cfg"]["never_read"] = [f"{name}-never" for name in names]
    html = report_page.render(report)
    shown, folded = html.partition("<summary>960 more")[::2]
    assert shown.count('<td class="m">opt/item-') == 40
    assert all(f">{name}<" in html and f">{name}-never<" in html for name in names)
    assert folded.count("<summary>960 more") == 1
    assert len(html) < 1 << 20


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


def test_the_page_says_where_it_comes_from(report: Report) -> None:
    del report["origin"]
    assert "Host and images" not in text_of(report)
    report["origin"] = ORIGIN
    text = text_of(report)
    assert "vmm boot version 1.2.3 2026-01-02 03:04:05 UTC $ vmm boot seabios -append 'a <b>'" in text
    assert "host An & CPU, 2 processors, no VMX or SVM, Linux 6.1" in text
    assert f"firmware {HOSTILE[:10]}" in text
    assert f"262,144 bytes sha256 {'0f' * 32}" in text


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


def test_the_software_cpus_counters(report: Report) -> None:
    report["accelerator"] = {
        "name": "kvm+softcpu",
        "why": "asked for",
        "instructions": 1234567,
        "kvm_steps": 8,
        "interrupts": 5,
        "swaps": 3,
    }
    text = text_of(report)
    assert "1,234,567 instructions that the software CPU executed 8 single instructions" in text
    assert "5 interrupts delivered" in text
    assert "HLT instructions" not in text


def test_a_power_off_too_early_is_told(report: Report) -> None:
    report["outcome"] |= {"reason": "power-off", "exit_status": 1}
    assert "It should have shown what --until asked for before." in text_of(report)


@pytest.mark.parametrize(("value", "words"), [(0, "0 ns"), (960, "960 ns"), (1536, "1.54 µs"), (2.5e9, "2.5 s")])
def test_short_times_for_people(value: float, words: str) -> None:
    assert report_page.nanoseconds(value) == words
