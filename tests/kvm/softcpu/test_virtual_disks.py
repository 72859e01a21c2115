"""Disks with virtual time: a guest that reads and writes them executes the same in every run."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import vmm

from vmm import Machine
from vmm.report.collect import collect
from vmm.run.outcome import Reason
from vmm.softcpu import engine

pytestmark = pytest.mark.skipif(not engine.is_built(), reason="the software CPU is not built")

SCRIPT = """\
echo -off
fs0:
ls
cp large copy
echo written > new.txt
type new.txt
reset -s
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "esp"
    folder.mkdir()
    (folder / "startup.nsh").write_text(SCRIPT)
    (folder / "large").write_bytes(bytes(range(256)) * 800)
    return folder


def booted(folder: Path) -> dict[str, Any]:
    """Boot from a folder, through the shell's countdown, to its script's end; what has to be the same each time."""
    with Machine("ovmf", clock="virtual", esp=folder) as machine:
        outcome = machine.run(deadline=240)
        assert outcome.reason is Reason.POWER_OFF, outcome.message
        report = collect(machine, outcome)
        return {"consoles": machine.serial.text(), "disks": report["disks"], **report["virtual_time"]}


def test_each_boot_from_a_folder_executes_the_same(folder: Path, request: pytest.FixtureRequest) -> None:
    at_rest = booted(folder)
    assert "written" in at_rest["consoles"]
    (disk,) = at_rest["disks"]
    assert disk["bytes_read"] > 200_000
    assert disk["bytes_written"] > 200_000
    assert disk["flushes"] > 0
    request.getfixturevalue("busy_host")
    assert booted(folder) == at_rest


def test_what_was_typed_is_replayed_beside_a_disk(folder: Path, tmp_path: Path) -> None:
    """In the sandbox; the image is as it was after each run, for it is written in front of it."""
    (folder / "startup.nsh").unlink()
    image, recording, path = (tmp_path / name for name in ("image", "typed.jsonl", "report.json"))
    image.write_bytes(bytes(1 << 20))
    options = ("ovmf", "--clock", "virtual", "--esp", folder, "-drive", f"file={image},format=raw,snapshot=on", "-q")
    dialogue = (
        *("--send", r"any other key to continue=\r"),
        *("--send", r"Shell>=fs0:\r"),
        *("--send", r"FS0:\\>=cp large copy\r"),
        *("--send", r"FS0:\\>=dblk blk2 0 1\r"),
        *("--send", r"FS0:\\>=reset -s\r"),
    )

    def told(*more: str | Path) -> dict[str, Any]:
        run = vmm("boot", *options, "-serial", "none", "--timeout", "100", "--json", path, *more)
        assert run.returncode == 0, run.stderr
        report = json.loads(path.read_text())
        return {"disks": report["disks"], **report["virtual_time"]}

    first = told("--record", recording, *dialogue)
    assert first["inputs"] == len(recording.read_bytes().splitlines()) == 5
    assert first["disks"][0]["bytes_written"] > 200_000
    assert told("--replay", recording) == first
    assert image.read_bytes() == bytes(1 << 20)
