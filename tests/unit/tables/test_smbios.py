"""SMBIOS: bytes of DSP0134, QEMU's options, and what dmidecode reads."""

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from vmm.errors import ConfigError
from vmm.tables.files import SMBIOS_ANCHOR_FILE, SMBIOS_FILE
from vmm.tables.smbios import SmbiosDescription, build_smbios
from vmm.tables.smbios_options import SmbiosOption, check_together, split_structures
from vmm.tables.smbios_placement import place

GIB = 1 << 30
SMALL = SmbiosDescription(low_memory=128 << 20, unasked=frozenset((0, 2)))


def placed(files: dict[str, bytes]) -> bytes:
    """Do what firmware does: address of the structures, then the checksums."""
    anchor = bytearray(files[SMBIOS_ANCHOR_FILE])
    if anchor[:5] == b"_SM3_":
        struct.pack_into("<Q", anchor, 16, 32)
        anchor[5] = -sum(anchor) & 0xFF
    else:
        struct.pack_into("<I", anchor, 24, 32)
        anchor[21] = -sum(anchor[16:]) & 0xFF
        anchor[4] = -sum(anchor) & 0xFF
    return bytes(anchor).ljust(32, b"\0") + files[SMBIOS_FILE]


def dmidecode(machine: SmbiosDescription, directory: Path) -> dict[int, list[dict[str, str]]]:
    """Give dmidecode's view: the fields of each structure, by type."""
    dump = directory / "dump.bin"
    dump.write_bytes(placed(build_smbios(machine)))
    program = shutil.which("dmidecode", path=f"{os.environ['PATH']}:/usr/sbin")  # where ordinary users do not look
    assert program, "these tests need Debian's package dmidecode (scripts/setup test installs it)"
    command = [program, "--from-dump", str(dump)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not run.stderr
    assert not re.search("invalid|wrong|broken|TRUNCATED|OUT OF SPEC|BAD INDEX", run.stdout, re.IGNORECASE), run.stdout
    result: dict[int, list[dict[str, str]]] = {}
    for block in run.stdout.split("\nHandle ")[1:]:
        kind = re.search(r"DMI type (\d+)", block)
        assert kind is not None
        fields = {key: value.strip() for key, value in re.findall(r"^\t([^:\n]+): (.*)$", block, re.MULTILINE)}
        result.setdefault(int(kind[1]), []).append(fields)
    return result


@pytest.mark.parametrize("version", [(2, 8), (3, 0)])
def test_dmidecode_reads_all_types(version: tuple[int, int], tmp_path: Path) -> None:
    machine = SmbiosDescription(
        low_memory=0xB000_0000,
        high_memory=40 * GIB,
        cpus=3,
        sockets=3,
        cores=2,
        threads=1,
        processor_id=0x0F8BFBFF_00000F61,
        uuid=bytes(range(16)),
        unasked=frozenset((0, 2)),
        uefi=True,
        version=version,
    )
    found = dmidecode(machine, tmp_path)
    assert list(found) == [0, 1, 2, 3, 4, 16, 17, 19, 32, 127]
    assert found[1][0]["UUID"] == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert found[4][0]["ID"] == "61 0F 00 00 FF FB 8B 0F"
    assert [cpu["Status"] for cpu in found[4]] == ["Populated, Enabled", "Populated, Enabled", "Unpopulated"]
    assert [cpu["Core Count"] for cpu in found[4][:2]] == ["2", "2"]
    assert found[16][0]["Maximum Capacity"] == "43776 MB"
    assert [device["Size"] for device in found[17]] == ["16 GB", "16 GB", "11008 MB"]
    assert [(area["Starting Address"], area["Range Size"]) for area in found[19]] == [
        ("0x00000000000", "2816 MB"),
        ("0x00100000000", "40 GB"),
    ]


def test_anchor_of_version_2_8() -> None:
    files = build_smbios(SMALL)
    tables = files[SMBIOS_FILE]
    structures = list(split_structures(tables))
    anchor = files[SMBIOS_ANCHOR_FILE]
    assert len(anchor) == 31
    assert anchor[:11] == b"_SM_" + bytes([0, 31, 2, 8]) + struct.pack("<H", max(map(len, structures))) + b"\0"
    assert anchor[16:22] == b"_DMI_\0"
    assert struct.unpack("<HIHB", anchor[22:]) == (len(tables), 0, len(structures), 0x28)


def test_anchor_of_version_3_0() -> None:
    files = build_smbios(SMALL._replace(version=(3, 0)))
    expected = b"_SM3_" + bytes([0, 24, 3, 0, 0, 1, 0]) + struct.pack("<IQ", len(files[SMBIOS_FILE]), 0)
    assert files[SMBIOS_ANCHOR_FILE] == expected


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [(0, 24, 24), (1, 27, 27), (2, 15, 15), (3, 22, 22), (4, 42, 48), (16, 23, 23), (17, 40, 40), (19, 31, 31)],
)
def test_formatted_lengths_are_those_of_the_version(kind: int, old: int, new: int) -> None:
    for version, length in (((2, 8), old), ((3, 0), new)):
        tables = build_smbios(SMALL._replace(version=version))[SMBIOS_FILE]
        assert [item[1] for item in split_structures(tables) if item[0] == kind] == [length]


