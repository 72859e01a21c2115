"""Disks as people write them, and images as they are."""

import gzip
import os
import re
import tempfile
from pathlib import Path

import pytest

from vmm.config.machine import MachineConfig
from vmm.config.outputs import Outputs
from vmm.disks import drives
from vmm.disks.drives import Cache, Drive, parse_drives
from vmm.disks.image import DiskImage
from vmm.errors import ConfigError
from vmm.firmware import guests


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    return path


@pytest.mark.parametrize(
    ("text", "drive"),
    [
        ("file=a.img,format=raw", Drive(Path("a.img"), format="raw")),
        ("if=virtio,file=a,,b.img", Drive(Path("a,b.img"))),
        ("file=a,readonly=on,cache=none,id=d0", Drive(Path("a"), read_only=True, cache=Cache.NONE, id="d0")),
        ("file=a,snapshot=on,discard=unmap,media=disk", Drive(Path("a"), snapshot=True, unmap=True)),
        ("file=/usr/share/a.img", Drive(Path("/usr/share/a.img"), snapshot=True)),
        ("file=/usr/share/a.img,snapshot=off", Drive(Path("/usr/share/a.img"))),
        ("file=/usr/local/a.img", Drive(Path("/usr/local/a.img"))),
    ],
)
def test_a_drive_alone(text: str, drive: Drive) -> None:
    assert parse_drives([text], []) == (drive,)
    assert Drive.parse(text) == drive


def test_a_path_is_a_disk() -> None:
    assert parse_drives([Path("a"), Drive(Path("b"))], []) == (Drive(Path("a")), Drive(Path("b")))
    assert Drive.parse(Path("/usr/share/a.img")).snapshot


def test_drives_and_their_devices() -> None:
    texts = ["if=none,id=d0,file=a", "file=b", "if=none,id=d1,file=c,readonly=on"]
    devices = [
        "virtio-blk-pci,drive=d1,bootindex=0,addr=0x1e",
        "driver=virtio-blk-pci,drive=d0,serial=x,bus=pcie.0,addr=5.0",
    ]
    assert parse_drives(texts, devices) == (
        Drive(Path("a"), id="d0", serial="x", slot=5),
        Drive(Path("b")),
        Drive(Path("c"), read_only=True, id="d1", bootindex=0, slot=30),
    )


@pytest.mark.parametrize(
    ("texts", "devices", "message"),
    [
        (["if=ide,file=a"], [], "if=ide is not known; there are virtio, none (with -device) and pflash"),
        (["file=a,format=vpc"], [], "format=vpc is not known; known are raw (qemu-img convert -O raw), qcow2, vmdk"),
        (["format=raw"], [], "file=PATH is missing"),
        (["file=a,cache=fast"], [], "cache=fast is not known; known are writeback, none"),
        (["file=a,discard=maybe"], [], "discard=maybe: write ignore or unmap"),
        (["file=a,media=cdrom"], [], "there are no CD drives"),
        (["file=a,aio=io_uring"], [], "aio=io_uring is not known; threads is"),
        (["file=a,werror=stop"], [], "unknown key 'werror'"),
        (["if=none,file=a"], [], "if=none needs an id="),
        (["if=none,id=d,file=a"], [], "no device shows it; add -device virtio-blk-pci,drive=d"),
        (["id=d,file=a", "id=d,file=b"], [], "-drive id=d: the id is given twice"),
        ([], ["virtio-blk-pci,drive=d"], "there is no -drive if=none,id=d,file=PATH,format=raw"),
        (["file=a"], ["virtio-blk-pci"], "there is no -drive if=none,id=ID,file=PATH,format=raw"),
        (["id=d,file=a"], ["virtio-blk-pci,drive=d"], "the drive d has a device already: its -drive says if=virtio"),
        (["if=none,id=d,file=a"], ["virtio-blk-pci,drive=d"] * 2, "the drive d has a device already"),
        (["if=none,id=d,file=a"], ["virtio-blk-pci,drive=d,addr=20"], "addr=20: a PCI device number, from 1 to 1f"),
        (["if=none,id=d,file=a"], ["virtio-blk-pci,drive=d,addr=3.1"], "addr=3.1: a PCI device number"),
        (["if=none,id=d,file=a"], ["virtio-blk-pci,drive=d,bus=pci.1"], "bus=pci.1: there is one bus"),
        (["if=none,id=d,file=a"], ["virtio-blk-pci,drive=d,disable-modern=on"], "no legacy interface"),
        (["if=none,id=d,file=a"], ["virtio-blk-pci,drive=d,bootindex=-1"], "bootindex=-1: must be from 0"),
    ],
)
def test_what_makes_no_sense(texts: list[str], devices: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        parse_drives(texts, devices)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((Drive(Path("a"), folder=True, cache=Cache.NONE),), "--esp a: cache=none is for images"),
        (
            (Drive(Path("a"), bootindex=10), Drive(Path("b"), bootindex=10)),
            "-drive file=b: bootindex=10 is taken by -drive file=a",
        ),
        ((Drive(Path("a"), slot=16), Drive(Path("b"), slot=16)), "-drive file=b: addr=10 is taken by -drive file=a"),
        ((Drive(Path("a")), Drive(Path("./a"), read_only=True)), "-drive file=a: the image is another disk's already"),
        ((Drive(Path("a"), serial="x" * 21), Drive(Path("b"))), "20 ASCII characters at the most"),
    ],
)
def test_disks_that_contradict_each_other(pair: tuple[Drive, Drive], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        MachineConfig.create(guests.path("probe"), drives=pair)


def test_one_file_by_two_names(image: Path) -> None:
    other = image.with_name("other.img")
    other.hardlink_to(image)
    with pytest.raises(ConfigError, match=r"other\.img: the image is another disk's already"):
        MachineConfig.create(guests.path("probe"), drives=[image, other])


@pytest.mark.parametrize("name", ["a\0b", "loop"])
def test_a_path_that_leads_nowhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    config = MachineConfig.create(guests.path("probe"), drives=[tmp_path / name])
    with pytest.raises(ConfigError, match="cannot open it: "):
        Outputs(config)


def test_two_may_read_one_image(image: Path) -> None:
    config = MachineConfig.create(
        guests.path("probe"), drives=[Drive(image, read_only=True), Drive(image, snapshot=True)]
    )
    with Outputs(config) as outputs:
        assert [disk.size for disk in outputs.disks if isinstance(disk, DiskImage)] == [4096, 4096]


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("4,virtio-blk,a.img", ("if=none,id=slot4,file=a.img", "virtio-blk-pci,drive=slot4,addr=4")),
        ("16:0,virtio-blk,a,,b,ro", ("if=none,id=slot16,file=a,,b,readonly=on", "virtio-blk-pci,drive=slot16,addr=10")),
        (
            "0:3:0,virtio-blk,a,nocache,ser=x,bootindex=2",
            ("if=none,id=slot3,file=a,cache=none", "virtio-blk-pci,drive=slot3,addr=3,serial=x,bootindex=2"),
        ),
        ("4,virtio-net,tap0", None),
        ("4,ahci-hd,a.img", None),
    ],
)
def test_bhyve_s_spelling(text: str, texts: tuple[str, str] | None) -> None:
    assert drives.from_bhyve(text) == texts
    if texts is not None:
        parse_drives([texts[0]], [texts[1]])


