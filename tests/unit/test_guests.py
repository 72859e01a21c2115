"""Our guests as files: where they are found, and that each is a ROM image."""

from io import BytesIO
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from vmm.errors import ConfigError
from vmm.firmware import guests


@pytest.mark.parametrize("name", guests.names())
def test_an_image_is_its_elf_file_laid_out_below_4_gib(name: str) -> None:
    image = guests.path(name).read_bytes()
    assert len(image) == 0x10000
    elf = ELFFile(BytesIO(guests.symbols(name).read_bytes()))
    reset = elf.get_section_by_name(".reset")
    assert reset is not None
    assert reset["sh_addr"] == 0xFFFFFFF0
    assert image[-16:] == reset.data()
    text = elf.get_section_by_name(".text")
    assert text is not None
    start = text["sh_addr"] - 0xFFFF0000
    assert image[start : start + len(text.data())] == text.data()


def test_all_guests_are_there() -> None:
    assert {
        "probe",
        "exit",
        "hang",
        "refused",
        "reset",
        "silent",
        "triple-fault",
        "conformance-fw-cfg",
        "conformance-fwctl",
    } <= set(guests.names())


@pytest.mark.parametrize("name", ["", "no-such-guest", "../_guests/probe", "/etc/passwd"])
def test_an_unknown_guest_is_named_with_those_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match="probe") as caught:
        guests.path(name)
    assert repr(name) in str(caught.value)


def test_images_lie_outside_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert guests.path("probe").is_absolute()
    assert guests.path("probe").is_file()
