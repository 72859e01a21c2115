"""``-acpitable``: repairs, refusals, and the same bytes as Debian's QEMU."""

import struct
import subprocess
from pathlib import Path

import pytest

from vmm.errors import ConfigError
from vmm.tables import acpi_user
from vmm.tables.acpi_tables import Oem, table

GOOD = table("OEM1", 2, b"payload!", Oem())


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "good.bin").write_bytes(GOOD)
    (tmp_path / "sum.bin").write_bytes(GOOD[:9] + bytes([GOOD[9] ^ 0x55]) + GOOD[10:])
    (tmp_path / "length.bin").write_bytes(GOOD + b"more")
    (tmp_path / "body.bin").write_bytes(b"body of a table")
    (tmp_path / "short.bin").write_bytes(b"abc")
    (tmp_path / "text.bin").write_bytes(b"\n\n\tDefinitionBlock (and so on, a text)" * 2)
    return tmp_path


def test_a_good_table_passes_unchanged(files: Path) -> None:
    parsed = acpi_user.UserTable.parse(f"file={files}/good.bin")
    assert parsed == acpi_user.UserTable(GOOD, paths=(files / "good.bin",))
    assert parsed.signature == "OEM1"


def test_a_wrong_checksum_is_repaired_and_said(files: Path) -> None:
    parsed = acpi_user.UserTable.parse(f"file={files}/sum.bin")
    assert parsed.data == GOOD
    expected = f"sum.bin: checksum of OEM1 is {GOOD[9] ^ 0x55:#04x}, repaired to {GOOD[9]:#04x}"
    assert [warning.rpartition("/")[2] for warning in parsed.warnings] == [expected]


def test_a_wrong_length_is_repaired_and_said(files: Path) -> None:
    parsed = acpi_user.UserTable.parse(f"file={files}/length.bin")
    assert struct.unpack_from("<I", parsed.data, 4) == (len(GOOD) + 4,)
    assert sum(parsed.data) % 256 == 0
    assert "OEM1 says 44 bytes and has 48; length repaired" in parsed.warnings[0]


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("file={}/short.bin", "3 bytes are no table"),
        ("file={}/text.bin", "which is no signature"),
        ("file={}/none.bin", "cannot read .*none.bin: no such file"),
        ("file={}/good.bin,data={}/good.bin", "give one of file= and data="),
        ("sig=OEM1", "give one of file= and data="),
        ("file={}/good.bin,foo=1", "unknown key 'foo'"),
        ("file={}/good.bin,rev=256", "must be from 0 to 255"),
        ("file={}/good.bin,sig=TOOLONG", "at most 4 characters"),
        ("file={}/good.bin,oem_id=ä", "must be ASCII"),
        ("file=", "the path is empty"),
    ],
)
def test_errors(option: str, reason: str, files: Path) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        acpi_user.UserTable.parse(option.replace("{}", str(files)))
    assert "\n" not in str(caught.value)


def qemu_acpi_item(option: str, size: int) -> bytes:
    """Read fw_cfg key 0x8000 of Debian's QEMU through its qtest socket."""
    command = ["qemu-system-x86_64", "-accel", "tcg", "-S", "-display", "none", "-qtest", "stdio", "-acpitable", option]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as qemu:
        to_qemu, from_qemu = qemu.stdin, qemu.stdout
        assert to_qemu is not None
        assert from_qemu is not None

        def ask(line: str) -> str:
            to_qemu.write(line + "\n")
            to_qemu.flush()
            while not (reply := from_qemu.readline()).startswith("OK"):
                assert reply, "QEMU went away"
            return reply

        try:
            ask("outw 0x510 0x8000")
            return bytes(int(ask("inb 0x511").split()[1], 16) for _ in range(size))
        finally:
            qemu.kill()


@pytest.mark.parametrize(
    "option",
    [
        "file={}/good.bin",
        "file={}/sum.bin",
        "file={}/length.bin",
        "file={}/good.bin,sig=ABCD,rev=7,oem_id=ME,oem_table_id=MINE,oem_rev=9,asl_compiler_id=C,asl_compiler_rev=0x12",
        "data={}/body.bin",
        "sig=OEM2,rev=3,data={}/body.bin:{}/short.bin",
        "file={}/good.bin:{}/body.bin",
    ],
)
def test_the_table_is_the_one_that_qemu_builds(option: str, files: Path) -> None:
    text = option.replace("{}", str(files))
    ours = acpi_user.UserTable.parse(text).data
    assert qemu_acpi_item(text, 4 + len(ours)) == struct.pack("<HH", 1, len(ours)) + ours
