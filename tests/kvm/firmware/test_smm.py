"""Firmware that lives in system management mode: what Debian's OVMF with Secure Boot locks, and what it refuses."""

import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from debian import version

from vmm.firmware import guests
from vmm.firmware.variable_list import VariableList
from vmm.machine import Machine
from vmm.pytest_plugin.plugin import MachineFactory
from vmm.report.collect import collect

pytestmark = pytest.mark.needs_kvm

OVMF = Path("/usr/share/OVMF")
SECBOOT = str(OVMF / "OVMF_CODE_4M.secboot.fd")
DEADLINE = 120
VARIABLE = "setvar vmmtest -guid 6e67c8a2-1ab8-4d9b-8a2e-3f9c0a1d5e77"
KEPT = "6B 00 65 00 70 00 74 00"
"""L"kept", as the shell shows it."""


def said(machine: Machine, command: str) -> str:
    """What the shell answers."""
    machine.send_line(command)
    return machine.expect("Shell> ", deadline=DEADLINE).before.partition("\n")[2].strip()


LOCKED = ["0x1A", "0x3F"]
"""SMRAM: G_SMRAME and D_LCK; ESMRAMC: T_EN, 16 MiB."""


def registers(machine: Machine) -> list[str]:
    return [said(machine, f"mm {register} -pci -w 1 -n").rpartition(" ")[2] for register in ("9d", "9e")]


def to_shell(machine: Machine) -> None:
    machine.expect("any other key to continue", deadline=DEADLINE)
    machine.send_line()
    machine.expect("Shell> ", deadline=DEADLINE)


@pytest.fixture
def has_shell() -> None:
    if version("ovmf") >= (2025, 2):
        pytest.skip("Debian's OVMF with Secure Boot has no shell since 2025.02; test_fetched_guests.py boots that")


@pytest.mark.hw_long
@pytest.mark.usefixtures("has_shell")
def test_what_the_firmware_locked_stays_so_and_its_variables_are_kept(
    vmm_machine: MachineFactory, tmp_path: Path
) -> None:
    """From the shell: SMRAM's registers, TSEG, flash; then through resets and snapshots."""
    variables = Path(shutil.copy(OVMF / "OVMF_VARS_4M.fd", tmp_path / "vars.fd"))
    with vmm_machine(SECBOOT, cpus=2, memory="512M", variables=variables) as machine:
        to_shell(machine)
        assert registers(machine) == LOCKED
        said(machine, "mm 9d 48 -pci -w 1 -n")
        said(machine, "mm 9e 0 -pci -w 1 -n")
        assert registers(machine) == LOCKED
        for address in ("1f000000", "1ffffffc", "a0000"):
            assert said(machine, f"mm {address} -w 4 -n").endswith(": 0xFFFFFFFF")
        assert said(machine, "mm 1efffffc -w 4 -n") != "", "RAM in front of it"
        said(machine, "mm ffc00000 10 -w 1 -n")
        said(machine, "mm ffc00000 55 -w 1 -n")
        assert said(machine, "mm ffc00000 -w 1 -n").endswith(": 0x00"), "neither written, nor in another mode"
        assert variables.read_bytes()[:1] == b"\0"
        said(machine, f'{VARIABLE} -bs -nv =L"kept"')
        machine.send_line("reset")
        to_shell(machine)
        assert KEPT in said(machine, VARIABLE)
        assert registers(machine) == LOCKED
        snapshot = machine.snapshot()
    assert "kept".encode("utf-16-le") in variables.read_bytes()
    with snapshot, Machine.restore(snapshot) as machine:
        assert KEPT in said(machine, VARIABLE)
        said(machine, f'{VARIABLE} -bs -nv =L"more"')
        assert "6D 00 6F 00" in said(machine, VARIABLE)
        assert said(machine, "mm 1f000000 -w 4 -n").endswith(": 0xFFFFFFFF")


@pytest.mark.usefixtures("has_shell")
def test_secure_boot_refuses_what_nobody_signed(vmm_machine: MachineFactory) -> None:
    """With Microsoft's keys, even the shell in the image's own volume."""
    code, variables = str(OVMF / "OVMF_CODE_4M.ms.fd"), OVMF / "OVMF_VARS_4M.ms.fd"
    with vmm_machine(code, cpus=4, memory="512M", variables=variables, persist=False) as machine:
        machine.expect("EFI Internal Shell.*Security Violation", deadline=DEADLINE)
        machine.expect("Boot Manager Menu", deadline=DEADLINE)


@pytest.mark.hw
def test_firmware_with_smm_comes_to_its_shell_or_menu(vmm_machine: MachineFactory) -> None:
    """The shell, or what is left since 2025.02."""
    with vmm_machine(SECBOOT, memory="512M") as machine:
        machine.expect("UEFI Interactive Shell|to enter the Boot Manager Menu", deadline=240)
        smram = {image.name for image in machine.images() if image.base >= (512 - 16) << 20}
        assert {"PiSmmCore", "PiSmmCpuDxeSmm", "VariableSmm"} <= smram


KEY, CERTIFICATE = (Path(f"/usr/share/ovmf/PkKek-1-snakeoil.{kind}") for kind in ("key", "pem"))
"""Of Debian's ovmf, for tests; the key's password is snakeoil."""