@pytest.mark.parametrize(
    "text", ["0,virtio-blk,a", "32,virtio-blk,a", "4:1,virtio-blk,a", "1:4:0,virtio-blk,a", "4,virtio-blk,a,x"]
)
def test_what_bhyve_s_spelling_cannot_say(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"-s {text}: ")):
        drives.from_bhyve(text)


def test_an_output_is_no_disk(image: Path) -> None:
    config = MachineConfig.create(guests.path("probe"), drives=[image], serial=f"file:{image}")
    with pytest.raises(ConfigError, match="is read from there; give another path"):
        Outputs(config)


def refused(drive: Drive, message: str) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        DiskImage(drive)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"-drive file={drive.path}: ")
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_images_that_are_none(tmp_path: Path) -> None:
    refused(Drive(tmp_path / "none"), f"there is no such file; truncate -s 64M {tmp_path / 'none'} makes an empty disk")
    refused(Drive(tmp_path, read_only=True), "is a directory; give the file of an image")
    refused(Drive(Path("/dev/null")), "is neither a file nor a block device")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    refused(Drive(fifo), "is neither a file nor a block device")
    refused(Drive(tmp_path / "a\0b"), "cannot open it: ")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    refused(Drive.parse(loop), "cannot open it: too many levels of symbolic links")
    path = tmp_path / "image"
    path.touch()
    refused(Drive(path), f"is empty; truncate -s 64M {path} gives it a size")
    path.write_bytes(bytes(513))
    refused(
        Drive(path), f"has 513 bytes, no whole number of sectors of 512; truncate -s %512 {path} adds what is missing"
    )


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"QFI\xfb\0\0\0\3", "is a qcow2 image: format=qcow2 uses it as one"),
        (b"vhdxfile", "is a vhdx image"),
        (b"LUKS\xba\xbe", "is a luks image"),
        (gzip.compress(b"x"), "is packed; gzip -d unpacks it"),
        (b"\x28\xb5\x2f\xfd", "is packed; zstd -d unpacks it"),
    ],
)
def test_images_of_other_formats(image: Path, start: bytes, message: str) -> None:
    image.write_bytes(start.ljust(4096, b"\0"))
    refused(Drive(image), message)
    with DiskImage(Drive(image, format="raw")) as taken:
        assert taken.size == 4096


def test_an_image_has_one_writer(image: Path) -> None:
    with DiskImage(Drive(image)):
        refused(Drive(image), "another machine of this process uses it; end it first, or give this machine a copy")
        refused(Drive(image, read_only=True), "another machine of this process writes to it")
    with DiskImage(Drive(image, read_only=True)), DiskImage(Drive(image, snapshot=True)):
        refused(Drive(image), "another machine of this process uses it")
    DiskImage(Drive(image)).close()


def test_an_image_too_large_for_an_overlay(image: Path) -> None:
    try:
        os.truncate(image, 17 << 40)
    except OSError:
        os.truncate(image, 15 << 40)  # as much as ext4 takes
        with DiskImage(Drive(image, snapshot=True)) as taken:
            assert taken.size == 15 << 40
    else:
        refused(Drive(image, snapshot=True), "snapshot=on is for images up to 16 TiB; this one has 17 TiB")
    with DiskImage(Drive(image)) as taken:
        assert taken.size >= 15 << 40


def test_an_overlay_without_a_place(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    refused(Drive(image, snapshot=True), f"no room in {tmp_path / 'gone'} for what the guest writes: no such file")


def test_nothing_is_left_of_an_overlay(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "overlays"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    with DiskImage(Drive(image, snapshot=True)) as taken:
        assert os.fstat(taken.overlay_fd).st_size == 4096
        assert list(place.iterdir()) == []
