"""AML by its name space: what differs between two tables as objects, not as bytes. iasl disassembles; nothing runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from vmm.legible import shortened

SIGNATURES = ("DSDT", "SSDT", "PSDT")
"""Tables that hold AML behind their header (ACPI 6.5, 5.2.11)."""

_DEADLINE = 20.0
"""Seconds for one table; the guest chose the bytes."""
_LARGEST = 1 << 20
"""Bytes of a table; real ones have a tenth of that."""
_SHOWN = 3
_OBJECT = re.compile(
    r"(?P<kind>Alias|(?:Bank|Index|Create\w*)?Field|DataTableRegion|Device|Event|External|Method|Mutex|Name"
    r"|OperationRegion|PowerResource|Processor|Scope|ThermalZone) \((?P<name>[\\^]*\w[\w.]*)"
)
"""A line of iasl's that declares an object."""


def name_space(disassembly: str) -> dict[str, str]:
    """Return what iasl's text declares: kind and path of each object, and its text without objects in it."""
    objects: dict[str, list[str]] = {}
    open_objects: list[tuple[int, str, str]] = [(0, "\\", "DefinitionBlock")]
    for line in disassembly.partition("\nDefinitionBlock")[2].splitlines()[1:]:
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        # An object's braces stand below its first letter.
        while len(open_objects) > 1 and text and indent < open_objects[-1][0] + (text[0] not in "{}"):
            open_objects.pop()
        _, parent, key = open_objects[-1]
        match = _OBJECT.match(text)
        if match is not None:
            path = match["name"] if match["name"][0] == "\\" else f"{parent.rstrip('.')}.{match['name']}"
            path = path.replace("\\.", "\\")
            key = f"{match['kind']} {path}"
            open_objects.append((indent, path, key))
        if text.strip("{}"):
            objects.setdefault(key, []).append(text)
    return {key: " ".join(lines) for key, lines in objects.items()}


def compare(offered: bytes, found: bytes) -> str:
    """Say how two tables of AML with different bytes differ, by their name spaces, or why that is not known."""
    iasl = shutil.which("iasl")
    if iasl is None:
        return "bytes alone were compared: there is no iasl (Debian's acpica-tools), which would tell the objects"
    if len(found) > _LARGEST:
        return f"bytes alone were compared: {len(found)} bytes are too many for a look at the objects"
    was, now = _disassembled(iasl, offered), _disassembled(iasl, found)
    if was is None or now is None:
        side = "offered" if was is None else "found"
        return f"bytes alone were compared: iasl cannot disassemble what was {side}"
    if was == now:
        return f"yet the name space is the same, {len(was)} objects"
    parts = [f"{key} is gone" for key in was if key not in now]
    parts += [f"{key} is new" for key in now if key not in was]
    parts += [
        f"{shortened(was[key])} became {shortened(now[key])}" for key in was if key in now and was[key] != now[key]
    ]
    more = f" and {len(parts) - _SHOWN} more objects" if len(parts) > _SHOWN else ""
    return "name space: " + ", ".join(parts[:_SHOWN]) + more


def _disassembled(iasl: str, table: bytes) -> dict[str, str] | None:
    """Return a table's name space; None if iasl made nothing of it."""
    with TemporaryDirectory(prefix="vmm-aml-") as directory:
        Path(directory, "table.aml").write_bytes(table)
        try:
            subprocess.run(
                [iasl, "-p", "table", "-d", "table.aml"],
                cwd=directory,
                check=True,
                capture_output=True,
                timeout=_DEADLINE,
            )
            return name_space(Path(directory, "table.dsl").read_text(encoding="utf-8", errors="replace"))
        except (OSError, subprocess.SubprocessError):
            return None