SET_MANY = f"""@echo -off
for %i run (1 1000)
  {VARIABLE.replace("vmmtest", "vmm%i")} -bs -nv =L"kept"
  echo set %i
endfor
"""


@pytest.mark.usefixtures("has_shell")
def test_a_vmm_that_is_killed_while_variables_are_written_loses_none_that_was_set(
    vmm_machine: MachineFactory, tmp_path: Path
) -> None:
    """What was being written is there or is not; the firmware goes on with the store."""
    variables = Path(shutil.copy(OVMF / "OVMF_VARS_4M.fd", tmp_path / "vars.fd"))
    script = tmp_path / "esp" / "startup.nsh"
    script.parent.mkdir()
    script.write_text(SET_MANY, encoding="ascii")
    drives = [f"if=pflash,format=raw,readonly=on,file={SECBOOT}", f"if=pflash,format=raw,file={variables}"]
    words = [sys.executable, "-m", "vmm", "boot", "-m", "512M", "--esp", str(script.parent), "-q", "-serial", "stdio"]
    for drive in drives:
        words += ["-drive", drive]
    last = random.randint(5, 20)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        watchdog = threading.Timer(DEADLINE, process.kill)
        watchdog.start()
        printed = b""
        while data := os.read(process.stdout.fileno(), 4096):
            printed += data
            if b"any other key to continue" in printed and not process.stdin.closed:
                process.stdin.write(b"\n")
                process.stdin.close()
            if b"set %d\r" % last in printed:
                time.sleep(random.uniform(0, 0.05))
                process.kill()
        watchdog.cancel()
    was_set = {f"vmm{int(number)}" for number in re.findall(rb"^set (\d+)\r$", printed, re.MULTILINE)}
    assert len(was_set) >= last
    kept = {each.name: each.data for each in VariableList(variables).list() if each.name.startswith("vmm")}
    assert was_set <= kept.keys()
    assert set(kept.values()) == {"kept".encode("utf-16-le")}
    with vmm_machine(SECBOOT, memory="512M", variables=variables) as machine:
        to_shell(machine)
        assert KEPT in said(machine, VARIABLE.replace("vmmtest", f"vmm{last}"))
        said(machine, f'{VARIABLE} -bs -nv =L"kept"')
        assert KEPT in said(machine, VARIABLE)


def signed_by(folder: Path, name: str, key: Path, certificate: Path) -> Path:
    """Our guest of that name, signed."""
    signed = folder / f"{name}-signed.efi"
    words = ["sbsign", "--key", key, "--cert", certificate, "--output", signed, guests.efi(name)]
    subprocess.run([*map(str, words)], check=True, capture_output=True)
    return signed


def enrolled(tmp_path: Path) -> Path:
    variables = Path(shutil.copy(OVMF / "OVMF_VARS_4M.fd", tmp_path / "vars.fd"))
    listed = VariableList(variables)
    listed.enroll(CERTIFICATE, microsoft=False)
    listed.write()
    return variables


def esp_with(tmp_path: Path, application: Path) -> Path:
    place = tmp_path / "esp" / "EFI" / "BOOT" / "BOOTX64.EFI"
    place.parent.mkdir(parents=True)
    shutil.copy(application, place)
    return tmp_path / "esp"


def test_secure_boot_starts_what_a_key_of_ones_own_signed(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    opened = ["openssl", "rsa", "-in", KEY, "-passin", "pass:snakeoil", "-out", key]
    subprocess.run([*map(str, opened)], check=True, capture_output=True)
    esp = esp_with(tmp_path, signed_by(tmp_path, "example", key, CERTIFICATE))
    with vmm_machine(SECBOOT, memory="512M", variables=enrolled(tmp_path), esp=esp) as machine:
        outcome = machine.run("example.efi without load options", DEADLINE)
        assert outcome.reached, outcome.message
        assert "refused_images" not in collect(machine, outcome)


def test_secure_boot_refuses_others_and_the_report_says_why(vmm_machine: MachineFactory, tmp_path: Path) -> None:
    """One from -kernel, which OVMF passes over without a word, signed by somebody else; one from a disk, unsigned."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-subj", "/CN=x", "-keyout", key]
    subprocess.run([*map(str, words), "-out", str(certificate)], check=True, capture_output=True)
    kernel = signed_by(tmp_path, "example", key, certificate)
    esp = esp_with(tmp_path, guests.efi("example"))
    options = {"memory": "512M", "variables": enrolled(tmp_path), "esp": esp, "kernel": kernel}
    with vmm_machine(SECBOOT, **options) as machine:
        outcome = machine.run("failed to load .*UEFI Misc Device.*Access Denied", DEADLINE)
        assert outcome.reached, outcome.message
        assert "example.efi without load options" not in machine.serial.text()
        report = collect(machine, outcome)
    refused = {each["image"].rpartition("/")[2]: (each["cause"], each["signed"]) for each in report["refused_images"]}
    assert refused == {"kernel": ("not-in-db", True), "\\EFI\\BOOT\\BOOTX64.EFI": ("not-in-db", False)}
