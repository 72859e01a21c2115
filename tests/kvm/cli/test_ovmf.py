"""`vmm boot` with Debian's OVMF: to the shell, typed at, and what becomes of its variables."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from vmm import Machine
from vmm.errors import ConfigError

pytestmark = pytest.mark.needs_kvm

CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")

VMM = [sys.executable, "-m", "vmm"]

TO_THE_SHELL = ["--until", "Shell>", "--send", r"any other key to continue=\r", "--timeout", "240"]
"""Minutes: a busy machine, and plain KVM where it interprets, take long."""


def boot(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*VMM, "boot", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def drives(variables: Path | str) -> list[str]:
    code = f"if=pflash,format=raw,readonly=on,file={CODE}"
    return ["-drive", code, "-drive", f"if=pflash,format=raw,file={variables}"]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_to_the_shell_and_the_package_is_never_written() -> None:
    before = digest(VARS)
    run = boot("ovmf", "-smp", "4", "-serial", "none", *TO_THE_SHELL)
    assert run.returncode == 0, run.stderr
    assert "the console showed 'Shell>'" in run.stderr
    assert "4 asked for, 4 started" in run.stderr
    assert "a private copy, discarded" in run.stderr
    assert digest(VARS) == before


def test_variables_persist_in_the_users_file(tmp_path: Path) -> None:
    own = tmp_path / "my vars,1.fd"
    shutil.copy(VARS, own)
    arguments = [*drives(str(own).replace(",", ",,")), "-serial", "stdio"]
    # The shell makes a non-volatile variable; the next boot's shell shows it.
    greeting = r"Shell>=set vmmgreeting hello-from-before\r"
    first = boot(
        *arguments, "--send", r"any other key to continue=\r", "--send", greeting, "--until", r"before\s+Shell>"
    )
    assert first.returncode == 0, first.stderr
    assert "(written back)" in " ".join(first.stderr.split())
    assert digest(own) != digest(VARS)
    second = boot(
        *arguments, "--send", r"any other key to continue=\r", "--send", r"Shell>=set\r", "--until", "hello-from-before"
    )
    assert second.returncode == 0, second.stderr


def test_a_killed_machine_loses_no_variable_that_was_set(tmp_path: Path) -> None:
    own = Path(shutil.copy(VARS, tmp_path / "my_vars.fd"))
    child = pexpect.spawn(sys.executable, ["-m", "vmm", "boot", *drives(own)], timeout=240, dimensions=(30, 120))
    child.expect("any other key to continue")
    child.send(" ")
    child.expect("Shell>")
    child.send("set vmmkilled yes\r")
    child.expect("Shell>")
    child.kill(signal.SIGKILL)
    child.expect(pexpect.EOF)
    child.wait()
    assert "vmmkilled".encode("utf-16-le") in own.read_bytes()


def test_a_file_that_somebody_truncates_is_told_and_the_variables_are_saved(tmp_path: Path) -> None:
    own = Path(shutil.copy(VARS, tmp_path / "my_vars.fd"))
    command = [*VMM, "boot", *drives(own), "-serial", "none", *TO_THE_SHELL]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while len(list(Path(f"/proc/{process.pid}/task").iterdir())) == 1:
            assert process.poll() is None
        os.truncate(own, 0)
        _, errors = process.communicate(timeout=280)
    assert process.returncode == 4, errors
    (saved,) = tmp_path.glob("my_vars.fd.rescued-*")
    assert errors.splitlines()[-1] == (
        f"vmm: {own}: cannot write the guest's variables: another process changed the file while the machine ran; "
        f"they are in {saved}"
    )
    assert saved.stat().st_size == VARS.stat().st_size
    assert boot(*drives(saved), "-serial", "none", *TO_THE_SHELL).returncode == 0


def test_a_second_machine_on_one_file_is_refused(tmp_path: Path) -> None:
    own = Path(shutil.copy(VARS, tmp_path / "my_vars.fd"))
    with Machine("ovmf", variables=own):
        run = boot(*drives(own), "-serial", "none", "--timeout", "60")
        assert run.returncode == 2
        assert run.stderr.startswith(f"vmm: {own}: process {os.getpid()} (")
        assert run.stderr.count("\n") == 1
        with pytest.raises(ConfigError, match="another machine of this process keeps its variables there"):
            Machine("ovmf", variables=own)
        Machine("ovmf", variables=own, persist=False).close()


def test_code_alone_gets_a_private_copy_and_says_so() -> None:
    run = boot(CODE, "-serial", "none", *TO_THE_SHELL)
    assert run.returncode == 0, run.stderr
    assert f"OVMF_CODE_4M.fd is CODE only: the variables are a private copy of {VARS}" in run.stderr


def test_a_person_types_at_the_shell() -> None:
    child = pexpect.spawn(
        sys.executable, ["-m", "vmm", "boot", "ovmf"], timeout=240, dimensions=(30, 120), env=os.environ
    )
    child.expect("Ctrl-A X ends the machine")
    child.expect("any other key to continue")
    child.send(" ")
    child.expect("Shell>")
    child.send("ver\r")
    child.expect("UEFI v2")
    child.expect("Shell>")
    child.send("reset -s\r")
    child.expect("vmm: the guest powered the machine off")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0
