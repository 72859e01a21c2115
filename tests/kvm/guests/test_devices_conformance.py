"""The devices, seen by one guest on QEMU's machines and on ours."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerators import PLAIN
from softcpu_rig import NOT_HERE

from vmm.firmware import guests
from vmm.firmware import load as firmware
from vmm.firmware.images import VariableStore
from vmm.run.outcome import Reason
from vmm.softcpu.decision import has_hardware_virtualization

GUEST = "conformance-devices"
VARIABLES = b"\xff" * 0x84000
SECTOR = 0x1000

with_both_boards = pytest.mark.parametrize("board", ["pc", "q35"])


def results(text: str) -> dict[str, str]:
    """Result by name of each case of a whole TAP stream; skipped ones have the reason."""
    lines = text.splitlines()
    cases = [match.groups() for line in lines if (match := re.fullmatch(r"(ok|not ok) \d+ - (.*)", line))]
    assert f"1..{len(cases)}" in lines, text
    assert all(result == "ok" for result, _ in cases), text
    parts = [name.partition(" # SKIP ") for _, name in cases]
    return {name: why if skip else "ok" for name, skip, why in parts}


@pytest.fixture
def flash_options(tmp_path: Path) -> list[str]:
    """Both chips as QEMU's pflash drives; the second is the writable one."""
    variables = tmp_path / "variables.fd"
    variables.write_bytes(VARIABLES)
    return [
        "-drive",
        f"if=pflash,unit=0,format=raw,readonly=on,file={guests.path(GUEST)}",
        "-drive",
        f"if=pflash,unit=1,format=raw,file={variables}",
    ]


@with_both_boards
def test_on_qemu(qemu: Callable[..., str], flash_options: list[str], board: str) -> None:
    options = ["-serial", "null", "-global", "hpet.msi=on", *flash_options]
    seen = results(qemu(guests.path(GUEST), *options, machine=board))
    assert {name for name, result in seen.items() if result != "ok"} <= {"ECAM"}


@pytest.mark.needs_kvm
@pytest.mark.hw
@pytest.mark.parametrize("coalesced", [True, False])
@with_both_boards
def test_on_ours(vmm_machine: Callable[..., Any], tmp_path: Path, board: str, coalesced: bool) -> None:
    variables = tmp_path / "variables.fd"
    variables.write_bytes(VARIABLES)
    store = VariableStore(variables, VARIABLES, persist=True)
    images = firmware.load(guests.path(GUEST))._replace(variables=store)
    machine = vmm_machine(images, machine=board, accel="kvm", coalesced=coalesced)
    outcome = machine.run(deadline=120)
    seen = results(machine.debugcon.text())
    assert outcome.reason is Reason.POWER_OFF
    assert {name for name, result in seen.items() if result != "ok"} <= {"ECAM"}
    programs = 256 + 4
    assert machine.platform.flash.programs == programs
    # Each access is an exit, but stores to flash that KVM keeps, a hundred and more at once.
    accesses = sum(each.reads + each.writes for each in machine.mmio.ranges())
    # None are beside an access log, which --vmm-artifacts keeps.
    kept = coalesced and machine.config.trace is None
    assert (machine.exit_counts()["mmio"] < accesses - programs) == kept
    assert machine.serial.text() == "."


@pytest.mark.needs_kvm
@pytest.mark.parametrize(
    "accel",
    [
        "softcpu",
        pytest.param("kvm+softcpu", marks=pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE)),
    ],
)
@with_both_boards
def test_in_the_software_cpu(vmm_machine: Callable[..., Any], board: str, accel: str) -> None:
    machine = vmm_machine(str(guests.path(GUEST)), machine=board, accel=accel)
    assert machine.run(deadline=120).reason is Reason.POWER_OFF
    # It has no chip for variables.
    assert {name for name, result in results(machine.debugcon.text()).items() if result != "ok"} <= {"ECAM", "flash"}


@pytest.mark.needs_kvm
def test_what_the_guest_programs_is_in_the_file(vmm_machine: Callable[..., Any], tmp_path: Path) -> None:
    variables = tmp_path / "variables.fd"
    contents = bytes(SECTOR) * (len(VARIABLES) // SECTOR)
    variables.write_bytes(contents)
    store = VariableStore(variables, contents, persist=True)
    images = firmware.load(guests.path(GUEST))._replace(variables=store)
    machine = vmm_machine(images, accel=PLAIN)
    assert machine.run(deadline=120).reached
    # While the machine still stands: nothing waits for a clean end to be written.
    assert variables.read_bytes() == contents[:-SECTOR] + b"\xff" * SECTOR


@pytest.mark.needs_kvm
@with_both_boards
def test_ours_runs_the_cases_that_qemu_runs(qemu: Callable[..., str], ours: Callable[..., str], board: str) -> None:
    mine = results(ours(GUEST, machine=board))
    theirs = results(qemu(guests.path(GUEST), "-serial", "null", "-global", "hpet.msi=on", machine=board))
    assert list(mine) == list(theirs)
    assert any("HPET" in name for name in mine)
    without = results(ours(GUEST, machine=board, hpet=False))
    assert [name for name in without if "HPET" in name] == ["HPET"]  # which is skipped
