"""`vmm` where the host lacks something: KVM, files, room on a disk, a home; one line says what."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import VMM, vmm
from vmm._native import lib

from vmm.kvm import Kvm

pytestmark = pytest.mark.needs_kvm


def without_kvm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line, with another path for the device, and no software CPU to do without it."""
    program = (
        "import sys; from vmm.kvm import system; system.Kvm.__init__.__defaults__ = ('/dev/no-kvm',); "
        "from vmm.softcpu import engine; engine.is_built = lambda: False; "
        "from vmm.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ([], "the software CPU, which does without KVM, is not built: "),
        (["-accel", "kvm"], "-accel softcpu does without KVM"),
    ],
)
def test_no_dev_kvm_is_the_hosts_lack(options: list[str], remedy: str) -> None:
    run = without_kvm("boot", "probe", *options)
    assert run.returncode == 4
    assert "cannot open /dev/no-kvm: No such file or directory" in run.stderr
    assert remedy in run.stderr
    assert run.stderr.count("\n") == 1


@pytest.mark.usefixtures("kvm_device")
def test_system_management_mode_that_kvm_lacks_is_said_with_the_remedy() -> None:
    with Kvm() as kvm:
        if kvm.check_extension(lib.KVM_CAP_X86_SMM):
            pytest.skip("this host's KVM has it")
    run = vmm("boot", "probe", "-machine", "q35,smm=on", "-accel", "kvm")
    assert run.returncode == 4
    assert "has no system management mode (KVM_CAP_X86_SMM)" in run.stderr
    assert "-accel softcpu has it" in run.stderr
    assert run.stderr.count("\n") == 1
    assert vmm("boot", "probe", "-machine", "q35,smm=on", "-accel", "softcpu", "-q").returncode == 0


def test_info_without_kvm_gives_the_reason_once() -> None:
    run = without_kvm("info")
    assert run.returncode == 4
    assert run.stdout.count("cannot open /dev/no-kvm: No such file or directory") == 1
    assert re.search(r"-accel auto: unknown$", run.stdout, re.MULTILINE)
    assert re.search(r"^machine +does not run$", run.stdout, re.MULTILINE)


@pytest.mark.hw
@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("resource.RLIMIT_NOFILE, (6, 6)", r".*too many open files.*; raise the limit of open files: ulimit -n"),
        ("resource.RLIMIT_AS, (256 << 20, 256 << 20)", r"cannot map 256 MiB of guest RAM: .*; ask for less with -m"),
    ],
)
@pytest.mark.usefixtures("kvm_device")
def test_info_of_a_host_where_no_machine_runs(limit: str, reason: str) -> None:
    program = (
        f"import resource, sys; from vmm import cli, info; resource.setrlimit({limit}); sys.exit(cli.main(['info']))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 4, run.stdout + run.stderr
    assert re.search(rf"^machine +does not run: {reason}$", run.stdout, re.MULTILINE | re.IGNORECASE)
    assert "/dev/kvm, API 12" in run.stdout, "KVM itself is there"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["boot", "probe", "-q", "-debugcon", "none"], 0, ""),
        (["info"], 0, ""),
        (["firmware", "ovmf"], 0, ""),
        (["boot", "bhyve"], 2, "no bhyve firmware on this host"),
        (["verify", "linux"], 4, "no Linux to boot in "),
        (["fetch-linux"], 4, "cannot write to "),
    ],
)
def test_a_home_that_may_not_be_looked_into(tmp_path: Path, words: list[str], status: int, said: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    (tmp_path / ".cache").mkdir()
    tmp_path.chmod(0)
    prefix = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    try:
        run = subprocess.run(
            [*prefix, *VMM, *words],
            env=environment | {"HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        tmp_path.chmod(0o700)
    assert run.returncode == status, run.stderr
    assert run.stderr.count("\n") == bool(said), run.stderr
    assert run.stderr.startswith(f"vmm: {said}" if said else "")


@pytest.mark.parametrize(
    "words",
    [
        ["info"],
        ["firmware", "exit"],
        ["boot", "probe"],
        ["boot", "--help"],
        ["boot", "seabios", "--until", "No bootable"],
    ],
)
def test_a_full_disk_is_said_in_one_line(words: list[str]) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        run = subprocess.run(
            [sys.executable, "-m", "vmm", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert run.returncode == 4
    assert run.stderr.splitlines()[-1:] == ["vmm: cannot write all of the output: No space left on device"]
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2> >(true)"])
def test_messages_that_nobody_can_read_are_the_hosts_lack(redirection: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = shlex.join([*VMM, "boot", "probe", "-debugcon", "none", "-serial", "none", "--json", str(report)])
    assert subprocess.run(["bash", "-c", f"{command} {redirection}"], timeout=60, check=False).returncode == 4
    assert "fw_cfg" in json.loads(report.read_text(encoding="utf-8"))


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2> >(:)"])
def test_an_error_that_nobody_can_read_keeps_its_exit_status(redirection: str) -> None:
    command = shlex.join([*VMM, "boot", "no-such-firmware"])
    assert subprocess.run(["bash", "-c", f"{command} {redirection}"], timeout=60, check=False).returncode == 2


@pytest.mark.parametrize("option", ["--json", "--trace"])
def test_a_full_disk_of_a_report_or_a_log_is_the_hosts_lack(option: str) -> None:
    run = vmm("boot", "probe", option, "/dev/full")
    assert run.returncode == 4
    assert f"vmm: {option} /dev/full: no space left on device" in run.stderr
    assert "the guest powered the machine off" in run.stderr, "the run is reported all the same"


@pytest.mark.parametrize("limit", range(5, 12))
@pytest.mark.usefixtures("kvm_device")
def test_too_few_files_are_said_in_one_line(limit: int) -> None:
    boot = shlex.join([*VMM, "boot", "exit", "-q", "-accel", "kvm"])
    run = subprocess.run(
        ["bash", "-c", f"ulimit -n {limit}; exec {boot}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode in {0, 4}
    if run.returncode:
        assert re.fullmatch(r"vmm: .*too many open files.*ulimit -n\n", run.stderr, re.IGNORECASE)


def test_a_console_file_that_is_full_is_the_hosts_lack() -> None:
    run = vmm("boot", "probe", "-debugcon", "file:/dev/full")
    assert run.returncode == 4
    assert run.stderr.splitlines()[-1:] == ["vmm: -debugcon file:/dev/full: no space left on device"]


def test_no_file_of_ours_takes_the_place_of_a_closed_standard_stream() -> None:
    closed = "exec <&- >&- 2>&-; exec " + shlex.join([sys.executable, "-m", "vmm", "boot", "probe"])
    assert subprocess.run(["bash", "-c", closed], timeout=60, check=False).returncode == 0
