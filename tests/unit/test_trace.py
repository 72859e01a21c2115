"""The access log: from C's records to lines."""

import io
import json
import sys
from pathlib import Path

import pytest
from fw_cfg_rig import BUFFER, DESCRIPTOR, READ, SELECT, SKIP, WRITE, Rig
from vmm._native import ffi, lib

from vmm.config.machine import MachineConfig
from vmm.config.output_files import GrowingFile
from vmm.config.outputs import Outputs
from vmm.run.trace import RING_RECORDS, Access, AccessLog, LogWriter, Trace


class Logged(Rig):
    """A rig whose accesses are logged."""

    def __init__(self) -> None:
        super().__init__()
        self.device.add_file("opt/text", b"hello, guest")
        self.device.add_file("opt/unread", b"x")
        self.device.add_file("opt/writable", bytes(8), writable=True)
        self.start()
        self.vcpu = lib.vmm_vcpu_new(self.core, -1, ffi.NULL, 0)
        self.seen: list[Access] = []
        self.log = AccessLog(self.device, self.core, [self.vcpu], self.seen.append)

    def lines(self) -> list[tuple[str, str, int, int, str]]:
        self.log.close()
        return [(a.operation, a.item, a.offset, a.length, a.result) for a in self.seen]


def log_at(path: str | Path) -> GrowingFile | None:
    return Outputs(MachineConfig.create("probe", trace=path)).trace


def test_port_reads_in_a_row_are_one_line() -> None:
    rig = Logged()
    rig.select(0x20)
    for _ in range(5):
        rig.inp(0x511)
    rig.inp(0x511, 1, 3)
    rig.select(0x20)
    rig.inp(0x511)
    assert rig.lines() == [
        ("select", "opt/text", 0, 0x20, "ok"),
        ("port-read", "opt/text", 0, 8, "ok"),
        ("select", "opt/text", 0, 0x20, "ok"),
        ("port-read", "opt/text", 0, 1, "ok"),
    ]


def test_a_drain_in_between_does_not_split_the_line() -> None:
    rig = Logged()
    rig.select(0x20)
    rig.inp(0x511, 1, 4)
    rig.log.drain()
    rig.inp(0x511, 1, 4)
    assert rig.lines()[1:] == [("port-read", "opt/text", 0, 8, "ok")]


def test_reading_on_behind_the_end_is_one_short_line() -> None:
    rig = Logged()
    rig.select(0x20)
    for _ in range(20):
        rig.inp(0x511)
    assert rig.lines()[1:] == [("port-read", "opt/text", 0, 20, "short")]


def test_every_dma_is_a_line_with_its_buffer() -> None:
    rig = Logged()
    rig.dma(0x20 << 16 | SELECT | READ, 40, BUFFER)
    rig.dma(0x20 << 16 | SELECT | SKIP, 5, 0)
    rig.dma(READ, 7, BUFFER)
    rig.dma(READ, 7, 1 << 40)
    rig.dma(0x22 << 16 | SELECT | WRITE, 8, BUFFER)
    rig.dma(0x20 << 16 | SELECT | WRITE, 8, BUFFER)
    rig.dma(0x3000 << 16 | SELECT | READ, 4, BUFFER)
    rig.trigger(0xFFFF0000)
    assert rig.lines() == [
        ("dma-read", "opt/text", 0, 40, "short"),
        ("dma-skip", "opt/text", 0, 5, "ok"),
        ("dma-read", "opt/text", 5, 7, "ok"),
        ("dma-read", "opt/text", 12, 7, "error"),
        ("dma-write", "opt/writable", 0, 8, "ok"),
        ("dma-write", "opt/text", 0, 8, "error"),
        ("dma-read", "no such key", 0, 4, "zeros"),
        ("dma-lost", "no such key", 0, 0, "error"),
    ]
    assert [access.gpa for access in rig.seen[:2]] == [BUFFER, None]
    assert rig.seen[-1].gpa == 0xFFFF0000


def test_full_ring_drops_and_counts() -> None:
    rig = Logged()
    for _ in range(RING_RECORDS + 10):
        rig.select(0x20)
    assert len(rig.lines()) == RING_RECORDS
    assert rig.log.dropped == 10


def test_counts_by_name() -> None:
    rig = Logged()
    trace = Trace(rig.device)
    rig.select(0x20)
    rig.inp(0x511, 1, 12)
    assert trace.reads("opt/text") == 1
    assert trace.bytes_read("opt/text") == 12
    assert trace.was_read_to_end("opt/text")
    assert trace.reads("opt/unread") == 0
    assert "opt/unread" in trace.never_read()
    assert trace.reads("no/such") == 0
    assert Trace(None).never_read() == []


def test_json_lines(tmp_path: Path) -> None:
    rig = Logged()
    path = tmp_path / "log"
    writer = LogWriter(log_at(path))
    rig.dma(0x20 << 16 | SELECT | READ, 12, BUFFER, DESCRIPTOR)
    rig.log.close()
    for access in rig.seen:
        writer.access(access)
    writer.end(Trace(rig.device), 0)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {**lines[0], "t_s": 0} == {
        "event": "access", "t_s": 0, "vcpu": 0, "rip": None, "operation": "dma-read", "item": "opt/text", "key": 0x20,
        "offset": 0, "length": 12, "gpa": "0x2000", "result": "ok",
    }  # fmt: skip
    text = next(line for line in lines if line.get("name") == "opt/text")
    assert (text["event"], text["reads"], text["bytes_read"], text["read_to_end"]) == ("item", 1, 12, True)
    assert lines[-1]["event"] == "end"
    assert "opt/unread" in lines[-1]["never_read"]


def test_text_ends_with_a_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Logged()
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    writer = LogWriter(None)
    rig.select(0x20)
    rig.inp(0x511, 1, 3)
    rig.log.close()
    for access in rig.seen:
        writer.access(access)
    writer.end(Trace(rig.device), 7)
    text = stream.getvalue()
    assert "port-read  opt/text +0 3 B" in text
    assert "never read: " in text
    assert "7 accesses are missing" in text


def test_full_disk_ends_the_log_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    rig = Logged()
    writer = LogWriter(log_at("/dev/full"))
    rig.select(0x20)
    rig.select(0x20)
    rig.log.close()
    for access in rig.seen:
        writer.access(access)
    writer.end(Trace(rig.device), 0)
    assert capsys.readouterr().err == "vmm: --trace /dev/full: no space left on device; the log ends here\n"
