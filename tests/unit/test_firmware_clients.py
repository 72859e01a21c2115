"""The image reader on images made here: each structure, each limit, each piece of evidence."""

import json
import lzma
import struct
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.errors import ConfigError
from vmm.firmware import contents as reader
from vmm.firmware.clients import FW_CFG, FWCTL, FirmwareAnalysis, analyze, analyze_bytes
from vmm.firmware.contents import CRC32, LZMA, VARIABLE_STORE, read

FFS2 = UUID("8c8ce578-8a3d-4f1c-9935-896185c32dd3")
BROTLI = UUID("3d532050-5cda-4fd0-879e-0f7f630d5afb")
IDENTITY = UUID("01234567-89ab-cdef-0123-456789abcdef")

LOAD_510 = bytes.fromhex("ba10050000")
PUSH_510 = bytes.fromhex("6810050000")
LOAD_511_16_BIT = bytes.fromhex("66ba1105")
COMPARE_BHYV = bytes.fromhex("ec3c427516 ec3c487511 ec3c59750c ec3c567507")
CALL_AND_COMPARE_BHYV = bytes.fromhex("e8000000003c42750e e800000000 80f848 7504 e8000000003c59 e80000000080fb56")


def align(data: bytes, to: int, fill: bytes = b"\xff") -> bytes:
    return data + fill * (-len(data) % to)


def volume(*files: bytes, guid: UUID = FFS2, size: int | None = None, extended: bool = False) -> bytes:
    body = b""
    header_size = 72
    first = header_size
    if extended:
        body = IDENTITY.bytes_le + struct.pack("<I", 20)
        first += len(body)
        body += b"\xff" * (-first % 8)
    for file in files:
        body = align(body, 8) + file
    length = max(size or 0, header_size + len(body))
    header = bytearray(
        struct.pack("<16x16sQ4sIHHHBB", guid.bytes_le, length, b"_FVH", 0, header_size, 0, 72 if extended else 0, 0, 2)
        + struct.pack("<IIII", 1, length, 0, 0)
    )
    total = sum(struct.unpack("<36H", header)) & 0xFFFF
    header[50:52] = struct.pack("<H", -total & 0xFFFF)
    return (bytes(header) + body).ljust(length, b"\xff")


def file(*sections: bytes, kind: int = 7, large: bool = False) -> bytes:
    body = b"".join(align(section, 4, b"\0") for section in sections)
    if large:
        size = 32 + len(body)
        return IDENTITY.bytes_le + struct.pack("<HBB3sBQ", 0, kind, 1, b"\0\0\0", 0xF8, size) + body
    return IDENTITY.bytes_le + struct.pack("<HBB3sB", 0, kind, 0, (24 + len(body)).to_bytes(3, "little"), 0xF8) + body


def section(kind: int, body: bytes, *, large: bool = False) -> bytes:
    if large:
        return b"\xff\xff\xff" + bytes([kind]) + struct.pack("<I", 8 + len(body)) + body
    return (4 + len(body)).to_bytes(3, "little") + bytes([kind]) + body


def guided(guid: UUID, data: bytes) -> bytes:
    return section(2, guid.bytes_le + struct.pack("<HH", 24, 1) + data)


def executable(code: bytes, machine: int = 0x8664) -> bytes:
    return (
        b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40) + b"PE\0\0" + struct.pack("<H", machine) + bytes(18) + code
    )


def name(text: str) -> bytes:
    return section(0x15, (text + "\0").encode("utf-16-le"))


def module(code: bytes, called: str = "Sample") -> bytes:
    return file(section(0x10, executable(code)), name(called))


def compressed(*sections: bytes) -> bytes:
    data = b"".join(align(part, 4, b"\0") for part in sections)
    return guided(LZMA, lzma.compress(data, format=lzma.FORMAT_ALONE))


def analysis_of(data: bytes) -> FirmwareAnalysis:
    return analyze_bytes(data, Path("image.fd"))


EVIDENCE = {
    "fw_cfg by its constant": (LOAD_510 + b"\x81\xf9QEMU", {FW_CFG}),
    "fw_cfg by a file's name": (LOAD_510 + b"\0etc/e820\0", {FW_CFG}),
    "the port in 16 bits": (b"\x66\xba\x10\x05" + b"QEMU", {FW_CFG}),
    "the port as an argument": (PUSH_510 + b"\0etc/e820\0", {FW_CFG}),
    "fwctl by comparisons": (LOAD_510 + COMPARE_BHYV, {FWCTL}),
    "fwctl by comparisons between calls": (LOAD_510 + CALL_AND_COMPARE_BHYV, {FWCTL}),
    "fwctl by its constant": (LOAD_510 + b"\0BHYV\0", {FWCTL}),
    "both": (LOAD_510 + COMPARE_BHYV + b"QEMU", {FW_CFG, FWCTL}),
    "the port alone": (LOAD_510, set()),
    "QEMU alone": (b"QEMU etc/e820\0", set()),
    "BHYV alone": (COMPARE_BHYV + b"BHYV", set()),
    "an OEM field": (LOAD_510 + b"BHYVE ", set()),
    "comparisons out of order": (LOAD_510 + bytes.fromhex("3c563c593c483c42"), set()),
    "the other port": (LOAD_511_16_BIT + b"QEMU", set()),
    "hw.ncpu alone": (LOAD_510 + b"\0hw.ncpu\0", set()),
}


