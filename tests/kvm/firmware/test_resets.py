"""Firmware and kernels that reset the machine: by every way they know, and come up again."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from vmm import Machine, Reason
from vmm.firmware import load as firmware
from vmm.pytest_plugin.plugin import MachineFactory
from vmm.verify import linux_guest

pytestmark = pytest.mark.needs_kvm

DEADLINE = 120.0


def to_shell(machine: Machine) -> None:
    machine.expect("any other key to continue", deadline=DEADLINE)
    machine.send_line()
    machine.expect("Shell>", deadline=DEADLINE)


@pytest.mark.hw_long
@pytest.mark.parametrize(("board", "cpus"), [("q35", 4), ("pc", 1)])
def test_a_variable_is_there_after_ovmfs_reset(
    vmm_machine: MachineFactory, tmp_path: Path, board: str, cpus: int
) -> None:
    store = firmware.find("ovmf").variables
    assert store is not None
    variables = Path(shutil.copy(store.path, tmp_path / "my_vars.fd"))
    machine = vmm_machine("ovmf", machine=board, cpus=cpus, variables=variables, devices="vmgenid,guid=auto")
    to_shell(machine)
    placed = machine.vmgenid_address
    machine.send_line("set vmmtest kept")
    machine.expect("Shell>", deadline=DEADLINE)
    machine.send_line("reset")
    to_shell(machine)
    machine.send_line("set vmmtest")
    machine.expect("vmmtest = kept", deadline=DEADLINE)
    assert [reset.cause for reset in machine.resets] == ["port 0xcf9 <- 0x06"]
    assert all(seconds is not None for seconds in machine.started_s())
    assert placed is not None
    assert machine.vmgenid_address is not None
    machine.reset()
    assert machine.vmgenid_address is None
    # EfiResetWarm of the shell: OVMF takes the keyboard controller for that.
    to_shell(machine)
    machine.send_line("reset -w")
    to_shell(machine)
    assert machine.resets[-1].cause == "port 0x64 <- 0xfe"
    assert "vmmtest".encode("utf-16-le") in variables.read_bytes()


def regions(machine: Machine) -> list[tuple[Any, ...]]:
    """What is mapped where, in whichever slots."""
    return [region[:-1] for region in machine.memory.regions()]


@pytest.mark.parametrize(("board", "cpus"), [("q35", 1), ("pc", 4)])
def test_seabios_boots_again_where_nothing_boots(vmm_machine: MachineFactory, board: str, cpus: int) -> None:
    machine = vmm_machine("seabios", machine=board, cpus=cpus, boot="reboot-timeout=200", max_resets=2)
    before = regions(machine)
    assert machine.run(deadline=DEADLINE).reason is Reason.RESET_LOOP
    assert machine.serial.text().count("No bootable device") == 3
    # Not twice for one, as in QEMU, where SeaBIOS wakes up in its own shadow.
    assert machine.reset_count == 2
    assert all(seconds is not None for seconds in machine.started_s())
    assert regions(machine) != before
    machine.reset()
    assert regions(machine) == before


@pytest.mark.parametrize(
    ("way", "cause"),
    [
        pytest.param("t", "triple fault on vCPU", marks=pytest.mark.hw_long),
        ("k", "port 0x64 <- 0xfe"),
        ("p", "port 0xcf9 <- 0x0e"),
        ("a", "port 0xcf9 <- 0x06"),
    ],
)
def test_linux_reboots(vmm_machine: MachineFactory, way: str, cause: str) -> None:
    machine = linux(vmm_machine, "none", f"reboot={way}", direct=True)
    outcome = machine.run(deadline=DEADLINE)
    assert outcome.reason is Reason.RESET_LOOP, machine.serial.text()
    assert [reset.cause.startswith(cause) for reset in machine.resets] == [True], machine.resets
    assert machine.serial.text().count("Kernel panic - not syncing: VFS") == 2
    assert all(seconds is not None for seconds in machine.started_s())


def test_linux_reboots_through_uefi(vmm_machine: MachineFactory) -> None:
    machine = linux(vmm_machine, "ovmf", "reboot=e")
    outcome = machine.run(deadline=DEADLINE)
    assert outcome.reason is Reason.RESET_LOOP, machine.serial.text()
    assert machine.serial.text().count("Kernel panic - not syncing: VFS") == 2


def linux(vmm_machine: MachineFactory, firmware: str, words: str, **options: Any) -> Machine:
    """A kernel that panics for want of a root file system, and then reboots once."""
    kernel = linux_guest.LinuxFiles.find().kernel
    append = f"{linux_guest.COMMAND_LINE} {words}"
    machine: Machine = vmm_machine(
        firmware, kernel=kernel, append=append, cpus=2, memory="512M", max_resets=1, **options
    )
    return machine
