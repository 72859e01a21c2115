"""Line numbers of an executable's code, from the DWARF in its ELF file."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple


class LineRow(NamedTuple):
    """Code of one line of source.

    Attributes:
        start: its first address, as the file has it.
        end: behind its last.
        file: of source, as the compiler was told of it.
        line: from 1.
    """

    start: int
    end: int
    file: str
    line: int


@cache
def line_table(elf: Path) -> list[LineRow]:
    """All that a file says; empty where it has no line numbers, or cannot be read."""
    from elftools.elf.elffile import ELFFile

    try:
        with elf.open("rb") as file:
            executable = ELFFile(file)
            if not executable.has_dwarf_info():
                return []
            # In a file that is linked, addresses are final; ld -q leaves its relocations there all the same.
            is_object = executable["e_type"] == "ET_REL"
            dwarf = executable.get_dwarf_info(relocate_dwarf_sections=is_object, follow_links=False)
            return [row for unit in dwarf.iter_CUs() for row in _rows(dwarf, unit)]
    except Exception:  # noqa: BLE001  # whatever a file has that is no DWARF, it has no line numbers
        return []


def _rows(dwarf: Any, unit: Any) -> Iterator[LineRow]:
    program = dwarf.line_program_for_CU(unit)
    if program is None:
        return
    names = _names(program, _text(unit.get_top_DIE().attributes.get("DW_AT_comp_dir")))
    before = None
    for entry in program.get_entries():
        state = entry.state
        if state is None:
            continue
        # Line 0 is code that no line is the source of. What starts at 0 was thrown away by the linker.
        if before is not None and before.address < state.address and before.line and before.address:
            yield LineRow(before.address, state.address, names.get(before.file, "?"), before.line)
        before = None if state.end_sequence else state


def _names(program: Any, folder: str) -> dict[int, str]:
    """The files of source by number: DWARF 5 counts them and their folders from 0, earlier ones from 1."""
    header = program.header
    is_new = header["version"] >= 5
    folders = [_text(each) for each in header["include_directory"]]
    folders = (
        [_joined(folder, each) for each in folders] if is_new else [folder, *(_joined(folder, f) for f in folders)]
    )
    names = {}
    for number, entry in enumerate(header["file_entry"], 0 if is_new else 1):
        at = entry.dir_index
        names[number] = _joined(folders[at] if at < len(folders) else folder, _text(entry.name))
    return names


def _joined(folder: str, name: str) -> str:
    return name if name.startswith("/") or folder in {"", "."} else f"{folder}/{name}"


def _text(value: Any) -> str:
    data = getattr(value, "value", value)
    return data.decode("utf-8", "replace") if isinstance(data, bytes) else str(data or "")