@pytest.mark.parametrize(("code", "clients"), EVIDENCE.values(), ids=EVIDENCE.keys())
def test_evidence(code: bytes, clients: set[str]) -> None:
    plain = analysis_of(volume(module(code)))
    hidden = analysis_of(volume(file(compressed(section(0x17, volume(module(code)))), kind=11)))
    assert set(plain.clients) == set(hidden.clients) == clients
    assert plain.recommended_interface == ("bhyve" if clients == {FWCTL} else "qemu")


@pytest.mark.parametrize("before", [b"\0", b"\0\x90"], ids=["strings in a row", "aligned by NOPs"])
def test_version_of_seabios(before: bytes) -> None:
    image = b"SeaBIOS (version %s)\0gcc: 12.2.0 binutils: 2.40" + before + b"1.16.3-debian-1.16.3-2\0"
    analysis = analysis_of(image.ljust(4096, b"\0"))
    assert (analysis.kind, analysis.version) == ("seabios", "1.16.3-debian-1.16.3-2")


def test_evidence_must_be_in_one_executable() -> None:
    apart = analysis_of(volume(module(LOAD_510, "One"), module(b"QEMU", "Two"), module(COMPARE_BHYV, "Three")))
    assert not apart.clients
    assert "no client of either" in apart.reason
    together = analysis_of(volume(module(b"QEMU", "One"), module(LOAD_510 + COMPARE_BHYV + b"\0hw.ncpu\0", "Two")))
    (fact,) = together.clients[FWCTL].facts
    assert str(fact) == "Two: loads 0x510; signature as comparisons; names hw.ncpu"


def test_structures() -> None:
    code = LOAD_510 + b"QEMU"
    pe32 = section(0x10, executable(code))
    cases = {
        "extended header": volume(module(code), extended=True),
        "large file": volume(file(pe32, large=True)),
        "large section": volume(file(section(0x10, executable(code), large=True))),
        "padding first": volume(file(b"\0" * 20, kind=0xF0), module(code)),
        "free space": volume(module(code), size=0x4000),
        "gap before": b"\0" * 8192 + volume(module(code)),
        "CRC32": volume(file(guided(CRC32, pe32))),
        "not compressed": volume(file(section(1, struct.pack("<IB", len(pe32), 0) + pe32))),
        "TE": volume(file(section(0x12, b"VZ\x4c\x01" + code))),
        "raw": volume(file(code, kind=1)),
        "second volume": volume(size=0x1000) + volume(module(code)),
    }
    for case, data in cases.items():
        analysis = analysis_of(data)
        assert set(analysis.clients) == {FW_CFG}, case
        assert not analysis.problems, case
    assert analysis_of(cases["TE"]).architectures == ("ia32",)
    assert analysis_of(cases["raw"]).clients[FW_CFG].facts[0].where == str(IDENTITY)


def test_content_and_depth() -> None:
    store = volume(guid=VARIABLE_STORE, size=0x1000)
    inner = section(0x17, volume(module(b"")))
    code = volume(file(compressed(inner)))
    assert analysis_of(store).content == "vars"
    assert "variable store" in analysis_of(store).reason
    assert analysis_of(code).content == "code"
    whole = analysis_of(store + code)
    assert whole.content == "code+vars"
    assert [(found.depth, found.inside) for found in whole.volumes] == [(0, ()), (0, ()), (1, ("LZMA",))]
    assert whole.encodings == ("LZMA",)


def test_unknown_is_fw_cfg_and_says_so() -> None:
    analysis = analysis_of(b"nothing at all" * 100)
    assert (analysis.kind, analysis.content, analysis.recommended_interface) == ("unknown", "rom", "qemu")
    assert "fwcfg=auto: qemu, because no client of either was found" in analysis.text()


PROBLEMS = {
    "brotli": (volume(file(guided(BROTLI, b"abcdefgh"))), "encoded by Brotli was not looked into"),
    "another guid": (volume(file(guided(IDENTITY, b"abcdefgh"))), f"encoded by {IDENTITY} was not"),
    "UEFI compression": (volume(file(section(1, struct.pack("<IB", 9, 1) + b"x" * 8))), "own compression"),
    "bad LZMA": (volume(file(guided(LZMA, b"\xff" * 64))), "cannot be decompressed"),
    "short LZMA": (volume(file(guided(LZMA, lzma.compress(bytes(99999), lzma.FORMAT_ALONE)[:40]))), "too early"),
    "guided too short": (volume(file(section(2, bytes(10)))), "too short"),
    "guided data outside": (volume(file(section(2, LZMA.bytes_le + struct.pack("<HH", 9999, 1)))), "starts at 0x270f"),
    "truncated volume": (volume(module(b"QEMU"), size=0x9000)[:0x8000], "0x9000 bytes; only 0x8000"),
    "file too large": (volume(file(bytes(8))[:20] + b"\0\xff\0\xf8"), "are left"),
    "section too large": (volume(file(b"\xff\xff\0\x10" + bytes(8))), "section of type 0x10"),
}


