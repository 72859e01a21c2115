import os
from pathlib import Path
from uuid import UUID

import pytest

from vmm.config.machine import Accelerator, FwCfgItem, Interface, MachineConfig, MachineType, Target, TargetKind
from vmm.config.parts import FwCtlItem, PflashDrive, parse_memory, parse_smp
from vmm.devices.fwctl_format import encode_value
from vmm.errors import ConfigError, ExitStatus
from vmm.firmware import guests
from vmm.firmware.images import FirmwareImages, FirmwareKind, Layout
from vmm.tables.boot_order import BootOptions


@pytest.fixture
def image() -> FirmwareImages:
    return FirmwareImages(FirmwareKind.UNKNOWN, Layout.BIOS, Path("a.bin"), b"\x90" * 65536)


def test_defaults(image: FirmwareImages) -> None:
    config = MachineConfig.create(image)
    assert (config.cpus, config.max_cpus, config.memory) == (1, 1, 256 << 20)
    assert config.interface is Interface.AUTO
    assert config.accel is Accelerator.AUTO
    assert config.serial.kind is TargetKind.NONE
    assert config.machine_type is MachineType.PC


def test_words_of_python(image: FirmwareImages) -> None:
    config = MachineConfig.create(
        image,
        cpus=3,
        max_cpus=8,
        memory="512M",
        machine="q35",
        fwcfg="bhyve",
        uuid="4600cb32-38ec-4b2f-8acb-81c6ea54f2d8",
        serial="file:log",
        accel="kvm",
        fwctl={"hw.ncpu": 3},
    )
    assert (config.cpus, config.max_cpus, config.memory) == (3, 8, 512 << 20)
    assert config.machine_type is MachineType.Q35
    assert config.interface is Interface.BHYVE
    assert config.uuid == UUID("4600cb32-38ec-4b2f-8acb-81c6ea54f2d8").bytes
    assert config.serial == Target(TargetKind.FILE, Path("log"))
    assert config.accel is Accelerator.KVM
    assert config.fwctl == (FwCtlItem("hw.ncpu", 3),)


def test_items_of_python(image: FirmwareImages) -> None:
    items: dict[str, bytes | str | Path] = {"opt/a": b"bytes", "opt/b": "text"}
    config = MachineConfig.create(image, fw_cfg=items)
    assert config.fw_cfg == (FwCfgItem("opt/a", b"bytes"), FwCfgItem("opt/b", b"text"))
    with pytest.raises(TypeError, match="an integer has no width"):
        MachineConfig.create(image, fw_cfg={"opt/a": 3})  # type: ignore[dict-item]


