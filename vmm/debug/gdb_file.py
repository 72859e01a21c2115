"""Commands for gdb that load the symbols of what is in a guest's memory, where it is."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vmm.legible import legible

if TYPE_CHECKING:
    from vmm.debug.images import LoadedImage

_NEEDS_QUOTES = re.compile(r"[^\w./+@=:,~-]")


def gdb_commands(images: Iterable["LoadedImage"]) -> str:
    """A file for gdb's ``source``; only files of the user's and of ours are loaded, those that a guest names are told.

    Args:
        images: what is loaded.
    """
    lines = []
    for image in images:
        if image.symbols:
            offset = f" -o {image.loaded:#x}" if image.loaded else ""
            lines.append(f"add-symbol-file {_quoted(image.symbols)}{offset}")
        else:
            named = f" (built as {image.path})" if image.path else ""
            lines.append(legible(f"# {image.base:#x}: no file with symbols of {image.name or 'an image'}{named}"))
    return "".join(f"{line}\n" for line in lines)


def _quoted(path: str) -> str:
    """A file's name as a word of gdb's (its buildargv)."""
    if not _NEEDS_QUOTES.search(path):
        return path
    return '"' + re.sub(r'(["\\])', r"\\\1", path) + '"'
