"""`vmm boot` as its users run it: a process of its own, on the real /dev/kvm."""

import fcntl
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
from command_line import VMM, vmm
from real_mode_rom import image

from vmm.firmware import guests

pytestmark = pytest.mark.needs_kvm


@pytest.mark.usefixtures("kvm_device")
def test_report_for_a_person() -> None:
    run = vmm("boot", "-smp", "3", "probe", "-m", "96M", "-accel", "kvm")
    assert run.returncode == 0, run.stderr
    assert "cpus started: 3" in run.stdout
    assert "3 asked for, 3 started" in run.stderr
    assert "q35, 96 MiB of RAM" in run.stderr
    assert "etc/e820" in run.stderr
    assert "plain KVM" in run.stderr


@pytest.mark.hw
@pytest.mark.usefixtures("kvm_device")
def test_report_for_a_program(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    run = vmm("boot", "probe", "-smp", "2,maxcpus=5", "-m", "64", "--json", path, "--quiet", "-accel", "kvm")
    assert run.returncode == 0
    assert not run.stderr
    report = json.loads(path.read_text())
    assert report["outcome"]["reason"] == "power-off"
    assert report["outcome"]["exit_status"] == 0
    assert 0 < report["outcome"]["elapsed_s"] < 120
    assert report["firmware"]["path"] == str(guests.path("probe"))
    assert report["firmware"]["interface"] == "qemu"
    assert report["cpus"]["requested"] == report["cpus"]["started"] == 2
    assert report["cpus"]["max"] == 5
    assert report["memory"]["size"] == 64 << 20
    assert sum(region["size"] for region in report["memory"]["regions"] if region["gpa"] < 64 << 20) > 63 << 20
    items = {item["name"]: item for item in report["fw_cfg"]["items"]}
    assert items["signature"]["bytes_read"] >= 4
    assert items["etc/e820"]["read_to_end"]
    assert "uuid" in report["fw_cfg"]["never_read"]
    assert report["fw_cfg"]["probes"] >= 1
    assert report["exits"]["by_reason"]["io"] > 0
    assert report["exits"]["by_device"][0]["name"] == "debugcon"
    assert report["accelerator"]["name"] == "kvm"
    assert [event["event"] for event in report["timeline"]][-1] == "power-off"


def test_report_on_stdout() -> None:
    run = vmm("boot", "probe", "-serial", "none", "-debugcon", "none", "--json", "-", "-q")
    assert json.loads(run.stdout)["outcome"]["reason"] == "power-off"
    mixed = vmm("boot", "probe", "--json", "-")
    assert mixed.returncode == 2
    assert "would mix" in mixed.stderr


def test_user_items_arrive(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"x" * 5000)
    run = vmm(
        "boot",
        "probe",
        "-fw_cfg",
        "name=opt/q,string=hello",
        "-f",
        "opt/b,string=hello",
        "-fw_cfg",
        f"opt/f,file={blob}",
    )
    sizes = dict(re.findall(r"^item: (\S+) key \S+ size (\d+)$", run.stdout, re.MULTILINE))
    assert (sizes["opt/q"], sizes["opt/f"]) == ("5", "5000")
    assert sizes["opt/b"] == "6"  # bhyve's strings end with a NUL


def test_consoles_go_to_files(tmp_path: Path) -> None:
    log = tmp_path / "log"
    run = vmm("boot", "probe", "-debugcon", f"file:{log}")
    assert not run.stdout
    assert log.read_text().startswith("vmm probe\n")
    assert log.read_text().endswith("status: 0\n")


def test_until() -> None:
    run = vmm(
        "boot", "seabios", "-debugcon", "stdio", "-serial", "none", "--until", r"Found QEMU\s+fw_cfg", "-accel", PLAIN
    )
    assert run.returncode == 0
    assert "the console showed" in run.stderr
    assert "Found QEMU fw_cfg" in run.stdout


def test_power_off_before_until_fails() -> None:
    run = vmm("boot", "probe", "--until", "no such line")
    assert run.returncode == 1


def test_text_to_be_sent_that_nothing_asked_for_fails() -> None:
    run = vmm("boot", "probe", "-q", "-debugcon", "none", "--send", "no such line=x")
    assert (run.returncode, run.stderr.count("never showed 'no such line'")) == (1, 1)


@pytest.mark.hw
def test_timeout() -> None:
    run = vmm("boot", guests.path("hang"), "--timeout", "3", "-smp", "3")
    assert run.returncode == 3
    assert re.search(
        r"^  vCPU 0: at RIP 0x[0-9a-f]+ [(]hang[+]0x[0-9a-f]+, main[+]0x0[)], 32-bit code in protected mode, ring 0$",
        run.stderr,
        re.MULTILINE,
    )
    assert "  vCPU 1, 2: not started\n" in run.stderr
    assert "3 s passed" in run.stderr
    assert "printed nothing" in run.stderr


@pytest.mark.hw
@pytest.mark.usefixtures("kvm_device")
def test_refused_instruction_is_named() -> None:
    run = vmm("boot", guests.path("refused"), "-accel", "kvm")
    assert run.stdout.startswith("refused: before FLDCW\n")
    if run.returncode == 0:  # a host with VMX or SVM executes it
        assert "refused: after FLDCW\n" in run.stdout
        return
    assert run.returncode == 1
    assert "fldcw" in run.stderr
    assert "-accel" in run.stderr
    assert "RIP" in run.stderr


@pytest.mark.hw
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_run_is_still_reported(number: signal.Signals, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [*says_so_and_waits(tmp_path), "--json", str(report)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == "A"
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "1 asked for, 1 started" in errors
    assert json.loads(report.read_text())["outcome"]["reason"] == "interrupted"


def test_interrupted_verify_has_no_result() -> None:
    with subprocess.Popen([*VMM, "verify", "ovmf"], stdout=-1, stderr=-1, text=True) as process:
        wait_for_vcpu(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "vmm: interrupted\n")
    assert process.returncode == 130


def test_an_interrupt_before_the_command_is_loaded_is_one() -> None:
    program = """
import sys

class Interrupting:
    @staticmethod
    def find_spec(name, *_):
        if name == "vmm.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting)
from vmm.__main__ import main
main()
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (130, "")


@pytest.mark.parametrize("moment", ["gc.freeze", "cli.standard_error.unblock", "cli.main"])
def test_an_interrupt_around_the_command_is_one(moment: str) -> None:
    program = f"""
import gc
from vmm import cli
from vmm.__main__ import main
from vmm.cli import standard_error

def interrupt():
    raise KeyboardInterrupt

{moment} = interrupt
main()
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (130, "")


def test_a_run_that_is_killed_leaves_the_report_of_the_last_one(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("yesterday's")
    command = [*says_so_and_waits(tmp_path), "--json", str(report)]
    there = set(tmp_path.iterdir())
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == "A"
        process.kill()
    assert report.read_text() == "yesterday's"
    assert set(tmp_path.iterdir()) == there


def says_so_and_waits(folder: Path) -> list[str]:
    """The command that boots a guest which says A on the debug port, once it runs, and never ends."""
    rom = folder / "rom.bin"
    rom.write_bytes(image("ba 02 04 b0 41 ee fa f4"))  # mov dx, 0x402; mov al, 'A'; out dx, al; cli; hlt
    return [*VMM, "boot", str(rom), "-machine", "pc", "-serial", "none", "-debugcon", "stdio"]


def wait_for_vcpu(pid: int) -> None:
    """Until the process has a thread that runs a vCPU."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if len(list(Path(f"/proc/{pid}/task").iterdir())) > 1:
            time.sleep(0.2)
            return
        time.sleep(0.02)
    pytest.fail("no vCPU thread appeared")


def test_a_reader_that_leaves_ends_the_run() -> None:
    command = [*VMM, "boot", "seabios", "-debugcon", "stdio", "-accel", PLAIN]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(10)
        process.stdout.close()
        assert process.wait(timeout=60) == 4
        assert process.stderr is not None
        assert process.stderr.read().endswith(b"vmm: cannot write all of the output: Broken pipe\n")


def test_head_is_not_success() -> None:
    line = f"set -o pipefail; {shlex.join(VMM)} boot seabios -debugcon stdio --until 'No bootable' | head -c 10"
    run = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 4
    assert run.stderr.endswith("vmm: cannot write all of the output: Broken pipe\n")


def test_a_reader_that_does_not_read_holds_up_nothing() -> None:
    items = [word for number in range(200) for word in ("-fw_cfg", f"opt/org.example/{number:030},string=x")]
    reader, writer = os.pipe()
    try:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        run = subprocess.run(
            [*VMM, "boot", "probe", *items],
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert run.returncode == 4
    assert "bytes of console output were not shown" in run.stderr.splitlines()[-1]
    assert "the guest powered the machine off" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["/nonexistent"], "firmware image: cannot read /nonexistent: no such file or directory"),
        ([""], "'': an empty name of firmware; is a variable unset?"),
        (["probe", "-kernel", ""], "-kernel: the path is empty; is a variable unset?"),
        (["probe", "--json", ""], "--json '': the path is empty; is a variable unset?"),
        (["probe", "-smp", ""], "-smp '': an empty part"),
        (["-smp", "0"], "-smp 0: a machine has from 1 to 1024 CPUs"),
        (["-smp", "2", "-c", "2"], "-smp and -c say the same"),
        (["-m", "8M", "probe"], "-m 8M: probe.fd needs 16M or more"),
        (["-m", "40M", "ovmf"], "OVMF_CODE_4M.fd needs 48M or more"),
        (["-bios", "x", "probe"], "FIRMWARE and -bios each name the firmware"),
        (["probe", "again"], "one FIRMWARE at the most"),
        (["--no-such-option"], "unknown option --no-such-option (vmm boot --help"),
        (["-serail", "none"], "unknown option -serail; did you mean -serial? (vmm boot --help"),
        (
            ["seabois"],
            "seabois: neither a file nor a name of firmware (ovmf, seabios, bhyve, probe, or a guest of ours);",
        ),
        (["Hang"], "did you mean hang?"),
        (["probe", "-fw_cfg", "opt/x,file=/nonexistent"], "cannot read /nonexistent"),
        (["probe", "-fw_cfg", "opt/x,string=1", "-f", "opt/x,string=2"], "opt/x: the name is given twice"),
        (["probe", "-fw_cfg", f"opt/{'x' * 52},string=1"], "a name has 55 at the most"),
        (["probe", "--until", "("], "--until (: not a regular expression"),
        (["probe", "--send", "x"], "the form is REGEX=TEXT"),
        (["probe", "--send", r"x=\q"], r"unknown escape \q"),
        (["probe", "--timeout", "-1"], "--timeout"),
        (["probe", "--json", "/nonexistent/report"], "--json /nonexistent/report: cannot write"),
        (["probe", "-serial", "file:/nonexistent/log"], "-serial file:/nonexistent/log: cannot write"),
        (["-l", "com1,x"], "-l com1,x: the only form here"),
        (["-l", "bootrom,/nonexistent,fwcfg=qemu", "-machine", "auto,fwcfg=bhyve"], "live at the same ports"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], complaint: str) -> None:
    run = vmm("boot", *arguments)
    assert run.returncode == 2, run.stderr
    assert complaint in run.stderr
    assert run.stderr.startswith("vmm: ")
    assert run.stderr.count("\n") == 1
    assert not run.stdout


def test_names_outside_opt_are_warned_about_and_ours_are_taken() -> None:
    run = vmm("boot", "probe", "-fw_cfg", "org.example,string=1")
    assert run.returncode == 0
    assert run.stderr.startswith("fw_cfg file org.example: names for users begin with opt/")
    run = vmm("boot", "probe", "-fw_cfg", "etc/e820,string=1")
    assert run.returncode == 2
    assert run.stderr.endswith("vmm: fw_cfg file etc/e820: the name is taken\n")


def test_both_interfaces_at_once_are_refused() -> None:
    rom = guests.path("probe")
    run = vmm("boot", "-l", f"bootrom,{rom},fwcfg=qemu", "-machine", "q35,fwcfg=bhyve")
    assert run.returncode == 2
    assert "same ports" in run.stderr


@pytest.mark.usefixtures("kvm_device")
def test_info() -> None:
    run = vmm("info")
    assert run.returncode == 0, run.stdout
    assert "/dev/kvm, API 12" in run.stdout
    assert str(guests.path("probe")) in run.stdout
    found = json.loads(vmm("info", "--json").stdout)
    assert found["kvm"]["missing"] == []
    assert found["accelerator"]["auto"] == ("kvm" if found["cpu"]["virtualization"] else "kvm+softcpu")
    assert found["kvm"]["capabilities"]["KVM_CAP_USER_MEMORY"] == 1
    assert found["kvm"]["cpuid"][0]["function"] == "0x00000000"
    assert found["machine"] == {"runs": True}


@pytest.mark.parametrize("arguments", [["--help"], ["boot", "--help"], ["info", "--help"]])
def test_help_teaches_exit_statuses(arguments: list[str]) -> None:
    run = vmm(*arguments)
    assert run.returncode == 0
    assert "usage: vmm" in run.stdout
    assert "exit status:" in run.stdout
    assert not run.stderr


def test_version_and_unknown_command() -> None:
    assert vmm("--version").stdout.startswith("vmm 0.")
    unknown = vmm("fly")
    assert unknown.returncode == 2
    assert "unknown command 'fly'" in unknown.stderr
    assert vmm().returncode == 2
