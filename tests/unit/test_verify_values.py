"""Values of a verification: what pytest shows of two that differ, and AML's name space from iasl's text."""

import subprocess
import sys

import pytest

import vmm.verify
from vmm.tables.e820 import E820Entry, E820Type
from vmm.verify import aml
from vmm.verify.explain import explain
from vmm.verify.result import Subject, Verification
from vmm.verify.values import Cpus, Side, Structure, Table, Verdict

RAM = E820Entry(0, 1 << 20, E820Type.RAM)
NVS = E820Entry(1 << 20, 1 << 16, E820Type.NVS)
DISASSEMBLY = """/*
 * Name (NOT, "an object")
 */
DefinitionBlock ("", "SSDT", 2, "USER", "USERTEST", 0x00000001)
{
    External (_SB_.PCI0, DeviceObj)

    Scope (\\_SB.PCI0)
    {
        Device (TST0)
        {
            Name (_HID, "USER0001")  // _HID: Hardware ID
            Name (BUF, Buffer (0x02)
            {
                 0x01, 0x02
            })
            Method (FOO, 1, NotSerialized)
            {
                If (Arg0)
                {
                    Return (BUF)
                }
            }
        }

        Name (LAST, One)
    }
}
"""


def side(**changed: object) -> Side:
    values: dict[str, object] = {"tables": {}, "smbios": {}, "cpus": None, "boot_order": (), "items": {}, "e820": ()}
    return Side(**(values | changed))  # type: ignore[arg-type]


def structure(handle: int, text: bytes) -> Structure:
    return Structure(1, handle, bytes([1, 5, *handle.to_bytes(2, "little"), 1]) + text + b"\0\0")


def test_a_name_space_has_each_object_with_its_own_text() -> None:
    found = aml.name_space(DISASSEMBLY)
    assert found == {
        "External \\_SB_.PCI0": "External (_SB_.PCI0, DeviceObj)",
        "Scope \\_SB.PCI0": "Scope (\\_SB.PCI0)",
        "Device \\_SB.PCI0.TST0": "Device (TST0)",
        "Name \\_SB.PCI0.TST0._HID": 'Name (_HID, "USER0001")  // _HID: Hardware ID',
        "Name \\_SB.PCI0.TST0.BUF": "Name (BUF, Buffer (0x02) 0x01, 0x02 })",
        "Method \\_SB.PCI0.TST0.FOO": "Method (FOO, 1, NotSerialized) If (Arg0) Return (BUF)",
        "Name \\_SB.PCI0.LAST": "Name (LAST, One)",
    }


@pytest.mark.parametrize("body", [b"", b"\xff" * 64, b"\x5b\x82\xff\xff\xff\xff" * 9, bytes(range(256)) * 300])
def test_bytes_that_are_no_aml_give_one_line(body: bytes) -> None:
    header = b"SSDT" + (36 + len(body)).to_bytes(4, "little") + bytes(28)
    said = aml.compare(header + b"\x08LAST\x01", header + body)
    assert "\n" not in said
    assert len(said) < 1000


def test_a_table_may_have_lost_all_objects() -> None:
    header = b"SSDT%c\0\0\0\2" + bytes(27)
    said = aml.compare(header % 42 + b"\x08LAST\x01", header % 36)
    assert said == "name space: Name \\LAST is gone"


def test_a_table_of_megabytes_is_not_disassembled() -> None:
    assert "2097152 bytes are too many" in aml.compare(b"SSDT", bytes(2 << 20))


@pytest.mark.parametrize(
    ("left", "right", "lines"),
    [
        ((RAM, NVS), (RAM,), ["memory map of 2 entries == memory map of 1 entry", "- 0x100000-0x10ffff nvs"]),
        ((RAM, NVS), (NVS, RAM), ["memory map of 2 entries == memory map of 2 entries", "the same, in another order"]),
        (
            Table("SSDT", b"SSDT" + bytes(40)),
            Table("SSDT", b"SSDT" + bytes(36) + b"\1\0\0\0\0"),
            ["<SSDT, 44 bytes> == <SSDT, 45 bytes>", "length: 44 != 45", "byte 0x28: 0x0 != 0x1"],
        ),
        (
            structure(1, b"one"),
            structure(1, b"two"),
            [
                "<SMBIOS type 1, handle 0x1, 10 bytes: ['one']> == <SMBIOS type 1, handle 0x1, 10 bytes: ['two']>",
                "strings: ['one'] != ['two']",
            ],
        ),
        (
            side(tables={"A": Table("A", b""), "B": Table("B", b"")}, cpus=Cpus(1, 1, 1), items={"x": b"1"}),
            side(cpus=Cpus(2, 2, 2), items={"x": b"2"}),
            [
                "the two sides differ",
                "- tables: A, B",
                "cpus: Cpus(counted=1, enabled=1, possible=1) != Cpus(counted=2, enabled=2, possible=2)",
                "items['x']: other bytes",
            ],
        ),
    ],
)
def test_what_differs_is_said_shortly(left: object, right: object, lines: list[str]) -> None:
    assert explain(left, right) == lines


def test_a_long_map_is_cut() -> None:
    many = tuple(E820Entry(number << 20, 1 << 12, E820Type.RESERVED) for number in range(100))
    said = explain(many, (RAM,))
    assert said is not None
    assert len(said) == 22
    assert said[-1] == "… and 81 lines more"


def test_other_values_are_left_to_pytest() -> None:
    assert explain((1, 2), (1, 3)) is None
    assert explain({}, {"a": b""}) is None
    assert explain((), (RAM,)) is None


def test_a_second_of_one_name_is_numbered_and_texts_are_short() -> None:
    tables = Subject("ACPI tables")
    for data in (b"one", b"two"):
        tables.add("SSDT", "", "", Verdict.MISSING, reason="nobody read it", values=(Table("SSDT", data), None))
    made = Verification("bios.bin", "pc", 1.0, (tables,))
    assert list(made.tables) == ["SSDT", "SSDT (2)"]
    assert made.offered.tables["SSDT (2)"].data == b"two"
    assert made.found == side()
    assert repr(made.tables["SSDT"]) == "<SSDT: missing, nobody read it>"
    assert repr(made) == "<Verification of pc: SSDT missing: nobody read it; SSDT missing: nobody read it>"
    assert not made.memory.arrived


def test_every_exported_name_is_there_and_loads_late() -> None:
    assert all(getattr(vmm.verify, name) for name in dir(vmm.verify))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vmm.verify.nothing
    code = "import sys, vmm.verify, vmm.pytest_plugin.plugin; print({'vmm.machine', 'vmm.verify.run'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
