"""pvpanic beside Debian's QEMU: the port, the file that names it, what the DSDT declares, and what a panic is."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from device_rig import Rig
from qemu_qtest import Qemu, in_command, out_command

from vmm import Machine
from vmm.devices.pvpanic import CRASH_LOADED, PANICKED, PORT_FILE, Pvpanic
from vmm.tables.files import ACPI_FILE

pytestmark = pytest.mark.needs_kvm

PORT = 0x505
SHUT_DOWN = 1 << 2
"""From QEMU 9.1 on: the guest shuts down by this port. Linux does so only where a read says that it can."""


def declared(tables: bytes, place: Path) -> str:
    """The device in the source that iasl makes of the DSDT in a file of tables."""
    at = tables.index(b"DSDT")
    place.write_bytes(tables[at : at + int.from_bytes(tables[at + 4 : at + 8], "little")])
    subprocess.run(["iasl", "-d", place], capture_output=True, check=True)
    source = place.with_suffix(".dsl").read_text()
    found = re.search(r"( +)Device \(PEVT\)\n\1\{\n.*?\n\1\}", source, re.DOTALL)
    assert found is not None
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", found[0])
    return " ".join(text.split())


@pytest.mark.usefixtures("each_qemu")
@pytest.mark.parametrize("board", ["q35", "pc"])
def test_it_is_what_qemu_has(tmp_path: Path, vmm_machine: Callable[..., Machine], board: str) -> None:
    machine = vmm_machine("seabios", machine=board, devices=["pvpanic"])
    fw_cfg = machine.fw_cfg
    assert fw_cfg is not None
    with Qemu(tmp_path, 64 << 20, ["-device", "pvpanic", "-action", "panic=none"], board) as qemu:
        files = qemu.files()
        assert qemu.item(*files[PORT_FILE]) == fw_cfg.contents(PORT_FILE)
        theirs = int(qemu.commands([in_command(PORT, 1)])[0], 16)
        with machine.io_lock:
            assert machine.platform.devices["pvpanic"].read(0, 1) == theirs & ~SHUT_DOWN
        assert declared(fw_cfg.contents(ACPI_FILE), tmp_path / "ours.aml") == declared(
            qemu.item(*files[ACPI_FILE]), tmp_path / "theirs.aml"
        )


@pytest.mark.usefixtures("each_qemu")
def test_what_is_written_means_what_it_means_in_qemu(tmp_path: Path) -> None:
    with Qemu(tmp_path, 64 << 20, ["-device", "pvpanic", "-action", "panic=none"]) as qemu:
        for value in (CRASH_LOADED, 0, 0xFC & ~SHUT_DOWN, PANICKED | CRASH_LOADED):
            rig = Rig()
            device = Pvpanic(rig.power)
            device.write(0, 1, value)
            ours = {"GUEST_PANICKED"} if rig.power.events else {"GUEST_CRASHLOADED"} if device.crashes_loaded else set()
            qemu._events.clear()
            qemu.commands([out_command(PORT, 1, value)])
            qemu.qmp("query-status")  # events come before its reply
            assert (value, {name for name in qemu._events if name.startswith("GUEST_")}) == (value, ours)
