"""AML and resource descriptors: bytes worked out from the ACPI specification."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.tables import acpi_tables, aml, resources
from vmm.tables.acpi_tables import Oem


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("_HID", b"_HID"),
        ("RTC", b"RTC_"),
        ("_SB.PCI0", b"\x2e_SB_PCI0"),
        ("\\_SB.PCI0.ISA", b"\\\x2f\x03_SB_PCI0ISA_"),
        ("^^ABC", b"^^ABC_"),
        ("\\", b"\\\0"),
    ],
)
def test_names(text: str, encoded: bytes) -> None:
    assert aml.path(text) == encoded


@pytest.mark.parametrize("text", ["abcd", "ABCDE", "1ABC", "A..B"])
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="not an ACPI name segment"):
        aml.path(text)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a02"),
        (0xFF, "0aff"),
        (0x100, "0b0001"),
        (0x10000, "0c00000100"),
        (1 << 32, "0e0000000001000000"),
    ],
)
def test_integers(value: int, encoded: str) -> None:
    assert aml.integer(value).hex() == encoded


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_integers_out_of_range(value: int) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        aml.integer(value)


@pytest.mark.parametrize(
    ("size", "encoded"),
    [
        (0, "01"),
        (62, "3f"),
        (63, "4104"),
        (0xFFD, "4fff"),
        (0xFFE, "810001"),
        (0xFFFFC, "8fffff"),
        (0xFFFFD, "c1000001"),
    ],
)
def test_package_lengths_at_their_limits(size: int, encoded: str) -> None:
    assert aml.package_length(size).hex() == encoded


@given(st.integers(0, (1 << 28) - 5))
def test_package_length_decodes_to_what_follows_and_itself(size: int) -> None:
    encoded = aml.package_length(size)
    extra = encoded[0] >> 6
    assert len(encoded) == 1 + extra
    total = encoded[0] & 0x3F if not extra else encoded[0] & 0xF | int.from_bytes(encoded[1:], "little") << 4
    assert total == size + len(encoded)


def test_terms() -> None:
    assert aml.name("_UID", aml.integer(1)).hex() == "085f55494401"
    assert aml.eisa_id("PNP0A03").hex() == "0c41d00a03"
    assert aml.string("AB").hex() == "0d414200"
    assert aml.buffer(b"\x01\x02").hex() == "11050a020102"
    assert aml.package(aml.integer(5), aml.integer(0)).hex() == "1205020a0500"
    assert aml.method("_STA", 0, aml.returns(aml.integer(0xF))).hex() == "14095f53544100a40a0f"
    assert aml.device("RTC").hex() == "5b82055254435f"


def test_methods_have_at_most_seven_arguments() -> None:
    with pytest.raises(ValueError, match="0 to 7 arguments"):
        aml.method("ABCD", 8)


def test_resource_descriptors() -> None:
    assert resources.io(0x510, 12).hex() == "47011005" + "1005" + "010c"
    assert resources.irq(4).hex() == "221000"
    assert resources.memory32(0xFED00000, 0x400, writable=False).hex() == "860900000000d0fe00040000"
    bus = "880d00" + "02" + "0c" + "00" + "0000" + "0000" + "ff00" + "0000" + "0001"
    assert resources.bus_numbers(0, 255).hex() == bus
    wide = resources.memory_window(0x8_0000_0000, 0xF_FFFF_FFFF, cacheable=True)
    assert wide[:6].hex() == "8a2b00000c03"
    assert len(wide) == 46
    assert resources.template().hex() == "11050a027900"


def test_iasl_reads_each_term_as_it_was_meant(tmp_path: Path) -> None:
    local = aml.local(0)
    method = aml.method(
        "TEST",
        2,
        aml.store(aml.argument(1), local),
        aml.if_(aml.not_equal(local, aml.integer(3)), aml.add(local, aml.integer(2), local)),
        aml.else_(aml.or_(local, aml.argument(0), local)),
        aml.returns(local),
    )
    table = acpi_tables.table("SSDT", 2, aml.scope("_SB", aml.device("DEV", method)), Oem())
    (tmp_path / "t.aml").write_bytes(table)
    subprocess.run(["iasl", "-dl", "t.aml"], cwd=tmp_path, check=True, capture_output=True)
    source = " ".join((tmp_path / "t.dsl").read_text().split())
    assert "Store (Arg1, Local0)" in source
    assert "If (LNotEqual (Local0, 0x03)) { Add (Local0, 0x02, Local0) }" in source
    assert "Else { Or (Local0, Arg0, Local0) } Return (Local0)" in source
