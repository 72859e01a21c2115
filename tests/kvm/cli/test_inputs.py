"""Files on the command line: pipes where QEMU takes them, and none that fills memory or hangs."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerators import PLAIN

from vmm.tables.acpi_tables import Oem, table

pytestmark = pytest.mark.needs_kvm

VMM = [sys.executable, "-m", "vmm"]


def boot(options: str, directory: Path) -> subprocess.CompletedProcess[str]:
    line = f"{shlex.join([*VMM, 'boot'])} {options}"
    return subprocess.run(
        ["bash", "-c", line],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=directory,
    )


def test_pipes_bring_what_files_do(tmp_path: Path) -> None:
    (tmp_path / "ssdt").write_bytes(table("OEM1", 2, os.urandom(5000), Oem()))
    (tmp_path / "item").write_bytes(os.urandom(200_000))
    (tmp_path / "text").write_text("a credential\n")
    (tmp_path / "kernel").write_bytes(b"MZ" + os.urandom(2 << 20))
    (tmp_path / "initrd").write_bytes(os.urandom(3 << 20))

    def sizes(**names: str) -> dict[str, int]:
        options = (
            f"probe -accel {PLAIN} -q -serial none -debugcon none --json - -fw_cfg opt/proc,file=/proc/version "
            "-acpitable file={ssdt} -fw_cfg opt/item,file={item} -smbios type=11,path={text} -kernel {kernel} "
            "-initrd {initrd}"
        )
        run = boot(options.format(**names), tmp_path)
        assert run.returncode == 0, run.stderr
        return {item["name"]: item["size"] for item in json.loads(run.stdout)["fw_cfg"]["items"]}

    names = [path.name for path in tmp_path.iterdir()]
    from_files = sizes(**{name: name for name in names})
    assert (from_files["opt/item"], from_files["initrd_data"]) == (200_000, 3 << 20)
    assert from_files["opt/proc"] > 10
    assert sizes(**{name: f"<(cat {name})" for name in names}) == from_files


def test_standard_input_is_a_file_too(tmp_path: Path) -> None:
    run = boot(f"probe -accel {PLAIN} -q -fw_cfg opt/in,file=/dev/stdin < <(printf hello)", tmp_path)
    assert run.returncode == 0, run.stderr
    assert re.search(r"^item: opt/in key 0x\w+ size 5$", run.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "options",
    [
        "FIFO",
        "-bios FIFO",
        "-drive if=pflash,file=FIFO",
        "probe -kernel FIFO",
        "probe -acpitable file=FIFO",
        "probe -smbios file=FIFO",
        "probe -fw_cfg opt/x,file=FIFO",
        "probe -boot splash=FIFO",
    ],
)
def test_a_pipe_without_a_writer_ends_with_the_timeout(tmp_path: Path, options: str) -> None:
    os.mkfifo(tmp_path / "FIFO")
    run = boot(f"{options.replace('FIFO', './FIFO')} --timeout 0.3", tmp_path)
    assert run.returncode == 3
    assert "FIFO was there; is its writer running?" in run.stderr
    assert run.stderr.count("\n") == 1


def test_what_is_wrong_in_words_is_said_before_a_pipe_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    run = boot("-bios ./fifo -e820 base=0 -kernel ./fifo", tmp_path)
    assert run.returncode == 2
    assert "-e820 base=0: size= is missing" in run.stderr


def test_waiting_for_a_pipe_ends_with_ctrl_c(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen([*VMM, "boot", fifo], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not any(os.path.realpath(fd) == str(fifo) for fd in Path(f"/proc/{process.pid}/fd").iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == "vmm: interrupted\n"
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("/dev/zero", "firmware image: /dev/zero is a character device"),
        ("-bios <(yes)", "brings more than 16777216 bytes"),
        (
            "probe -acpitable file=sparse",
            "-acpitable: sparse has 68719476736 bytes; the most here is 16777216 (16 MiB)",
        ),
        ("probe -smbios file=sparse", "sparse has 68719476736 bytes"),
        ("probe -kernel sparse", "-kernel: sparse has 68719476736 bytes"),
        ("probe -fw_cfg opt/x,file=sparse", "sparse has 68719476736 bytes"),
        ("probe -fw_cfg opt/x,file=/dev/urandom", "/dev/urandom is a character device"),
        ("probe -kernel .", "-kernel: . is a directory"),
    ],
)
def test_files_without_end_are_one_line(tmp_path: Path, options: str, complaint: str) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(64 << 30)
    run = boot(options, tmp_path)
    assert run.returncode == 2
    assert complaint in run.stderr
    assert run.stderr.count("\n") == 1


def test_bytes_that_are_no_text_reach_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"MZ" + bytes(5000))
    run = boot(
        f"probe -accel {PLAIN} -q -serial none -debugcon none --json - -kernel kernel -append $'a\\xff\\xc3\\xa9'",
        tmp_path,
    )
    assert run.returncode == 0, run.stderr
    items = {item["name"]: item["size"] for item in json.loads(run.stdout)["fw_cfg"]["items"]}
    assert items["cmdline_data"] == len(b"a\xff\xc3\xa9\0")
