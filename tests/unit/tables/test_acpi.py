"""The ACPI tables: layout, content, and the outside judges iasl and acpiexec."""

import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from vmm.errors import ConfigError
from vmm.tables import acpi, acpi_dsdt, acpi_tables, aml, loader_rules
from vmm.tables.acpi_tables import AcpiDescription, Oem, table
from vmm.tables.files import ACPI_FILE, LOADER_FILE, RSDP_FILE, VMGENID_ADDRESS_FILE, VMGENID_GUID_FILE, WRITABLE_FILES
from vmm.tables.loader_result import Rules

MACHINES = {
    "smallest": AcpiDescription(
        express=False,
        ecam_base=None,
        com1=False,
        rtc=False,
        fw_cfg=False,
        isa_bridge=None,
        pci_windows=(),
        reset_port=None,
    ),
    "q35": AcpiDescription(cpus=4, pci_windows=((0xC000_0000, 0xFBFF_FFFF), (0x8_0000_0000, 0xF_FFFF_FFFF))),
    "pc": AcpiDescription(
        express=False, ecam_base=None, pm_base=0xB000, isa_bridge=(1, 0), i8042=True, fw_cfg_dma=False
    ),
    "bhyve": AcpiDescription(
        pm_base=0x400, smi_command=0xB2, acpi_enable=0xA0, acpi_disable=0xA1, s5_type=5, hpet_base=0xFED0_0000
    ),
    "everything": AcpiDescription(
        cpus=3,
        max_cpus=7,
        apic_ids=(0, 1, 2, 4, 5, 6, 8),
        hpet_base=0xFED0_0000,
        gpe0=(0x620, 16),
        power_button=True,
        i8042=True,
        vmgenid=bytes(range(16)),
        user_tables=(
            table("SSDT", 2, aml.name("USER", aml.integer(7)), Oem()),
            table("OEM1", 1, aml.name("OEM1", aml.integer(1)), Oem()),
        ),
    ),
    "disks": AcpiDescription(pci_slots=(1, 4, 30)),
    "disks of bhyve": AcpiDescription(pci_slots=(3, 4), pirqs=8, first_pirq=5),
    "hot-plug": AcpiDescription(
        cpus=1, max_cpus=4, cpu_hotplug=0xCD8, plugged=frozenset((2,)), node_memory=(1, 1), cpu_nodes=(0, 0, 1, 1)
    ),
    "hot-plug with SMIs": AcpiDescription(
        cpus=1, max_cpus=2, cpu_hotplug=0xCD8, smi_command=0xB2, cpu_hotplug_smi=True
    ),
    "hot-plug of many": AcpiDescription(cpus=3, max_cpus=300, cpu_hotplug=0xAF00, gpe0=(0xAFE0, 4)),
    "many": AcpiDescription(cpus=300, max_cpus=400),
}
ANY_MACHINE = pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)


def linked(machine: AcpiDescription) -> dict[str, bytes]:
    """Give the tables as a guest finds them, by signature; SSDTs get a number."""
    files = acpi.build_acpi(machine)
    result = loader_rules.run(files[LOADER_FILE], files, Rules.SEABIOS, writable=WRITABLE_FILES)
    assert result.ok
    tables: dict[str, bytes] = {}
    for found in result.tables:
        assert found.accepted, found
        name = found.signature
        if name == "SSDT":
            name += str(sum(known.startswith("SSDT") for known in tables))
        data = result.blobs[found.file].data
        tables[name] = bytes(data[found.offset : found.offset + found.length])
    return tables


