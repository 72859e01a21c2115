"""Reports of runs that never were, to be shown; each is checked by the schema before it is."""

import json
from typing import Any

from html_page import check_self_contained, read
from report_schema import check_report

from vmm.report import page

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


def seabios_report() -> Report:
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
        "resets": {"count": 0, "latest": []},
        "cpus": {"requested": 2, "max": 2, "plugged": [], "started": 2, "all_started_s": 0.03, "madt": None},
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


def text_of(report: Report) -> str:
    """The page's text, single-spaced, of a report that came through JSON."""
    read_again = json.loads(json.dumps(report))
    check_report(read_again)
    html = page.render(read_again)
    check_self_contained(html)
    return " ".join(read(html).text.split())
