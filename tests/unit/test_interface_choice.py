"""fw_cfg or fwctl: who decides, what is refused, and what is remembered of an image."""

import json
from pathlib import Path

import pytest

from vmm.config.items import FwCfgItem, FwCtlItem
from vmm.config.machine import Interface, MachineConfig, MachineType
from vmm.errors import ConfigError
from vmm.firmware import clients, guests
from vmm.firmware.identity import identify
from vmm.firmware.images import FirmwareImages, FirmwareKind, Identity, Layout
from vmm.firmware.load import find, load

FWCTL_CLIENT = b"\xb8\x10\x05\0\0BHYV\0hw.ncpu\0"
"""mov eax, 0x510, and the signature: what the analysis takes for a client."""

FW_CFG_CLIENT = b"\xb8\x10\x05\0\0QEMU\0etc/e820\0"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vmm" / "firmware-identity"


def rom(clients: bytes = b"", kind: FirmwareKind = FirmwareKind.UNKNOWN) -> FirmwareImages:
    code = clients.ljust(65536 - 16, b"\x90") + b"\xeb\xfe".ljust(16, b"\x90")
    return FirmwareImages(kind, Layout.BIOS, "a.bin", code)


@pytest.mark.parametrize(
    ("clients", "interface", "why"),
    [
        (b"", Interface.QEMU, "no client of either was found"),
        (FW_CFG_CLIENT, Interface.QEMU, "the image speaks fw_cfg"),
        (FWCTL_CLIENT, Interface.BHYVE, "the image speaks fwctl and not fw_cfg"),
        (FW_CFG_CLIENT + FWCTL_CLIENT, Interface.QEMU, "the image speaks both"),
    ],
)
def test_auto_takes_what_the_image_speaks(clients: bytes, interface: Interface, why: str) -> None:
    choice = MachineConfig.create(rom(clients)).interface_choice
    assert choice.interface is interface
    assert choice.why.startswith(why)


@pytest.mark.parametrize("wanted", [Interface.QEMU, Interface.BHYVE])
@pytest.mark.parametrize("clients", [FW_CFG_CLIENT, FWCTL_CLIENT])
def test_what_is_asked_for_is_taken(wanted: Interface, clients: bytes, cache: Path) -> None:
    assert MachineConfig.create(rom(clients), fwcfg=wanted).interface_choice.interface is wanted
    assert not cache.exists(), "nobody had to look into the image"


@pytest.mark.parametrize("name", ["ovmf", "seabios", "probe"])
def test_firmware_known_by_name_is_not_looked_into(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "analyze_bytes", lambda *_: pytest.fail("looked into"))
    assert MachineConfig.create(name).interface_choice.interface is Interface.QEMU


def test_uefi_by_path_is_told_apart(bhyve_firmware: dict[str, Path]) -> None:
    found: dict[str, set[Interface]] = {}
    for variant, directory in bhyve_firmware.items():
        for image in ("BHYVE.fd", "BHYVE_CODE.fd"):
            config = MachineConfig.create(directory / image)
            assert (config.firmware.kind, config.machine_type) == (FirmwareKind.BHYVE, MachineType.BHYVE)
            found.setdefault(variant, set()).add(config.interface_choice.interface)
    assert found == {"both": {Interface.QEMU}, "fwctl-only": {Interface.BHYVE}}
    assert load(Path("/usr/share/ovmf/OVMF.fd")).kind is FirmwareKind.OVMF
    assert find(guests.path("probe")).kind is FirmwareKind.PROBE


def test_an_image_is_looked_into_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = rom(FWCTL_CLIENT)
    first = identify(images.code, images.path)
    assert first == Identity("unknown", Interface.BHYVE, "the image speaks fwctl and not fw_cfg")
    (file,) = cache.iterdir()
    monkeypatch.setattr(clients, "analyze_bytes", lambda *_: pytest.fail("looked into twice"))
    assert identify(images.code, images.path) == first
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    assert json.loads(file.read_text(encoding="utf-8"))["interface"] == "bhyve"


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff", b'{"kind": "bhyve", "interface": "xen", "reason": ""}']
)
def test_a_damaged_cache_is_looked_over(cache: Path, content: bytes) -> None:
    images = rom(FWCTL_CLIENT)
    first = identify(images.code, images.path)
    (file,) = cache.iterdir()
    file.write_bytes(content)
    assert identify(images.code, images.path) == first


