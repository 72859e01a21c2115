"""A folder as a disk: what the image has, and which folders are none."""

import os
import struct
import subprocess
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmm.config.machine import MachineConfig
from vmm.disks import folder, gpt
from vmm.disks.drives import Drive
from vmm.disks.image import DiskImage
from vmm.errors import ConfigError, HostError, VmmError

SECTOR = 512
PARTITION = 1 << 20


@contextmanager
def image_of(path: Path) -> Iterator[Path]:
    with DiskImage(Drive(path, folder=True)) as image:
        yield Path(f"/proc/self/fd/{image.fd}")


def mtools(image: Path, tool: str, *words: str) -> bytes:
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    with image.open("r+b") as file:
        command = [tool, "-i", f"/dev/fd/{file.fileno()}@@{PARTITION}", *words]
        done = subprocess.run(command, env=environment, pass_fds=(file.fileno(),), stdout=subprocess.PIPE, check=True)
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "EFI" / "BOOT").mkdir(parents=True)
    (tree / "EFI" / "BOOT" / "BOOTX64.EFI").write_bytes(os.urandom(70_000))
    (tree / "EFI" / ".hidden").write_text("hidden")
    (tree / "-s").write_text("a dash")
    (tree / "Größe und Länge.txt").write_text("long")
    (tree / "link").symlink_to(tree / "EFI" / ".hidden")
    (tree / "empty").mkdir()
    return tree


def test_every_file_is_there(tree: Path) -> None:
    with image_of(tree) as image:
        listed = mtools(image, "mdir", "-/", "-b", "-a", "::").decode().splitlines()
        assert {line.removeprefix("::/") for line in listed} == {
            "-s", "EFI/", "EFI/.hidden", "EFI/BOOT/", "EFI/BOOT/BOOTX64.EFI", "Größe und Länge.txt", "empty/", "link",
        }  # fmt: skip
        for name in ("EFI/BOOT/BOOTX64.EFI", "link", "Größe und Länge.txt"):
            assert mtools(image, "mtype", f"::{name}") == (tree / name).read_bytes()


def test_the_partition_table(tree: Path) -> None:
    with image_of(tree) as image:
        data = image.read_bytes()
    last = len(data) // SECTOR - 1
    assert data[446:462] == bytes((0, 0, 2, 0, 0xEE, 255, 255, 255, 1, 0, 0, 0)) + struct.pack("<I", last)
    assert data[510:512] == b"\x55\xaa"
    for own, other, table in ((1, last, 2), (last, 1, last - 32)):
        header = data[own * SECTOR : own * SECTOR + 92]
        signature, revision, size, checksum, zero, mine, backup = struct.unpack_from("<8sIIIIQQ", header)
        assert (signature, revision, size, zero, mine, backup) == (b"EFI PART", 0x10000, 92, 0, own, other)
        assert zlib.crc32(header[:16] + bytes(4) + header[20:]) == checksum
        first_usable, last_usable = struct.unpack_from("<QQ", header, 40)
        at, count, each, entries_checksum = struct.unpack_from("<QIII", header, 72)
        assert (first_usable, last_usable, at, count, each) == (34, last - 33, table, 128, 128)
        entries = data[at * SECTOR :][: count * each]
        assert zlib.crc32(entries) == entries_checksum
        first, end = struct.unpack_from("<QQ", entries, 32)
        assert uuid.UUID(bytes_le=entries[:16]) == uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
        assert (first * SECTOR, end) == (PARTITION, last_usable)
        assert not any(entries[128:])
    boot = data[PARTITION:]
    assert boot[0x52:0x5A] == b"FAT32   "
    assert struct.unpack_from("<I", boot, 0x1C) == (gpt.FIRST_SECTOR,)
    assert struct.unpack_from("<I", boot, 0x20) == (end - first + 1,)


