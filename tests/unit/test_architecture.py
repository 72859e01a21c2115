"""docs/architecture.md names every room, and nothing that is not there."""

import re
from pathlib import Path

TOP = Path(__file__).parents[2]
TEXT = (TOP / "docs/architecture.md").read_text("utf-8")


def test_every_room_is_named() -> None:
    rooms = TEXT[TEXT.index("## Rooms") : TEXT.index("## Three accelerators")]
    there = [path for path in (TOP / "vmm").iterdir() if path.is_dir() or path.suffix == ".py"]
    names = {f"{path.name}/" if path.is_dir() else path.name for path in there if not path.name.startswith("_")}
    assert names
    assert not {name for name in names if f"`{name}`" not in rooms}


def test_every_file_that_is_named_is_there() -> None:
    named = re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|c|h))`", TEXT)
    assert len(named) > 40
    files = [path.as_posix() for name in ("vmm", "native", "scripts") for path in (TOP / name).rglob("*.[pch]*")]
    assert not [name for name in named if not any(path.endswith(f"/{name}") for path in files)]


def test_every_module_that_is_named_with_its_room_is_there() -> None:
    """A cell says `room/`, and the next one its modules, each with a colon or a verb behind it."""
    cells = dict(re.findall(r"^\| `(\w+)/` \| (.*) \|$", TEXT, re.MULTILINE))
    named = [(room, name) for room in ("cli", "config") for name in re.findall(r"`([a-z_]+)`", cells[room])]
    assert len(named) > 10
    assert not [name for room, name in named if not (TOP / "vmm" / room / f"{name}.py").exists()]
