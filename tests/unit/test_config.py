import copy
import os
import pickle
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from vmm.config.debugger import DebugAddress
from vmm.config.drives import PflashDrive
from vmm.config.items import FwCfgItem, FwCtlItem
from vmm.config.keywords import MachineOptions
from vmm.config.machine import Accelerator, Interface, MachineConfig, MachineType, Target, TargetKind
from vmm.config.parts import parse_memory
from vmm.config.topology import parse_smp
from vmm.devices.fwctl_format import encode_value
from vmm.errors import ConfigError, ExitStatus
from vmm.firmware import guests
from vmm.firmware.images import FirmwareImages, FirmwareKind, Layout
from vmm.tables.acpi_user import UserTable
from vmm.tables.boot_order import BootOptions
from vmm.tables.e820 import E820Entry


@pytest.fixture
def image() -> FirmwareImages:
    return FirmwareImages(FirmwareKind.UNKNOWN, Layout.BIOS, "a.bin", b"\x90" * 65536)


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


@pytest.mark.parametrize(("memory", "most", "low"), [("2G", None, 2), ("4G", None, 3), ("4G", "1G", 1)])
def test_bhyve_cuts_ram_at_3_gib(image: FirmwareImages, memory: str, most: str | None, low: int) -> None:
    config = MachineConfig.create(image, machine="bhyve", memory=memory, max_ram_below_4g=most)
    assert config.low_memory == low << 30


def test_bytes_of_the_command_line_that_are_no_text() -> None:
    typed = os.fsdecode(b"\xff\xc3\xa9")
    assert FwCfgItem.parse(f"opt/a,string={typed}", "-fw_cfg").data == b"\xff\xc3\xa9"
    assert encode_value(typed) == b"\xff\xc3\xa9\0"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"cpus": 0}, "-smp 0: a machine has from 1 to 1024 CPUs"),
        ({"cpus": 1025}, "-smp 1025: a machine has from 1 to 1024"),
        ({"cpus": 4, "max_cpus": 2}, "maxcpus=2: maxcpus is from 4 to 1024"),
        ({"memory": "8M"}, "-m 8M: a.bin needs 16M or more"),
        ({"memory": "0"}, "-m: guest RAM is a positive number of whole MiB"),
        ({"memory": 12345678}, "whole MiB"),
        ({"memory": "1P"}, "more than the 8 TiB"),
        ({"memory": "lots"}, "not a size"),
        ({"memory": "1G,banks=2"}, "unknown key 'banks'"),
        ({"max_ram_below_4g": "8M"}, "max-ram-below-4g=8388608: must be whole MiB, from 16M to 4G"),
        ({"max_ram_below_4g": "5G"}, "must be whole MiB, from 16M to 4G"),
        ({"max_ram_below_4g": "x"}, "-machine max-ram-below-4g=x: not a size"),
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


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"cpus": 9999}, "-smp 9999: a machine has from 1 to 1024 CPUs"),
        ({"memory": 1}, "whole MiB"),
        ({"fw_cfg": (FwCfgItem("", b""),)}, "needs a name"),
        ({"append": b"x"}, "give -kernel"),
        ({"smbios_entry_point": 33}, "must be 32 or 64"),
        ({"e820": (E820Entry(0, 4096, 2),)}, "overlap"),
        ({"acpi_tables": (UserTable(b"FACP" + bytes(32)),)}, "would be a second one"),
    ],
)
def test_no_config_is_unchecked(image: FirmwareImages, fields: dict[str, object], complaint: str) -> None:
    config = MachineConfig.create(image)
    with pytest.raises(ConfigError, match=complaint):
        config._replace(**fields)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=complaint):
        MachineConfig(image, **fields)
    with pytest.raises(ConfigError, match=complaint):
        MachineConfig._make((config._asdict() | fields).values())
    assert copy.copy(config) == pickle.loads(pickle.dumps(config)) == config  # noqa: S301  # our own


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"cpus": 2.0}, "cpus: must be int, not float: 2.0"),
        ({"max_cpus": "2"}, "max_cpus: must be int, not str"),
        ({"memory": 2.0}, "-m: must be str or int, not float"),
        ({"memory": True}, "-m: must be str or int, not bool"),
        ({"direct": "off"}, "direct: must be bool, not str"),
        ({"uuid": 5}, "-uuid: must be str, not int"),
        ({"serial": 1}, "-serial: must be str, not int"),
        ({"boot": 1}, "-boot: must be str, not int"),
        ({"kernel": 1}, "-kernel: must be str or Path, not int"),
        ({"append": 1}, "append: must be str or bytes, not int"),
        ({"e820": 5}, "e820: must be str or E820Entry, not int: 5"),
        ({"e820": [5]}, "e820: must be str or E820Entry, not int"),
        ({"smbios": [5]}, "smbios: must be str or bytes or Mapping or SmbiosOption, not int"),
        ({"acpi_tables": [5]}, "acpi_tables: must be str or bytes or Path or UserTable, not int"),
        ({"fw_cfg": 5}, "fw_cfg: must be str or FwCfgItem, not int"),
        ({"fw_cfg": [("opt/a", b"")]}, "fw_cfg: must be str or FwCfgItem, not tuple"),
        ({"fw_cfg": {"opt/a": None}}, "fw_cfg item opt/a: bytes, str or a Path"),
        ({"fwctl": [5]}, "fwctl: must be str or FwCtlItem, not int"),
        ({"devices": [5]}, "devices: must be str, not int"),
        ({"bootorder": [5]}, "bootorder: must be str, not int"),
    ],
)
def test_wrong_types_are_said(image: FirmwareImages, options: dict[str, object], complaint: str) -> None:
    with pytest.raises(TypeError) as caught:
        MachineConfig.create(image, **options)  # type: ignore[arg-type]
    assert complaint in str(caught.value)


