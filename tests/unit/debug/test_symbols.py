"""Which file has the symbols of an image: by names, and never one because a guest names it."""

import os
from pathlib import Path

import pytest

from vmm.config.machine import symbols_from
from vmm.debug.gdb_file import gdb_commands
from vmm.debug.images import LoadedImage
from vmm.debug.symbols import SymbolFiles, function_at
from vmm.errors import ConfigError
from vmm.firmware import guests


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("X64/Core/DEBUG/DxeCore.dll", "X64/Core/DEBUG/DxeCore.debug", "X64/A/DEBUG/Same.debug"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for name in ("IA32/A/DEBUG/Same.debug", "X64/B/DEBUG/Same.debug", "vmlinux-6.1", "passwd", "only.dll"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("/elsewhere/X64/Core/DEBUG/DxeCore.dll", "X64/Core/DEBUG/DxeCore.debug"),
        ("DxeCore", "X64/Core/DEBUG/DxeCore.debug"),
        ("/b/IA32/A/DEBUG/Same.dll", "IA32/A/DEBUG/Same.debug"),
        ("/b/X64/B/DEBUG/Same.dll", "X64/B/DEBUG/Same.debug"),
        ("c:\\b\\X64\\B\\DEBUG\\Same.pdb", "X64/B/DEBUG/Same.debug"),
        ("only.efi", "only.dll"),
        ("../../etc/passwd", None),
        ("/etc/passwd", None),
        ("..", None),
        ("", None),
        ("/", None),
        ("Same.debug/../../x", None),
        ("x" * 5000, None),
        ("DxeCore\0.dll", None),
        ("DxeCore\n.dll", None),
    ],
)
def test_files_are_found_by_name(folder: Path, named: str, found: str | None) -> None:
    file = SymbolFiles(folder).find(named)
    assert (None if file is None else str(file.relative_to(folder))) == found


def test_the_folder_of_a_machine(folder: Path) -> None:
    assert symbols_from(str(folder)) == folder.resolve()
    assert symbols_from(None) is None
    with pytest.raises(ConfigError, match="--symbols nowhere: not a folder"):
        symbols_from("nowhere")
    with pytest.raises(TypeError, match="--symbols"):
        symbols_from(7)  # type: ignore[arg-type]


def test_kernels(folder: Path) -> None:
    assert SymbolFiles(folder).kernel() == folder / "vmlinux-6.1"
    (folder / "vmlinux").write_bytes(b"")
    assert SymbolFiles(folder).kernel() == folder / "vmlinux"
    assert SymbolFiles(folder / "nowhere").kernel() is None


def test_what_is_no_file_is_not_opened(folder: Path) -> None:
    os.mkfifo(folder / "Pipe.debug")
    (folder / "Folder.debug").mkdir()
    (folder / "Gone.debug").symlink_to("nowhere")
    files = SymbolFiles(folder)
    assert [files.find(name) for name in ("Pipe", "Folder", "Gone")] == [None] * 3


@pytest.mark.parametrize("contents", [b"", b"\x7fELF", b"\x7fELF" + bytes(range(256)) * 4, b"MZ" * 999])
def test_files_that_are_broken_name_nothing(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "broken.debug").write_bytes(contents)
    assert function_at(tmp_path / "broken.debug", 0x1000) is None


def test_a_damaged_symbol_table_names_what_it_can(tmp_path: Path) -> None:
    whole = guests.symbols("probe").read_bytes()
    for at in range(0, len(whole), len(whole) // 40):
        damaged = bytearray(whole)
        damaged[at : at + 64] = b"\xff" * 64
        path = tmp_path / f"{at}.elf"
        path.write_bytes(damaged)
        function_at(path, 0xFFFF0000)


def test_commands_for_gdb_load_no_file_that_a_guest_names() -> None:
    images = [
        LoadedImage("Hostile", 0x1000, 1, "uefi", "header", '/x"\nshell touch /tmp/owned\n#'),
        LoadedImage("Dxe\nshell id", 0x2000, 1, "uefi", "header"),
        LoadedImage("Ours", 0x3000, 1, "uefi", "header", "/there/x.dll", None, "", '/a "b"/x y.debug', 0x3000),
        LoadedImage("probe", 0x4000, 1, "guest", "image", symbols="/g/probe.elf"),
    ]
    lines = gdb_commands(images).splitlines()
    assert lines[2:] == [r'add-symbol-file "/a \"b\"/x y.debug" -o 0x3000', "add-symbol-file /g/probe.elf"]
    assert len(lines) == 4
    assert all(line.startswith("# 0x") for line in lines[:2])