@pytest.mark.parametrize(("data", "text"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_problems_are_told(data: bytes, text: str) -> None:
    analysis = analysis_of(data)
    assert any(text in problem for problem in analysis.problems), analysis.problems
    assert "problem: " in analysis.text()
    assert analysis.recommended_interface == "qemu"


def test_a_decompression_bomb_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_DECOMPRESSED", 1 << 20)
    bomb = file(compressed(section(0x19, bytes(8 << 20))))
    contents = read(volume(bomb, bomb, bomb))
    assert any("expand to more than 1 MiB" in problem for problem in contents.problems)
    assert sum(len(part.data) for part in contents.modules) <= 1 << 20


def test_deep_nesting_stops_at_the_limit() -> None:
    data = volume(module(LOAD_510 + b"QEMU"))
    for _ in range(20):
        data = volume(file(section(0x17, data), kind=11))
    contents = read(data)
    assert len(contents.volumes) <= reader.MAX_DEPTH + 1
    assert any("deep" in problem for problem in contents.problems)
    sections = section(0x10, executable(b""))
    for _ in range(20):
        sections = guided(CRC32, align(sections, 4, b"\0"))
    assert any("deep" in problem for problem in read(volume(file(sections))).problems)


def test_too_many_files_stop_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_FILES", 3)
    contents = read(volume(*[module(b"")] * 5))
    assert len(contents.files) == 3
    assert any("more than 3 files" in problem for problem in contents.problems)


def test_variable_store_has_the_guid_that_edk2_gives_it() -> None:
    assert UUID("fff12b8d-7696-4c8b-a985-2747075b4f50") == VARIABLE_STORE


def test_signature_without_a_header_is_no_volume() -> None:
    assert not read(b"_FVH" * 100).volumes
    spoiled = bytearray(volume(module(b"")))
    spoiled[50] ^= 1
    assert not read(bytes(spoiled)).volumes


def test_report_as_json() -> None:
    analysis = analysis_of(volume(module(LOAD_510 + COMPARE_BHYV + b"\0hw.ncpu\0", "Acpi")))
    loaded = json.loads(json.dumps(analysis.as_dict()))
    assert loaded["recommended_interface"] == "bhyve"
    assert loaded["clients"] == {
        "fwctl": [{"where": "Acpi", "ports": [0x510], "signature": "comparisons", "names": ["hw.ncpu"]}]
    }
    assert loaded["volumes"][0]["file_system"] == "FFS2"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        analyze(tmp_path / "none")
    with pytest.raises(ConfigError, match="is a directory"):
        analyze(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(ConfigError, match="empty"):
        analyze(tmp_path / "empty")


SEED = (
    volume(guid=VARIABLE_STORE, size=0x400)
    + volume(module(LOAD_510 + b"QEMU"), file(compressed(section(0x17, volume(module(COMPARE_BHYV))))), extended=True)
    + volume(file(guided(CRC32, section(0x10, executable(b"etc/e820\0"))), large=True))
)

changes = st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), max_size=12)


def check_any(data: bytes) -> None:
    analysis = analysis_of(data)
    assert analysis.recommended_interface in {"qemu", "bhyve"}
    assert json.loads(json.dumps(analysis.as_dict()))["size"] == len(data)
    assert analysis.text().isprintable() or "\n" in analysis.text()


@given(changes, st.integers(0, len(SEED)))
@settings(max_examples=500)
def test_damaged_and_truncated_images_never_raise(damage: list[tuple[int, int]], length: int) -> None:
    data = bytearray(SEED)
    for at, value in damage:
        data[at] = value
    for start in (0, 0x400):  # the volume's header sum, so that damage inside of the header is not just "no volume"
        data[start + 50 : start + 52] = b"\0\0"
        total = sum(struct.unpack("<36H", data[start : start + 72])) & 0xFFFF
        data[start + 50 : start + 52] = struct.pack("<H", -total & 0xFFFF)
    check_any(bytes(data[:length]))
    check_any(bytes(data))


@given(st.binary(min_size=1, max_size=300), st.sampled_from([0x10, 0x12, 0x17, 1, 2, 0x15]))
def test_random_sections_never_raise(body: bytes, kind: int) -> None:
    check_any(volume(file(section(kind, body), body)))
    check_any(body)
