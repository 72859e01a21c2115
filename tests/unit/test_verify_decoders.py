"""Whatever a guest reports, it is compared and shown: nothing raises, and nothing of it reaches a terminal raw."""

import json
import struct
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.config.machine import MachineConfig
from vmm.config.parts import RamPlaces
from vmm.handoff import tables
from vmm.platform import Standing
from vmm.run.outcome import Outcome, Reason
from vmm.tables import e820
from vmm.tables.files import ACPI_FILE, E820_FILE, SMBIOS_ANCHOR_FILE, SMBIOS_FILE
from vmm.verify import linux_report, show, smbios
from vmm.verify.collect import Collected
from vmm.verify.facts import Facts
from vmm.verify.guest_report import GuestReport, Kind, ReportError, decode
from vmm.verify.result import Subject
from vmm.verify.run import compare
from vmm.verify.values import Verdict

LOW = 128 << 20
STANDING = Standing(pm_base=0x600)

TAGS = [b"FIRM", b"UMAP", b"E820", b"RSDP", b"ACPI", b"SMEP", b"SMBT", b"CPUS", b"VAR ", b"ITEM", b"CMOS", b"NAME"]

CONTROLS = "\x1b]0;owned\x07\x9b31m\r\n\u202e"


@cache
def machine(firmware: str) -> tuple[MachineConfig, dict[str, bytes]]:
    config = MachineConfig.create(
        firmware,
        memory=LOW,
        smbios=["type=1,serial=4711"],
        bootorder=["/rom@genroms/own.bin"],
        devices=["vmgenid", "vmcoreinfo"],
    )
    files = tables.AcpiFiles(config, RamPlaces(LOW, 0)).build(STANDING) | tables.smbios_files(
        config, RamPlaces(LOW, 0), 0x1234
    )
    return config, files | {E820_FILE: e820.encode(tables.e820_map(config, RamPlaces(LOW, 0)))}


def collected(firmware: str, report: GuestReport | None, *, log: str = "", message: str = "") -> Collected:
    config, files = machine(firmware)
    return Collected(
        config=config,
        ram=RamPlaces(LOW),
        tables=files,
        published=files,
        firmware_reads={},
        writable=frozenset(),
        written={},
        vmgenid_address=None,
        vmgenid_found=None,
        report=report,
        failure="" if report else message,
        guest_was_read=True,
        log=log,
        outcome=Outcome(Reason.POWER_OFF, 1.0, message),
        facts=Facts(standing=STANDING),
    )