@pytest.mark.parametrize("wrong", [5, b"x.fd"])
def test_wrong_types_of_files_are_said(wrong: Any) -> None:
    with pytest.raises(TypeError, match="firmware: must be str or Path, not"):
        MachineConfig.create(wrong)
    with pytest.raises(TypeError, match="variables: must be str or Path, not"):
        MachineConfig.create("ovmf", variables=wrong)


def test_variables_beside_loaded_images_are_not_overlooked(image: FirmwareImages, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="loaded images have their variables"):
        MachineConfig.create(image, variables=tmp_path / "vars.fd")


def test_an_option_that_there_is_not_is_refused_by_name(image: FirmwareImages) -> None:
    for wrong in ({"cpuss": 3}, {"cpuss": None}):
        with pytest.raises(TypeError, match=r"^a machine has no option 'cpuss'; did you mean cpus\?$"):
            MachineConfig.create(image, **wrong)
    with pytest.raises(TypeError, match=r"^a machine has no option 'nonsense'$"):
        MachineConfig.create(image, nonsense=1)  # type: ignore[call-arg]


def test_none_is_as_if_it_were_left_out(image: FirmwareImages) -> None:
    names = MachineOptions.__annotations__
    assert len(names) > 25
    nothing: Any = dict.fromkeys(names)
    assert MachineConfig.create(image, **nothing) == MachineConfig.create(image)


def test_one_where_several_may_be(image: FirmwareImages) -> None:
    entry = E820Entry(0xFD00_0000, 1 << 20, 2)
    text = "base=0xfd000000,size=1M,type=reserved"
    table = b"SSDT" + (36).to_bytes(4, "little") + bytes(28)
    config = MachineConfig.create(
        image, e820=text, smbios="type=1,serial=a", acpi_tables=table, fw_cfg="opt/a,string=b", bootorder="/rom@x"
    )
    several = MachineConfig.create(
        image,
        e820=[entry],
        smbios=[{"type": 1, "serial": "a"}],
        acpi_tables=[table],
        fw_cfg=[FwCfgItem("opt/a", b"b")],
        bootorder=["/rom@x"],
    )
    assert config == several
    assert config.e820 == (entry,)


def test_a_uuid_in_smbios_is_the_machines(image: FirmwareImages) -> None:
    uuids = [UUID(int=number) for number in range(3)]
    smbios: list[str | dict[str, object]] = [
        "type=1,product=x",
        f"type=1,uuid={uuids[1]}",
        {"type": 1, "uuid": uuids[2]},
        "type=2,serial=y",
    ]
    assert MachineConfig.create(image, uuid=uuids[0], smbios=smbios).uuid == uuids[2].bytes
    assert MachineConfig.create(image, uuid=uuids[0], smbios=smbios[:1]).uuid == uuids[0].bytes


def test_the_command_line_of_a_kernel_is_bytes(image: FirmwareImages, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"MZ")
    for append, data in (("caf\u00e9 \udcff", b"caf\xc3\xa9 \xff"), (b"\xff", b"\xff")):
        assert MachineConfig.create(image, kernel=kernel, append=append).append == data
    with pytest.raises(ConfigError, match="has a NUL"):
        MachineConfig.create(image, kernel=kernel, append="a\0b")


def test_a_config_can_be_printed(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"BM" + bytes(5 << 20))
    large = str(tmp_path / "large")
    config = MachineConfig.create(
        "probe", kernel=large, initrd=large, fw_cfg={"opt/a": Path(large)}, boot=f"splash={large}"
    )
    assert len(repr(config)) < 2000
    assert f"initrd=InputFile({large!r}, {(5 << 20) + 2} bytes)" in repr(config)


