from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm import layout
from vmm.config.machine import MachineConfig, MachineType
from vmm.config.parts import RamPlaces
from vmm.errors import ConfigError
from vmm.firmware.images import NO_FIRMWARE
from vmm.handoff import tables
from vmm.platform import Standing
from vmm.tables import loader_rules, table_loader
from vmm.tables.acpi_tables import checksum
from vmm.tables.files import (
    ACPI_FILE,
    ACPI_FILES,
    LOADER_FILE,
    SMBIOS_FILE,
    SMBIOS_FILES,
    VMGENID_ADDRESS_FILE,
    VMGENID_GUID_FILE,
)
from vmm.tables.loader_result import Rules
from vmm.tables.smbios_options import split_structures

GIB = 1 << 30
STANDING = Standing(
    pm_base=0x600, gpe0=range(0x620, 0x630), ecam=range(0xE000_0000, 0xE400_0000), hpet=range(0xFED0_0000, 0xFED0_0400)
)
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
    files = tables.AcpiFiles(described, RamPlaces(GIB)).build(STANDING) | tables.smbios_files(
        described, RamPlaces(GIB), 0x1234_0000_5678
    )
    assert files.keys() == {*ACPI_FILES, *SMBIOS_FILES}
    description = tables.acpi_description(described, RamPlaces(GIB), STANDING)
    assert (description.ecam_base, description.ecam_size) == (0xE000_0000, 64 << 20)
    assert description.hpet_base == 0xFED0_0000
    assert (description.pm_base, description.gpe0) == (0x600, (0x620, 16))
    assert description.pm_timer_bits == (32 if machine == "bhyve" else 24)
    assert description.express == (machine == "q35")
    assert (description.cpus, description.max_cpus) == (2, 4)
    assert 0x1234_0000_5678.to_bytes(8, "little") in files["etc/smbios/smbios-tables"]
    assert table_loader.decode(files["etc/table-loader"])


HIGH = 4 * GIB
WINDOW_64 = (HIGH, HIGH + 32 * GIB - 1)


@pytest.mark.parametrize(
    ("ecam", "windows"),
    [
        (None, [(0x8000_0000, 0xFEBF_FFFF), WINDOW_64]),
        (range(0xB000_0000, 0xC000_0000), [(0x8000_0000, 0xAFFF_FFFF), (0xC000_0000, 0xFEBF_FFFF), WINDOW_64]),
        (range(0xE000_0000, 0xF000_0000), [(0x8000_0000, 0xDFFF_FFFF), (0xF000_0000, 0xFEBF_FFFF), WINDOW_64]),
        (range(0x8000_0000, 0x9000_0000), [(0x9000_0000, 0xFEBF_FFFF), WINDOW_64]),
        (range(0x7000_0000, 0x8000_0000), [(0x8000_0000, 0xFEBF_FFFF), WINDOW_64]),
        (range(0x1_0000_0000, 0x1_1000_0000), [(0x8000_0000, 0xFEBF_FFFF), (0x1_1000_0000, WINDOW_64[1])]),
    ],
)
def test_the_root_passes_on_what_is_neither_ram_nor_ecam(ecam: range | None, windows: list[tuple[int, int]]) -> None:
    assert list(tables.pci_windows(MachineType.Q35, RamPlaces(2 * GIB), ecam)) == windows


def test_the_window_from_4_gib_on_begins_behind_ram_and_has_each_boards_size() -> None:
    def last(machine: MachineType, high: int) -> tuple[int, int]:
        return tables.pci_windows(machine, RamPlaces(2 * GIB, high), None)[-1]

    assert last(MachineType.Q35, GIB + 1) == (6 * GIB, 38 * GIB - 1)
    assert last(MachineType.PC, 0) == (4 * GIB, 6 * GIB - 1)
    assert last(MachineType.BHYVE, GIB) == (32 * GIB, 64 * GIB - 1)