def test_the_same_files_are_the_same_disk(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it is made; another disk of the machine has other identifiers."""

    def contents(number: int) -> bytes:
        with DiskImage(Drive(tree, folder=True), number=number) as image:
            return Path(f"/proc/self/fd/{image.fd}").read_bytes()

    monkeypatch.setenv("TZ", "UTC")
    first = contents(0)
    assert contents(0) == first
    label = first.index(b"VMM ESP    \x08")
    assert struct.unpack_from("<HH", first, label + 22) == (0, 46 << 9 | 1 << 5 | 1), "of 2026-01-01, 00:00"
    other = contents(1)
    for at, size in ((SECTOR + 56, 16), (2 * SECTOR + 16, 16), (PARTITION + 67, 4)):
        assert other[at : at + size] != first[at : at + size], f"at {at}"


def test_one_file_is_there_alone(tree: Path) -> None:
    with image_of(tree / "EFI" / "BOOT" / "BOOTX64.EFI") as image:
        assert mtools(image, "mdir", "-/", "-b", "::").split() == [b"::/BOOTX64.EFI"]


def test_more_than_the_smallest_partition(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(1 << 20) * 70)
    for number in range(300):
        (tmp_path / f"a long name in the root {number}").touch()
    with image_of(tmp_path) as image:
        assert len(mtools(image, "mdir", "-b", "::").splitlines()) == 301


def test_the_folder_stays_as_it_is(tree: Path) -> None:
    before = sorted(tree.rglob("*"))
    with image_of(tree) as image:
        mtools(image, "mdel", "::-s")
        mtools(image, "mmd", "::new")
    assert sorted(tree.rglob("*")) == before


def refused(path: Path) -> str:
    with pytest.raises(VmmError) as caught, image_of(path):
        pass
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"--esp {path}: ")
    return str(caught.value)


def test_folders_that_are_none(tmp_path: Path) -> None:
    assert "there is no such folder" in refused(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in refused(tmp_path / "empty")
    assert "is neither a folder nor a file" in refused(Path("/dev/null"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a:b", "it has ':'"),
        ("a\\b", r"it has '\\'"),
        ("a\nb", r"it has '\n'"),
        ("dot.", "it ends with '.'"),
        ("blank ", "it ends with ' '"),
        ("\U0001f600", "UEFI knows only characters up to U+FFFF"),
        (os.fsdecode(b"\xff"), "it is not UTF-8"),
        ("Nul", "it is that of a device of DOS"),
        ("LPT4", "it is that of a device of DOS"),
    ],
)
def test_names_that_fat_cannot_carry(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / name).touch()
    assert f"FAT cannot carry the name: {why}; rename it" in refused(tmp_path)


@pytest.mark.parametrize("name", ["größer.efi", "É", "ő.efi"])
def test_short_names_that_uefi_would_not_find(tmp_path: Path, name: str) -> None:
    """In code page 850, or a letter that mtools took for another."""
    (tmp_path / "Größe").mkdir()
    (tmp_path / "Größe" / name).touch()
    assert f"Größe/{name}: FAT cannot carry the name: it is short" in refused(tmp_path)
    (tmp_path / "Größe" / name).rename(tmp_path / "Größe" / f"Ein {name}")
    with image_of(tmp_path) as image:
        assert mtools(image, "mdir", "-b", "::/Größe").decode() == f"::/Größe/Ein {name}\n"


def test_two_names_that_are_one_for_fat(tmp_path: Path) -> None:
    for name in ("readme", "README"):
        (tmp_path / name).touch()
    assert "are one name for FAT, which is blind to case" in refused(tmp_path)


def test_names_that_only_look_like_one(tmp_path: Path) -> None:
    """What Unicode's capitals of more than one letter are, and a device's name with more behind it."""
    for name in ("Maß", "MASS", "con.efi"):
        (tmp_path / name).touch()
    with image_of(tmp_path) as image:
        assert mtools(image, "mdir", "-b", "::").decode().split() == ["::/MASS", "::/Maß", "::/con.efi"]


def test_files_that_fat_cannot_hold(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 32)
    assert "has 4294967296 bytes; a file in FAT has less than 4 GiB" in refused(tmp_path)
    os.truncate(tmp_path / "large", (1 << 32) - 1)
    for number in range(500):
        (tmp_path / f"link{number}").symlink_to("large")
    assert "2003 GiB are more than the 2047 GiB that FAT can hold" in refused(tmp_path)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is neither a file nor a folder; leave it out" in refused(tmp_path)
    (tmp_path / "pipe").unlink()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert "is a link to a folder that it is in" in refused(tmp_path)
    (tmp_path / "loop").unlink()
    (tmp_path / "dangling").symlink_to("nothing")
    assert "dangling: no such file or directory" in refused(tmp_path)


def test_what_the_host_lacks(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(HostError, match="needs mtools, which makes the file system: apt-get install mtools"):
        folder.image_of(tree, "--esp", 0)


def test_mtools_that_fails_is_said(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin" / "mformat"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'no such geometry' >&2\nexit 3\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    with pytest.raises(ConfigError, match="--esp: mformat failed: no such geometry"):
        folder.image_of(tree, "--esp", 0)


def test_a_folder_is_the_first_disk(tree: Path) -> None:
    config = MachineConfig.create("probe", esp=tree, drives=[Path("a.img")])
    assert config.drives == (Drive(tree, folder=True), Drive(Path("a.img")))
