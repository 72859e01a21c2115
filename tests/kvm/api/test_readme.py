"""README.md's examples run as they stand there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vmm.cli.boot import _parser

README = Path(__file__).parents[3] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.needs_kvm
def test_python_example() -> None:
    (program,) = (block for block in blocks("python") if "import pytest" not in block)
    exec(compile(program, "README.md", "exec"), {})  # noqa: S102


@pytest.mark.needs_kvm
def test_pytest_example(tmp_path: Path) -> None:
    (module,) = (block for block in blocks("python") if "import pytest" in block)
    (tmp_path / "test_example.py").write_text(module)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_example.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed" in run.stdout


def test_command_lines_are_understood() -> None:
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    boots = [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("scripts/vmm boot")]
    assert len(boots) > 4
    for words in boots:
        _parser().parse(words, "firmware")
