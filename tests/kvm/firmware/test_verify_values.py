"""What vmm.verify gives a test: both sides as values, short reasons in pytest's output, AML by its name space."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vmm.config.machine import MachineConfig
from vmm.tables.e820 import E820Entry, E820Type
from vmm.tables.files import ACPI_FILE
from vmm.verify import Cpus, GuestReport, Verdict, Verification, verify

pytestmark = pytest.mark.needs_kvm

SSDT = """
DefinitionBlock ("", "SSDT", 2, "USER", "USERTEST", 1)
{
    Scope (\\_SB) { Device (USRD) { Name (_HID, "USER0001") Method (_STA) { Return (0x0F) } } }
}
"""
NVS = E820Entry(0xFD10_0000, 0x1_0000, E820Type.NVS)
PATHS = ("/rom@genroms/user.bin", "/pci@i0cf8/isa@1f/fdc@03f0/floppy@0")


@pytest.fixture(scope="module")
def ssdt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ssdt")
    (directory / "user.asl").write_text(SSDT, encoding="ascii")
    iasl = shutil.which("iasl")
    assert iasl, "these tests need Debian's package acpica-tools (scripts/setup test installs it)"
    subprocess.run([iasl, "-p", "user", "user.asl"], cwd=directory, check=True, capture_output=True)
    return directory / "user.aml"


def altered(firmware: str, ssdt: Path, was: bytes, now: bytes) -> Verification:
    assert sum(was) == sum(now), "OVMF drops a table whose checksum is wrong"

    def alter(files: dict[str, bytes]) -> dict[str, bytes]:
        assert was in files[ACPI_FILE]
        return files | {ACPI_FILE: files[ACPI_FILE].replace(was, now)}

    return verify(MachineConfig.create(firmware, acpi_tables=[f"file={ssdt}"]), alter=alter)


@pytest.mark.parametrize("firmware", ["ovmf", "seabios"])
def test_both_sides_are_values(firmware: str, ssdt: Path) -> None:
    config = MachineConfig.create(
        firmware,
        cpus=2,
        max_cpus=3,
        memory="256M",
        acpi_tables=[f"file={ssdt}"],
        smbios=["type=1,serial=4711"],
        e820=["base=0xfd100000,size=64K,type=nvs"],
        fw_cfg={"opt/org.example/greeting": b"hello"},
    )
    result = verify(config)
    assert isinstance(result.report, GuestReport)
    table = result.tables["SSDT USERTEST"]
    assert table.offered is not None
    assert table.arrived
    assert table.found == table.offered
    assert table.found.data == ssdt.read_bytes()
    assert result.tables["FACP"].arrived
    assert result.tables["FACP"].found != result.tables["FACP"].offered  # its pointers are filled in
    system = result.smbios["type 1 system"].found
    assert system is not None
    assert "4711" in system.strings
    assert result.cpus.found == result.cpus.offered == Cpus(2, 2, 3)
    assert result.items["opt/org.example/greeting"].found == b"hello"
    assert result.memory.offered == (E820Entry(0, 256 << 20, E820Type.RAM), NVS)
    assert NVS not in result.found.e820
    assert result.memory.verdict is Verdict.MISSING
    assert "records from etc/e820 and drops the others" in repr(result)
    assert result.offered.tables.keys() <= result.found.tables.keys()
    assert result.offered.items.keys() == result.found.items.keys()


@pytest.mark.parametrize("firmware", ["ovmf", "seabios"])
def test_boot_order(firmware: str) -> None:
    order = verify(MachineConfig.create(firmware, bootorder=PATHS)).boot_order
    assert order.offered == PATHS
    # OVMF keeps only what it finds a bootable device for.
    assert order.found == (PATHS if firmware == "seabios" else ())
    assert order.arrived == (firmware == "seabios")
    assert ("OVMF found nothing bootable there" in order.why) == (firmware == "ovmf")


@pytest.mark.parametrize("firmware", ["ovmf", "seabios"])
def test_aml_is_told_by_object(firmware: str, ssdt: Path) -> None:
    table = altered(firmware, ssdt, b"USER0001", b"USER0010").tables["SSDT USERTEST"]
    assert table.verdict is Verdict.ALTERED
    assert 'Name (_HID, "USER0001")' in table.why
    assert 'became Name (_HID, "USER0010")' in table.why
    assert "_STA" not in table.why


def test_other_bytes_of_the_same_name_space(ssdt: Path) -> None:
    table = altered("seabios", ssdt, b"USERTEST\1\0\0\0INTL", b"USERTEST\1\0\0\0LTNI").tables["SSDT USERTEST"]
    assert table.verdict is Verdict.ALTERED
    assert "yet the name space is the same, 4 objects" in table.why


def test_without_iasl_bytes_alone_are_compared(ssdt: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    table = altered("seabios", ssdt, b"USER0001", b"USER0010").tables["SSDT USERTEST"]
    assert table.verdict is Verdict.ALTERED
    assert "bytes alone were compared: there is no iasl" in table.why


def test_pytest_says_shortly_what_differs(tmp_path: Path) -> None:
    test = tmp_path / "test_it.py"
    test.write_text(
        """
import pytest
from vmm import MachineConfig
from vmm.verify import verify

@pytest.fixture(scope="module")
def result():
    return verify(MachineConfig.create("seabios", e820=["base=0xfd100000,size=64K,type=nvs"]))

def test_map(result):
    assert result.found.e820 == result.offered.e820

def test_table(result):
    assert result.tables["FACP"].found == result.tables["FACP"].offered

def test_side(result):
    assert result.found == result.offered

def test_ok(result):
    assert result.ok
""",
        encoding="ascii",
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", test.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    told = [line for line in done.stdout.splitlines() if line.startswith("E  ")]
    text = "\n".join(told)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "+ 0xfd100000-0xfd10ffff nvs" in text
    assert "<FACP, " in text
    assert "FIRMWARE_CTRL: 0x" in text
    assert "tables['FACP']: " in text
    assert "SeaBIOS takes only RAM and reserved records" in text
    assert len(told) < 60, text
    assert max(map(len, told)) < 400, text
