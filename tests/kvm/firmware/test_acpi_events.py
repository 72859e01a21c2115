"""What a guest's OS does with the power button, with pvpanic, without ACPI's tables, and with another DSDT."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import linux_machine
import pexpect
import pytest

from vmm.cli import main
from vmm.config.machine import MachineConfig
from vmm.errors import ExitStatus
from vmm.machine import Machine
from vmm.run.expected import SendError
from vmm.run.outcome import Reason
from vmm.verify import linux_guest
from vmm.verify.run import verify

pytestmark = pytest.mark.needs_kvm

DEADLINE = 60.0

# Events are kept for who has the device open. One is 24 bytes.
WAITS_FOR_THE_BUTTON = "exec 3</dev/input/event0; echo 'it listens'; dd bs=24 count=1 <&3 >/dev/null; echo pressed"
EVENTS = "/sys/bus/platform/devices/QEMU0001:00/events"
PANICS = f"echo '<0>events:' $(cat {EVENTS}) >/dev/kmsg; echo c >/proc/sysrq-trigger"
"""By the kernel's log, which is on the console before what comes next."""


def linux(tmp_path: Path, script: str, **fields: Any) -> MachineConfig:
    own = linux_machine.fields(script, tmp_path / "initrd", modules=linux_guest.event_modules())
    firmware = fields.pop("firmware", "none")
    return MachineConfig.create(firmware, **own | {"direct": firmware == "none"} | fields)


@pytest.mark.parametrize(("firmware", "board"), [("none", "q35"), ("none", "pc"), ("seabios", "q35")])
def test_linux_powers_off_by_the_power_button(tmp_path: Path, firmware: str, board: str) -> None:
    with Machine(linux(tmp_path, WAITS_FOR_THE_BUTTON, firmware=firmware, machine=board)) as machine:
        machine.expect("it listens", deadline=DEADLINE)
        machine.power_button()
        outcome = machine.run(deadline=DEADLINE)
        assert outcome.reason is Reason.POWER_OFF, outcome
        assert "pressed" in machine.serial.text()
        with pytest.raises(SendError):
            machine.power_button()


def test_a_panic_ends_the_run(tmp_path: Path) -> None:
    config = linux(tmp_path, PANICS, devices=["pvpanic"])
    with Machine(config) as machine:
        outcome = machine.run(deadline=DEADLINE)
        text = machine.serial.text()
    assert outcome.reason is Reason.PANIC, text
    assert outcome.exit_status is ExitStatus.GUEST_FAILED
    assert "Kernel panic - not syncing: sysrq triggered crash" in text
    assert outcome.details
    assert "events: 3\r\n" in text


def test_linux_without_tables_finds_none(tmp_path: Path) -> None:
    script = "ls /sys/firmware/acpi 2>&1; echo interrupts: $(grep -c acpi /proc/interrupts)"
    with Machine(linux(tmp_path, script, acpi=False)) as machine:
        machine.expect(r"/sys/firmware/acpi: No such file or directory\s+interrupts: 0\s", deadline=DEADLINE)


def test_ovmf_without_tables_tells_none_and_seabios_makes_its_own() -> None:
    result = verify(MachineConfig.create("ovmf", acpi=False), deadline=DEADLINE)
    assert result.ok, result
    assert not result.tables
    found = verify(MachineConfig.create("seabios", acpi=False), deadline=DEADLINE).found
    assert {"FACP", "DSDT", "APIC"} <= found.tables.keys()


@pytest.fixture
def dsdt(tmp_path: Path) -> Path:
    """Compiled from source: little more than what powers the machine off."""
    source = tmp_path / "own.asl"
    source.write_text(
        'DefinitionBlock ("own.aml", "DSDT", 2, "OWNOEM", "OWNTABLE", 1) {\n'
        "  Name (_S5, Package () { 0, 0, 0, 0 })\n"
        '  Device (\\_SB.OWN0) { Name (_HID, "OWN0001") }\n'
        "}\n"
    )
    subprocess.run(["iasl", source], cwd=tmp_path, capture_output=True, check=True)
    return tmp_path / "own.aml"


@pytest.mark.parametrize("firmware", ["ovmf", "seabios"])
def test_an_own_dsdt_takes_the_place_of_ours(dsdt: Path, firmware: str) -> None:
    result = verify(MachineConfig.create(firmware, dsdt=dsdt), deadline=DEADLINE)
    found = result.tables["DSDT"].found
    assert result.tables["DSDT"].arrived, result
    assert found is not None
    assert found.data == dsdt.read_bytes()


def test_linux_takes_an_own_dsdt(tmp_path: Path, dsdt: Path) -> None:
    with Machine(linux(tmp_path, "ls -d /sys/bus/acpi/devices/OWN*", dsdt=dsdt)) as machine:
        assert "/sys/bus/acpi/devices/OWN0001:00" in linux_machine.printed(machine)


def test_ctrl_a_p_presses_the_power_button(tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    fields = linux_machine.fields(WAITS_FOR_THE_BUTTON, initrd, modules=linux_guest.event_modules())
    words = ["-direct", "-kernel", str(fields["kernel"]), "-initrd", str(initrd), "-append", fields["append"]]
    with pexpect.spawn(sys.executable, ["-m", "vmm", "boot", *words], encoding="utf-8", timeout=DEADLINE) as child:
        child.expect("Ctrl-A P presses its power button")
        child.expect("it listens")
        child.send("\x01p")
        child.expect("powered the machine off")
        child.expect(pexpect.EOF)
    assert child.exitstatus == 0


def test_a_script_presses_the_power_button(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    initrd, script = tmp_path / "initrd", tmp_path / "script"
    fields = linux_machine.fields(WAITS_FOR_THE_BUTTON, initrd, modules=linux_guest.event_modules())
    script.write_text("timeout 60\nexpect it listens\npower-button\npower-off\n")
    words = ["-direct", "-kernel", str(fields["kernel"]), "-initrd", str(initrd), "-append", fields["append"]]
    assert main(["boot", *words, "--script", str(script), "--sandbox", "off", "-serial", "none"]) == 0, (
        capfd.readouterr()
    )
