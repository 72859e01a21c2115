"""Virtual time without a guest: what is refused, and recordings."""

from pathlib import Path
from typing import Any

import pytest

from vmm.cli import main
from vmm.config.machine import MachineConfig
from vmm.config.parts import Accelerator
from vmm.errors import ConfigError
from vmm.run.virtual_time import Input, read_recording


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"accel": "kvm"}, "-accel kvm: virtual time is counted by -accel softcpu alone"),
        ({"accel": "kvm+softcpu"}, r"-accel kvm\+softcpu: virtual time is counted"),
        ({"cpus": 1, "max_cpus": 3}, "-smp 1,maxcpus=3: virtual time has no CPUs that are plugged in"),
        ({"drives": "file=/dev/null,format=qcow2"}, "-drive format=…: virtual time has no disks that another process"),
        (
            {"chardevs": "socket,id=a,path=/nowhere", "devices": "vhost-user-blk-pci,chardev=a"},
            "-device vhost-user: virtual time has no devices of other processes",
        ),
        ({"gdb": "tcp::0"}, "-gdb: virtual time has no debugger"),
        ({"record": "a", "replay": "/dev/null"}, "--record: virtual time is not recorded while it is replayed"),
    ],
)
def test_what_it_cannot_have_is_refused_by_name(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=f"{complaint}.*; leave it out, or --clock virtual"):
        MachineConfig.create("probe", clock="virtual", **options)


@pytest.mark.parametrize("option", ["record", "replay"])
def test_recordings_are_of_virtual_time(option: str) -> None:
    with pytest.raises(ConfigError, match=f"--{option}: .* with --clock virtual alone"):
        MachineConfig.create("probe", **{option: "/dev/null"})  # type: ignore[arg-type]


def test_it_chooses_the_accelerator() -> None:
    assert MachineConfig.create("probe", clock="virtual").accel is Accelerator.SOFTCPU
    with pytest.raises(ConfigError, match="--clock lunar: not known; known are host, virtual"):
        MachineConfig.create("probe", clock="lunar")


def test_a_generation_id_that_is_not_given_is_the_same_each_time() -> None:
    def generation(**options: Any) -> bytes | None:
        return MachineConfig.create("ovmf", devices="vmgenid", **options).vmgenid

    assert generation(clock="virtual") == generation(clock="virtual") != generation()
    assert generation() != generation()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--snapshot-at", "x=y.snap"], "--clock virtual: no snapshot"),
        (["--replay", "{typed}", "--send", "a=b"], "--replay has what was typed already"),
        (["--replay", "/dev/zero"], "--replay"),
    ],
)
def test_the_command_line_refuses(
    words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = tmp_path / "typed.jsonl"
    typed.write_bytes(Input(1, 1, b"x").line())
    words = [word.replace("{typed}", str(typed)) for word in words]
    assert main(["boot", "probe", "--clock", "virtual", "--sandbox", "off", *words]) == 2
    assert complaint in capsys.readouterr().err


def test_a_recording_is_read_as_it_was_written() -> None:
    inputs = [Input(0, 5, b"\x00\xff\r\n"), Input(0, 5, None), Input(7, 6, "é".encode())]
    assert read_recording(b"".join(entry.line() for entry in inputs)) == inputs
    assert inputs[1].line() == b'{"instructions": 0, "time_ns": 5, "press": "power-button"}\n'
    assert read_recording(b"") == []


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"instructions": 1, "time_ns": 1}',
        b'{"instructions": 1, "time_ns": 1, "type": 5}',
        '{"instructions": 1, "time_ns": 1, "type": "€"}'.encode(),
        b'{"instructions": -1, "time_ns": 1, "type": ""}',
        b'{"instructions": true, "time_ns": 1, "type": ""}',
        b'{"instructions": 1e3, "time_ns": 1, "type": ""}',
        b'{"instructions": 1, "time_ns": 18446744073709551616, "type": ""}',
        b'{"instructions": 1, "time_ns": 1, "press": "reset"}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_recording_is_refused_with_its_line(line: bytes) -> None:
    with pytest.raises(ConfigError, match="--replay: line 2 is none that --record writes"):
        read_recording(Input(0, 0, b"x").line() + line + b"\n")


def test_what_would_have_come_earlier_is_refused() -> None:
    with pytest.raises(ConfigError, match="--replay: line 2 comes before the one in front of it"):
        read_recording(Input(5, 5, b"x").line() + Input(5, 4, b"y").line())
