"""Boot order: option grammar, file contents, CMOS bytes."""

from pathlib import Path

import pytest

from vmm.errors import ConfigError
from vmm.tables import boot_order
from vmm.tables.boot_order import BootOptions, Splash

DISK = "/pci@i0cf8/scsi@1/disk@0,0"


def test_bootorder_is_lines_and_one_nul() -> None:
    assert boot_order.encode_boot_order([DISK]) == DISK.encode() + b"\0"
    assert boot_order.encode_boot_order([DISK, "/rom@genroms/x"]) == DISK.encode() + b"\n/rom@genroms/x\0"
    assert boot_order.encode_boot_order([]) == b""


def test_strict_ends_with_halt() -> None:
    assert boot_order.encode_boot_order([DISK], strict=True) == DISK.encode() + b"\nHALT\0"
    assert boot_order.encode_boot_order([], strict=True) == b"HALT\0"


@pytest.mark.parametrize("path", ["", "disk", "/a b", "/a\nb", "/ä", "/a\0"])
def test_paths_that_no_line_can_hold(path: str) -> None:
    with pytest.raises(ConfigError, match="must be an OpenFirmware path"):
        boot_order.check_paths([path])


def test_a_path_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        boot_order.check_paths([DISK, DISK])


def test_every_field(tmp_path: Path) -> None:
    (tmp_path / "a,b.bmp").write_bytes(b"BM and so on")
    text = f"order=nc,once=d,menu=on,splash={tmp_path}/a,,b.bmp,splash-time=0,reboot-timeout=65535,strict=on"
    picture = Splash("bootsplash.bmp", b"BM and so on", tmp_path / "a,b.bmp")
    assert BootOptions.parse(text) == BootOptions("nc", "d", True, 0, 65535, True, picture)


def test_a_picture_is_a_jpeg_or_a_bmp(tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(b"\xff\xd8\xff")
    assert Splash.read(tmp_path / "picture").name == "bootsplash.jpg"
    (tmp_path / "picture").write_bytes(b"GIF89a")
    with pytest.raises(ConfigError, match="neither a JPEG nor a BMP picture"):
        Splash.read(tmp_path / "picture")


def test_letters_alone_are_the_order() -> None:
    assert BootOptions.parse("dc").order == "dc"
    assert BootOptions.parse("dc,menu=on").menu


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("order=z", "'z' is no boot device"),
        ("once=cc", "'c' is given twice"),
        ("menu=maybe", "write on or off"),
        ("splash-time=70000", "must be from 0 to 65535"),
        ("reboot-timeout=-2", "must be from -1 to 65535"),
        ("reboot-timeout=soon", "not a whole number"),
        ("foo=1", "unknown key 'foo'"),
        ("menu=on,menu=off", "given twice"),
        ("menu=on,dc", "unknown key 'dc'"),
    ],
)
def test_errors(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        BootOptions.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("order", "expected"),
    [("cad", {0x3D: 0x12, 0x38: 0x30}), ("n", {0x3D: 0x04, 0x38: 0}), (None, {0x3D: 0x12, 0x38: 0x30})],
)
def test_cmos_bytes(order: str | None, expected: dict[int, int]) -> None:
    assert boot_order.cmos_boot_bytes(order) == expected
