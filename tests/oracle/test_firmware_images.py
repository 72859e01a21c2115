"""Real images, each told for what it is, and read as virt-firmware reads it."""

from collections import UserList
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from debian import version
from virt.firmware import dump

from vmm.firmware.clients import FW_CFG, FWCTL, analyze
from vmm.firmware.contents import read

OVMF = Path("/usr/share/OVMF")

Case = tuple[Path, str, str, tuple[str, ...], tuple[str, ...]]

SECURE = ("secure-boot",)
WITH_SMM = ("secure-boot", "smm")

OVMF_2022_11: dict[str, Case] = {
    "OVMF, 2 MiB, whole": (Path("/usr/share/ovmf/OVMF.fd"), "ovmf", "code+vars", ("x64",), SECURE),
    "OVMF, 2 MiB": (OVMF / "OVMF_CODE.fd", "ovmf", "code", ("x64",), SECURE),
    "OVMF, 2 MiB, SMM": (OVMF / "OVMF_CODE.secboot.fd", "ovmf", "code", ("x64",), WITH_SMM),
    "OVMF, 4 MiB": (OVMF / "OVMF_CODE_4M.fd", "ovmf", "code", ("ia32", "x64"), SECURE),
    "OVMF, 4 MiB, SMM": (OVMF / "OVMF_CODE_4M.secboot.fd", "ovmf", "code", ("ia32", "x64"), WITH_SMM),
    "OVMF, ia32, SMM": (OVMF / "OVMF32_CODE_4M.secboot.fd", "ovmf", "code", ("ia32",), WITH_SMM),
}

OVMF_2025_02: dict[str, Case] = {
    "OVMF, 4 MiB, whole": (Path("/usr/share/ovmf/OVMF.fd"), "ovmf", "code+vars", ("x64",), ()),
    "OVMF, 4 MiB": (OVMF / "OVMF_CODE_4M.fd", "ovmf", "code", ("x64",), ()),
    "OVMF, 4 MiB, SMM": (OVMF / "OVMF_CODE_4M.secboot.fd", "ovmf", "code", ("x64",), WITH_SMM),
    "OVMF, ia32": (OVMF / "OVMF32_CODE_4M.fd", "ovmf", "code", ("ia32",), ()),
    "OVMF, ia32, SMM": (OVMF / "OVMF32_CODE_4M.secboot.fd", "ovmf", "code", ("ia32",), WITH_SMM),
}
"""Debian 13 has no images of 2 MiB, no 32-bit PEI in the 64-bit ones, and Secure Boot only with SMM."""

OTHERS: dict[str, Case] = {
    "SeaBIOS, 128 KiB": (Path("/usr/share/seabios/bios.bin"), "seabios", "rom", (), ()),
    "SeaBIOS, 256 KiB": (Path("/usr/share/seabios/bios-256k.bin"), "seabios", "rom", (), ()),
    "SeaBIOS for microvm": (Path("/usr/share/seabios/bios-microvm.bin"), "seabios", "rom", (), ()),
    "qboot": (Path("/usr/share/qemu/qboot.rom"), "qboot", "rom", (), ()),
}

RECENT = version("ovmf") >= (2023, 0)
DEBIAN = (OVMF_2025_02 if RECENT else OVMF_2022_11) | OTHERS
STORES = ["OVMF_VARS_4M.fd", "OVMF_VARS_4M.ms.fd", "OVMF32_VARS_4M.fd", *([] if RECENT else ["OVMF_VARS.fd"])]


@pytest.mark.parametrize(("path", "kind", "content", "architectures", "features"), DEBIAN.values(), ids=DEBIAN.keys())
def test_debian_images_speak_fw_cfg(
    path: Path, kind: str, content: str, architectures: tuple[str, ...], features: tuple[str, ...]
) -> None:
    analysis = analyze(path)
    assert (analysis.kind, analysis.content) == (kind, content)
    assert (analysis.architectures, analysis.features) == (architectures, features)
    assert set(analysis.clients) == {FW_CFG}
    assert analysis.recommended_interface == "qemu"
    assert "etc/e820" in analysis.clients[FW_CFG].names
    assert analysis.encodings == (("LZMA",) if kind == "ovmf" else ())
    assert not analysis.problems
    if kind == "seabios":
        assert analysis.version is not None
        assert analysis.version.startswith("1.")


