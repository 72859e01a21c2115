"""What scripts/setup says on a host that lacks something: one line, which names the remedy."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from mounts import own_mounts

CLONE = Path(__file__).parents[3]

NEEDED = (
    *("bash", "cat", "cut", "df", "dirname", "find", "flock", "grep", "id", "mkdir", "readlink", "rm", "sed"),
    *("sha256sum", "sort", "tail", "touch", "xargs"),
)
"""What scripts/setup takes for granted."""

TOOLS = ("cc", "cmake", "ld", "make", "patch")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """As much of one as scripts/setup looks at before it builds."""
    made = tmp_path / "a clone"
    for name in ("scripts/common.sh", "scripts/setup"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CLONE / name, made / name)
        (made / name).chmod(0o755)
    for name in ("native", "firmware"):
        (made / name).mkdir()
    (made / "pyproject.toml").touch()
    return made


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder for PATH with the host's commands, but no dpkg-query, and so not a Debian's, and no compiler."""
    folder = tmp_path / "commands"
    folder.mkdir()
    for name in NEEDED:
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    return folder


def give(commands: Path, *names: str) -> None:
    for name in names:
        (commands / name).write_text("#!/bin/sh\nexit 1\n", encoding="ascii")
        (commands / name).chmod(0o755)


def run(program: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    environment = {**os.environ, **environment}
    ended = subprocess.run(
        [program, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


def setup(clone: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    return run(clone / "scripts/setup", *arguments, **environment)


def setup_mounted(clone: Path, mount: str, script: str = "setup") -> tuple[int, str]:
    """Run it on /mnt, in a mount namespace where ``mount`` has put the clone, "$1", there."""
    command = [*own_mounts(), "bash", "-c", f"{mount} && exec /mnt/scripts/{script}", "-", str(clone)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return ended.returncode, ended.stderr


BUILDERS = ("bench-fw-cfg", "build-docs", "build-wheel", "fuzz", "setup", "test", "test-sanitized")


@pytest.mark.parametrize("script", BUILDERS)
def test_a_read_only_clone(clone: Path, script: str) -> None:
    shutil.copy(CLONE / "scripts" / script, clone / "scripts")
    status, said = setup_mounted(clone, 'mount --bind "$1" /mnt && mount -o remount,bind,ro /mnt', script)
    assert status == 4
    assert said == f"{script}: /mnt is read-only for you: work in a clone of your own (git clone '/mnt' vmm)\n"


def test_no_space(clone: Path) -> None:
    status, said = setup_mounted(clone, 'mount -t tmpfs -o size=4m none /mnt && cp -r "$1"/. /mnt')
    assert status == 4
    assert said == "setup: no space left on /mnt: make room for 1 GB, and run this again\n"


def test_no_compiler(clone: Path, commands: Path) -> None:
    give(commands, "ld", "make")
    status, said = setup(clone, PATH=str(commands))
    assert status == 4
    assert said.startswith("setup: please install, then run this again: cc cmake patch (packages like gcc, cmake, ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("script", ["bench-fw-cfg", "fuzz", "lint", "test-anywhere", "test-sanitized", "vmm"])
def test_what_is_started_first_sets_up(clone: Path, commands: Path, script: str) -> None:
    shutil.copy(CLONE / "scripts" / script, clone / "scripts")
    status, said = run(clone / "scripts" / script, PATH=str(commands))
    assert status == 4
    assert said.startswith("setup: please install, then run this again: cc cmake ld make patch (packages like gcc, ")
    assert said.count("\n") == 1


IN_PYTHON = sorted(
    file.name
    for file in (CLONE / "scripts").iterdir()
    if file.is_file() and not file.suffix and "run-python" in file.read_text(encoding="utf-8").partition("\n")[0]
)


@pytest.mark.parametrize("script", IN_PYTHON)
def test_a_script_in_python_without_python(clone: Path, commands: Path, script: str) -> None:
    for name in ("run-python", script):
        shutil.copy(CLONE / "scripts" / name, clone / "scripts")
    common = clone / "scripts/common.sh"
    common.write_text(common.read_text(encoding="utf-8").replace("/usr/bin/python3", "python3"), encoding="utf-8")
    status, said = run(clone / "scripts" / script, "--help", PATH=str(commands))
    assert status == 4
    assert said == f"{script}: Python 3.11 or newer is missing here: run {clone}/scripts/setup first\n"


def test_all_scripts_in_python_are_known() -> None:
    assert {
        "build-bhyve-firmware",
        "build-edk2",
        "compare-debug-logs",
        "compare-hosts",
        "kvm-unit-tests",
        "report-schema",
        "same-instructions",
        "soak",
        "test-svm-host",
        "try-versions",
    } == set(IN_PYTHON)


def test_python_that_is_too_old(clone: Path, commands: Path) -> None:
    give(commands, *TOOLS)
    older = "#!/bin/sh\n[ $1 = --version ] && echo Python 3.10.12\n"
    (commands / "python3").write_text(older, encoding="ascii")
    (commands / "python3").chmod(0o755)
    # No other one, which setup would take.
    source = (clone / "scripts/common.sh").read_text(encoding="utf-8")
    (clone / "scripts/common.sh").write_text(source.replace("/usr/bin/python3", "python3"), encoding="utf-8")
    status, said = setup(clone, PATH=str(commands))
    assert status == 4
    assert said.startswith("setup: Python 3.11 or newer is needed, and python3 is Python 3.10.12: install one (")
    assert said.count("\n") == 1


def test_no_network(clone: Path) -> None:
    # Port 9 of this machine, where nothing listens: an address that does not answer, without waiting for it.
    index = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": ""}
    status, said = setup(clone, PIP_CONFIG_FILE="/dev/null", PIP_RETRIES="0", no_proxy="*", **index)
    assert status == 4, said
    assert "the network is needed, and gives no answer (see build/setup.log): connect to it, or name a proxy" in said
    assert [line[:7] for line in said.splitlines()] == ["setup: "] * 2
