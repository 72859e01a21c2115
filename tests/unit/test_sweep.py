"""A sweep's matrix, its file of results, and how cells without a guest end."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from command_line import vmm
from html_page import check_self_contained, read

from vmm.errors import ConfigError
from vmm.sweep import show
from vmm.sweep.cell import SCHEMA, run_cell
from vmm.sweep.matrix import AXES, Cell, Matrix, merged, option_axis, parse_axis, read_matrix, split_values
from vmm.sweep.results import Results
from vmm.sweep.run import run


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2,4", ["1", "2", "4"]),
        ("1,4,sockets=2,8,cores=4,threads=2", ["1", "4,sockets=2", "8,cores=4,threads=2"]),
        ("host,host,+x2apic,-nx,max", ["host", "host,+x2apic,-nx", "max"]),
        (",pvpanic", ["", "pvpanic"]),
        (",base=1,size=2", ["", "base=1,size=2"]),
        ("file=a,,b,file=c", ["file=a,,b,file=c"]),
        ("a,,b,c", ["a,,b", "c"]),
    ],
)
def test_values_of_an_axis(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_cells_are_all_combinations_and_the_last_axis_is_fastest() -> None:
    axes = [AXES["smp"](["1", "2"]), AXES["firmware"](["ovmf", "seabios"]), parse_axis("-device ,pvpanic")]
    matrix = merged(Matrix(()), axes, ["-machine", "hpet=off"])
    cells = list(matrix.cells())
    assert [" ".join(cell.words) for cell in cells][:5] == [
        "ovmf -smp 1 -machine hpet=off",
        "ovmf -smp 1 -device pvpanic -machine hpet=off",
        "ovmf -smp 2 -machine hpet=off",
        "ovmf -smp 2 -device pvpanic -machine hpet=off",
        "seabios -smp 1 -machine hpet=off",
    ]
    assert cells[0].axes == {"firmware": "ovmf", "smp": "1", "device": ""}
    assert cells[1].title == "firmware ovmf, smp 1, device pvpanic"
    assert len({cell.key for cell in cells}) == 8


def test_entries_and_tables_are_made() -> None:
    (none, two) = AXES["e820"](["0", "2"]).values
    assert none.words == ()
    assert two.words == (
        *("-e820", "base=0x8000000000,size=0x100000,type=reserved"),
        *("-e820", "base=0x8000200000,size=0x100000,type=reserved"),
    )
    (one,) = AXES["tables"](["1"]).values
    assert one.words == ("-acpitable", "sig=SSDT,rev=2,oem_table_id=SWEEP000,data=/dev/null")
    with pytest.raises(ConfigError, match="--e820 -1: must be from 0"):
        AXES["e820"](["-1"])


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_a_matrix_comes_from_a_file_and_axes_beside_it_take_the_place_of_its_own(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"matrix.{suffix}"
    texts = {
        "toml": 'firmware = ["seabios"]\nsmp = [1, "2,sockets=2"]\noptions = ["-no-reboot"]\n'
        'axes."-M" = ["q35", "pc"]\n',
        "json": '{"firmware": ["seabios"], "smp": [1, "2,sockets=2"], "options": ["-no-reboot"], '
        '"axes": {"-M": ["q35", "pc"]}}',
    }
    path.write_text(texts[suffix])
    matrix = read_matrix(str(path))
    assert [axis.name for axis in matrix.axes] == ["firmware", "smp", "M"]
    assert next(matrix.cells()).words == ("seabios", "-smp", "1", "-M", "q35", "-no-reboot")
    more = merged(matrix, [AXES["smp"](["8"])], [], linux=True)
    assert [cell.words[:4] for cell in more.cells()] == [("linux", "seabios", "-smp", "8")] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smp = 1", "smp: a list of texts and numbers, not 1"),
        ("smp = [true]", "smp: a list of texts and numbers"),
        ("cpus = [1]", "cpus: known are firmware, machine, smp, m, e820, tables, axes, options and linux"),
        ("linux = 1", "linux: true or false, not 1"),
        ("axes = 1", "axes: options with lists of values"),
        ("smp = [", "m.toml: Invalid value (at end of document)"),
    ],
)
def test_a_file_that_is_no_matrix_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"m\.toml") as caught:
        read_matrix(str(tmp_path / "m.toml"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing differs from cell to cell"),
        (["-smp", "1,1"], "smp: a value is there twice"),
        (["--axis", "cpu host"], "--axis 'cpu host': an option and its values"),
        (["--axis", "-zzz 1,2"], "unknown option -zzz"),
        (["-smp", "1,2", "--", "-hda", "x", "-net", "user"], "-hda x: the only disks are virtio ones"),
        (["-smp", "1,2", "--executor", "nobody:there"], "--executor nobody:there: No module named 'nobody'"),
        (["-smp", "1,2", "--executor", "json:loads"], "--executor json:loads: "),
        (["-smp", "1,2", "--timeout", "no"], "--timeout no: "),
    ],
)
def test_what_no_cell_could_have_is_refused_at_once(tmp_path: Path, words: list[str], message: str) -> None:
    ended = vmm("sweep", "--results", tmp_path / "r.jsonl", *words)
    assert ended.returncode == 2, ended.stderr
    assert message in ended.stderr


def swept(path: Path, matrix: Matrix) -> list[dict[str, Any]]:
    """Run what has no result yet; return what was run."""
    ran: list[dict[str, Any]] = []
    with Results(str(path)) as results, ThreadPoolExecutor(2) as threads:

        def keep(result: dict[str, Any]) -> None:
            results.add(result)
            ran.append(result)

        run([cell for cell, result in results.of(matrix) if result is None], threads, 60, keep, 2)
        assert all(result is not None for _, result in results.of(matrix))
    return ran


def test_a_sweep_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    # No such machine: their processes end before there is a guest.
    matrix = Matrix((option_axis("-smp", ["0", "-1", "x"]),))
    first = swept(path, matrix)
    assert {result["outcome"] for result in first} == {"refused"}
    assert "-smp 0: " in next(result["why"] for result in first if result["axes"]["smp"] == "0")
    assert swept(path, matrix) == []
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:-20])
    (again,) = swept(path, matrix)
    assert again["axes"] == json.loads(lines[2])["axes"]
    assert path.read_bytes().startswith(b"".join(lines[:2]))
    assert len(path.read_text().splitlines()) == 3
    wider = Matrix((option_axis("-smp", ["0", "-1", "x", "-2"]),))
    assert [result["axes"]["smp"] for result in swept(path, wider)] == ["-2"]


@pytest.mark.parametrize("text", ["hello\n", "{}\n", '{"schema": "vmm-sweep/0"}\n', "half a line", "[1]\n"])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes"
    path.write_text(text)
    with pytest.raises(ConfigError, match="name another"):
        Results(str(path))
    assert path.read_text() == text


def test_two_sweeps_do_not_share_a_file(tmp_path: Path) -> None:
    path = str(tmp_path / "r.jsonl")
    with Results(path), pytest.raises(ConfigError, match="another sweep writes there"):
        Results(path)
    with Results(path):
        pass


def test_again_forgets_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("anything")
    with Results(str(path), again=True) as results:
        assert results.by_key == {}
    assert path.read_text() == ""


def result(smp: str, firmware: str, outcome: str, right: int = 3) -> tuple[Cell, dict[str, Any]]:
    cell = Cell({"firmware": firmware, "smp": smp}, (firmware, "-smp", smp))
    told: dict[str, Any] = {"schema": SCHEMA, "axes": cell.axes, "words": [*cell.words], "outcome": outcome, "why": ""}
    if outcome in {"arrived", "altered"}:
        told["subjects"] = {"memory map": [right, 3], "SMBIOS": [2, 2]}
    if outcome != "arrived":
        told["why"] = "<because>"
    return cell, told


MATRIX = Matrix((AXES["firmware"](["a.fd", "b.fd"]), AXES["smp"](["1", "2", "4"])))
FOUND = [
    result("1", "a.fd", "arrived"),
    result("2", "a.fd", "altered", 1),
    result("4", "a.fd", "no report"),
    result("1", "b.fd", "arrived"),
    result("2", "b.fd", "refused"),
    (Cell({"firmware": "b.fd", "smp": "4"}, ("b.fd", "-smp", "4")), None),
]


def test_the_text_says_what_did_not_arrive_and_why() -> None:
    lines = show.as_text(FOUND).splitlines()
    assert lines[0] == "6 cells: 2 arrived, 1 altered, 1 no report, 1 refused, 1 not run"
    assert lines[1].split() == ["3", "of", "5", "firmware", "a.fd,", "smp", "2"]
    assert lines[2].strip() == "<because>"


def test_the_tables_have_the_axis_with_most_values_as_rows() -> None:
    assert show.as_markdown(MATRIX, FOUND) == (
        "| smp \\ firmware | a.fd | b.fd |\n|---|---|---|\n"
        "| 1 | all 5 | all 5 |\n| 2 | 3 of 5 (memory map) | refused |\n| 4 | no report | not run |\n"
    )
    more = Matrix((*MATRIX.axes, option_axis("-device", ["", "pvpanic"])))
    cells = [
        (Cell({**cell.axes, "device": device}, cell.words), told) for cell, told in FOUND for device in ("", "pvpanic")
    ]
    first, grid, second, other = show.as_markdown(more, cells).split("\n\n")
    assert (first, second) == ("**firmware a.fd**", "**firmware b.fd**")
    assert grid.startswith("| smp \\ device | - | pvpanic |\n")
    assert other.splitlines()[-1] == "| 4 | not run | not run |"


def test_one_axis_is_one_column() -> None:
    alone = Matrix((AXES["smp"](["1", "2"]),))
    cells = [(Cell({"smp": cell.axes["smp"]}, cell.words), told) for cell, told in FOUND[:2]]
    assert show.as_markdown(alone, cells) == (
        "| smp | result |\n|---|---|\n| 1 | all 5 |\n| 2 | 3 of 5 (memory map) |\n"
    )


def test_the_page_has_heat_maps_and_reasons() -> None:
    html = show.as_html(MATRIX, FOUND)
    check_self_contained(html)
    text = " ".join(read(html).text.split())
    assert "vmm sweep: 6 cells: 2 arrived" in text
    assert "smp \\ firmware a.fd b.fd 1 all 5 all 5 2 3 of 5 refused 4 no report not run" in text
    assert 'style="--share: 0.600"' in html
    assert "cell memory map SMBIOS firmware a.fd, smp 1 3 2 firmware a.fd, smp 2 1 of 3 2" in text
    assert "&lt;because&gt;" in html


def test_a_process_that_ends_in_another_way_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")  # there is no Python then that could do anything
    died = run_cell({"smp": "1"}, ["-smp", "1"], 5)
    assert died["outcome"] == "died"
    assert died["why"].startswith("with status 1: ")