def entries(madt: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 44
    while offset < len(madt):
        yield madt[offset], madt[offset : offset + madt[offset + 1]]
        offset += madt[offset + 1]


def without_online_capable_x2apics(madt: bytes, again: bytes) -> bytes:
    """Leave the bit out that iasl of 2020 does not know in these entries, where it left it out."""
    table, at = bytearray(madt), 44
    while at < len(table):
        if table[at] == 9 and not again[at + 8] & 2:
            table[at + 8] &= ~2
        at += table[at + 1]
    return bytes(table)


@ANY_MACHINE
def test_each_table_passes_iasl_and_compiles_back_to_the_same_bytes(machine: AcpiDescription, tmp_path: Path) -> None:
    for name, data in linked(machine).items():
        (tmp_path / f"{name}.aml").write_bytes(data)
        for command in (["iasl", "-d", f"{name}.aml"], ["iasl", "-p", f"{name}_again", f"{name}.dsl"]):
            run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
            output = run.stdout + run.stderr
            assert run.returncode == 0, output
            assert not re.search(r"[1-9]\d* (Errors|Warnings|Remarks)|Warning\b|Invalid", output), output
        again = (tmp_path / f"{name}_again.aml").read_bytes()
        if name == "APIC":
            data = without_online_capable_x2apics(data, again)  # noqa: PLW2901
        # iasl puts its own name and version into the header, hence another checksum.
        assert again[36:] == data[36:], name
        assert again[:9] == data[:9], name


@ANY_MACHINE
def test_acpiexec_loads_all_tables_without_a_warning(machine: AcpiDescription, tmp_path: Path) -> None:
    tables = linked(machine)
    for name, data in tables.items():
        (tmp_path / f"{name}.aml").write_bytes(data)
    files = sorted(path.name for path in tmp_path.iterdir())
    run = subprocess.run(
        ["acpiexec", "-b", "namespace", *files], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    output = run.stdout + run.stderr
    # Its own "Unexpected AE_…" lines come from trying GPEs and registers that no machine here has.
    assert not re.search(r"Warning|ACPI (BIOS )?Error|Exception|failed", output), output
    aml_tables = sum(name.startswith(("DSDT", "SSDT")) for name in tables)
    assert f"{aml_tables} ACPI AML tables successfully acquired and loaded" in output


def evaluate(tables: dict[str, bytes], tmp_path: Path, command: str) -> str:
    for name in ("DSDT", "SSDT0"):
        if name in tables:
            (tmp_path / f"{name}.aml").write_bytes(tables[name])
    files = sorted(path.name for path in tmp_path.iterdir())
    run = subprocess.run(["acpiexec", "-b", command, *files], cwd=tmp_path, capture_output=True, text=True, check=True)
    return run.stdout


def test_vmgenid_method_gives_the_address_of_the_guid(tmp_path: Path) -> None:
    machine = MACHINES["everything"]._replace(user_tables=())
    files = acpi.build_acpi(machine)
    assert files[VMGENID_GUID_FILE] == (bytes(40) + bytes(range(16))).ljust(4096, b"\0")
    assert files[VMGENID_ADDRESS_FILE] == bytes(8)
    result = loader_rules.run(files[LOADER_FILE], files, Rules.OVMF, writable=WRITABLE_FILES)
    (address,) = struct.unpack("<Q", result.written[VMGENID_ADDRESS_FILE])
    assert address == result.blobs[VMGENID_GUID_FILE].base + 40
    output = evaluate(linked(machine), tmp_path, "evaluate \\_SB.VGEN.ADDR")
    values = [int(number, 16) for number in re.findall(r"\[Integer\] = ([0-9A-F]{16})", output)]
    seabios = loader_rules.run(files[LOADER_FILE], files, Rules.SEABIOS, writable=WRITABLE_FILES)
    assert values == [seabios.blobs[VMGENID_GUID_FILE].base + 40, 0]


@pytest.mark.parametrize(
    ("machine", "pic", "routes"),
    [
        ("disks", 1, {(1, 0): 17, (1, 1): 18, (1, 2): 19, (1, 3): 16, (4, 0): 16, (4, 3): 19, (30, 0): 18}),
        ("disks", 0, {(1, 0): "LNKB", (4, 0): "LNKA", (30, 1): "LNKD"}),
        ("disks of bhyve", 1, {(3, 0): 16, (4, 0): 17, (4, 3): 20}),
        ("disks of bhyve", 0, {(3, 0): "LNKA", (4, 3): "LNKE"}),
    ],
)
def test_interrupts_of_pci_devices(
    tmp_path: Path, machine: str, pic: int, routes: dict[tuple[int, int], int | str]
) -> None:
    output = evaluate(linked(MACHINES[machine]), tmp_path, f"evaluate \\_PIC {pic}; evaluate \\_SB.PCI0._PRT")
    found: dict[tuple[int, int], int | str] = {}
    for entry in re.split(r"\[Package\] Contains 4 Elements", output)[1:]:
        values = re.findall(r"\[Integer\] = ([0-9A-F]{16})|(LNK[A-H])", entry)
        numbers = [int(number, 16) for number, _ in values if number]
        link = next((name for _, name in values if name), None)
        assert numbers[0] & 0xFFFF == 0xFFFF
        found[numbers[0] >> 16, numbers[1]] = numbers[3] if link is None else link
    assert len(found) == 4 * len(MACHINES[machine].pci_slots)
    assert routes.items() <= found.items()


@pytest.mark.parametrize(
    ("uuid", "revision", "request_", "status", "granted"),
    [
        ("5b4ddb33f71f1c4096577441c03dd766", 1, 0x1F, 0, 0x1F),
        ("5b4ddb33f71f1c4096577441c03dd766", 1, 0x3F, 0x10, 0x1F),
        ("5b4ddb33f71f1c4096577441c03dd766", 2, 0x07, 0x08, 0x07),
        ("00000000000000000000000000000000", 1, 0x1F, 0x04, 0x1F),
    ],
)
def test_osc_grants_what_pcie_may_have(
    uuid: str, revision: int, request_: int, status: int, granted: int, tmp_path: Path
) -> None:
    octets = " ".join(re.findall("..", uuid))
    capabilities = " ".join(re.findall("..", struct.pack("<III", 0, 0, request_).hex()))
    call = f"evaluate \\_SB.PCI0._OSC ({octets}) {revision} 3 ({capabilities})"
    output = evaluate(linked(MACHINES["q35"]), tmp_path, call)
    answer = re.search(r"0000: ((?:[0-9A-F]{2} ){12})", output)
    assert answer is not None, output
    assert struct.unpack("<III", bytes.fromhex(answer[1])) == (status, 0, granted)


def test_fw_cfg_is_declared_with_its_dma_registers_only_if_it_has_them() -> None:
    assert b"QEMU0002" in linked(MACHINES["q35"])["DSDT"]
    assert bytes.fromhex("47 01 1005 1005 01 0c") in linked(MACHINES["q35"])["DSDT"]
    assert bytes.fromhex("47 01 1005 1005 01 02") in linked(MACHINES["pc"])["DSDT"]
    assert b"QEMU0002" not in linked(MACHINES["smallest"])["DSDT"]


def test_fadt_fields_at_their_offsets() -> None:
    fadt = linked(MACHINES["q35"])["FACP"]
    assert len(fadt) == 276
    assert struct.unpack_from("<H", fadt, 46) == (9,)
    assert struct.unpack_from("<I", fadt, 48) == (0,)
    assert struct.unpack_from("<6I", fadt, 56) == (0x600, 0, 0x604, 0, 0, 0x608)
    assert fadt[88:92] == bytes([4, 2, 0, 4])
    assert struct.unpack_from("<BH", fadt, 108) == (0x32, 0b101)
    flags = struct.unpack_from("<I", fadt, 112)[0]
    assert flags & (1 << 8 | 1 << 10) == 1 << 8 | 1 << 10
    assert fadt[116:129] == bytes.fromhex("01080001 f90c000000000000 06")
    firmware_control, dsdt = struct.unpack_from("<II", fadt, 36)
    assert struct.unpack_from("<QQ", fadt, 132) == (0, dsdt)
    assert firmware_control % 64 == 0
    bhyve = linked(MACHINES["bhyve"])["FACP"]
    assert struct.unpack_from("<IBB", bhyve, 48) == (0xB2, 0xA0, 0xA1)
    assert struct.unpack_from("<I", bhyve, 76) == (0x408,)


def test_s5_type(tmp_path: Path) -> None:
    output = evaluate(linked(MACHINES["bhyve"]), tmp_path, "evaluate \\_S5")
    assert re.findall(r"\[Integer\] = ([0-9A-F]{16})", output) == [f"{value:016X}" for value in (5, 5, 0, 0)]


def test_madt_has_every_cpu_and_marks_those_to_come_as_disabled() -> None:
    local = [data for kind, data in entries(linked(MACHINES["everything"])["APIC"]) if kind == 0]
    assert [(data[2], data[3], data[4]) for data in local] == [
        (0, 0, 1),
        (1, 1, 1),
        (2, 2, 1),
        (3, 4, 0),
        (4, 5, 0),
        (5, 6, 0),
        (6, 8, 0),
    ]


def test_madt_says_which_may_be_plugged_in() -> None:
    """Where there are registers for it; the FADT says that it is new enough for that (ACPI 6.3)."""
    for machine, flags in ((MACHINES["hot-plug"], [1, 2, 1, 2]), (AcpiDescription(cpus=2, max_cpus=3), [1, 1, 0])):
        tables = linked(machine)
        madt = tables["APIC"]
        assert [int.from_bytes(madt[at + 4 : at + 8], "little") for at in range(44, 44 + 8 * len(flags), 8)] == flags
        assert (tables["FACP"][8], tables["FACP"][131]) >= (6, 3)
        assert madt[8] >= 5


def test_madt_names_apic_ids_from_255_on_as_x2apic() -> None:
    kinds = list(entries(linked(MACHINES["many"])["APIC"]))
    assert sum(kind == 0 for kind, _ in kinds) == 255
    wide = [struct.unpack_from("<III", data, 4) for kind, data in kinds if kind == 9]
    assert wide[0] == (255, 1, 255)
    assert wide[-1] == (399, 0, 399)
    assert len(wide) == 145


def test_madt_fixed_entries() -> None:
    madt = linked(MACHINES["q35"])["APIC"]
    assert struct.unpack_from("<II", madt, 36) == (0xFEE0_0000, 1)
    others = [data.hex() for kind, data in entries(madt) if kind != 0]
    assert others == [
        "010c0000" + "0000c0fe" + "00000000",
        "020a0000" + "02000000" + "0000",
        "020a0009" + "09000000" + "0d00",
        "0406ff000001",
    ]


def test_mcfg_and_hpet_bytes() -> None:
    tables = linked(MACHINES["bhyve"])
    assert tables["MCFG"][36:].hex() == "00" * 8 + "000000b000000000" + "0000" + "00ff" + "00000000"
    assert tables["HPET"][36:].hex() == "01a28680" + "00000000" + "0000d0fe00000000" + "00" + "0000" + "00"


def test_tables_are_only_there_for_what_exists() -> None:
    assert set(linked(MACHINES["smallest"])) == {"FACP", "FACS", "DSDT", "APIC", "WAET"}
    assert set(linked(MACHINES["q35"])) == {"FACP", "FACS", "DSDT", "APIC", "MCFG", "WAET"}


def test_nothing_is_padded() -> None:
    files = acpi.build_acpi(MACHINES["q35"])
    assert len(files[RSDP_FILE]) == 36
    assert len(files[ACPI_FILE]) < 2048
    assert len(files[LOADER_FILE]) % 128 == 0
    assert files[LOADER_FILE][-128:-124] == b"\x03\0\0\0"


def test_checksums_that_the_loader_fills_are_shipped_as_zero() -> None:
    files = acpi.build_acpi(MACHINES["everything"])
    assert files[RSDP_FILE][8] == files[RSDP_FILE][32] == 0
    for record in range(0, len(files[LOADER_FILE]), 128):
        command = files[LOADER_FILE][record : record + 128]
        if command[0] == 3:
            name = command[4:60].rstrip(b"\0").decode()
            assert files[name][struct.unpack_from("<I", command, 60)[0]] == 0


def test_slic_oem_ids_are_taken_over() -> None:
    slic = table("SLIC", 1, b"", Oem(b"SLICID", b"SLICTABL"))
    tables = linked(AcpiDescription(user_tables=(slic,)))
    assert tables["FACP"][10:24] == b"SLICIDSLICTABL"


@pytest.mark.parametrize("signature", ["DSDT", "FACP", "APIC", "XSDT"])
def test_a_user_table_that_would_be_a_second_one_is_refused(signature: str) -> None:
    with pytest.raises(ConfigError, match=f"{signature} would be a second one"):
        acpi.build_acpi(AcpiDescription(user_tables=(table(signature, 1, b"", Oem()),)))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"cpus": 0}, "0 CPUs"),
        ({"cpus": 5, "max_cpus": 4}, "5 CPUs of at most 4"),
        ({"cpus": 2, "apic_ids": (0, 0)}, "1 distinct APIC ids for 2 CPUs"),
        ({"ecam_size": 12345}, "whole number of buses"),
        ({"vmgenid": b"short"}, "16 bytes, not 5"),
        ({"pci_windows": ((2, 1),)}, "is empty"),
    ],
)
def test_descriptions_that_no_machine_can_have(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        acpi.build_acpi(AcpiDescription(**fields))  # type: ignore[arg-type]


def test_building_what_is_not_there_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="no ECAM"):
        acpi_tables.mcfg(MACHINES["pc"])
    with pytest.raises(ValueError, match="no HPET"):
        acpi_tables.hpet(MACHINES["q35"])


def test_osc_asks_for_the_guid_of_host_bridges() -> None:
    guid = UUID("33DB4D5B-1FF7-401C-9657-7441C03DD766")  # PCI Firmware Specification 3.3, 4.5.1
    assert aml.buffer(guid.bytes_le) in acpi_dsdt.dsdt(MACHINES["q35"])