@pytest.mark.parametrize("store", STORES)
def test_variable_stores_tell_nothing(store: str) -> None:
    analysis = analyze(OVMF / store)
    assert (analysis.content, analysis.clients, analysis.recommended_interface) == ("vars", {}, "qemu")
    assert "variable store" in analysis.reason


def test_bhyve_firmware_with_both_clients(bhyve_firmware: dict[str, Path]) -> None:
    for image, content in (("BHYVE.fd", "code+vars"), ("BHYVE_CODE.fd", "code")):
        analysis = analyze(bhyve_firmware["both"] / image)
        assert (analysis.kind, analysis.content, analysis.architectures) == ("bhyve", content, ("x64",))
        assert set(analysis.clients) == {FW_CFG, FWCTL}
        assert "opt/bhyve/hw.ncpu" in analysis.clients[FW_CFG].names
        assert {fact.where for fact in analysis.clients[FWCTL].facts} == {"AcpiPlatform"}
        assert analysis.recommended_interface == "qemu"
        assert "both" in analysis.reason


def test_bhyve_firmware_with_fwctl_alone(bhyve_firmware: dict[str, Path]) -> None:
    for image, content in (("BHYVE.fd", "code+vars"), ("BHYVE_CODE.fd", "code")):
        analysis = analyze(bhyve_firmware["fwctl-only"] / image)
        assert (analysis.kind, analysis.content, analysis.architectures) == ("bhyve", content, ("x64",))
        assert set(analysis.clients) == {FWCTL}
        assert analysis.clients[FWCTL].names == ("hw.ncpu",)
        assert analysis.recommended_interface == "bhyve"


def walk(item: Any) -> Iterator[Any]:
    yield item
    if isinstance(item, UserList):
        for inner in item:
            yield from walk(inner)


def check_against_virt_firmware(path: Path) -> None:
    items = list(walk(dump.Edk2Image(path.name, path.read_bytes())))
    contents = read(path.read_bytes())
    theirs = [item for item in items if isinstance(item, dump.Edk2Volume)]
    assert [UUID(bytes_le=found.volume.guid) for found in contents.volumes] == [volume.guid for volume in theirs]
    assert [found.volume.size for found in contents.volumes] == [volume.tlen for volume in theirs]
    outer = [found.volume.offset for found in contents.volumes if found.depth == 0]
    assert outer == [item.offset for item in dump.Edk2Image(path.name, path.read_bytes())]
    files = [item for item in items if isinstance(item, dump.Edk2FfsFile) and item.typeid != 0xF0]
    assert sorted(map(str, contents.files)) == sorted(str(file.guid) for file in files)


@pytest.mark.parametrize(
    "image", [case[0] for case in DEBIAN.values() if case[1] == "ovmf"], ids=lambda path: path.name
)
def test_ovmf_as_virt_firmware_reads_it(image: Path) -> None:
    check_against_virt_firmware(image)


def test_bhyve_firmware_as_virt_firmware_reads_it(bhyve_firmware: dict[str, Path]) -> None:
    for directory in bhyve_firmware.values():
        check_against_virt_firmware(directory / "BHYVE.fd")


@pytest.mark.parametrize("image", [case[0] for case in DEBIAN.values()], ids=DEBIAN.keys())
def test_truncated_images_never_raise(image: Path, tmp_path: Path) -> None:
    data = image.read_bytes()
    for length in (1, 40, 71, 4096, len(data) // 3, len(data) - 1):
        part = tmp_path / f"{length}.fd"
        part.write_bytes(data[:length])
        analysis = analyze(part)
        assert analysis.recommended_interface == "qemu"
        if analysis.volumes and analysis.volumes[0].volume.size > length:
            assert analysis.problems