@pytest.mark.parametrize(
    ("option", "kind", "field", "value"),
    [
        ("type=0,vendor=Acme", 0, "Vendor", "Acme"),
        ("type=0,version=7", 0, "Version", "7"),
        ("type=0,date=02/03/2025", 0, "Release Date", "02/03/2025"),
        ("type=0,release=4.17", 0, "BIOS Revision", "4.17"),
        ("type=1,manufacturer=Acme", 1, "Manufacturer", "Acme"),
        ("type=1,product=Anvil,,heavy", 1, "Product Name", "Anvil,heavy"),
        ("type=1,serial=S1", 1, "Serial Number", "S1"),
        ("type=1,sku=K", 1, "SKU Number", "K"),
        ("type=1,family=F", 1, "Family", "F"),
        (
            "type=1,uuid=4600cb32-38ec-4b2f-8acb-81c6ea54f2d8",
            1,
            "UUID",
            "4600cb32-38ec-4b2f-8acb-81c6ea54f2d8",
        ),
        ("type=2,asset=A", 2, "Asset Tag", "A"),
        ("type=2,location=shelf", 2, "Location In Chassis", "shelf"),
        ("type=3,version=V", 3, "Version", "V"),
        ("type=3,sku=K", 3, "SKU Number", "K"),
        ("type=4,sock_pfx=Slot", 4, "Socket Designation", "Slot 0"),
        ("type=4,max-speed=3000", 4, "Max Speed", "3000 MHz"),
        ("type=4,current-speed=2500", 4, "Current Speed", "2500 MHz"),
        ("type=4,part=P", 4, "Part Number", "P"),
        ("type=4,processor-id=0x1122334455667788", 4, "ID", "88 77 66 55 44 33 22 11"),
        ("type=8,internal_reference=COM A,connector_type=8,port_type=9", 8, "Internal Reference Designator", "COM A"),
        ("type=11,value=one", 11, "String 1", "one"),
        ("type=17,loc_pfx=Bay", 17, "Locator", "Bay 0"),
        ("type=17,speed=2666", 17, "Speed", "2666 MT/s"),
        ("type=17,bank=B", 17, "Bank Locator", "B"),
        ("type=41,designation=NIC,kind=ethernet,instance=2", 41, "Type Instance", "2"),
    ],
)
def test_option_fields_are_seen_by_dmidecode(option: str, kind: int, field: str, value: str, tmp_path: Path) -> None:
    found = dmidecode(SMALL._replace(options=(SmbiosOption.parse(option),)), tmp_path)
    assert found[kind][0][field] == value