def check(seen: Collected) -> None:
    result = compare(seen)
    for text in (show.as_text(result).replace("\n", ""), *(row.found for s in result.subjects for row in s.rows)):
        assert text.isprintable(), text
    assert max(map(len, show.as_text(result, 60).splitlines())) <= 60
    text = json.dumps(show.as_object(result))
    assert json.loads(text)["subjects"]


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Real data, cut short or with some bytes changed."""
    result = bytearray(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)
    for at, value in draw(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255)), max_size=4)):
        result[at : at + 1] = bytes((value,))
    return bytes(result)


@st.composite
def payloads(draw: st.DrawFn, firmware: str) -> tuple[bytes, bytes]:
    files = machine(firmware)[1]
    tag = draw(st.sampled_from(TAGS))
    real = {b"SMEP": files[SMBIOS_ANCHOR_FILE], b"SMBT": files[SMBIOS_FILE], b"ACPI": files[ACPI_FILE][:400]}
    if tag in real and draw(st.booleans()):
        return tag, bytes(8) + draw(damaged(real[tag]))
    return tag, draw(st.binary(max_size=120))


def record(tag: bytes, payload: bytes) -> bytes:
    return struct.pack("<4sQ", tag, len(payload)) + payload


@pytest.mark.parametrize("firmware", ["ovmf", "seabios"])
@settings(max_examples=300)
@given(data=st.data(), kind=st.sampled_from([Kind.UEFI, Kind.BIOS]), log=st.text(max_size=40))
def test_any_records_become_a_verification(firmware: str, data: st.DataObject, kind: Kind, log: str) -> None:
    records = data.draw(st.lists(payloads(firmware), max_size=8))
    stream = record(b"VMMR", struct.pack("<II", 1, kind)) + b"".join(record(*one) for one in records)
    try:
        report = decode(stream + record(b"END ", b""))
    except ReportError as error:
        check(collected(firmware, None, log=log, message=str(error)))
    else:
        check(collected(firmware, report, log=f"boot order:\n1: {log}"))


@settings(max_examples=300)
@given(
    files=st.dictionaries(
        st.sampled_from(
            ["dmesg", "uname", "nproc", *(f"/sys/firmware/{name}" for name in (
                "acpi/tables/SSDT", "acpi/tables/APIC", "acpi/tables/FACP", "acpi/tables/SSDT²", "dmi/tables/DMI",
                "dmi/tables/smbios_entry_point", "qemu_fw_cfg/by_key/33/raw", "qemu_fw_cfg/by_key/33/size",
                "qemu_fw_cfg/by_key/33/name", "qemu_fw_cfg/by_key/²/raw"))]),
        st.one_of(st.binary(max_size=80), st.just(b"4\n"), st.just(b"<4>[ 0.1] ACPI: \x1b[2J RSDP 0x00000000000E0000"),
                  st.just(b"<6>[ 0.0] BIOS-e820: [mem 0x0-0x9] type " + b"9" * 5000)),
    ),
    end=st.sampled_from([b"END\n", b""]),
)  # fmt: skip
def test_any_files_of_linux_become_a_verification(files: dict[str, bytes], end: bytes) -> None:
    records = b"".join(b"FILE %d %s\n%s\n" % (len(data), name.encode("latin-1"), data) for name, data in files.items())
    try:
        report = linux_report.decode(linux_report.START + records + end)
    except ReportError as error:
        check(collected("seabios", None, message=str(error)))
    else:
        check(collected("seabios", report))


@given(st.binary(max_size=300))
def test_any_stream_is_a_report_or_a_report_error(stream: bytes) -> None:
    begins = [
        (decode, b"VMMR" + struct.pack("<QII", 8, 1, 1)),
        (linux_report.decode, linux_report.START),
        (linux_report.decode, linux_report.START + b"FILE 99 \x1b[2J\n"),
    ]
    for decoder, begin in begins:
        message = ""
        try:
            decoder(begin + stream)
        except ReportError as error:
            message = str(error)
        assert message.isprintable()


@pytest.mark.parametrize("size", range(32))
def test_an_entry_point_that_is_cut_short_is_altered(size: int) -> None:
    anchor = bytearray(machine("ovmf")[1][SMBIOS_ANCHOR_FILE])
    anchor[4] = -sum(anchor) & 0xFF  # firmware's part
    head, end = record(b"VMMR", struct.pack("<II", 1, Kind.UEFI)), record(b"END ", b"")
    report = decode(head + record(b"SMEP", bytes(8) + anchor[:size]) + end)
    row = next(row for row in compare(collected("ovmf", report)).subject("SMBIOS").rows if row.name == "entry point")
    assert row.verdict.ok == (size == len(anchor)), row


def test_a_guest_that_never_reported_says_its_last_words_legibly() -> None:
    check(collected("seabios", None, log=f"log {CONTROLS} end", message=f"no report {CONTROLS}"))


@pytest.mark.parametrize(("string", "shown"), [("Gerät", "Gerät"), (b"\xff\x1b[2J", r"\udcff\x1b[2J")])
def test_smbios_strings_are_shown_in_the_encoding_that_they_are_given_in(string: str | bytes, shown: str) -> None:
    data = string.encode() if isinstance(string, str) else string
    subject = Subject("SMBIOS")
    words = smbios._words(bytes([11, 5, 0, 1, 1]) + data + b"\0\0")
    subject.add("type 11", words, words, Verdict.ARRIVED)
    assert subject.rows[0].found == f"{5 + len(data) + 2} bytes: {shown}"


def test_cpus_that_had_no_time_to_start_are_a_reason() -> None:
    seen = collected("seabios", None, message="120 s passed")
    config = MachineConfig.create("seabios", cpus=300)
    for started, said in ((199, True), (300, False)):
        late = replace(seen, config=config, facts=seen.facts._replace(started=started))
        text = " ".join(show.as_text(compare(late)).split())
        assert ("; 199 of 300 CPUs had started: --timeout gives them longer" in text) == said
