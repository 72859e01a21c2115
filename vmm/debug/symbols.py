"""Names for addresses: the functions of an executable, from the ELF file that its build left of it.

No file is opened because a guest names it. It is the one beside a guest of ours, or one in the folder that the user
named, of which only the names of files are compared with what the guest says.
"""

import os
from bisect import bisect_right
from functools import cache
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import NamedTuple

_SUFFIXES = (".debug", ".dll", ".elf")
"""What edk2's builds name an image's file with symbols, the fullest first: the .dll only refers to the .debug."""

MAX_FILES = 200_000
"""In a folder of the user's: a build of edk2's OVMF has 20,000."""


class Function(NamedTuple):
    """A function, and how far into it an address is."""

    name: str
    offset: int


class SymbolFiles:
    """The files below a folder, by name.

    Args:
        folder: of the user's; what is not there, or cannot be listed, has no files.
    """

    def __init__(self, folder: Path) -> None:
        self._by_name: dict[str, list[Path]] = {}
        count = 0
        for path, _, names in os.walk(folder):
            for name in names:
                if name.endswith(_SUFFIXES) or name.startswith("vmlinux"):
                    self._by_name.setdefault(name, []).append(Path(path, name))
            count += len(names)
            if count > MAX_FILES:
                break

    def find(self, named: str) -> Path | None:
        """The file with the symbols of an image; None: there is none.

        Args:
            named: the path that its build left in it, or its name. Of several files with that name it is the one whose
                folders are the most like those of the path.
        """
        path = PureWindowsPath(named) if "\\" in named else PurePosixPath(named)
        for suffix in _SUFFIXES:
            found = [file for file in self._by_name.get(path.stem + suffix, ()) if file.is_file()]
            if found:
                return max(found, key=lambda file: _alike(file, path))
        return None

    def kernel(self) -> Path | None:
        """A Linux kernel's ``vmlinux``, or else one with a version behind that."""
        names = sorted(name for name in self._by_name if name.startswith("vmlinux"))
        return next((file for name in names for file in self._by_name[name] if file.is_file()), None)


def _alike(one: PurePath, other: PurePath) -> int:
    """How many folders in front of two files have the same names."""
    pairs = zip(reversed(one.parent.parts), reversed(other.parent.parts), strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), len(other.parts))


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
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    found: dict[int, str] = {}
    try:
        with elf.open("rb") as file:
            table = ELFFile(file).get_section_by_name(".symtab")
            for symbol in table.iter_symbols() if isinstance(table, SymbolTableSection) else ():
                is_code = symbol["st_info"]["type"] in {"STT_FUNC", "STT_NOTYPE"}
                if is_code and symbol["st_shndx"] not in {"SHN_ABS", "SHN_UNDEF"} and symbol.name:
                    found[symbol["st_value"]] = max(symbol.name, found.get(symbol["st_value"], ""))
    except Exception:  # noqa: BLE001  # whatever a file has that is no ELF file, it names no function
        found = {}
    starts = sorted(found)
    return starts, [found[start] for start in starts]
