"""Where memory may be plugged in (``-m …,maxmem=``), beside Debian's QEMU 7.2 with the same options."""

import subprocess
from pathlib import Path

import pytest
from qemu_qtest import Qemu

from vmm.config.machine import MachineConfig
from vmm.cpu.cpuid import Addresses
from vmm.devices.fw_cfg_format import Key
from vmm.devices.fw_cfg_items import numa
from vmm.errors import ConfigError
from vmm.handoff import tables
from vmm.handoff.interface import cpu_nodes
from vmm.platform import Standing
from vmm.tables import e820
from vmm.tables.e820 import E820Type
from vmm.tables.files import ACPI_FILE, E820_FILE, RESERVED_END_FILE
from vmm.verify.truth import windows

pytestmark = pytest.mark.usefixtures("qemu_of_debian_12")

FOUR_GIB = 4 << 30
STANDING = Standing(pm_base=0x600, gpe0=range(0x620, 0x630))
EPYC = ["-cpu", "qemu64,vendor=AuthenticAMD,phys-bits=48"]

CASES: dict[str, tuple[str, list[str]]] = {
    "RAM below 4 GiB": ("512,maxmem=1G", []),
    "slots, each with 1 GiB for its alignment": ("512,slots=3,maxmem=1536M", []),
    "RAM above 4 GiB that ends in the middle of a GiB": ("5G,slots=1,maxmem=6400M", []),
    "room that ends in the middle of a GiB": ("size=3000,maxmem=5000M", []),
    "room of one page": ("512,maxmem=536875008", []),
    "nothing to plug in": ("512,maxmem=512M", []),
    "nodes": ("512,slots=256,maxmem=4G", ["node,memdev=a,cpus=1", "node,memdev=b,cpus=0", "node"]),
}


def table_of(tables_file: bytes, signature: bytes) -> bytes:
    """The table without its header; empty: there is none."""
    at = tables_file.find(signature)
    return b"" if at < 0 else tables_file[at + 36 : at + int.from_bytes(tables_file[at + 4 : at + 8], "little")]


def high_windows(tables_file: bytes) -> list[tuple[int, int]]:
    at = tables_file.index(b"DSDT")
    dsdt = tables_file[at : at + int.from_bytes(tables_file[at + 4 : at + 8], "little")]
    return [window for window in windows(dsdt) if window[0] >= FOUR_GIB]


def assert_as_qemu(qemu: Qemu, config: MachineConfig, bits: int) -> None:
    files = qemu.files()
    theirs = qemu.item(*files[ACPI_FILE])
    memory_map = e820.decode(qemu.item(*files[E820_FILE]))
    reserved = qemu.item(*files[RESERVED_END_FILE]) if RESERVED_END_FILE in files else None
    item = qemu.item(Key.NUMA, 8 * 8)
    ram = tables.place_ram(config, Addresses(amd=True, bits=bits))
    mine = tables.AcpiFiles(config, ram).build(STANDING)[ACPI_FILE]
    assert (tables.reserved_end(ram).to_bytes(8, "little") if ram.room else None) == reserved
    assert table_of(mine, b"SRAT") == table_of(theirs, b"SRAT")
    assert bool(table_of(mine, b"SRAT")) == (config.numa is not None)
    assert high_windows(mine) == high_windows(theirs)
    own = tables.e820_map(config, ram)
    assert [entry for entry in own if entry.type == E820Type.RAM] == [
        entry for entry in memory_map if entry.type == E820Type.RAM
    ]
    nodes = () if config.numa is None else tuple(node.memory for node in config.numa.nodes)
    assert numa(config.cpus, cpu_nodes(config), nodes).ljust(8 * 8, b"\0") == item


@pytest.mark.parametrize(("case", "board"), [*((case, "q35") for case in CASES), ("nodes", "pc")])
def test_room_is_that_of_qemu(tmp_path: Path, case: str, board: str) -> None:
    text, nodes = CASES[case]
    objects = [f"memory-backend-ram,id={name},size=256M" for name in "ab"] if nodes else []
    config = MachineConfig.create("probe", cpus=2, memory=text, machine=board, numa=nodes, objects=objects)
    arguments = ["-smp", "2", "-m", text, *(word for each in objects for word in ("-object", each))]
    arguments += [word for each in nodes for word in ("-numa", each)]
    with Qemu(tmp_path, config.memory, arguments, machine=board, shared=False) as qemu:
        assert_as_qemu(qemu, config, 40)


@pytest.mark.parametrize("text", ["4G,maxmem=978G", "4G,slots=1,maxmem=978G", "256M,slots=8,maxmem=2T"])
def test_room_that_would_reach_amds_hole_is_behind_it(tmp_path: Path, text: str) -> None:
    config = MachineConfig.create("probe", cpus=2, memory=text)
    arguments = ["-smp", "2", "-m", text, *EPYC]
    with Qemu(tmp_path, config.memory, arguments, machine="q35", shared=False, accelerator="kvm") as qemu:
        assert_as_qemu(qemu, config, 48)


@pytest.mark.parametrize(
    "text",
    [
        *("512,slots=2", "512,slots=0", "512,maxmem=256M", "512,maxmem=1024", "512,maxmem=512M,slots=1"),
        *("512,maxmem=1G,slots=257", "512,maxmem=1073741825", "512,maxmem=16E", "512,maxmem=15E", "512,maxmem="),
        *("512,maxmem=1G,slots=-1", "512,maxmem=1G,slots=x", "512,maxmem=1G,memslots=2", "512,maxmem=x"),
        *("512,maxmem=1T", "512,slots=256,maxmem=800G"),
    ],
)
def test_what_qemu_refuses_is_refused(text: str) -> None:
    command = ["qemu-system-x86_64", "-machine", "q35", "-S", "-display", "none", "-nodefaults", "-m", text]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.fail(f"QEMU takes {text}")
    assert said.returncode == 1, said.stderr
    with pytest.raises(ConfigError, match="-m "):
        tables.place_ram(MachineConfig.create("probe", memory=text), Addresses(amd=True, bits=40))