def test_without_a_place_for_the_cache_it_is_looked_into_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    images = rom(FWCTL_CLIENT)
    assert identify(images.code, images.path).interface is Interface.BHYVE


@pytest.mark.parametrize(
    ("clients", "options", "complaint"),
    [
        (b"", {"fwctl": {"a": 1}}, "-fwctl name=a: this machine has fw_cfg (chosen by fwcfg=auto, because no client"),
        (b"", {"fwctl": {"a": 1}}, "for fwctl add fwcfg=bhyve"),
        (b"", {"fwctl": {"a": 1}, "fwcfg": "qemu"}, "this machine has fw_cfg (asked for). fw_cfg and fwctl answer at"),
        (b"", {"fwctl_extensions": True}, "fwctl-ext=on: this machine has fw_cfg"),
        (FWCTL_CLIENT, {"fw_cfg": {"opt/a": b""}}, "-fw_cfg name=opt/a: this machine has fwctl (chosen by fwcfg=auto"),
        (b"", {"fw_cfg": {"opt/a": b""}, "fwcfg": "bhyve"}, "for fw_cfg add fwcfg=qemu to -machine or -l"),
        (b"", {"fw_cfg": {"opt/a": b""}, "fwctl": {"a": 1}}, "same ports, 0x510 and 0x511"),
        (b"", {"devices": ["vmcoreinfo"], "fwcfg": "bhyve"}, "-device vmcoreinfo: this machine has fwctl"),
        (b"", {"smbios": ["type=1,product=a"], "fwcfg": "bhyve"}, "-smbios: this machine has fwctl"),
        (b"", {"fwctl": [FwCtlItem("a", 1), FwCtlItem("a", 2)], "fwcfg": "bhyve"}, "-fwctl name=a: the name is given"),
        (b"", {"fw_cfg": [FwCfgItem("opt/a", b""), FwCfgItem("opt/a", b"")]}, "-fw_cfg name=opt/a: the name is given"),
    ],
)
def test_what_nobody_would_carry_is_refused(clients: bytes, options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MachineConfig.create(rom(clients), **options)  # type: ignore[arg-type]
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_smbios_needs_no_fw_cfg_on_the_bhyve_board() -> None:
    config = MachineConfig.create(rom(), machine="bhyve", fwcfg="bhyve", smbios=["type=1,product=a"])
    assert config.interface_choice.interface is Interface.BHYVE


def test_an_image_that_needs_smm_gets_it_or_is_refused_by_name(cache: Path) -> None:
    image = Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
    for remembered in (False, True):
        assert any(cache.glob("*")) is remembered
        config = MachineConfig.create(image)
        assert config.has_smm
        assert config.has_secure_flash
    for options in ({"smm": "off"}, {"machine": "pc"}):
        with pytest.raises(ConfigError, match=r"OVMF_CODE_4M\.secboot\.fd: the image needs system management mode"):
            MachineConfig.create(image, **options)  # type: ignore[arg-type]


def test_smm_for_an_image_that_does_not_need_it() -> None:
    assert not MachineConfig.create("ovmf").has_smm
    config = MachineConfig.create("ovmf", smm="on")
    assert config.has_smm
    assert not config.has_secure_flash
    assert MachineConfig.create("ovmf", smm="on", secure_flash=True).has_secure_flash
    with pytest.raises(ConfigError, match="only q35 has system management mode"):
        MachineConfig.create("seabios", machine="pc", smm="on")
    with pytest.raises(ConfigError, match="give -machine smm=on, too"):
        MachineConfig.create("ovmf", secure_flash=True)
    with pytest.raises(ConfigError, match="-machine smm=maybe"):
        MachineConfig.create("ovmf", smm="maybe")
