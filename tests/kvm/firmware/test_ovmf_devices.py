"""OVMF as the devices' user: variables in flash, the clock, power-off and reset by its own drivers."""

import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from vmm.firmware import load as firmware
from vmm.pytest_plugin.plugin import MachineFactory
from vmm.run.outcome import Reason

pytestmark = pytest.mark.needs_kvm

DEADLINE = 120
AT_COUNTDOWN = ("startup.nsh", "\r")
"""Any key but ESC enters the shell at once."""


@pytest.fixture
def variables(tmp_path: Path) -> Path:
    """A VARS file of the user's own."""
    store = firmware.find("ovmf").variables
    assert store is not None
    return Path(shutil.copy(store.path, tmp_path / "my_vars.fd"))


def shell(vmm_machine: MachineFactory, commands: list[str], **options: Any) -> tuple[Reason, str]:
    """Start OVMF, type the commands at its prompt, one after the other; the last one ends the machine."""
    with vmm_machine("ovmf", **options) as machine:
        outcome = machine.run(
            send=[AT_COUNTDOWN, *((r"Shell>", f"{command}\r") for command in commands)], deadline=DEADLINE
        )
        return outcome.reason, machine.serial.text()


def test_a_variable_outlives_the_machine(vmm_machine: MachineFactory, variables: Path) -> None:
    options = {"variables": variables, "persist": True}
    shell(vmm_machine, ["set vmmtest persisted", "reset -s"], **options)
    _, printed = shell(vmm_machine, ["set vmmtest", "reset -s"], **options)
    assert "vmmtest = persisted" in printed


def test_variables_of_a_private_copy_are_lost_and_the_file_is_not_touched(
    vmm_machine: MachineFactory, variables: Path
) -> None:
    before = variables.read_bytes()
    shell(vmm_machine, ["set vmmtest persisted", "reset -s"], variables=variables, persist=False)
    assert variables.read_bytes() == before


@pytest.mark.parametrize("board", ["q35", "pc"])
def test_the_shell_powers_the_machine_off(vmm_machine: MachineFactory, board: str) -> None:
    assert shell(vmm_machine, ["reset -s"], machine=board)[0] is Reason.POWER_OFF


def test_the_clock_shows_the_hosts_time(vmm_machine: MachineFactory) -> None:
    began = datetime.now(UTC).replace(microsecond=0)
    _, printed = shell(vmm_machine, ["date", "time", "reset -s"])
    ended = datetime.now(UTC)
    date = re.search(r"(\d\d)/(\d\d)/(\d{4})", printed)
    time = re.search(r"(\d\d):(\d\d):(\d\d)", printed)
    assert date is not None
    assert time is not None
    month, day, year = map(int, date.groups())
    hour, minute, second = map(int, time.groups())
    shown = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    # The two commands may stand on both sides of midnight.
    assert any(began <= shown + timedelta(days=days) <= ended for days in (0, 1))
