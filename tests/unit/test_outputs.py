"""The room that opens every file that a run writes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from vmm.config.machine import MachineConfig
from vmm.config.outputs import Outputs
from vmm.errors import ConfigError, HostError
from vmm.firmware import guests


def config(**options: object) -> MachineConfig:
    return MachineConfig.create("probe", **options)  # type: ignore[arg-type]


def refused(machine: MachineConfig | None, **documents: Path | str) -> str:
    with pytest.raises(ConfigError) as caught:
        Outputs(machine, {f"--{name}": str(path) for name, path in documents.items()})
    return str(caught.value)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def python(
    program: str,
    *words: str | Path,
    prefix: tuple[str, ...] = (),
    stdout: IO[str] | int = subprocess.PIPE,
    stderr: IO[str] | int = subprocess.PIPE,
) -> subprocess.CompletedProcess[str]:
    """Run a program that knows the names of both modules, in a process of its own."""
    imports = "import os, sys; from vmm.config.outputs import *; from vmm.config.machine import *\n"
    command = [*prefix, sys.executable, "-c", imports + program, *map(str, words)]
    return subprocess.run(command, stdout=stdout, stderr=stderr, text=True, timeout=60, check=False)


def test_the_old_document_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    path.chmod(0o640)
    with Outputs(None, {"--json": str(path)}) as outputs:
        assert path.read_text() == "old"
        with path.open() as before:
            outputs.write({"--json": lambda: "new"})
            assert before.read() == "old", "replaced, not written over"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_document_that_is_never_written_leaves_nothing(tmp_path: Path) -> None:
    with Outputs(None, {"--json": str(tmp_path / "new"), "--html": str(tmp_path / "page")}):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    path, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(path)
    for text in ("first", "second"):
        with Outputs(None, {"--json": str(link)}) as outputs:
            outputs.write({"--json": lambda text=text: text})  # type: ignore[misc]
        assert link.is_symlink()
        assert path.read_text() == text


def test_a_disk_that_fills_up_costs_neither_the_old_document_nor_the_other_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")
    # RLIMIT_FSIZE is a full disk for this process only.
    program = """
import resource
outputs = Outputs(None, {"--json": sys.argv[1], "--html": sys.argv[2]})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
outputs.write({"--json": lambda: "x" * 2000, "--html": lambda: "new"})
"""
    run = python(program, tmp_path / "a", tmp_path / "b")
    assert run.stderr.endswith(f"HostError: --json {tmp_path / 'a'}: file too large\n")
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("old", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_file_in_a_directory_that_is_closed_to_us_is_written_in_place(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old, and longer")
    tmp_path.chmod(0o500)
    root = os.geteuid() == 0
    prefix = ("setpriv", "--bounding-set", "-dac_override") if root else ()
    program = """
with Outputs(None, {"--json": sys.argv[1]}) as outputs:
    outputs.write({"--json": lambda: "new"})
try:
    Outputs(None, {"--json": sys.argv[1] + ".other"})
except Exception as error:
    print(error)
