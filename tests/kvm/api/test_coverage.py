"""Which lines of source a guest's code reached."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vmm import Machine
from vmm.debug.lines import line_table
from vmm.debug.symbols import function_at
from vmm.errors import ConfigError
from vmm.firmware import guests
from vmm.pytest_plugin.plugin import MachineFactory
from vmm.run.coverage import Covered, Lines, add, lcov

pytestmark = pytest.mark.needs_kvm

ACCEL = "kvm+softcpu"
DEADLINE = 60.0


def lines_of(found: Lines, name: str) -> dict[int, int]:
    (file,) = (file for file in found if file.endswith(f"/{name}"))
    return found[file]


def reached(machine: Machine) -> Covered:
    covered = machine.coverage()
    assert covered is not None
    return covered


def parsed(tracefile: str) -> Lines:
    """What a tracefile says, read by its own description (geninfo(1))."""
    lines: Lines = {}
    for record in tracefile.split("end_of_record\n")[:-1]:
        match = re.fullmatch(r"TN:\nSF:(.+)\n((?:DA:\d+,\d+\n)+)LF:(\d+)\nLH:(\d+)\n", record)
        assert match is not None, record
        found = {int(line): int(hits) for line, hits in re.findall(r"DA:(\d+),(\d+)", match[2])}
        assert (len(found), sum(map(bool, found.values()))) == (int(match[3]), int(match[4]))
        lines[match[1]] = found
    return lines


def test_lines_that_a_guest_reaches(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("probe", accel=ACCEL, coverage=True)
    assert machine.run(deadline=DEADLINE).reached
    covered = reached(machine)
    probe = lines_of(covered.lines, "probe.c")
    # By the functions of the symbol table, another account of the same file: main is reached, TAP is for other guests.
    elf = guests.symbols("probe")
    rows = [row for row in line_table(elf) if row.file.endswith("/probe.c")]
    first = min((row for row in rows if function_at(elf, row.start) == ("main", 0)), key=lambda row: row.start)
    assert probe[first.line] == 1
    assert 0 < sum(probe.values()) < len(probe)
    assert not any(lines_of(covered.lines, "tap.c").values())
    assert (covered.images, covered.unknown, covered.lost) == (1, [], 0)
    assert parsed(covered.lcov()) == covered.lines


def test_what_was_not_executed_was_not_reached(vmm_machine: MachineFactory) -> None:
    """What counts the other processors: one run has some, the other has none."""
    found = []
    for cpus in (1, 2):
        machine = vmm_machine("probe", accel=ACCEL, coverage=True, cpus=cpus)
        assert machine.run(deadline=DEADLINE).reached
        found.append(lines_of(reached(machine).lines, "cpus.c"))
    alone, several = found
    assert alone.keys() == several.keys()
    assert sum(alone.values()) < sum(several.values())
    assert all(several[line] for line, hits in alone.items() if hits)
    source = (Path(__file__).parents[3] / "firmware" / "lib" / "cpus.c").read_text().splitlines()
    # Of one processor, probe.c does not ask for the number of others.
    (line,) = (number for number, text in enumerate(source, 1) if "ap_count != seen" in text)
    assert (alone[line], several[line]) == (0, 1)


def test_several_vcpus_and_a_reset(vmm_machine: MachineFactory) -> None:
    machine = vmm_machine("probe", accel=ACCEL, coverage=True, cpus=4)
    assert machine.run(deadline=DEADLINE).reached
    once = reached(machine).lines
    assert sum(lines_of(once, "cpus.c").values()) > 10
    machine.reset()
    assert machine.run(deadline=DEADLINE).reached
    again = reached(machine).lines
    assert {file: found.keys() for file, found in again.items()} == {file: found.keys() for file, found in once.items()}
    # The second time may take ways that the first did not: some wait for others.
    assert all(again[file][line] >= hits for file, found in once.items() for line, hits in found.items())


def test_kvm_tells_nothing(vmm_machine: MachineFactory) -> None:
    with pytest.raises(ConfigError, match=r"--coverage: only the software CPU .* add -accel kvm\+softcpu"):
        vmm_machine("probe", accel="kvm", coverage=True)
    machine = vmm_machine("probe", accel=ACCEL)
    assert machine.run(deadline=DEADLINE).reached
    assert machine.coverage() is None


def test_tracefiles_add_up() -> None:
    total: Lines = {}
    add(total, {"/a.c": {1: 1, 2: 0}, "/b.c": {7: 0}})
    add(total, {"/a.c": {1: 1, 3: 1}})
    assert total == {"/a.c": {1: 2, 2: 0, 3: 1}, "/b.c": {7: 0}}
    assert parsed(lcov(total)) == total
    assert parsed(lcov({"/x\nDA:1,1": {1: 0}})) == {"/x DA:1,1": {1: 0}}


@pytest.mark.usefixtures("kvm_device")
def test_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "guest.info"
    words = [sys.executable, "-m", "vmm", "boot", "probe", "-accel", ACCEL, "-serial", "none", "-debugcon", "none"]
    subprocess.run([*words, "-q", "--coverage", str(path)], check=True, capture_output=True)
    assert sum(lines_of(parsed(path.read_text()), "probe.c").values()) > 10
    (tmp_path / "rom").write_bytes(bytes.fromhex("eb fe").rjust(0x20000 - 14, b"\xf4").ljust(0x20000, b"\xf4"))
    words = [*words[:4], str(tmp_path / "rom"), *words[5:], "-machine", "pc", "--timeout", "3"]
    done = subprocess.run([*words, "--coverage", str(path)], check=False, capture_output=True, text=True)
    assert done.returncode == 3
    assert "vmm: --coverage: no image that was executed has line numbers; --symbols DIR says" in done.stderr
    assert path.read_text() == ""


TESTS = """
import pytest

pytestmark = pytest.mark.needs_kvm


@pytest.mark.parametrize("cpus", [1, 2])
def test_probe(vmm_machine, cpus):
    assert vmm_machine("probe", cpus=cpus).run(deadline=60).reached


def test_closed(vmm_machine):
    with vmm_machine("hang") as machine:
        machine.run(deadline=0.2)


def test_of_kvm(vmm_machine):
    assert vmm_machine("probe", accel="kvm").run(deadline=60).reached


def test_booted(vmm_booted):
    vmm_booted("hang", until=lambda machine: machine.run(deadline=0.2)).run(deadline=0.2)
"""


@pytest.mark.parametrize("artifacts", [False, True])
@pytest.mark.usefixtures("kvm_device")
def test_of_a_session_of_pytest(tmp_path: Path, artifacts: bool) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--vmm-coverage", "guests.info"]
    words += ["--vmm-artifacts", "kept"] if artifacts else []
    done = subprocess.run([*words, "test_it.py"], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "guests.info: machines: 4" in done.stdout
    lines = parsed((tmp_path / "guests.info").read_text())
    assert max(lines_of(lines, "probe.c").values()) == 2
    assert max(lines_of(lines, "hang.c").values()) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--vmm-coverage", "nowhere/x.info"], "--vmm-coverage nowhere/x.info: not a file in a folder"),
        (["--vmm-coverage", "x.info", "--vmm-sandbox", "process"], "tell none"),
        (["--vmm-symbols", "nowhere"], "--vmm-symbols nowhere: not a folder"),
    ],
)
def test_options_of_pytest_that_make_no_sense(tmp_path: Path, words: list[str], said: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 4
    assert said in done.stdout + done.stderr
