"""Reading what ``vmm boot --script`` takes."""

from pathlib import Path

import pytest

from vmm.cli.script import Step, read_script
from vmm.errors import ConfigError
from vmm.run.outcome import Reason


def write(directory: Path, text: str) -> str:
    path = directory / "dialogue"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_every_step(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "# to the shell\n\n"
        "expect any other key to continue\n"
        "  keys esc F2\n"
        "timeout 5\n"
        "expect ^Größe: \\d+ $\n"
        "send  two spaces\\x1b\\\\\n"
        "send-line ver\n"
        "send-line\n"
        "suspend\n"
        "wakeup\n"
        "plug-cpu\n"
        "plug-cpu 3\n"
        "unplug-cpu 0x3\n"
        "power-off\n",
    )
    assert read_script(path) == [
        Step(f"{path}:3", wait="any other key to continue"),
        Step(f"{path}:4", keys=("esc", "F2")),
        Step(f"{path}:6", wait="^Größe: \\d+ $", deadline=5),
        Step(f"{path}:7", typed=b" two spaces\x1b\\"),
        Step(f"{path}:8", typed=b"ver\r"),
        Step(f"{path}:9", typed=b"\r"),
        Step(f"{path}:10", deadline=5, end=Reason.SUSPENDED),
        Step(f"{path}:11", wakes=True),
        Step(f"{path}:12", plugs=True),
        Step(f"{path}:13", plugs=True, cpu=3),
        Step(f"{path}:14", unplugs=3),
        Step(f"{path}:15", deadline=5),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "expct Shell>",
            "expct: no such step; known are expect, send, send-line, keys, snapshot, timeout, suspend, wakeup, power-",
        ),
        ("expect", "expect: its argument is missing"),
        ("expect [", "expect: [: not a regular expression: unterminated character set at position 0"),
        ("send", "send: its argument is missing"),
        ("send a\\q", "send: unknown escape \\q; known are \\r \\n \\t \\e \\xNN \\\\"),
        ("keys up F13", "keys: no key is named 'F13'; known are up, down"),
        ("timeout soon", "timeout: its time soon: not a number of seconds above 0"),
        ("timeout", "timeout: its time '': not a number of seconds above 0"),
        ("unplug-cpu", "unplug-cpu: its argument is missing"),
        ("plug-cpu two", "plug-cpu: its index two: not a whole number"),
        ("wakeup", "wakeup: the step before it is suspend, and waits for that"),
        ("suspend now", "suspend: takes nothing behind it, not now"),
        ("power-button now", "power-button: takes nothing behind it, not now"),
        ("power-off now", "power-off: takes nothing behind it, not now"),
    ],
)
def test_a_line_that_makes_no_sense_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, f"# first\n{line}\nexpect x\n")
    with pytest.raises(ConfigError) as caught:
        read_script(path)
    assert str(caught.value).startswith(f"--script {path}:2: {message}")


def test_a_script_that_waits_for_nothing_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "expect x\nsend y\n")
    with pytest.raises(ConfigError, match="dialogue:2: nobody would read this; the last step is expect, suspend or"):
        read_script(path)
    with pytest.raises(ConfigError, match="there is no step in it"):
        read_script(write(tmp_path, "# nothing\n"))
    with pytest.raises(ConfigError, match=r"--script: cannot read .*missing: no such file or directory"):
        read_script(str(tmp_path / "missing"))