def test_fields_of_several_options_add_up_and_the_last_wins(tmp_path: Path) -> None:
    options = ("type=1,serial=old,product=P", "type=1,serial=new")
    found = dmidecode(SMALL._replace(options=tuple(map(SmbiosOption.parse, options))), tmp_path)
    assert (found[1][0]["Serial Number"], found[1][0]["Product Name"]) == ("new", "P")


def test_repeatable_types_give_a_structure_each(tmp_path: Path) -> None:
    options = ("type=41,kind=video", "type=8,port_type=9", "type=41,kind=sata,instance=3")
    found = dmidecode(SMALL._replace(options=tuple(map(SmbiosOption.parse, options))), tmp_path)
    assert [device["Type"] for device in found[41]] == ["Video", "SATA Controller"]
    assert len(found[8]) == 1


def test_oem_strings_are_one_structure_of_bytes_as_they_came(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"two lines\nof it\n")
    options = (
        "type=11,value=one,value=",
        f"type=11,path={tmp_path}/text",
        "type=11,value=gr\u00fc\u00dfe,value=\udcff",
    )
    files = build_smbios(SMALL._replace(options=tuple(map(SmbiosOption.parse, options))))
    found = [item for item in split_structures(files[SMBIOS_FILE]) if item[0] == 11]
    strings = b"one\0two lines\nof it\n\0gr\xc3\xbc\xc3\x9fe\0\xff\0"
    assert found == [b"\x0b\x05\x00\x0e\x05" + strings + b"\0"]


def test_the_words_of_python_are_those_of_the_command_line() -> None:
    text = SmbiosOption.parse("type=4,serial=S,max-speed=3000")
    assert SmbiosOption.parse({"type": 4, "serial": b"S", "max-speed": 3000}) == text
    assert SmbiosOption.parse(text) is text
    strings = SmbiosOption.parse({"type": 11, "value": ["a,b", "c"]})
    assert strings == SmbiosOption.parse("type=11,value=a,,b,value=c")
    whole = b"\xc8\x04\x55\x55text\0\0"
    assert SmbiosOption.parse(whole) == SmbiosOption(200, structures=(whole,))


def test_more_strings_than_a_structure_can_count_are_refused() -> None:
    most = SmbiosOption.parse({"type": 11, "value": ["x"] * 255})
    check_together([most])
    with pytest.raises(ConfigError, match="256 strings; a machine has 255 at the most"):
        check_together([most, SmbiosOption.parse("type=11,value=y")])


def test_uefi_is_said_only_of_uefi_firmware() -> None:
    def extension(machine: SmbiosDescription) -> int:
        return build_smbios(machine)[SMBIOS_FILE][19]

    assert extension(SMALL) == 0x14
    assert extension(SMALL._replace(uefi=True)) == 0x1C
    assert extension(SMALL._replace(uefi=True, options=(SmbiosOption.parse("type=0,uefi=off"),))) == 0x14


