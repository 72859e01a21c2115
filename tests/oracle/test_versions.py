"""QEMU 7.2 beside QEMU 10.0: the same machine has the same items with the same contents, but for what is named here."""

import os
from pathlib import Path

import pytest
from qemu_qtest import Qemu

from vmm.devices.fw_cfg_format import KEY_NAMES
from vmm.tables.smbios_options import split_structures

MEMORY = 128 << 20
MACHINES = ("pc-i440fx-7.2", "pc-q35-7.2")
OPTIONS = ("-smp", "3,maxcpus=5", "-device", "vmcoreinfo")

KEY_BYTES = 64
"""Of items without a file, as far as the start of the largest; what is shorter reads as zeros at its end."""

PROCESSOR = 4
FAMILY = 6
FEATURES = slice(12, 16)

DIFFERENT_IN_10_0 = {
    "etc/acpi/rsdp": "the tables that it points to moved",
    "etc/acpi/tables": "QEMU's AML has new methods",
    "etc/table-loader": "the tables that it links moved",
    "etc/smbios/smbios-tables": "see test_smbios_differs_in_the_processor_alone",
    "genroms/kvmvapic.bin": "Debian 13's compiler",
}
"""Contents; sizes and keys are the same."""


def published(directory: Path, machine: str) -> dict[str, tuple[int, bytes]]:
    """Return all that a QEMU publishes: key and contents, by name."""
    with Qemu(directory, MEMORY, OPTIONS, machine) as qemu:
        items = {name: (key, qemu.item(key, size)) for name, (key, size) in qemu.files().items()}
        return items | {name: (key, qemu.item(key, KEY_BYTES)) for key, name in KEY_NAMES.items()}


@pytest.fixture
def both(
    tmp_path: Path, machine: str, other_qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, tuple[int, bytes]], ...]:
    """Return what the installed QEMU publishes, and the other one."""
    (tmp_path / "installed").mkdir()
    (tmp_path / "other").mkdir()
    installed = published(tmp_path / "installed", machine)
    monkeypatch.setenv("PATH", str(other_qemu), prepend=os.pathsep)
    return installed, published(tmp_path / "other", machine)


@pytest.mark.parametrize("machine", MACHINES)
def test_same_items(both: tuple[dict[str, tuple[int, bytes]], ...]) -> None:
    installed, other = both
    assert {name: (key, len(data)) for name, (key, data) in installed.items()} == {
        name: (key, len(data)) for name, (key, data) in other.items()
    }
    differing = {name for name, item in installed.items() if item != other[name]}
    assert differing == DIFFERENT_IN_10_0.keys()


@pytest.mark.parametrize("machine", MACHINES)
def test_smbios_differs_in_the_processor_alone(both: tuple[dict[str, tuple[int, bytes]], ...]) -> None:
    """QEMU 10.0 says "see family 2" where 7.2 says "other", and has CPUID's HTT bit among the features."""
    structures = [list(split_structures(items["etc/smbios/smbios-tables"][1])) for items in both]
    for one, two in zip(*structures, strict=True):
        if one[0] == PROCESSOR:
            assert {one[FAMILY], two[FAMILY]} == {0x01, 0xFE}
            features = {int.from_bytes(each[FEATURES], "little") for each in (one, two)}
            assert features == {0x078BFBFD, 0x178BFBFD}
            assert one[:FAMILY] + one[FAMILY + 1 : FEATURES.start] + one[FEATURES.stop :] == (
                two[:FAMILY] + two[FAMILY + 1 : FEATURES.start] + two[FEATURES.stop :]
            )
        else:
            assert one == two