@given(
    st.none() | st.integers(0, 0xFFFF),
    st.none() | st.tuples(st.integers(0, 0x3FF), st.sampled_from(layout.ECAM_SIZES)),
    st.sampled_from((1 << 20, GIB, 0xB000_0000)),
    st.sampled_from((0, GIB, 40 * GIB)),
)
def test_no_value_of_a_register_changes_the_size_of_a_file(
    pm_base: int | None, ecam: tuple[int, int] | None, low: int, high: int
) -> None:
    machine = MachineConfig.create(NO_FIRMWARE, direct=True, kernel=__file__, machine="q35")
    files = tables.AcpiFiles(machine, RamPlaces(low, high))
    before = files.build(Standing())
    place = None if ecam is None else range(ecam[0] * ecam[1], (ecam[0] + 1) * ecam[1])
    gpe0 = None if pm_base is None else range(pm_base, min(pm_base + 16, 0x10000))
    after = files.build(Standing(pm_base, gpe0, place))
    assert {name: len(data) for name, data in before.items()} == {name: len(data) for name, data in after.items()}
    assert loader_rules.run(after[LOADER_FILE], after, Rules.OVMF).ok
    assert (b"MCFG" in after[ACPI_FILE]) == (ecam is not None)


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_type_0_of_smbios_is_the_firmwares_own_unless_asked_for(tmp_path: Path, machine: str) -> None:
    def types(described: MachineConfig) -> list[int]:
        return [each[0] for each in split_structures(tables.smbios_files(described, RamPlaces(GIB), 0)[SMBIOS_FILE])]

    assert 0 not in types(config(tmp_path, machine=machine))
    assert 0 in types(config(tmp_path, machine=machine, smbios=["type=0,version=7"]))
    assert 0 in types(config(tmp_path, machine="bhyve"))  # whose firmware takes it from the VMM
    assert 0 in types(MachineConfig.create(NO_FIRMWARE, direct=True, kernel=__file__, machine=machine))


def test_the_machines_uuid_is_in_smbios(tmp_path: Path) -> None:
    files = tables.smbios_files(config(tmp_path, uuid=GUID), RamPlaces(GIB), 0)
    assert UUID(GUID).bytes_le in files["etc/smbios/smbios-tables"]


def test_vmgenid_adds_its_files_in_guid_byte_order(tmp_path: Path) -> None:
    files = tables.AcpiFiles(config(tmp_path, devices=[f"vmgenid,guid={GUID}"]), RamPlaces(GIB)).build(STANDING)
    assert files[VMGENID_GUID_FILE][40:56] == UUID(GUID).bytes_le
    assert files[VMGENID_ADDRESS_FILE] == bytes(8)
    assert config(tmp_path, devices=["vmgenid"]).vmgenid != config(tmp_path, devices=["vmgenid,guid=auto"]).vmgenid


def test_a_table_of_the_users_is_repaired_and_that_is_said(tmp_path: Path) -> None:
    table = bytearray(b"SSDT" + (36).to_bytes(4, "little") + bytes(28))
    file = tmp_path / "ssdt.aml"
    file.write_bytes(table)
    described = config(tmp_path, acpi_tables=[f"file={file}"])
    assert "repaired" in described.warnings[0]
    table[9] = checksum(table)
    assert bytes(table) in tables.AcpiFiles(described, RamPlaces(GIB)).build(STANDING)["etc/acpi/tables"]


def test_e820_entries_of_the_users(tmp_path: Path) -> None:
    described = config(tmp_path, e820=["base=0xfd000000,size=1M,type=reserved"])
    entries = tables.e820_map(described, RamPlaces(GIB, 2 * GIB))
    assert [(entry.base, entry.length, entry.type) for entry in entries] == [
        (0, GIB, 1),
        (4 * GIB, 2 * GIB, 1),
        (0xFD00_0000, 1 << 20, 2),
    ]
    with pytest.raises(ConfigError, match="overlap"):
        tables.e820_map(config(tmp_path, e820=["base=0,size=1M,type=nvs"]), RamPlaces(GIB))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"devices": ["nvme"]},
            "-device nvme: no such device here; known are virtio-blk-pci, virtio-net-pci, vhost-user-blk-pci",
        ),
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