def test_a_structure_from_a_file_stands_instead_of_ours(tmp_path: Path) -> None:
    system = next(item for item in split_structures(build_smbios(SMALL)[SMBIOS_FILE]) if item[0] == 1)
    oem = bytes([200, 6]) + b"\x55\x55" + b"\x01\x02" + b"text\0\0"
    (tmp_path / "user.bin").write_bytes(system.replace(b"Virtual Machine", b"Real Machine") + oem)
    option = SmbiosOption.parse(f"file={tmp_path}/user.bin")
    found = dmidecode(SMALL._replace(options=(option,)), tmp_path)
    assert [item["Product Name"] for item in found[1]] == ["Real Machine"]
    assert len(found[200]) == 1
    assert found[127]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"\x01\x1b", "no whole SMBIOS structure at offset 0"),
        (b"\x01\x03\0\0\0\0", "no whole SMBIOS structure at offset 0"),
        (b"\xc8\x04\0\0text\0", "don't end with two NULs"),
        (b"\xc8\x04\0\0\0\0\xc8\x20\0\0\0\0", "no whole SMBIOS structure at offset 6"),
        (b"\x7f\x04\0\x7f\0\0", "type 127 ends the table"),
    ],
)
def test_files_that_are_no_structures(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "user.bin").write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        SmbiosOption.parse(f"file={tmp_path}/user.bin")


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("vendor=x", "give type=N once"),
        ("type=1,type=2", "give type=N once"),
        ("type=9,slot=1", "only types 0, 1, 2, 3, 4, 8, 11, 17, 41"),
        ("type=1,zzz=1", "unknown field 'zzz'"),
        ("type=1,serial=a,serial=b", "given twice"),
        ("type=1,uuid=12", "not a UUID"),
        ("type=0,release=1", "must be MAJOR.MINOR"),
        ("type=0,release=1.256", "must be MAJOR.MINOR"),
        ("type=0,uefi=maybe", "write on or off"),
        ("type=4,max-speed=70000", "must be from 0 to 65535"),
        ("type=41,kind=toaster", "must be one of other"),
        ("file=/nonexistent", "cannot read /nonexistent"),
        ("file=x,type=1", "file= stands alone"),
        ("type=11,path=/nonexistent", "cannot read /nonexistent"),
    ],
)
def test_option_errors(option: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        SmbiosOption.parse(option)
    assert "\n" not in str(caught.value)


def test_file_and_fields_for_one_type_are_refused(tmp_path: Path) -> None:
    (tmp_path / "user.bin").write_bytes(b"\x01\x04\0\1\0\0")
    options = (SmbiosOption.parse(f"file={tmp_path}/user.bin"), SmbiosOption.parse("type=1,serial=x"))
    for order in (options, options[::-1]):
        with pytest.raises(ConfigError, match="both file= and fields for type 1"):
            check_together(order)


def test_too_long_for_version_2_8() -> None:
    options = (SmbiosOption.parse({"type": 11, "value": ["x" * 60000] * 2}),)
    with pytest.raises(ConfigError, match="add -machine smbios-entry-point-type=64"):
        build_smbios(SMALL._replace(options=options))
    files = build_smbios(SMALL._replace(options=options, version=(3, 0)))
    assert len(files[SMBIOS_FILE]) > 120000


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"version": (2, 4)}, "must be 2.8 or 3.0"),
        ({"uuid": b"x"}, "16 bytes, not 1"),
    ],
)
def test_refused_descriptions(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build_smbios(SmbiosDescription(low_memory=GIB, **fields))  # type: ignore[arg-type]


def test_more_than_four_tib_needs_the_extended_fields(tmp_path: Path) -> None:
    found = dmidecode(SmbiosDescription(low_memory=0xB000_0000, high_memory=5 << 40), tmp_path)
    assert found[19][1]["Range Size"] == "5 TB"
    assert sum(device["Size"] == "16 GB" for device in found[17]) == 320


@pytest.mark.parametrize("version", [(2, 8), (3, 0)])
def test_placed_by_us_it_can_be_followed(version: tuple[int, int]) -> None:
    files = build_smbios(SMALL._replace(version=version))
    address = 0xF1000
    ram = bytes(address) + place(files, address, 0x1400)
    anchor = ram[address : address + (31 if version[0] == 2 else 24)]
    assert sum(anchor) % 256 == 0
    if version[0] == 2:
        assert sum(anchor[16:]) % 256 == 0
    (at,) = struct.unpack_from("<I", anchor, 24) if version[0] == 2 else struct.unpack_from("<Q", anchor, 16)
    assert ram[at:] == files[SMBIOS_FILE]


def test_more_structures_than_there_is_room_for_are_refused() -> None:
    files = build_smbios(SMALL)
    size = len(files[SMBIOS_FILE]) + 32
    assert len(place(files, 0xF1000, size)) == size
    with pytest.raises(ConfigError, match=f"{size - 33} fit where this machine's firmware looks"):
        place(files, 0xF1000, size - 1)
