"""bhyve's UEFI, new (fw_cfg and fwctl) and old (only fwctl), on both interfaces: how many CPUs does its MADT list?

The table in docs/bhyve.md, "Old and new bhyve firmware" is what these boots gave.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerators import PLAIN

from vmm import Machine, Reason, layout
from vmm.config.machine import FirmwareKind, Interface, MachineType
from vmm.devices.fwctl_format import Error
from vmm.tables.in_ram import Table, find_tables, processors

pytestmark = pytest.mark.needs_kvm

DEADLINE = 240.0
"""Seconds; a boot takes two or three, and most of a minute on an emulated host, where Python answers PCI and HPET."""

COUNTDOWN = "any other key to continue"
"""The shell's, 5 s long if nobody types."""

ESCAPE = re.compile(r"\x1b\[[0-9;=]*[A-Za-z]")

UUID = "4600cb32-38ec-4b2f-8acb-81c6ea54f2d8"

QEMU, BHYVE, AUTO = Interface.QEMU, Interface.BHYVE, Interface.AUTO

MATRIX = {
    # image, fwcfg=: the interface that answers, and whether the firmware learns the number of CPUs if it is offered
    ("both", QEMU): (QEMU, True),
    ("both", BHYVE): (BHYVE, True),
    ("both", AUTO): (QEMU, True),
    ("fwctl-only", QEMU): (QEMU, False),
    ("fwctl-only", BHYVE): (BHYVE, True),
    ("fwctl-only", AUTO): (BHYVE, True),
}

LAST_WITH_ITS_OWN_MADT = "2022.11"
"""Debian 12's edk2 makes the MADT itself. Debian 13's, 2025.02, installs the tables that fw_cfg has if it is there,
and then asks nobody for the number of CPUs."""

Create = Callable[..., Machine]


@pytest.fixture(scope="session")
def takes_tables(bhyve_firmware: dict[str, Path]) -> bool:
    """Does the firmware install fw_cfg's tables?"""
    built = json.loads((bhyve_firmware["both"] / "build.json").read_text(encoding="utf-8"))
    return str(built["edk2"]).partition("-")[0] > LAST_WITH_ITS_OWN_MADT


@pytest.fixture
def create(vmm_machine: Callable[..., Machine], bhyve_firmware: dict[str, Path]) -> Create:
    """Make a machine with a variant of the firmware, and as little RAM as it takes."""

    def create(variant: str, **options: Any) -> Machine:
        return vmm_machine(bhyve_firmware[variant] / "BHYVE.fd", **({"memory": "64M"} | options))

    return create


def boot_to_shell(machine: Machine) -> None:
    outcome = machine.run("Shell>", DEADLINE, [(COUNTDOWN, "\r")])
    assert outcome.reached, f"{outcome.message}\n{outcome.details}\n{machine.serial.text()}"


@pytest.mark.parametrize("cpus", [1, 4])
@pytest.mark.parametrize("offered", [True, False], ids=["hw.ncpu", "no hw.ncpu"])
@pytest.mark.parametrize(("variant", "fwcfg"), MATRIX)
def test_cpus_in_the_madt(
    create: Create, takes_tables: bool, variant: str, fwcfg: Interface, offered: bool, cpus: int
) -> None:
    interface, learns = MATRIX[variant, fwcfg]
    machine = create(variant, fwcfg=fwcfg, cpu_count=offered, cpus=cpus)
    assert (machine.config.machine_type, machine.interface) == (MachineType.BHYVE, interface)
    boot_to_shell(machine)

    madt = find_tables(machine.memory)["APIC"]
    ours = takes_tables and interface is QEMU and learns
    assert madt.oem == ("VMM" if ours else "BHYVE")
    assert enabled(madt) == list(range(cpus if ours or (offered and learns) else 1))
    if interface is QEMU:
        assert machine.fwctl is None
        assert machine.fw_cfg is not None
        read = {item.name: item.bytes_read for item in machine.fw_cfg.items()}
        assert read.get("opt/bhyve/hw.ncpu") == ((4 if learns and not ours else 0) if offered else None)
    else:
        assert machine.fw_cfg is None
        assert machine.fwctl is not None
        (request,) = machine.fwctl.requests
        assert (request.operation_name, request.oid) == ("GET", "hw.ncpu")
        assert request.error is (Error.OK if offered else Error.ENOENT)
        assert request.value == (cpus.to_bytes(4, "little") if offered else b"")


@pytest.mark.parametrize(("fwcfg", "count"), [(QEMU, "cpus at boot"), (BHYVE, "hw.ncpu")])
def test_our_guest_starts_the_cpus(vmm_machine: Callable[..., Machine], fwcfg: Interface, count: str) -> None:
    machine = vmm_machine("probe", machine="bhyve", fwcfg=fwcfg, cpus=3, accel=PLAIN)
    assert machine.run(deadline=DEADLINE).reason is Reason.POWER_OFF
    lines = machine.debugcon.text().splitlines()
    assert {"machine: bhyve", f"{count}: 3", "cpus started: 3", "status: 0"} <= set(lines)


