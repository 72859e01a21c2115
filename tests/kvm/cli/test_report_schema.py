"""Reports of real runs of every kind are what the published schema says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerators import PLAIN
from report_schema import check_report

from vmm.firmware import guests

pytestmark = pytest.mark.needs_kvm


def report_of(*words: str | Path, status: int = 0) -> Any:
    command = [sys.executable, "-m", "vmm", "boot", *map(str, words)]
    command += ["-serial", "none", "-debugcon", "none", "--json", "-", "-q"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert run.returncode == status, run.stderr
    report = json.loads(run.stdout)
    check_report(report)
    return report


@pytest.mark.hw
def test_our_guest_with_everything() -> None:
    devices = ("-device", "vmgenid", "-device", "vmcoreinfo")
    report = report_of("probe", "-smp", "3,maxcpus=4", *devices, "--exit-times", "-accel", PLAIN)
    assert report["exits"]["times"]
    assert report["vmgenid"]["address"] is None
    assert report["vmcoreinfo"] is None
    kinds = [event["kind"] for event in report["timeline"]]
    assert kinds.count("vcpu-started") == 3
    assert {event["subject"] for event in report["timeline"] if event["kind"] == "vcpu-started"} == {0, 1, 2}
    assert report["timeline"][-1]["subject"] == "power-off"


def test_ovmf() -> None:
    report = report_of("ovmf", "-device", "vmgenid", "--until", "any other key", "--timeout", "180")
    assert report["vmgenid"]["address"]
    assert report["firmware"]["variables"]


def test_seabios() -> None:
    report = report_of("seabios", "--until", "No bootable", "--timeout", "120")
    (first,) = [event for event in report["timeline"] if event["kind"] == "first-output"][:1]
    assert first["subject"] in {"serial", "debugcon"}


def test_bhyve_with_fwctl(bhyve_firmware: dict[str, Path]) -> None:
    report = report_of("-l", f"bootrom,{bhyve_firmware['fwctl-only'] / 'BHYVE.fd'}", "--until", "Shell>", "-c", "2")
    subjects = [event["subject"] for event in report["timeline"] if event["kind"] == "fwctl-request"]
    assert "hw.ncpu" in subjects
    assert len(subjects) == len(report["fwctl"]["requests"])


@pytest.mark.parametrize(
    ("guest", "words", "status", "reason"),
    [
        ("triple-fault", (), 1, "triple-fault"),
        ("silent", ("--timeout", "1"), 3, "timeout"),
        ("conformance-fwctl", ("-machine", "fwcfg=bhyve"), 0, "power-off"),
        ("probe", ("--until", "no such line"), 1, "power-off"),
    ],
)
@pytest.mark.parametrize("accel", ["kvm", "kvm+softcpu", "softcpu"])
def test_every_end(guest: str, words: tuple[str, ...], status: int, reason: str, accel: str) -> None:
    report = report_of(guests.path(guest), *words, "-accel", accel, status=status)
    assert report["outcome"]["reason"] == reason
    assert report["accelerator"]["name"] == accel
