"""The access log of real guests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vmm import Machine

pytestmark = pytest.mark.needs_kvm


def test_log_of_the_probe(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with Machine("probe", cpus=2, trace=path, fw_cfg={"opt/org.example/a": b"hello"}) as machine:
        machine.run(deadline=60)
        assert machine.trace.reads("signature")
        assert machine.trace.was_read_to_end("etc/e820")
        counts = {item.name: item for item in machine.trace.items()}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    accesses = [line for line in lines if line["event"] == "access"]
    assert (accesses[0]["operation"], accesses[0]["item"]) == ("select", "signature")
    assert (accesses[1]["operation"], accesses[1]["item"], accesses[1]["length"]) == ("port-read", "signature", 4)
    assert all(line["rip"] is not None and line["vcpu"] in {0, 1} for line in accesses)
    assert [line["t_s"] for line in accesses] == sorted(line["t_s"] for line in accesses)
    for line in lines:
        if line["event"] == "item":
            assert line["bytes_read"] == counts[line["name"]].bytes_read
    read = sum(a["length"] for a in accesses if a["item"] == "etc/e820" and a["operation"].endswith("read"))
    assert read == counts["etc/e820"].bytes_read
    assert lines[-1]["event"] == "end"
    assert lines[-1]["dropped"] == 0
    assert set(lines[-1]["never_read"]) == {name for name, item in counts.items() if not item.selects}


def test_text_on_stderr() -> None:
    command = [sys.executable, "-m", "vmm", "boot", "probe", "--trace", "-", "-serial", "none", "-q"]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "select     signature" in run.stderr
    assert "never read: " in run.stderr


def test_bad_path_is_told_before_anything_runs() -> None:
    command = [sys.executable, "-m", "vmm", "boot", "probe", "--trace", "/no/such/log"]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert run.stderr == "vmm: --trace /no/such/log: cannot write: no such file or directory\n"
