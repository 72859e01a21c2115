"""Image files, real ones where the host has them, and each way in which one can be wrong."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from debian import version

from vmm.config.drives import PflashDrive, flash_files
from vmm.config.machine import MachineConfig
from vmm.errors import ConfigError
from vmm.firmware import guests, search
from vmm.firmware import load as firmware
from vmm.firmware.images import FirmwareImages, FirmwareKind, Layout
from vmm.firmware.load import find, load
from vmm.firmware.volumes import NVRAM_GUID

FFS2_GUID = bytes.fromhex("78e58c8c3d8a1c4f9935896185c32dd3")


def images_of(drives: list[PflashDrive]) -> FirmwareImages:
    return MachineConfig.create(**flash_files(drives)).firmware


def volume(size: int, guid: bytes = FFS2_GUID, fill: bytes = b"\x90") -> bytes:
    header = struct.pack("<16x16sQ4sIHHH3x", guid, size, b"_FVH", 0, 72, 0, 0)
    return header + fill * (size - len(header))


def variable_store(size: int = 0x84000) -> bytes:
    return volume(size, NVRAM_GUID, b"\xff")


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "TEST_CODE.fd"
    path.write_bytes(volume(0x348000) + volume(0x34000))
    return path


@pytest.fixture
def variables(tmp_path: Path) -> Path:
    path = tmp_path / "my_vars.fd"
    path.write_bytes(variable_store())
    return path


@pytest.fixture
def single(tmp_path: Path) -> Path:
    path = tmp_path / "single.fd"
    path.write_bytes(variable_store(0x20000) + volume(0x1E0000))
    return path


def refused(*arguments: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_pair(code: Path, variables: Path) -> None:
    images = load(code, variables)
    assert images.layout is Layout.FLASH
    assert images.machine == "q35"
    assert (images.code_address, images.variables_address) == (0xFFC84000, 0xFFC00000)
    assert images.variables is not None
    assert images.variables.data == variables.read_bytes()
    assert not images.variables.persist


def test_single_image_is_split(single: Path) -> None:
    images = load(single)
    assert (images.code_address, images.variables_address) == (0xFFE20000, 0xFFE00000)
    assert images.code == single.read_bytes()[0x20000:]
    assert images.variables is not None
    assert not images.variables.persist


def test_code_only_gets_a_private_copy_of_the_template_beside_it(code: Path) -> None:
    template = code.with_name("TEST_VARS.fd")
    template.write_bytes(variable_store())
    images = load(code, persist=True)
    assert images.variables is not None
    assert images.variables.path == template
    assert not images.variables.persist
    assert "CODE only" in images.notes[0]


def test_code_only_without_template(code: Path) -> None:
    message = refused(code)
    assert "CODE only" in message
    assert "-drive if=pflash" in message


def test_template_of_another_size_is_not_taken(code: Path) -> None:
    code.with_name("TEST_VARS.fd").write_bytes(variable_store(0x20000))
    assert "CODE only" in refused(code)


def test_blank_variables_are_a_store_that_the_guest_formats(code: Path, variables: Path) -> None:
    variables.write_bytes(b"\xff" * 0x84000)
    assert load(code, variables).variables is not None


def test_wrong_variables(code: Path, variables: Path, single: Path) -> None:
    variables.write_bytes(variable_store(0x20000))
    assert "131072 bytes; the variable store of TEST_CODE.fd has 540672" in refused(code, variables)
    variables.write_bytes(b"x" * 0x84000)
    assert "neither a variable store nor blank" in refused(code, variables)
    variables.write_bytes(volume(0x84000))
    assert "not a variable store" in refused(code, variables)
    assert "has its own variable store" in refused(single, variables)


@pytest.mark.usefixtures("ordinary_permissions")
def test_variables_that_cannot_be_written(code: Path, variables: Path) -> None:
    variables.chmod(0o444)
    assert "cannot write the variable store: permission denied" in refused(code, variables, persist=True)
    assert load(code, variables).variables is not None


@pytest.mark.usefixtures("ordinary_permissions")
def test_unreadable(code: Path) -> None:
    code.chmod(0)
    assert "permission denied" in refused(code)


def test_variables_alone(variables: Path) -> None:
    assert "a variable store (VARS) without firmware" in refused(variables)


@pytest.mark.parametrize("keep", [0x100, 0x1000, 0x348000 + 0x1000, 0x37C000 - 1])
def test_truncated_volume(code: Path, variables: Path, keep: int) -> None:
    code.write_bytes(code.read_bytes()[:keep])
    assert "truncated: the firmware volume at" in refused(code, variables)


def test_truncated_between_volumes(code: Path, variables: Path) -> None:
    code.write_bytes(volume(0x348000, fill=b"\xff"))
    assert "no code at the reset vector" in refused(code, variables)


def test_bios(tmp_path: Path) -> None:
    path = tmp_path / "bios.bin"
    path.write_bytes(b"SeaBIOS" + b"\x90" * (131072 - 7))
    images = load(path)
    assert (images.kind, images.layout, images.code_address) == (FirmwareKind.SEABIOS, Layout.BIOS, 0xFFFE0000)
    assert images.machine == "pc"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "not a multiple of 64 KiB" in refused(path)
    path.write_bytes(bytes(131072))
    assert "no code at the reset vector" in refused(path)


def test_files_that_are_no_firmware(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert f"firmware image: cannot read {path}: no such file" in refused(path)
    assert "is a directory" in refused(tmp_path)
    path.write_bytes(b"")
    assert "is empty" in refused(path)
    path.write_bytes(b"QFI\xfb" + bytes(100))
    assert "qemu-img convert -O raw" in refused(path)
    path.write_bytes(b"\x7fELF" + bytes(100))
    assert "not a usable ELF file" in refused(path)
    assert "outside of the firmware window" in refused(Path("/bin/true"))


def test_larger_than_the_window(tmp_path: Path) -> None:
    path = tmp_path / "large.fd"
    with path.open("wb") as file:
        file.truncate((16 << 20) + 65536)
    assert "has 16842752 bytes; the most here is 16777216 (16 MiB)" in refused(path)


def test_elf_guest_becomes_the_rom_that_was_made_from_it() -> None:
    images = load(guests.symbols("probe"))
    rom = guests.path("probe").read_bytes()
    assert images.layout is Layout.BIOS
    assert images.code == rom


def test_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ovmf").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert find("probe").kind is FirmwareKind.PROBE
    with pytest.raises(ConfigError, match="is empty"):
        find("./ovmf")
    assert find("exit").path == guests.path("exit")
    assert find("exit").kind is FirmwareKind.PROBE
    with pytest.raises(ConfigError, match="omvf: neither a file nor a name of firmware"):
        find("omvf")


def test_no_such_firmware_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "SEABIOS_PLACES", ())
    with pytest.raises(ConfigError, match="apt-get install seabios"):
        find("seabios")


def descriptor(code: Path, variables: Path | None, **changes: object) -> str:
    mapping: dict[str, object] = {"device": "flash", "executable": {"filename": str(code), "format": "raw"}}
    if variables is not None:
        mapping["nvram-template"] = {"filename": str(variables), "format": "raw"}
    content: dict[str, object] = {
        "description": "test",
        "interface-types": ["uefi"],
        "mapping": mapping,
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
        "features": [],
    }
    return json.dumps(content | changes)


def test_descriptors_decide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: Path, variables: Path) -> None:
    user, system = tmp_path / "user", tmp_path / "system"
    for directory in (user, system):
        directory.mkdir()
    monkeypatch.setattr(search, "DESCRIPTOR_DIRECTORIES", (str(user), str(system)))
    (system / "10-broken.json").write_text("{")
    (system / "20-smm.json").write_text(descriptor(code, variables, features=["requires-smm"]))
    (system / "30-arm.json").write_text(descriptor(code, variables, targets=[{"architecture": "aarch64"}]))
    (system / "40-gone.json").write_text(descriptor(tmp_path / "gone", None))
    (system / "50-hidden.json").write_text(descriptor(tmp_path / "gone", None))
    (user / "50-hidden.json").write_text(descriptor(code, variables))
    assert search.locate("ovmf") == search.Located(code, variables)
    assert search.variables_template(code, 0x84000) == variables


@pytest.mark.usefixtures("ordinary_permissions")
def test_a_home_that_nobody_may_look_into_has_no_firmware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(search, "BHYVE_PLACES", search.BHYVE_PLACES[:1])
    (tmp_path / "qemu").mkdir()
    tmp_path.chmod(0)
    try:
        search.descriptors()
        with pytest.raises(ConfigError, match="no bhyve firmware on this host"):
            search.locate("bhyve")
    finally:
        tmp_path.chmod(0o700)


def test_flash_drives(code: Path, variables: Path, single: Path) -> None:
    images = images_of([PflashDrive(code, readonly=True), PflashDrive(variables)])
    assert images.variables is not None
    assert (images.path, images.variables.path, images.variables.persist) == (code, variables, True)
    swapped = images_of([PflashDrive(variables, unit=1), PflashDrive(code, unit=0)])
    assert swapped.variables is not None
    assert swapped.path == code
    kept = images_of([PflashDrive(code), PflashDrive(variables, readonly=True)])
    assert kept.variables is not None
    assert not kept.variables.persist
    alone = images_of([PflashDrive(single)])
    assert alone.variables is not None
    assert alone.variables.persist
    for drives, complaint in (
        ([PflashDrive(variables, unit=1)], "unit 0, the firmware's CODE, is missing"),
        ([PflashDrive(code), PflashDrive(code, unit=0)], "unit 0 is taken"),
        ([PflashDrive(code), PflashDrive(variables), PflashDrive(single)], "two flash units"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            images_of(drives)


REAL = {
    "/usr/share/OVMF/OVMF_CODE_4M.fd": ("ovmf", "q35", 0xFFC84000, 0xFFC00000),
    "/usr/share/OVMF/OVMF32_CODE_4M.secboot.fd": ("ovmf", "q35", 0xFFC84000, 0xFFC00000),
    "/usr/share/seabios/bios.bin": ("seabios", "pc", 0xFFFE0000, 0xFFFE0000),
    "/usr/share/seabios/bios-256k.bin": ("seabios", "pc", 0xFFFC0000, 0xFFFC0000),
    "/usr/share/qemu/qboot.rom": ("unknown", "pc", 0xFFFF0000, 0xFFFF0000),
}
if version("ovmf") < (2023, 0):
    REAL["/usr/share/OVMF/OVMF_CODE.fd"] = ("ovmf", "q35", 0xFFE20000, 0xFFE00000)
    REAL["/usr/share/ovmf/OVMF.fd"] = ("ovmf", "q35", 0xFFE20000, 0xFFE00000)
else:  # no images of 2 MiB any more
    REAL["/usr/share/ovmf/OVMF.fd"] = ("ovmf", "q35", 0xFFC84000, 0xFFC00000)


@pytest.mark.parametrize("path", REAL)
def test_images_of_debian(path: str) -> None:
    images = load(Path(path))
    found = (images.kind, images.machine, images.code_address, images.variables_address)
    assert found == REAL[path]


def test_debians_ovmf_by_name() -> None:
    images = find("ovmf")
    assert images.kind is FirmwareKind.OVMF
    assert images.variables is not None
    assert len(images.code) + len(images.variables.data) == 4 << 20
    assert firmware.variables_size(images.code) == len(images.variables.data)
