"""``vmm vars``: variables of a VARS file, listed and changed."""

import json
import shutil
from pathlib import Path

import pytest

from vmm.cli import main
from vmm.firmware.variables import VariableFile

OVMF = Path("/usr/share/OVMF")
CERTIFICATE = Path("/usr/share/ovmf/PkKek-1-snakeoil.pem")


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    return Path(shutil.copy(OVMF / "OVMF_VARS_4M.fd", tmp_path / "vars.fd"))


def vars_of(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    assert main(["vars", "list", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "vmm-vars/1"
    return {each["name"]: each for each in found["variables"]}


def test_what_is_set_is_listed_until_it_is_deleted(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = empty.stat().st_size
    assert vars_of(empty, capsys) == {}
    data = empty.with_name("data")
    data.write_bytes(b"k\0e\0p\0t\0")
    guid = "6e67c8a2-1ab8-4d9b-8a2e-3f9c0a1d5e77"
    assert main(["vars", "set", str(empty), "vmmtest", "--data", str(data), "--guid", guid]) == 0
    assert main(["vars", "set", str(empty), "Timeout", "--hex", "0500"]) == 0
    assert main(["vars", "set", str(empty), "Timeout", "--hex", "0700"]) == 0
    there = vars_of(empty, capsys)
    assert {name: each["data"] for name, each in there.items()} == {"vmmtest": "6b00650070007400", "Timeout": "0700"}
    assert there["vmmtest"]["guid"] == guid
    assert there["Timeout"]["attributes"] == 7
    assert main(["vars", "list", str(empty)]) == 0
    assert "Timeout  word: 0x0007" in capsys.readouterr().out
    assert main(["vars", "delete", str(empty), "vmmtest"]) == 0
    assert list(vars_of(empty, capsys)) == ["Timeout"]
    assert empty.stat().st_size == size


@pytest.mark.parametrize("microsoft", [False, True])
def test_enrolling_turns_secure_boot_on(empty: Path, capsys: pytest.CaptureFixture[str], *, microsoft: bool) -> None:
    words = ["vars", "enroll", str(empty), str(CERTIFICATE), *(["--microsoft"] if microsoft else [])]
    assert main(words) == 0
    there = vars_of(empty, capsys)
    assert there["SecureBootEnable"]["data"] == "01"
    assert {"PK", "KEK", "db"} <= there.keys()
    assert (len(str(there["db"]["data"])) > 2 * 2000) is microsoft


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["list", "/etc/passwd"], "no store of UEFI variables"),
        (["list", "{}", "x"], "vars list: takes a file alone"),
        (["set", "{}", "x"], "the value is either --hex BYTES or --data PATH"),
        (["set", "{}", "x", "--hex", "0"], "--hex 0: not pairs of hexadecimal digits"),
        (["set", "{}", "x", "--hex", "00", "--guid", "y"], "--guid y"),
        (["set", "{}", "x", "--hex", ""], "x without a value would be none: vmm vars delete takes it away"),
        (["set", "{}", "", "--hex", "00"], "'' is no name"),
        (["set", "{}", "\U0001f600", "--hex", "00"], "UEFI's have characters up to U+FFFF"),
        (["set", "{}", "a\udcff", "--hex", "00"], "is no name"),
        (["delete", "{}", "x"], "it has no variable x"),
        (["delete", "{}"], "vars delete: of what?"),
        (["enroll", "{}", "/etc/passwd"], "/etc/passwd: no certificate"),
        (["enroll", "{}", "/nowhere"], "cannot read /nowhere"),
        (["burn", "{}"], "vars burn: not known"),
    ],
)
def test_what_makes_no_sense(empty: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str) -> None:
    before = empty.read_bytes()
    assert main(["vars", *(word.format(empty) for word in words)]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert empty.read_bytes() == before


def test_a_store_that_a_machine_has_is_left_alone(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = VariableFile(empty, empty.stat().st_size)
    assert main(["vars", "set", str(empty), "x", "--hex", "00"]) == 2
    assert "keeps its variables there" in capsys.readouterr().err
    file.close()


def test_more_than_there_is_room_for(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    big = empty.with_name("big")
    big.write_bytes(bytes(1 << 16))
    status = 0
    for number in range(8):
        status = main(["vars", "set", str(empty), f"big{number}", "--data", str(big)])
        if status:
            break
    assert status == 2
    assert "there is no room for that in the store" in capsys.readouterr().err


def damaged(full: bytes, where: str) -> bytes:
    """A store whose third variable, of four, cannot be read."""
    at = full.index(b"\xaa\x55\x3f", full.index("Second\0".encode("utf-16-le")))
    header = bytearray(full[at : at + 60])
    name = full[at + 60 :][:4]
    if where == "magic":
        header[0] ^= 1
    elif where == "size":
        header[36:40] = (0x01FFFFF0).to_bytes(4, "little")
    elif where == "unwritten":
        header[36:40] = b"\xff" * 4
    elif where == "name":
        name = b"\x00\xd8\x00\xd8"
    return full[:at] + bytes(header) + name + full[at + 64 :]


@pytest.mark.parametrize("where", ["magic", "size", "unwritten", "name"])
def test_a_damaged_store_is_neither_listed_nor_written(
    empty: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    for name in ("First", "Second", "Third", "Vierte"):
        assert main(["vars", "set", str(empty), name, "--hex", "00112233"]) == 0
    before = damaged(empty.read_bytes(), where)
    empty.write_bytes(before)
    capsys.readouterr()
    for words in (["list"], ["set", "Timeout", "--hex", "0000"], ["delete", "First"]):
        assert main(["vars", words[0], str(empty), *words[1:]]) == 2
        said = capsys.readouterr().err
        assert "the store is damaged" in said or "would lose variables of it" in said
        assert said.count("\n") == 1
    assert empty.read_bytes() == before


def test_a_store_that_was_cut_short_is_refused(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty.write_bytes(empty.read_bytes()[:100_000])
    assert main(["vars", "list", str(empty)]) == 2
    assert "has 100000 bytes, and its store of variables would end at 262144" in capsys.readouterr().err
