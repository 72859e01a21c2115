"""The functions of an executable, from the ELF file that its build left beside it."""

from bisect import bisect_right
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Function(NamedTuple):
    """A function, and how far into it an address is."""

    name: str
    offset: int


def beside(image: Path) -> Path | None:
    """The ELF file of a guest of ours; None: it was not built with one."""
    elf = image.with_suffix(".elf")
    return elf if elf.is_file() else None


def function_at(elf: Path, address: int) -> Function | None:
    """The function that an address of an ELF file is in, as the file has it; None: it names none in front of that."""
    starts, names = _functions(elf)
    at = bisect_right(starts, address) - 1
    return Function(names[at], address - starts[at]) if at >= 0 else None


@cache
def _functions(elf: Path) -> tuple[list[int], list[str]]:
    """Addresses, in order, and names."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    found: dict[int, str] = {}
    try:
        with elf.open("rb") as file:
            table = ELFFile(file).get_section_by_name(".symtab")
            for symbol in table.iter_symbols() if isinstance(table, SymbolTableSection) else ():
                is_code = symbol["st_info"]["type"] in {"STT_FUNC", "STT_NOTYPE"}
                if is_code and symbol["st_shndx"] != "SHN_ABS" and symbol.name:
                    found[symbol["st_value"]] = max(symbol.name, found.get(symbol["st_value"], ""))
    except (OSError, ELFError):
        found = {}
    starts = sorted(found)
    return starts, [found[start] for start in starts]
