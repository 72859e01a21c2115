"""A VARS file belongs to one machine, whether ours or QEMU's."""

import shutil
import subprocess
from pathlib import Path

import pytest

from vmm.errors import ConfigError
from vmm.firmware.variables import VariableFile

CODE = "/usr/share/OVMF/OVMF_CODE_4M.fd"


@pytest.fixture
def variables(tmp_path: Path) -> Path:
    return Path(shutil.copy("/usr/share/OVMF/OVMF_VARS_4M.fd", tmp_path / "my_vars.fd"))


def qemu(variables: Path, option: str = "") -> subprocess.Popen[str]:
    """QEMU with this VARS file, stopped before its first instruction; its QMP is on its stdin and stdout."""
    program = shutil.which("qemu-system-x86_64")
    assert program, "these tests need Debian's package qemu-system-x86 (scripts/setup test installs it)"
    drives = [f"if=pflash,format=raw,readonly=on,file={CODE}", f"if=pflash,format=raw,file={variables}{option}"]
    command = [program, "-nodefaults", "-display", "none", "-machine", "q35", "-S", "-qmp", "stdio"]
    return subprocess.Popen(
        [*command, "-drive", drives[0], "-drive", drives[1]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_it_stands(process: subprocess.Popen[str]) -> None:
    """QEMU greets before it opens its drives, and answers after that."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert "QMP" in process.stdout.readline()
    process.stdin.write('{"execute": "qmp_capabilities"}\n')
    process.stdin.flush()
    assert "return" in process.stdout.readline()


def test_qemus_file_is_refused_here_with_its_process(variables: Path) -> None:
    with qemu(variables) as process:
        try:
            wait_until_it_stands(process)
            with pytest.raises(ConfigError, match=rf"process {process.pid} \(qemu-system-x86\) keeps its variables"):
                VariableFile(variables, variables.stat().st_size)
        finally:
            process.kill()
    VariableFile(variables, variables.stat().st_size).close()


def test_our_file_is_refused_by_qemu(variables: Path) -> None:
    file = VariableFile(variables, variables.stat().st_size)
    with qemu(variables) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert 'Failed to get "write" lock' in errors
    file.close()


def test_who_only_reads_is_left_alone(variables: Path) -> None:
    file = VariableFile(variables, variables.stat().st_size)
    with qemu(variables, ",readonly=on") as process:
        wait_until_it_stands(process)
        process.kill()
    file.close()
