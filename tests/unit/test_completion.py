"""`vmm completion`, asked as people ask it: by the shells themselves."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from vmm import installation
from vmm.cli import COMMANDS, main

ANSWERS = [
    ("vmm be", {"bench"}),
    ("vmm help ver", {"verify"}),
    ("vmm boot seab", {"seabios"}),
    ("vmm boot -smp 4 seab", {"seabios"}),
    ("vmm boot -seri", {"-serial"}),
    ("vmm boot -serial st", {"stdio"}),
    ("vmm boot seabios -accel kv", {"kvm", "kvm+softcpu"}),
    ("vmm boot --terminal vt1", {"vt100", "vt100plus"}),
    ("vmm boot --json ./rep", {"./report-of-mine"}),
    ("vmm boot ./rep", {"./report-of-mine"}),
    ("vmm firmware seab", {"seabios"}),
    ("vmm verify linux seab", {"seabios"}),
    ("vmm bench nothing", set()),
    ("vmm bench di", {"disk"}),
    ("vmm bench dm", {"dma"}),
    ("vmm completion fi", {"fish"}),
]

BASH = """
source {script}
COMP_WORDS=({words}) COMP_CWORD={last}
$(complete -p vmm | sed 's/.*-F \\([^ ]*\\) .*/\\1/') vmm "${{COMP_WORDS[-1]}}" "${{COMP_WORDS[-2]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def in_bash(script: Path, line: str) -> set[str]:
    return printed(
        "bash", BASH.format(script=shlex.quote(str(script)), words=line, last=len(line.split()) - 1), script.parent
    )


def in_fish(script: Path, line: str) -> set[str]:
    lines = printed("fish", f"source {shlex.quote(str(script))}; complete -C '{line}'", script.parent)
    return {found.partition("\t")[0] for found in lines}


def printed(shell: str, program: str, directory: Path) -> set[str]:
    # fish keeps its history below HOME, which a user may lack.
    environment = os.environ | {"HOME": str(directory)}
    run = subprocess.run(
        [shell, "-c", program],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert not run.stderr
    return set(run.stdout.splitlines()) - {""}


def in_zsh(script: Path, line: str) -> set[str]:
    """Return what stands behind the last blank after Tab: what the candidates have in common."""
    script.with_name("_vmm").write_bytes(script.read_bytes())
    with pexpect.spawn("zsh", ["-f"], cwd=str(script.parent), encoding="utf-8", timeout=60) as zsh:
        zsh.sendline(f"PS1=; fpath=({shlex.quote(str(script.parent))} $fpath); autoload -Uz compinit; compinit -u -D")
        zsh.sendline(
            "tell() { print -r \"<${BUFFER% }>\" }; zle -N tell; bindkey '^X' tell; bindkey '^I' complete-word"
        )
        zsh.sendline("print rea''dy")
        zsh.expect_exact("ready")
        zsh.send(f"{line}\t\x18")
        zsh.expect("<(vmm [^<>\r\n]*)>")
        assert zsh.match is not None
        return {zsh.match[1].rpartition(" ")[2]}


@pytest.fixture(scope="module", params=["bash", "fish", "zsh"])
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], set[str]]:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    directory = tmp_path_factory.mktemp("completion")
    (directory / "report-of-mine").touch()
    script = directory / "script"
    script.write_bytes(
        subprocess.run(
            [sys.executable, "-m", "vmm", "completion", request.param], stdout=subprocess.PIPE, check=True
        ).stdout
    )
    ask = {"bash": in_bash, "fish": in_fish, "zsh": in_zsh}[request.param]
    return lambda line: ask(script, line)


@pytest.mark.parametrize(("line", "candidates"), ANSWERS)
def test_the_shell_completes(
    shell: Callable[[str], set[str]], line: str, candidates: set[str], request: pytest.FixtureRequest
) -> None:
    found = shell(line)
    if request.node.callspec.params["shell"] == "zsh":
        assert found == {min(candidates, default=line.rsplit(maxsplit=1)[-1])}
    else:
        assert found == candidates


def test_without_shtab_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 4
    assert capsys.readouterr().err == f"vmm: shell completion needs shtab: {installation.extra_remedy('completion')}\n"


def test_the_shell_is_one_of_three(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "for which shell? known are bash, zsh, fish" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_other_commands_do_not_load_it(command: str) -> None:
    program = f"import sys, vmm.cli.{command.replace('-', '_')}; sys.exit('shtab' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