def test_a_machine_without_firmware_needs_memory_too(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(bytes(100))
    with pytest.raises(ConfigError, match="-m 8M: a machine without firmware needs 16M or more"):
        MachineConfig.create("none", kernel=tmp_path / "kernel", direct=True, memory="8M")


def test_longest_name_is_taken(image: FirmwareImages) -> None:
    name = "opt/" + "x" * 51
    assert MachineConfig.create(image, fw_cfg={name: b""}).fw_cfg[0].name == name


def test_our_guest_by_name() -> None:
    config = MachineConfig.create("probe")
    assert config.firmware.path == guests.path("probe")
    assert config.firmware.kind is FirmwareKind.PROBE


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("4", (4, 4)),
        ("4,maxcpus=8", (4, 8)),
        ("cpus=2,maxcpus=3", (2, 3)),
        ("maxcpus=6", (6, 6)),
        ("0x10", (16, 16)),
        ("4,sockets=1,cores=4,threads=1", (4, 4)),
        ("cores=3,threads=1", (3, 3)),
        ("2,maxcpus=4,cores=4", (2, 4)),
    ],
)
def test_smp(text: str, counts: tuple[int, int]) -> None:
    assert parse_smp(text)[:2] == counts


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "x", "4,sockets=3", "4,cores=2,sockets=1,threads=1", "4,threads=3", "1025", "4,maxcpus=0", "4,4"],
)
def test_smp_refused(image: FirmwareImages, text: str) -> None:
    def create() -> None:
        cpus, most, topology = parse_smp(text)
        MachineConfig.create(image, cpus=cpus, max_cpus=most, topology=topology)

    with pytest.raises(ConfigError, match="-smp"):
        create()


def test_memory() -> None:
    assert parse_memory("512") == (512 << 20, None, 0)
    assert parse_memory("size=2G") == (2 << 30, None, 0)
    assert parse_memory(1 << 30) == (1 << 30, None, 0)
    assert parse_memory("slots=3,maxmem=2G,size=1G") == (1 << 30, 2 << 30, 3)
    assert parse_memory("maxmem=2147483648") == (None, 2 << 30, 0)
    assert parse_memory(1 << 30, "2G", 3) == parse_memory("1G,slots=3", 2 << 30) == (1 << 30, 2 << 30, 3)


def test_fw_cfg_item_of_qemu_has_no_nul_and_of_bhyve_has() -> None:
    assert FwCfgItem.parse("name=opt/x,string=hi", "-fw_cfg").data == b"hi"
    assert FwCfgItem.parse("opt/x,string=hi", "-f", terminate=True).data == b"hi\0"


def test_a_file_is_read_once_when_the_option_is(tmp_path: Path, image: FirmwareImages) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"first")
    config = MachineConfig.create(image, fw_cfg=f"opt/x,file={path}", initrd=path, kernel=path)
    path.write_bytes(b"second")
    assert config.fw_cfg == (FwCfgItem("opt/x", b"first", path),)
    assert config.kernel == config.initrd == (path, b"first")


@pytest.mark.parametrize(
    "text",
    [
        "opt/x",
        "opt/x,string=",
        "opt/x,file=/nonexistent",
        "opt/x,file=/etc",
        "opt/x,string=a,file=b",
        "a,b=c",
    ],
)
def test_fw_cfg_item_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="-fw_cfg"):
        FwCfgItem.parse(text)


def test_fwctl_item(tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.write_bytes(b"\1\2")
    assert FwCtlItem.parse("hw.ncpu,value=4").value == 4
    assert FwCtlItem.parse("name=org.example,value=4x").value == "4x"
    assert FwCtlItem.parse(f"name=org.example,value={'4' * 5000}").value == "4" * 5000
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


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("tcp::1234", ("127.0.0.1", 1234, None), "127.0.0.1:1234"),
        ("tcp:0.0.0.0:0", ("0.0.0.0", 0, None), "0.0.0.0:0"),  # noqa: S104 - somebody may want that
        ("tcp:[::1]:65535,server=on,wait=off", ("::1", 65535, None), "[::1]:65535"),
        ("unix:/run/my debugger", ("127.0.0.1", 0, "/run/my debugger"), "/run/my debugger"),
    ],
)
def test_addresses_of_a_debugger(text: str, address: tuple[str, int, str | None], shown: str) -> None:
    assert DebugAddress.parse(text) == address
    assert str(DebugAddress.parse(text)) == shown


@pytest.mark.parametrize(
    "text", ["", "1234", "tcp:", "tcp:1234", "tcp::x", "tcp::65536", "tcp::-1", "unix:", "stdio", "tcp::1,x"]
)
def test_what_is_no_address_of_a_debugger(text: str) -> None:
    with pytest.raises(ConfigError, match=r"-gdb"):
        DebugAddress.parse(text)


def test_who_waits_for_a_debugger_says_where() -> None:
    with pytest.raises(ConfigError, match="-S lets the machine wait for a debugger; give it a place too: -s"):
        MachineConfig.create("probe", hold=True)
