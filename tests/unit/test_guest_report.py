import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.verify.boot import boot_option, uefi_path
from vmm.verify.guest_report import GuestReport, Kind, ReportError, decode
from vmm.verify.memory import found_map


def record(tag: bytes, payload: bytes = b"") -> bytes:
    return struct.pack("<4sQ", tag, len(payload)) + payload


HEAD = record(b"VMMR", struct.pack("<II", 1, 1))
END = record(b"END ")


def test_records_become_a_report() -> None:
    report = decode(
        b"firmware's own log\n"
        + HEAD
        + record(b"FIRM", struct.pack("<I", 0x10000) + "EDK II".encode("utf-16-le"))
        + record(b"UMAP", struct.pack("<II", 48, 1) + struct.pack("<I4xQQQQ8x", 7, 0x1000, 0, 3, 0xF))
        + record(b"CPUS", struct.pack("<II", 3, 2))
        + record(b"ACPI", struct.pack("<Q", 0x7000) + b"APIC")
        + record(b"VAR ", struct.pack("<II", 7, 18) + "BootOrder".encode("utf-16-le") + b"\1\0")
        + record(b"ITEM", struct.pack("<IHH56s", 5, 0x20, 0, b"opt/x") + b"hello")
        + record(b"NEW!", b"what a later guest may say")
        + END
    )
    assert report.kind is Kind.UEFI
    assert report.complete
    assert (report.firmware_vendor, report.firmware_revision) == ("EDK II", 0x10000)
    assert [(row.base, row.length, row.type) for row in report.memory_map] == [(0x1000, 0x3000, 7)]
    assert report.processors == (3, 2)
    assert report.table("APIC") == b"APIC"
    assert report.variables == {"BootOrder": b"\1\0"}
    assert [(item.key, item.name, item.data) for item in report.items] == [(0x20, "opt/x", b"hello")]


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"", "sent no report"),
        (b"SeaBIOS log", "sent no report"),
        (HEAD, "has no end"),
        (HEAD + record(b"ACPI", b"x" * 40)[:-1], "ends inside its record b'ACPI'"),
        (HEAD + record(b"CPUS", b"123") + END, "record b'CPUS' is malformed"),
        (HEAD + record(b"ITEM", struct.pack("<IHH56s", 9, 0, 0, b"")) + END, "an item of 9 bytes with 0"),
        (HEAD + record(b"UMAP", struct.pack("<II", 0, 1)) + END, "descriptors of 0 bytes"),
        (record(b"VMMR", struct.pack("<II", 2, 1)) + END, "version 2"),
        (record(b"VMMR", struct.pack("<II", 1, 9)) + END, "malformed"),
    ],
)
def test_what_is_no_report_says_why(stream: bytes, message: str) -> None:
    with pytest.raises(ReportError, match=message):
        decode(stream)


@given(st.lists(st.tuples(st.sampled_from([b"FIRM", b"UMAP", b"E820", b"RSDP", b"ACPI", b"SMEP", b"SMBT", b"CPUS",
                                           b"VAR ", b"ITEM", b"CMOS", b"NAME"]), st.binary(max_size=80))))  # fmt: skip
def test_a_hostile_guest_gives_a_report_or_a_report_error(payloads: list[tuple[bytes, bytes]]) -> None:
    stream = HEAD + b"".join(record(tag, payload) for tag, payload in payloads) + END
    try:
        report = decode(stream)
    except ReportError:
        return
    assert report.complete
    found_map(report)
    for data in report.variables.values():
        boot_option(data)


def test_neighbours_of_one_type_are_joined() -> None:
    rows = b"".join(
        struct.pack("<I4xQQQQ", kind, page << 12, 0, pages, 0)
        for kind, page, pages in [(4, 2, 1), (7, 0, 2), (9, 3, 1)]
    )
    report = decode(HEAD + record(b"UMAP", struct.pack("<II", 40, 1) + rows) + END)
    assert [(entry.base, entry.length, entry.type) for entry in found_map(report)] == [
        (0, 0x3000, 1),
        (0x3000, 0x1000, 3),
    ]
    assert found_map(GuestReport()) == []


def acpi_node(hid: int, uid: int) -> bytes:
    return struct.pack("<BBHII", 2, 1, 12, hid, uid)


def test_a_boot_option_tells_its_device() -> None:
    path = acpi_node(0x0A0341D0, 0) + struct.pack("<BBHBB", 1, 1, 6, 2, 0x1F) + acpi_node(0x060441D0, 1)
    data = struct.pack("<IH", 1, len(path) + 4) + "disk".encode("utf-16-le") + b"\0\0" + path + b"\x7f\xff\4\0"
    assert boot_option(data) == ("disk", ("Pci(0x1f,0x2)", "Floppy(0x1)"))
    assert boot_option(b"") == ("", ())
    assert boot_option(data[:-20])[0] == "disk"


@pytest.mark.parametrize(
    ("path", "nodes"),
    [
        ("/pci@i0cf8/scsi@3/disk@0,0", ("Pci(0x3,0x0)",)),
        ("/pci@i0cf8/ide@1,1/drive@1/disk@0", ("Pci(0x1,0x1)",)),
        ("/pci@i0cf8/isa@1f/fdc@03f0/floppy@1", ("Pci(0x1f,0x0)", "Floppy(0x1)")),
        ("/rom@genroms/own.bin", ()),
        ("/pci@i0cf8", ()),
    ],
)
def test_openfirmware_paths_as_ovmf_takes_them(path: str, nodes: tuple[str, ...]) -> None:
    assert uefi_path(path) == nodes
