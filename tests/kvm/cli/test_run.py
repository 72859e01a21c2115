"""``vmm run``: an application's console is stdout, its EFI_STATUS the exit status."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import debian
import pexpect
import pytest

from vmm.config.machine import MachineConfig
from vmm.efi.run import Application, run_application
from vmm.firmware import guests
from vmm.machine import Machine
from vmm.run.outcome import Reason
from vmm.softcpu import engine

pytestmark = pytest.mark.needs_kvm

VMM = [sys.executable, "-m", "vmm"]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return Path(shutil.copy(guests.efi("example"), tmp_path / "app.efi"))


def run(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [*VMM, "run", "--timeout", "100", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL)


def test_its_words_its_output_and_success(app: Path) -> None:
    done = run(app, "list", "--timeout", "two words", 'a "quote"', "-c", "äö€", "")
    # The console on a serial port shows only ASCII; with OVMF 2025.02 it is UTF-8's.
    letters = "???" if debian.version("ovmf") < (2025, 2) else "äö€"
    options = f'app.efi list --timeout "two words" "a ^"quote^"" -c {letters} ""'
    words = ["app.efi", "list", "--timeout", "two words", 'a "quote"', "-c", letters, ""]
    assert done.stdout == "".join(f"{line}\n" for line in (options, *words))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not engine.is_built(), reason="the software CPU is not built")
@pytest.mark.parametrize(("word", "status"), [("list", 1), ("fail", 85)])
def test_a_run_that_is_not_the_recorded_one_says_so(app: Path, tmp_path: Path, word: str, status: int) -> None:
    path = tmp_path / "typed.jsonl"
    path.write_text('{"instructions": 4000000000000000000, "time_ns": 0, "type": "x"}\n')
    done = run("-q", "--clock", "virtual", "--replay", path, app, word)
    assert done.stderr == "vmm: --replay: 0 of 1 input given: the run was not the recorded one\n"
    assert (done.returncode, "app.efi" in done.stdout) == (status, True)


@pytest.mark.skipif(not engine.is_built(), reason="the software CPU is not built")
def test_one_that_is_says_nothing(app: Path, tmp_path: Path) -> None:
    path = tmp_path / "typed.jsonl"
    recorded = run("--clock", "virtual", "--record", path, app, "list")
    replayed = run("--clock", "virtual", "--replay", path, "-serial", "stdio", app, "list")
    assert (replayed.returncode, replayed.stdout, replayed.stderr) == (0, recorded.stdout, "")


@pytest.mark.parametrize("firmware", ["installed", "ovmf-trixie"])
def test_its_status(app: Path, firmware: str) -> None:
    words = [] if firmware == "installed" else ["-bios", debian.firmware(firmware)]
    done = run(*words, app, "fail")
    assert done.stdout == "app.efi fail\n"
    assert done.stderr.splitlines()[-1] == "vmm: app.efi returned EFI_ABORTED (0x8000000000000015)"
    assert done.returncode == 85


def test_a_folder_around_it(app: Path, tmp_path: Path) -> None:
    folder = tmp_path / "build" / "tools"
    folder.mkdir(parents=True)
    app.rename(folder / "app.efi")
    done = run("-q", "--esp", tmp_path / "build", "tools/app.efi", "warn")
    assert (done.returncode, done.stdout, done.stderr) == (34, "tools\\app.efi warn\n", "")


@pytest.mark.parametrize("firmware", ["installed", "ovmf-trixie"])
def test_a_crash(app: Path, firmware: str) -> None:
    words = [] if firmware == "installed" else ["-bios", debian.firmware(firmware)]
    done = run(*words, app, "crash")
    assert done.returncode == 1
    message = r"vmm: app\.efi crashed: #UD - Invalid Opcode at RIP 0x[0-9a-f]+, 0x1[0-9a-f]{3} bytes into its image"
    assert re.fullmatch(message, done.stderr.splitlines()[-1]), done.stderr
    assert done.stdout.startswith("app.efi crash\n")
    assert done.stdout.rstrip().endswith("!!!!"), "all that the exception handler prints"


def test_secure_boot_refuses_the_launcher(app: Path, tmp_path: Path) -> None:
    ovmf = Path("/usr/share/OVMF")
    shutil.copy(ovmf / "OVMF_VARS_4M.ms.fd", tmp_path / "vars.fd")
    code = f"if=pflash,format=raw,readonly=on,file={ovmf / 'OVMF_CODE_4M.ms.fd'}"
    done = run("-m", "512M", "-drive", code, "-drive", f"if=pflash,format=raw,file={tmp_path / 'vars.fd'}", app)
    assert done.stderr.startswith("vmm: app.efi was not started: Secure Boot refuses the launcher of vmm run")
    assert (done.returncode, done.stdout) == (1, "")


def test_no_end(app: Path) -> None:
    config = MachineConfig.create("ovmf", esp=app)
    application = Application(app, ["hang"], config)
    with Machine(config, customize=application.customize) as machine:
        application.attach(machine)
        machine.expect("app.efi hang", deadline=60)
        ended = application.ended(machine, machine.run(deadline=0.2, on_poll=application.poll))
    assert ended.exit_status == 3
    assert ended.message("app.efi") == "app.efi did not end: 0.2 s passed; its last line was 'app.efi hang'"


def test_ctrl_c(app: Path) -> None:
    process = subprocess.Popen(
        [*VMM, "run", str(app), "hang"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "app.efi hang\n", "shown while it runs"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.count("\n") == 1


def test_ctrl_a_x_on_a_terminal(app: Path) -> None:
    child = pexpect.spawn(VMM[0], [*VMM[1:], "run", str(app), "hang"], timeout=60, encoding="utf-8")
    child.expect("Ctrl-A X ends the machine")
    child.expect("app.efi hang")
    child.send("\x01x")
    child.expect(pexpect.EOF)
    child.close()
    assert "BdsDxe" not in (child.before or "")


def test_from_python(app: Path) -> None:
    ended = run_application(app, "one", "two", deadline=60)
    assert ended.output == "app.efi one two\n"
    assert (ended.status, ended.exit_status, ended.outcome.reason) == (0, 0, Reason.POWER_OFF)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["/bin/ls"], 2, "/bin/ls: no UEFI application for x86-64 (PE32+): it is an ELF file"),
        (["/nonexistent"], 2, "/nonexistent: cannot read /nonexistent: no such file or directory"),
        ([], 2, "run: which application? APP is an .efi file"),
        (["-serial", "none", "app.efi"], 2, "-serial none: the serial port is the application's console"),
        (["-bios", "seabios", "APP"], 2, "run: applications run under OVMF"),
    ],
)
def test_what_makes_no_sense_is_said(app: Path, words: list[str], status: int, said: str) -> None:
    done = run(*(str(app) if word == "APP" else word for word in words))
    assert done.returncode == status
    assert done.stderr.startswith(f"vmm: {said}")
    assert done.stderr.count("\n") == 1


def test_a_full_disk_is_the_hosts_lack(app: Path) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [*VMM, "run", str(app)], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1] == "vmm: cannot write all of the output: No space left on device"
