"""Where a report comes from: hashes are those of the files, as sha256sum gives them."""

import datetime as dt
import hashlib
import os
import shlex
from pathlib import Path

from real_mode_rom import RESET, image

from vmm.config.machine import MachineConfig
from vmm.firmware.load import load
from vmm.installation import version
from vmm.report.origin import images_of_firmware, images_of_machine, origin

OVMF = Path("/usr/share/OVMF")
SINGLE = Path("/usr/share/ovmf/OVMF.fd")


def hashed(path: Path) -> tuple[str, int, str]:
    data = path.read_bytes()
    return str(path), len(data), hashlib.sha256(data).hexdigest()


def test_a_pair_of_images_is_two_files() -> None:
    found = list(images_of_firmware(load(OVMF / "OVMF_CODE_4M.fd", OVMF / "OVMF_VARS_4M.fd")))
    assert [image["role"] for image in found] == ["firmware", "variables"]
    shown = [(image["path"], image["size"], image["sha256"]) for image in found]
    assert shown == [hashed(OVMF / "OVMF_CODE_4M.fd"), hashed(OVMF / "OVMF_VARS_4M.fd")]


def test_a_single_image_is_one_file() -> None:
    images = load(SINGLE)
    assert images.variables is not None
    (found,) = images_of_firmware(images)
    assert (found["path"], found["size"], found["sha256"]) == hashed(SINGLE)


def test_what_was_read_is_hashed_not_what_is_there_now(tmp_path: Path) -> None:
    path = tmp_path / "bios.bin"
    path.write_bytes(image(RESET))
    expected = hashed(path)
    images = load(path)
    path.unlink()
    (found,) = images_of_firmware(images)
    assert (found["path"], found["size"], found["sha256"]) == expected


def test_a_kernel_belongs_to_it(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel.efi"
    kernel.write_bytes(b"MZ" + bytes(4094))
    config = MachineConfig.create("ovmf", kernel=kernel)
    firmware, *_, found = images_of_machine(config)
    assert firmware["role"] == "firmware"
    assert (found["role"], found["path"], found["size"], found["sha256"]) == ("kernel", *hashed(kernel))


def test_it_says_who_when_and_how() -> None:
    before = dt.datetime.now(dt.UTC).replace(microsecond=0)
    found = origin(["boot", "a b.fd", "-append", "x='y'"], [])
    date = dt.datetime.fromisoformat(found["date"])
    assert before <= date <= dt.datetime.now(dt.UTC)
    assert date.utcoffset() == dt.timedelta(0)
    assert found["vmm"] == version()
    assert found["command"] is not None
    assert shlex.split(found["command"]) == ["vmm", "boot", "a b.fd", "-append", "x='y'"]
    assert found["host"]["kernel"] == os.uname().release
    assert found["host"]["cpus"] == os.cpu_count()
    assert origin(None, [])["command"] is None