@pytest.mark.hw
def test_a_value_registered_at_run_time_is_asked_for_at_each_get(create: Create) -> None:
    machine = create("fwctl-only")
    assert machine.fwctl is not None
    asked: list[int] = []

    def seven() -> int:
        asked.append(machine.serial.total)
        return 7

    machine.fwctl.register("hw.ncpu", seven)
    boot_to_shell(machine)
    assert len(asked) == 1
    assert enabled(find_tables(machine.memory)["APIC"]) == list(range(7))
    assert "fwctl GET hw.ncpu OK 07 00 00 00" in [event.event for event in machine.timeline]


def test_an_item_of_the_user_replaces_the_count(create: Create, takes_tables: bool) -> None:
    machine = create("both", cpus=2, fw_cfg={"opt/bhyve/hw.ncpu": (3).to_bytes(4, "little")})
    assert machine.fw_cfg is not None
    assert machine.fw_cfg.contents("opt/bhyve/hw.ncpu") == (3).to_bytes(4, "little")
    boot_to_shell(machine)
    assert enabled(find_tables(machine.memory)["APIC"]) == ([0, 1] if takes_tables else [0, 1, 2])


def enabled(madt: Table) -> list[int]:
    return [processor.apic_id for processor in processors(madt.data) if processor.enabled]


def in_shell(machine: Machine, command: str) -> str:
    """What a shell command prints, without terminal escapes."""
    before = len(machine.serial.text())
    machine.send(f"{command}\r")
    outcome = machine.run(r"\n\s*Shell>", DEADLINE)
    printed = ESCAPE.sub("", machine.serial.text()[before:])
    assert outcome.reached, f"{outcome.message}\n{printed}"
    return printed


def total_memory(machine: Machine) -> int:
    """MiB of RAM that the firmware told the shell of."""
    found = re.search(r"Total Memory: +([\d,]+) MB", in_shell(machine, "memmap"))
    assert found is not None
    return int(found[1].replace(",", ""))


def test_the_firmware_finds_smbios_and_ram_and_can_reset(create: Create) -> None:
    machine = create("both", memory="256M", uuid=UUID, smbios=["type=1,product=Shelf"])
    assert machine.config.firmware.kind is FirmwareKind.BHYVE
    boot_to_shell(machine)
    printed = in_shell(machine, "smbiosview -t 1")
    assert "ProductName: Shelf" in printed
    assert "32 CB 00 46 EC 38 2F 4B-8A CB 81 C6 EA 54 F2 D8" in printed  # the first three fields are little-endian
    assert 254 <= total_memory(machine) <= 256
    machine.memory.write(layout.SMBIOS_BHYVE.start, bytes(len(layout.SMBIOS_BHYVE)))
    machine.send("reset\r")
    boot_to_shell(machine)
    assert [reset.cause for reset in machine.resets] == ["port 0xcf9 <- 0x06"]
    assert "ProductName: Shelf" in in_shell(machine, "smbiosview -t 1")


def test_the_shell_powers_the_machine_off(create: Create) -> None:
    machine = create("fwctl-only")
    boot_to_shell(machine)
    machine.send("reset -s\r")
    outcome = machine.run(deadline=DEADLINE)
    assert outcome.reason is Reason.POWER_OFF, outcome.message


def test_memory_above_4_gib_is_seen(create: Create) -> None:
    machine = create("both", memory="4G")
    boot_to_shell(machine)
    assert 4094 <= total_memory(machine) <= 4096


def test_bhyves_command_line_keeps_variables_and_reports_requests(
    bhyve_firmware: dict[str, Path], tmp_path: Path
) -> None:
    images = bhyve_firmware["fwctl-only"]
    variables, report, log = tmp_path / "my vars.fd", tmp_path / "report.json", tmp_path / "log"
    blank = (images / "BHYVE_VARS.fd").read_bytes()
    variables.write_bytes(blank)
    command = [sys.executable, "-m", "vmm", "boot", "-c", "2", "-m", "64M", "-serial", "none", "-debugcon", "none"]
    command += ["-l", f"bootrom,{images / 'BHYVE_CODE.fd'},{variables}", "-fwctl", "name=org.example.note,value=hello"]
    command += ["--until", "Shell>", "--send", rf"{COUNTDOWN}=\r", "--timeout", str(DEADLINE), "--json", str(report)]
    command += ["--trace", str(log)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["firmware"]["interface"] == "bhyve"
    assert found["cpus"]["madt"] | {"address": 0} == {"address": 0, "oem": "BHYVE", "enabled": [0, 1], "possible": 2}
    assert "2 in the MADT that firmware left" in done.stderr
    assert "fw_cfg" not in found
    (request,) = found["fwctl"]["requests"]
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert lines == [{"event": "request"} | request, {"event": "end", "never_asked": ["org.example.note"]}]
    txid = request.pop("txid")
    assert isinstance(txid, int)
    assert request.pop("t_s") > 0
    expected = {"operation": "GET", "oid": "hw.ncpu", "error": "OK", "matched": "hw.ncpu", "value": "02000000"}
    assert request == expected
    assert found["fwctl"]["never_asked"] == ["org.example.note"]
    assert "GET hw.ncpu: OK = 02 00 00 00" in done.stderr
    assert variables.read_bytes() != blank