"""
    try:
        run = python(program, path, prefix=prefix)
    finally:
        tmp_path.chmod(0o700)
    assert run.stderr == ""
    assert run.stdout == f"--json {path}.other: cannot write: permission denied\n"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["itself", "symbolic", "hard"])
def test_an_input_is_no_output(tmp_path: Path, kind: str) -> None:
    blob, other = tmp_path / "blob", tmp_path / "other"
    blob.write_text("precious")
    if kind == "itself":
        other = blob
    elif kind == "hard":
        other.hardlink_to(blob)
    else:
        other.symlink_to(blob)
    items = {"opt/x": blob}
    why = "-fw_cfg opt/x is read from there; give another path"
    assert refused(config(fw_cfg=items), json=other) == f"--json {other}: {why}"
    assert refused(config(fw_cfg=items, serial=f"file:{other}")) == f"-serial file:{other}: {why}"
    assert refused(config(fw_cfg=items, debugcon=f"file:{other}")) == f"-debugcon file:{other}: {why}"
    assert refused(config(fw_cfg=items, trace=other)) == f"--trace {other}: {why}"
    assert blob.read_text() == "precious"


def test_every_input_is_protected(tmp_path: Path) -> None:
    rom, table, structure, kernel, initrd, splash = (tmp_path / name for name in "rtskip")
    rom.write_bytes(guests.path("probe").read_bytes())
    table.write_bytes(b"SSDT" + (36).to_bytes(4, "little") + bytes(28))
    structure.write_bytes(bytes((200, 4, 0, 2, 0, 0)))
    for path in (kernel, initrd, splash):
        path.write_bytes(b"BM")
    machine = MachineConfig.create(
        rom,
        acpi_tables=[f"file={table}"],
        smbios=[f"file={structure}"],
        kernel=kernel,
        initrd=initrd,
        boot=f"splash={splash}",
    )
    for path in (rom, table, structure, kernel, initrd, splash):
        assert "is read from there" in refused(machine, json=path)


@pytest.mark.parametrize("exists", [True, False])
def test_two_outputs_are_two_files(tmp_path: Path, exists: bool) -> None:
    path, again = tmp_path / "o", tmp_path / "x" / ".." / "o"
    (tmp_path / "x").mkdir()
    if exists:
        path.write_text("old")
    assert refused(config(trace=path), json=path) == f"--json {path}: --trace writes there; give another path"
    assert refused(None, json=path, html=again) == f"--html {again}: --json writes there; give another path"
    assert "-serial writes there" in refused(config(serial=f"file:{path}", debugcon=f"file:{again}"))
    assert path.exists() == exists
    assert not exists or path.read_text() == "old"


def test_devices_may_be_named_twice() -> None:
    with Outputs(config(serial="file:/dev/null", debugcon="file:/dev/null"), {"--json": "/dev/null"}) as outputs:
        outputs.write({"--json": lambda: "x"})


def test_one_that_cannot_be_opened_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    log, new = tmp_path / "log", tmp_path / "new"
    log.write_text("old")
    before = open_files()
    message = refused(config(serial=f"file:{log}", debugcon=f"file:{new}", trace="/nonexistent/log"))
    assert message == "--trace /nonexistent/log: cannot write: no such file or directory"
    assert open_files() == before
    assert log.read_text() == "old"
    assert not new.exists()


@pytest.mark.parametrize(("path", "why"), [("/", "is a directory"), ("/nonexistent/x", "no such file or directory")])
def test_unusable_paths_are_told_at_once(path: str, why: str) -> None:
    assert refused(None, json=path) == f"--json {path}: cannot write: {why}"
    assert refused(config(serial=f"file:{path}")) == f"-serial file:{path}: cannot write: {why}"


@pytest.mark.parametrize("number", [1, 2])
def test_a_standard_stream_by_its_path_keeps_what_is_there(tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    program = """
number = int(sys.argv[1])
os.write(number, b"before\\n")
with Outputs(MachineConfig.create("probe", trace=sys.argv[2]), {"--json": "/dev/null"}) as outputs:
    outputs.trace.write(b"log\\n")
os.write(number, b"after\\n")
"""
    for path in (out, Path(f"/dev/fd/{number}"), Path("/dev/stdout" if number == 1 else "/dev/stderr")):
        with out.open("w") as file:
            streams = (file, subprocess.PIPE) if number == 1 else (subprocess.PIPE, file)
            run = python(program, str(number), path, stdout=streams[0], stderr=streams[1])
        assert run.returncode == 0
        assert out.read_text() == "before\nlog\nafter\n"


@pytest.mark.parametrize("path", ["-", "/dev/stdout", "itself"])
def test_a_report_and_a_console_on_stdout_would_mix(tmp_path: Path, path: str) -> None:
    out = tmp_path / "out"
    path = str(out) if path == "itself" else path
    with out.open("w") as file:
        run = python(
            "Outputs(MachineConfig.create('probe', serial='stdio'), {'--json': sys.argv[1]})", path, stdout=file
        )
    assert f"--json {path} and a console on stdout would mix" in run.stderr


def test_a_growing_file_begins_anew_and_tells_when_it_fails(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a long line of an earlier run")
    with Outputs(config(serial=f"file:{log}", debugcon="file:/dev/full")) as outputs:
        assert outputs.serial is not None
        outputs.serial.write(b"new")
        assert log.read_text() == "new"
        assert not outputs.failed
        assert outputs.debugcon is not None
        with pytest.raises(HostError, match=r"^-debugcon file:/dev/full: no space left on device$"):
            outputs.debugcon.write(b"x")
        assert outputs.failed
