from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from vmm.config.machine import MachineConfig
from vmm.errors import ConfigError
from vmm.handoff import tables
from vmm.tables import acpi, table_loader
from vmm.tables.acpi_tables import checksum

GIB = 1 << 30
GUID = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"


def rom(tmp_path: Path) -> Path:
    image = tmp_path / "bios.bin"
    image.write_bytes(bytes(0x1FFF0) + b"\xea\x5b\xe0\0\xf0" + bytes(11))
    return image


def config(tmp_path: Path, **options: object) -> MachineConfig:
    return MachineConfig.create(str(rom(tmp_path)), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("machine", ["q35", "pc", "bhyve"])
def test_the_files_of_every_board(tmp_path: Path, machine: str) -> None:
    described = config(tmp_path, machine=machine, cpus=2, max_cpus=4)
    files = tables.build(described, GIB, 0, 0x1234_0000_5678)
    assert files.keys() == set(tables.TABLE_FILES)
    description = tables.acpi_description(described)
    assert (description.ecam_base is not None) == (machine == "q35")
    assert (description.hpet_base is not None) == (machine == "bhyve")
    assert (description.cpus, description.max_cpus) == (2, 4)
    assert 0x1234_0000_5678.to_bytes(8, "little") in files["etc/smbios/smbios-tables"]
    assert table_loader.decode(files["etc/table-loader"])


def test_the_machines_uuid_is_in_smbios(tmp_path: Path) -> None:
    files = tables.build(config(tmp_path, uuid=GUID), GIB, 0, 0)
    assert UUID(GUID).bytes_le in files["etc/smbios/smbios-tables"]


def test_vmgenid_adds_its_files_in_guid_byte_order(tmp_path: Path) -> None:
    files = tables.build(config(tmp_path, devices=[f"vmgenid,guid={GUID}"]), GIB, 0, 0)
    assert files[acpi.VMGENID_GUID_FILE][40:56] == UUID(GUID).bytes_le
    assert files[acpi.VMGENID_ADDRESS_FILE] == bytes(8)
    assert config(tmp_path, devices=["vmgenid"]).vmgenid != config(tmp_path, devices=["vmgenid,guid=auto"]).vmgenid


def test_a_table_of_the_users_is_repaired_and_that_is_said(tmp_path: Path) -> None:
    table = bytearray(b"SSDT" + (36).to_bytes(4, "little") + bytes(28))
    file = tmp_path / "ssdt.aml"
    file.write_bytes(table)
    described = config(tmp_path, acpi_tables=[f"file={file}"])
    assert "repaired" in described.warnings[0]
    table[9] = checksum(table)
    assert bytes(table) in tables.build(described, GIB, 0, 0)["etc/acpi/tables"]


def test_e820_entries_of_the_users(tmp_path: Path) -> None:
    described = config(tmp_path, e820=["base=0xfd000000,size=1M,type=reserved"])
    entries = tables.e820_map(described, GIB, 2 * GIB)
    assert [(entry.base, entry.length, entry.type) for entry in entries] == [
        (0, GIB, 1),
        (4 * GIB, 2 * GIB, 1),
        (0xFD00_0000, 1 << 20, 2),
    ]
    with pytest.raises(ConfigError, match="overlap"):
        tables.e820_map(config(tmp_path, e820=["base=0,size=1M,type=nvs"]), GIB, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": ["nvme"]}, "-device nvme: no such device here; known are vmgenid and vmcoreinfo"),
        ({"devices": ["vmgenid", "vmgenid"]}, "-device vmgenid: a machine has one at the most"),
        ({"devices": ["vmgenid,guid=x"]}, "-device vmgenid,guid=x: not a UUID"),
        ({"devices": [f"vmcoreinfo,guid={GUID}"]}, "vmcoreinfo has no guid"),
        ({"e820": ["base=0"]}, "size= is missing"),
        ({"smbios": ["type=99"]}, "only types"),
        ({"acpi_tables": ["sig=TEST"]}, "give one of file= and data="),
        ({"smbios_entry_point": 31}, "must be 32 or 64"),
        ({"bootorder": ["disk"]}, "boot order entry 'disk'"),
    ],
)
def test_what_makes_no_sense_is_said_when_the_machine_is_described(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **options)