def test_bytes_of_the_command_line_that_are_no_text() -> None:
    typed = os.fsdecode(b"\xff\xc3\xa9")
    assert FwCfgItem.parse(f"opt/a,string={typed}", "-fw_cfg").data == b"\xff\xc3\xa9"
    assert encode_value(typed) == b"\xff\xc3\xa9\0"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"cpus": 0}, "-smp 0: a machine has from 1 to 255 CPUs"),
        ({"cpus": 256}, "-smp 256: a machine has from 1 to 255"),
        ({"cpus": 4, "max_cpus": 2}, "maxcpus=2: maxcpus is from 4 to 255"),
        ({"memory": "8M"}, "-m 8M: a.bin needs 16M or more"),
        ({"memory": "0"}, "-m 0: guest RAM is a positive number of whole MiB"),
        ({"memory": 12345678}, "whole MiB"),
        ({"memory": "1P"}, "more than the 8 TiB"),
        ({"memory": "lots"}, "not a size"),
        ({"memory": "1G,slots=2"}, "unknown key 'slots'"),
        ({"machine": "virt"}, "-machine virt: not known; known are auto, q35, pc, bhyve"),
        ({"fwcfg": "xen"}, "fwcfg=xen: not known"),
        ({"accel": "maybe"}, "-accel maybe"),
        ({"uuid": "1234"}, "-uuid 1234: not a UUID"),
        ({"serial": "tcp:1"}, "-serial tcp:1: not a target"),
        ({"fw_cfg": {"": b""}}, "needs a name"),
        ({"fw_cfg": {"opt/" + "x" * 52: b""}}, "56 characters; a name has 55"),
        ({"fw_cfg": {"opt/ü": b""}}, "printable ASCII"),
        ({"fw_cfg": [FwCfgItem("opt/a", b"1"), FwCfgItem("opt/a", b"2")]}, "opt/a: the name is given twice"),
        ({"fw_cfg": {"opt/a": Path("/nonexistent")}}, "cannot read /nonexistent: no such file"),
        ({"append": "console=ttyS0"}, "give -kernel"),
        ({"kernel": "/nonexistent"}, "-kernel: cannot read /nonexistent"),
        ({"boot": "order=z"}, "-boot order=z"),
        ({"boot": "splash-time=65536"}, "-boot splash-time=65536: must be from 0 to 65535"),
    ],
)
def test_refused_in_one_line(image: FirmwareImages, options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MachineConfig.create(image, **options)  # type: ignore[arg-type]
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status is ExitStatus.USAGE


def test_longest_name_is_taken(image: FirmwareImages) -> None:
    name = "opt/" + "x" * 51
    assert MachineConfig.create(image, fw_cfg={name: b""}).fw_cfg[0].name == name


def test_our_guest_by_name() -> None:
    config = MachineConfig.create("probe")
    assert config.firmware.path == guests.path("probe")
    assert config.firmware.kind is FirmwareKind.PROBE


@pytest.mark.parametrize(
    ("text", "counts"),
    [("4", (4, 4)), ("4,maxcpus=8", (4, 8)), ("cpus=2,maxcpus=3", (2, 3)), ("maxcpus=6", (6, 6)), ("0x10", (16, 16))],
)
def test_smp(text: str, counts: tuple[int, int]) -> None:
    assert parse_smp(text) == counts


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "4,sockets=2", "300", "4,maxcpus=0", "4,4"])
def test_smp_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="-smp"):
        parse_smp(text)


def test_memory() -> None:
    assert parse_memory("512") == 512 << 20
    assert parse_memory("size=2G") == 2 << 30
    assert parse_memory(1 << 30) == 1 << 30


def test_fw_cfg_item_of_qemu_has_no_nul_and_of_bhyve_has() -> None:
    assert FwCfgItem.parse("name=opt/x,string=hi", "-fw_cfg").data == b"hi"
    assert FwCfgItem.parse("opt/x,string=hi", "-f", terminate=True).data == b"hi\0"


def test_fw_cfg_item_of_a_file_keeps_the_path(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"")
    assert FwCfgItem.parse(f"opt/x,file={path}", "-fw_cfg") == FwCfgItem("opt/x", path=path)


@pytest.mark.parametrize(
    "text",
    [
        "opt/x",
        "opt/x,string=",
        "string=a",
        "opt/x,file=/nonexistent",
        "opt/x,file=/etc",
        "opt/x,string=a,file=b",
        "a,b=c",
    ],
)
def test_fw_cfg_item_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="-fw_cfg"):
        FwCfgItem.parse(text, "-fw_cfg")


def test_fwctl_item(tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.write_bytes(b"\1\2")
    assert FwCtlItem.parse("hw.ncpu,value=4").value == 4
    assert FwCtlItem.parse("name=org.example,value=4x").value == "4x"
    assert FwCtlItem.parse(f"org.example,file={path}").value == b"\1\2"
    for text in ("hw.ncpu", "value=1", f"a,value=1,file={path}", "a,file=/nonexistent"):
        with pytest.raises(ConfigError, match="-fwctl"):
            FwCtlItem.parse(text)


def test_pflash_drive() -> None:
    drive = PflashDrive.parse("if=pflash,format=raw,file=a,,b.fd,readonly=on,unit=1")
    assert drive == PflashDrive(Path("a,b.fd"), readonly=True, unit=1)


@pytest.mark.parametrize(
    "text", ["file=x", "if=ide,file=x", "if=pflash", "if=pflash,format=qcow2,file=x", "if=pflash,file=x,unit=2"]
)
def test_pflash_drive_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="-drive"):
        PflashDrive.parse(text)


def test_boot_options() -> None:
    assert BootOptions.parse("dc") == BootOptions(order="dc")
    assert BootOptions.parse("order=c,menu=on,splash-time=12,reboot-timeout=-1,strict=on") == BootOptions(
        order="c", menu=True, splash_time_ms=12, reboot_timeout_ms=-1, strict=True
    )
