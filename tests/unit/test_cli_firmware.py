"""``vmm firmware``: what it prints, and how it fails."""

import json
import os
from pathlib import Path

import pytest

from vmm.cli import firmware, main

SEABIOS = "/usr/share/seabios/bios-256k.bin"


def test_text_of_bhyves_firmware(bhyve_firmware: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["firmware", str(bhyve_firmware["fwctl-only"] / "BHYVE.fd")]) == 0
    printed, told = capsys.readouterr()
    assert not told
    for line in ("volumes: 5", "compression: LZMA; ", "fw_cfg: not found", "fwctl: yes", "names hw.ncpu"):
        assert line in printed
    assert printed.endswith("fwcfg=auto: bhyve, because the image speaks fwctl and not fw_cfg\n")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["firmware", SEABIOS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["recommended_interface"], found["path"]) == ("seabios", "qemu", SEABIOS)
    assert found["clients"]["fw_cfg"]


@pytest.mark.parametrize(("name", "kind"), [("seabios", "seabios"), ("ovmf", "ovmf"), ("probe", "unknown")])
def test_names_are_those_of_boot(name: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["firmware", "--json", name]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == kind


@pytest.mark.parametrize(
    ("words", "complaint"),
    [([], "required: IMAGE"), (["/nonexistent"], "cannot read /nonexistent"), (["/", "x"], "unrecognized")],
)
def test_wrong_usage_is_one_line(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["firmware", *words]) == 2
    told = capsys.readouterr().err
    assert complaint in told
    assert told.count("\n") == 1


def test_a_pipe_that_nobody_writes_into_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(firmware, "PIPE_SECONDS", 0.05)
    assert main(["firmware", str(tmp_path / "fifo")]) == 3
    assert "is its writer running?" in capsys.readouterr().err
