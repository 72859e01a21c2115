"""The package's build where something is missing: one line that says what, and what to do; and what pip is told."""

import os
import re
import subprocess
import sys
from importlib.metadata import metadata
from importlib.util import find_spec
from pathlib import Path

import argparse_manpage
import pytest
import scikit_build_core

from vmm import installation
from vmm.cli import COMMANDS

NATIVE = Path(__file__).parents[2] / "native"


def configure(build: Path, *definitions: str, **variables: str) -> tuple[int, str]:
    """Let CMake configure; return its exit status, and what it said with its own line breaks taken out."""
    # CMake 3.25's module knows no stable ABI; scikit-build-core, which runs CMake otherwise, brings a later one.
    modules = Path(scikit_build_core.__file__).parent / "resources/find_python"
    # Sanitizers of this process are none of its business. What pip makes for a build has a pip, unlike Debian's Python.
    inherited = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    inherited["PYTHONPATH"] = str(Path(scikit_build_core.__file__).parents[1])
    found = (f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_MODULE_PATH={modules}")
    done = subprocess.run(
        ["cmake", "-S", NATIVE, "-B", build, *found, *definitions],
        env=inherited | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=250,
        check=False,
    )
    return done.returncode, re.sub(r"\s+", " ", done.stdout)


@pytest.fixture
def unicorn(tmp_path: Path) -> Path:
    directory = tmp_path / "unicorn"
    directory.mkdir()
    return directory


OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}


def test_without_a_compiler(tmp_path: Path) -> None:
    status, said = configure(tmp_path / "build", CC="/nonexistent/cc")
    assert status != 0
    assert "vmm: no C compiler that works: install gcc (Debian: apt-get install gcc libc6-dev)" in said


def test_without_network_the_build_goes_on_without_the_software_cpu(tmp_path: Path, unicorn: Path) -> None:
    status, said = configure(tmp_path / "build", f"-DVMM_UNICORN_DIR={unicorn}", **OFFLINE)
    assert status == 0, said
    assert "vmm is built without its software CPU: pip cannot download unicorn 2.1.4: ERROR: No matching" in said
    assert "WITHOUT its software CPU" in (tmp_path / "build/cmake_install.cmake").read_text()


def test_without_network_a_build_that_must_have_it_fails(tmp_path: Path, unicorn: Path) -> None:
    status, said = configure(tmp_path / "build", f"-DVMM_UNICORN_DIR={unicorn}", "-DVMM_SOFTCPU=ON", **OFFLINE)
    assert status != 0
    assert "vmm: pip cannot download unicorn 2.1.4" in said


def test_another_archive_is_refused(tmp_path: Path, unicorn: Path) -> None:
    (unicorn / "unicorn-2.1.4.tar.gz").write_bytes(b"not it")
    status, said = configure(tmp_path / "build", VMM_UNICORN_DIR=str(unicorn), **OFFLINE)
    assert status == 0, said
    assert "unicorn-2.1.4.tar.gz is not the file that is meant" in said


def test_unicorn_is_configured_in_any_folder(tmp_path: Path) -> None:
    (archive,) = (NATIVE.parent / "build/unicorn").glob("unicorn-*.tar.gz")
    source, build = tmp_path / "two words: source", tmp_path / "two words: build"
    source.mkdir()
    build.mkdir()
    subprocess.run(["tar", "-x", f"--file={archive}", f"--directory={source}"], check=True)
    (unpacked,) = source.iterdir()
    for patch in sorted((NATIVE / "softcpu/unicorn/patches").glob("*.patch")):
        subprocess.run(["patch", "--quiet", "--strip=1", f"--directory={unpacked}", f"--input={patch}"], check=True)
    configure_script = unpacked / "src/qemu/configure"
    subprocess.run(["sh", configure_script, "--cc=cc", "--target-list=x86_64-softmmu,"], cwd=build, check=True)
    assert f"SRC_PATH={configure_script.parent}\n" in (build / "config-host.mak").read_text()
    assert (build / "x86_64-softmmu/config-target.mak").exists()


def test_the_manual_pages_are_made_with_what_pip_installs_for_the_build(tmp_path: Path) -> None:
    build = tmp_path / "build"
    bare = Path(sys.base_prefix, "bin", "python{}.{}".format(*sys.version_info))
    required = {"PYTHONPATH": str(Path(argparse_manpage.__file__).parents[1])}
    data = f"-DSKBUILD_DATA_DIR={tmp_path}", "-DSKBUILD_PROJECT_VERSION=1.2"
    status, said = configure(build, "-DVMM_SOFTCPU=OFF", f"-DPython_EXECUTABLE={bare}", *data, **required)
    assert status == 0, said
    subprocess.run(["cmake", "--build", build, "--target", "man_pages"], env=os.environ | required, check=True)
    assert {page.stem for page in (build / "man").iterdir()} == {"vmm", *(f"vmm-{command}" for command in COMMANDS)}
    assert (build / "man/vmm-boot.1").read_text(encoding="utf-8").startswith('.TH VMM\\-BOOT "1"')


def test_both_licences_are_stated_and_included() -> None:
    known = metadata(installation.DISTRIBUTION)
    assert known["License-Expression"] == "BSD-2-Clause AND GPL-2.0-only"
    assert set(known.get_all("License-File") or []) == {"LICENSE", "LICENSES/GPL-2.0-only.txt"}


def test_a_remedy_names_scripts_only_where_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(installation, "_SCRIPTS", NATIVE.parent / "scripts")
    assert installation.remedy("setup", "a script", "pip") == "a script"
    assert installation.extra_remedy("vars") == "run scripts/setup test"
    monkeypatch.setattr(installation, "_SCRIPTS", tmp_path)
    assert installation.remedy("setup", "a script", "pip") == "pip"
    assert installation.extra_remedy("vars") == "pip install 'firmware-vmm[vars]'"


def test_an_old_pip_reads_the_project() -> None:
    """The parser of pip 19.3 ends in a traceback at a dotted key."""
    project = (NATIVE.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r"^[\w-]+\.[\w.-]+ *=", project, re.MULTILINE) == []


def test_signal_handlers_look_at_no_thread_local_variable_that_is_allocated_first() -> None:
    """The signal may have come in malloc, whose lock the handler would then wait for."""
    module = find_spec("vmm._native")
    assert module is not None
    assert module.origin is not None
    relocations = subprocess.run(
        ["readelf", "-rW", module.origin], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    assert "R_X86_64_TPOFF64" in relocations
    assert "R_X86_64_DTPMOD64" not in relocations
    assert "R_X86_64_TLSDESC" not in relocations
