"""``-option-rom``: what is taken for one, and where it stands in the boot order."""

import re
from pathlib import Path

import pytest

from vmm.config.machine import MachineConfig
from vmm.config.option_roms import OptionRom
from vmm.disks.drives import Drive
from vmm.errors import ConfigError
from vmm.firmware import guests

ROM = b"\x55\xaa\x01".ljust(512, b"\0")


@pytest.fixture
def rom(tmp_path: Path) -> Path:
    path = tmp_path / "a,b.rom"
    path.write_bytes(ROM)
    return path


def test_what_is_given(rom: Path) -> None:
    assert OptionRom.parse(rom).bootindex is None
    text = str(rom).replace(",", ",,")
    for given in (f"{text},bootindex=7", f"bootindex=7,romfile={text}"):
        parsed = OptionRom.parse(given)
        assert (parsed.item.name, parsed.item.data, parsed.bootindex) == ("genroms/a,b.rom", ROM, 7)
        assert parsed.path == "/rom@genroms/a,b.rom"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{rom},bootindex=-1", "-option-rom bootindex=-1"),
        ("{rom},bootindex=", "-option-rom bootindex="),
        ("{rom},bootindex=2147483648", "-option-rom bootindex=2147483648"),
        ("{rom},addr=3", "unknown key 'addr'"),
        ("{rom}x", "no such file"),
        ("{directory}", "-option-rom {directory}: "),
        ("/dev/null", "is no option ROM, which begins with 55 aa"),
        ("bootindex=1", "-option-rom bootindex=1: romfile= is missing"),
        ("", "-option-rom"),
    ],
)
def test_what_makes_no_sense(rom: Path, text: str, message: str) -> None:
    places = {"rom": str(rom).replace(",", ",,"), "directory": str(rom.parent)}
    with pytest.raises(ConfigError, match=re.escape(message.format(**places))):
        OptionRom.parse(text.format(**places))


def test_two_of_one_place(rom: Path, tmp_path: Path) -> None:
    image = str(guests.path("probe"))
    with pytest.raises(ConfigError, match=r"bootindex=0 is another's already"):
        MachineConfig.create(
            image, drives=[Drive(tmp_path / "x", bootindex=0)], option_roms=OptionRom.parse(rom)._replace(bootindex=0)
        )
    with pytest.raises(ConfigError, match=r"genroms/a,b.rom: the name is given twice"):
        MachineConfig.create(image, option_roms=[rom, rom])
    with pytest.raises(ConfigError, match=r"-option-rom: this machine has fwctl"):
        MachineConfig.create(image, option_roms=rom, fwcfg="bhyve")
