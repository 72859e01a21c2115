"""The report of a run as one self-contained HTML page, for ``vmm boot --html``.

Made of the object that ``--json`` writes and of nothing else, so that a page can be made of a file, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from vmm.report import html
from vmm.report.flame import boxes
from vmm.report.pictures import bar, events, memory, sparks, timeline
from vmm.report.text import SILENT, rows, seconds, size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmm.report.schema import AccessReport, ItemReport, Report, TimesReport, WherePlace

_FACTS = (
    "firmware",
    "variables",
    "machine",
    "interface",
    "resets",
    "CPUs",
    "Secure Boot",
    "vmgenid",
    "vmcoreinfo",
    "virtual time",
    "host",
)
"""Rows of the text that say what was booted; the page has sections for the others."""

_MEANINGS = {
    "until": "A console showed what --until asked for, and vmm stopped the machine there.",
    "power-off": "The guest switched the machine off by itself.",
    "panic": "The guest's kernel panicked; what it said last stands below.",
    "suspended": "The guest suspended the machine to RAM, from which a program can wake it up.",
    "reset": "The guest asked for a reset, which was to be the end: -no-reboot, or a guest of ours, which so fails.",
    "reset-loop": "The guest reset the machine so often that it seems to get nowhere.",
    "triple-fault": (
        "A CPU could deliver neither an exception nor the double fault that came of it; hardware resets here without "
        "a word."
    ),
    "emulation-failure": "KVM had to execute an instruction itself, and does not know it.",
    "refused": "The sandbox refused a system call that no guest should lead to.",
    "kvm-failure": "KVM gave up the virtual CPU for a reason of its own.",
    "device-failure": "A device of vmm failed: a defect of vmm, not of the guest.",
    "timeout": "The time of --timeout was up before the guest got where it should.",
    "interrupted": "Somebody pressed Ctrl-C.",
    "stopped": "The program that ran the machine stopped it.",
}

_TOO_EARLY = " It should have shown what --until asked for before."

_COUNTERS = {
    "instructions": "instructions that the software CPU executed",
    "kvm_steps": "single instructions handed to KVM, because they reach its interrupt controllers and timers",
    "interrupts": "interrupts delivered to the vCPUs",
    "halts": "HLT instructions, for which KVM waits",
    "swaps": "times that the software CPU went from one vCPU to another",
    "invalidations": "times that a device's write or a new memory map dropped translated code",
    "translations_flushed": "times that all translated code was dropped because its buffer was full",
}

FIRST_ROWS = 40
FIRST_TIMES = 20
"""Rows that a long table shows at once, and the one of histograms; the others unfold."""

SHOWN_VALUE = 32
"""Bytes of a value of fwctl."""


def render(report: Report) -> str:
    """Return the page for the object that ``--json`` writes.

    Raises:
        HostError: jinja2 is not installed.
    """
    outcome = report["outcome"]
    meaning = _MEANINGS.get(outcome["reason"], "")
    if outcome["reason"] == "power-off" and outcome["exit_status"]:
        meaning += _TOO_EARLY
    counters = cast("Mapping[str, object]", report["accelerator"])
    times = report["exits"]["times"]
    filters: dict[str, Callable[..., object]] = {
        "seconds": seconds,
        "size": size,
        "nanoseconds": nanoseconds,
        "value": _value,
        "hex": hex,
        "bar": bar,
        "place": _place,
        "access": _access,
    }
    return html.render(
        "report/page.html.j2",
        filters,
        command="boot",
        origin=report.get("origin"),
        r=report,
        meaning=meaning,
        facts=[(label, value) for label, value in rows(report) if label in _FACTS],
        timeline=timeline(report),
        events=events(report),
        memory=memory(report),
        items=_items(report),
        counters=[(counters[key], words) for key, words in _COUNTERS.items() if key in counters],
        times=times,
        devices=[_device(report, row) for row in times],
        sparks=sparks(times),
        flame=boxes(report["profile"]) if "profile" in report else [],
        silent=SILENT,
        first_rows=FIRST_ROWS,
        first_times=FIRST_TIMES,
    )


def _items(report: Report) -> list[ItemReport]:
    """Return the items that the guest selected or wrote."""
    items = report["fw_cfg"]["items"] if "fw_cfg" in report else ()
    return [item for item in items if item["selects"] or item["writes"]]


def _device(report: Report, times: TimesReport) -> str:
    """Return which device a histogram of a port or a page belongs to; "" if none, or for exit reasons."""
    kind, first = times["kind"], times["address"]
    last = first if kind == "port" else first | 0xFFF
    for area in report["exits"]["by_device"] if kind != "exit" else ():
        # No MMIO range of ours is as low as the last port.
        if (area["last"] <= 0xFFFF) == (kind == "port") and area["first"] <= last and first <= area["last"]:
            return area["name"]
    return ""


def _place(place: WherePlace | None) -> str:
    """Return the image and the function of an address, to stand behind that; "" where nothing is known."""
    if place is None:
        return ""
    function = f", {place['function']}+{place['function_offset']:#x}" if place["function"] else ""
    return f" ({place['module'] or 'an image without a name'}+{place['offset']:#x}{function})"


def _access(access: AccessReport) -> str:
    """Return what kind of access one was."""
    names = ("in", "out") if access["kind"] == "port" else ("load", "store")
    return names[access["is_write"]]


def _value(text: str) -> str:
    """Return a value of fwctl for people, from its hexadecimal digits."""
    data = bytes.fromhex(text)
    return f"{data[:SHOWN_VALUE].hex(' ')}{f' … ({len(data)} bytes)' if len(data) > SHOWN_VALUE else ''}"


def nanoseconds(value: float) -> str:
    """Return a short time for people: 96 ns, 1.54 ms."""
    for unit, name in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.0f} ns"
