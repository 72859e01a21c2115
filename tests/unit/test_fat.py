"""Files on FAT volumes that mtools made; and volumes that are none."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.disks.fat import head_of_file, long_names

LONG = "a file with a long name.efi"


def reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda at, size: data[at : at + size] if at >= 0 else b""


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FAT12, with a folder of many files, one after the other in its pieces."""
    return make(tmp_path_factory.mktemp("fat"), ("-f", "1440"))


def make(folder: Path, form: tuple[str, ...]) -> Path:
    image, contents = folder / "image", folder / "contents"
    contents.write_bytes(bytes(range(256)) * 40)

    def run(*words: str | Path) -> None:
        subprocess.run([*map(str, words)], check=True, env={"MTOOLSRC": "/dev/null", "PATH": "/usr/bin:/bin"})

    run("mformat", "-C", "-i", image, *form, "-v", "LABEL", "::")
    run("mmd", "-i", image, "::/EFI", "::/EFI/BOOT")
    for name in ("first", LONG, *(f"file number {number}" for number in range(40)), "BOOTX64.EFI"):
        run("mcopy", "-i", image, contents, f"::/EFI/BOOT/{name}")
    return image


@pytest.mark.parametrize("form", [("-f", "1440"), ("-T", "40000", "-c", "2"), ("-T", "80000", "-c", "1", "-F")])
def test_a_file_is_found_by_either_name(tmp_path: Path, form: tuple[str, ...]) -> None:
    read = reader(make(tmp_path, form).read_bytes())
    for name in ("BOOTX64.EFI", "bootx64.efi", LONG, "AFILEW~1.EFI", "file number 39"):
        assert head_of_file(read, ["EFI", "Boot", name], 5000) == (bytes(range(256)) * 40)[:5000], name
    assert len(head_of_file(read, ["EFI", "BOOT", "first"], 1 << 20) or b"") == 256 * 40
    assert LONG in long_names(read, ["efi", "BOOT"])
    assert "BOOTX64.EFI" not in long_names(read, ["efi", "BOOT"]), "a short name is enough for it"
    assert [long_names(read, path) for path in ([], ["EFI"], ["nowhere"], ["EFI", "BOOT", "first"])] == [set()] * 4
    for path in (["EFI"], ["EFI", "BOOT"], ["EFI", "none", "x"], ["LABEL"], ["EFI", "BOOT", "first", "x"], []):
        assert head_of_file(read, path, 100) is None


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40000), st.binary(min_size=1, max_size=40)), max_size=8), st.integers(0, 4096))
def test_nothing_on_a_volume_makes_it_raise(volume: Path, changes: list[tuple[int, bytes]], end: int) -> None:
    data = bytearray(volume.read_bytes())
    for at, piece in changes:
        data[at : at + len(piece)] = piece
    for whole in (bytes(data), bytes(data[:end])):
        found = head_of_file(reader(whole), ["EFI", "BOOT", "BOOTX64.EFI"], 4096)
        assert found is None or len(found) <= 4096
        assert len(long_names(reader(whole), ["EFI", "BOOT"])) < 1 << 16
