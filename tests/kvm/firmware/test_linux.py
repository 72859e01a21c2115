"""Debian's Linux finds what we built: through OVMF's and SeaBIOS's kernel loaders, and started without firmware."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import vmm

from vmm.config.machine import MachineConfig, MachineType
from vmm.run.outcome import Reason
from vmm.tables import acpi_tables
from vmm.tables.files import ACPI_FILE
from vmm.tables.smbios_options import split_structures
from vmm.verify import linux, linux_guest, linux_report
from vmm.verify.collect import collect
from vmm.verify.result import Verification
from vmm.verify.run import compare, verify

pytestmark = pytest.mark.needs_kvm

DEADLINE = 180.0


@pytest.fixture(scope="module")
def kernel() -> Iterator[dict[str, Any]]:
    """The fields of a machine that boots it."""
    with linux_guest.options() as options:
        yield options


def machine(kernel: dict[str, Any], firmware: str, *devices: str, **fields: Any) -> MachineConfig:
    devices = ("vmcoreinfo", *devices)
    return MachineConfig.create(firmware, direct=firmware == "none", devices=devices, **kernel, **fields)


def wrong(result: Verification) -> list[str]:
    return [
        f"{subject.name}: {row.name}: {row.found} {row.difference} {row.reason}"
        for subject in result.subjects
        for row in subject.rows
        if not row.verdict.ok
    ]


@pytest.mark.parametrize(
    ("firmware", "cpus", "board"),
    [
        pytest.param("none", 2, "pc", marks=pytest.mark.hw_long),
        ("none", 4, "q35"),
        ("ovmf", 4, "q35"),
        ("seabios", 1, "q35"),
        ("seabios", 2, "pc"),
    ],
)
def test_linux_finds_everything(kernel: dict[str, Any], firmware: str, cpus: int, board: str) -> None:
    result = verify(machine(kernel, firmware, cpus=cpus, machine=board), deadline=DEADLINE, with_linux=True)
    assert not wrong(result)
    rows = {row.name: row.found for subject in result.subjects for row in subject.rows}
    assert rows["nproc"] == str(cpus)
    assert {"RSDP", "FACS", "DSDT", "FACP", "APIC", "WAET", "etc/vmcoreinfo", "etc/e820", ACPI_FILE} <= rows.keys()


def test_linux_finds_many_cpus_in_x2apic_mode(kernel: dict[str, Any]) -> None:
    """Of a machine with room for id 255, without firmware that would have turned that mode on."""
    collected = collect(machine(kernel, "none", cpus=64, max_cpus=256), deadline=DEADLINE, linux=True)
    report = collected.report
    assert report is not None, collected.failure
    assert not wrong(compare(collected))
    assert report.processors == (64, 64)
    assert "x2apic: enabled by BIOS, switching to x2apic ops" in [text for _, text in report.log]


@pytest.mark.parametrize(
    ("words", "size"), [(["-smp", "2,maxcpus=200"], 328), (["-smp", "128"], 256), (["-smp", "200", "-m", "256M"], 256)]
)
def test_many_cpus_come_with_the_memory_that_linux_needs(words: list[str], size: int) -> None:
    """It would print nothing otherwise."""
    ended = vmm("verify", "linux", "-direct", *words, "--timeout", "0.01", "--json", "-")
    assert json.loads(ended.stdout)["machine"].endswith(f" {size} MiB"), ended.stderr


@pytest.mark.parametrize("firmware", ["none", "ovmf"])
def test_every_byte(kernel: dict[str, Any], firmware: str) -> None:
    item = bytes(range(256)) * 20
    config = machine(
        kernel,
        firmware,
        "vmgenid",
        memory="4G",
        fw_cfg={"opt/org.example/bytes": item, "opt/org.example/none": b""},
        smbios=["type=1,serial=4711"],
        # OVMF takes nothing but RAM from etc/e820.
        e820=["base=0xc8000000,size=1M,type=reserved"] if firmware == "none" else [],
    )
    collected = collect(config, deadline=DEADLINE, linux=True)
    report = collected.report
    assert report is not None, collected.failure
    result = compare(collected)
    assert not wrong(result)
    assert "VM generation id" in {row.name for row in result.subject("fw_cfg items").rows}
    assert report.processors == (1, 1)
    assert collected.outcome.reason is Reason.POWER_OFF
    found = {entry.name: entry for entry in report.items}
    assert found.keys() == collected.published.keys()
    assert found["opt/org.example/bytes"].data == item
    for name, entry in found.items():
        whole = collected.published[name]
        if name == "etc/boot/kernel":
            # fw_cfg_read_blob reads all that comes before a page to get at it: 14 MB would take hours.
            assert (entry.data, entry.size) == (whole[: len(entry.data)], len(whole))
            assert len(entry.data) == 128 << 10
        elif name not in collected.writable:
            assert entry.data == whole, name
    for table in report.acpi:
        if table.data[:4] not in {b"FACP", b"SSDT"}:  # the SSDT has the address of the VM generation id
            assert table.data in collected.published[ACPI_FILE], table.data[:4]
    theirs = {0, 127}  # OVMF adds a type 0 of its own, and gives the end of the table another handle
    structures, offered = (
        [structure for structure in split_structures(data) if firmware == "none" or structure[0] not in theirs]
        for data in (report.smbios_tables[0].data, collected.published["etc/smbios/smbios-tables"])
    )
    assert structures == offered
    assert b"4711" in report.smbios_tables[0].data
    note = collected.vmcoreinfo
    ram = [entry for entry in report.e820 if entry.type == 1]
    assert note is not None
    assert any(entry.base <= note.address and note.address + note.size <= entry.end for entry in ram)
    assert max(entry.end for entry in ram) == (4 << 30) + collected.ram.high
    if firmware == "none":
        assert any(entry.base == 0xC8000000 and entry.length == 1 << 20 and entry.type == 2 for entry in report.e820)


def test_many_entries_of_all_types_reach_linux(kernel: dict[str, Any]) -> None:
    """More than the 128 that boot_params has room for; RAM in pieces, one of them for something else."""
    types = ("reserved", "acpi", "nvs", "unusable", "persistent", "soft-reserved")
    entries = [f"base={(64 << 30) + (index << 21):#x},size=1M,type={types[index % 6]}" for index in range(300)]
    cut = ["base=640K,size=384K,type=hole", "base=32M,size=1M,type=hole", "base=32M,size=1M,type=nvs"]
    result = verify(machine(kernel, "none", e820=[*entries, *cut]), deadline=DEADLINE, with_linux=True)
    assert not wrong(result)
    assert len(result.found.e820) > 300


ARRANGED: dict[str, Any] = {
    "cpus": 8,
    "max_cpus": 12,
    "topology": "sockets=1,dies=2,cores=3,threads=2",
    "memory": "512M",
    "numa": (
        *("node,cpus=0-3,mem=320", "node,cpus=4-11,mem=128", "node,mem=64,initiator=1"),
        *("dist,src=0,dst=1,val=33", "dist,src=0,dst=2,val=44", "dist,src=1,dst=2,val=15"),
        "hmat-lb,initiator=0,target=1,hierarchy=memory,data-type=access-latency,latency=110",
        "hmat-lb,initiator=1,target=2,hierarchy=memory,data-type=access-latency,latency=17",
        "hmat-lb,initiator=1,target=2,hierarchy=memory,data-type=write-bandwidth,bandwidth=3G",
        "hmat-lb,initiator=1,target=2,hierarchy=first-level,data-type=read-latency,latency=2",
        "hmat-cache,node-id=2,size=2M,level=1,associativity=complex,policy=write-back,line=64",
    ),
    "hmat": True,
}


def test_linux_arranges_cpus_and_nodes_as_asked(kernel: dict[str, Any]) -> None:
    result = verify(machine(kernel, "none", **ARRANGED), deadline=DEADLINE, with_linux=True)
    assert not wrong(result)
    rows = {row.name: row.found for row in result.subject("processors").rows}
    assert rows["Linux: dies"] == "2 with 2-6 CPUs"
    assert rows["Linux: cores"] == "4 with 2 CPUs"
    assert rows["Linux: CPUs of node 1"] == "4 5 6 7"
    assert rows["Linux: memory of node 1"] == "0x14000000-0x1bffffff"
    assert rows["Linux: distances of node 1"] == "33 10 15"
    assert rows["Linux: initiators"] == "0 1 1"
    assert rows["Linux: access latency"] == "0-1: 110 ns, 1-2: 17 ns"
    assert rows["Linux: write bandwidth"] == "1-2: 3072 MiB/s"
    assert rows["Linux: read latency, first-level cache"] == "1-2: 2 ns"
    assert rows["Linux: memory side caches"] == "node 2 level 1: 2048 KiB, complex, write-back, 64"
    stated = {row.name: (row.found, row.true) for row in result.subject("what tables state").rows}
    assert stated["SLIT: distances of node 2"] == ("44 15 10", "44 15 10")
    assert {"SRAT", "SLIT", "HMAT"} <= {row.name for row in result.subject("ACPI tables").rows}


def test_linux_that_is_told_something_else_shows(kernel: dict[str, Any]) -> None:
    def swap(files: dict[str, bytes]) -> dict[str, bytes]:
        tables = bytearray(files[ACPI_FILE])
        start = tables.index(b"SRAT")
        processors = start + acpi_tables.HEADER_SIZE + 12
        for index, node in ((3, 1), (4, 0)):  # the sum stays as it is
            tables[processors + 16 * index + 2] = node
        exchange(tables, tables.index(b"SLIT") + acpi_tables.HEADER_SIZE + 8 + 1, 1, 1)
        latencies = tables.index(b"HMAT") + acpi_tables.HEADER_SIZE + 4 + 3 * 40 + 32 + 4 * (2 + 3)
        exchange(tables, latencies + 2 * 1, 2 * 4, 2)
        return files | {ACPI_FILE: bytes(tables)}

    result = verify(machine(kernel, "none", **ARRANGED), alter=swap, deadline=DEADLINE, with_linux=True)
    bad = {row.name: row.found for row in result.subject("processors").rows if not row.verdict.ok}
    assert bad == {
        "Linux: CPUs of node 0": "0 1 2 4",
        "Linux: CPUs of node 1": "3 5 6 7",
        "Linux: distances of node 0": "10 44 33",
        "Linux: access latency": "0-1: 17 ns, 1-2: 110 ns",
    }
    stated = [row for row in result.subject("what tables state").rows if not row.verdict.ok]
    assert [(row.name, row.found, row.true) for row in stated] == [
        ("SLIT: distances of node 0", "10 44 33", "10 33 44")
    ]


def exchange(tables: bytearray, at: int, behind: int, size: int) -> None:
    """Exchange two numbers, so that the sum stays as it is."""
    one, other = slice(at, at + size), slice(at + behind, at + behind + size)
    tables[one], tables[other] = tables[other], tables[one]


def test_linux_complains_about_broken_aml(kernel: dict[str, Any]) -> None:
    def spoil(files: dict[str, bytes]) -> dict[str, bytes]:
        tables = bytearray(files[ACPI_FILE])
        start = tables.index(b"DSDT")
        length = int.from_bytes(tables[start + 4 : start + 8], "little")
        # 0x2e is no AML opcode.
        tables[start + acpi_tables.HEADER_SIZE + 4 : start + acpi_tables.HEADER_SIZE + 12] = b"\x2e" * 8
        tables[start + acpi_tables.CHECKSUM_OFFSET] = 0
        tables[start + acpi_tables.CHECKSUM_OFFSET] = -sum(tables[start : start + length]) & 0xFF
        return files | {ACPI_FILE: bytes(tables)}

    result = verify(machine(kernel, "none"), alter=spoil, deadline=DEADLINE, with_linux=True)
    assert not result.ok
    rows = {row.name: row for row in result.subject("ACPI tables").rows}
    assert rows["DSDT"].reason == "it was published like that"
    assert any("ACPI" in row.found for row in result.subject("Linux").rows if not row.verdict.ok)


@pytest.mark.parametrize("board", ["q35", "pc"])
def test_no_complaint_that_qemu_does_not_cause_too(kernel: dict[str, Any], tmp_path: Path, board: str) -> None:
    program = shutil.which("qemu-system-x86_64")
    assert program, "this test needs Debian's package qemu-system-x86 (scripts/setup test installs it)"
    console = tmp_path / "console"
    command = [program, "-nodefaults", "-display", "none", "-no-reboot", "-machine", board, "-accel", "tcg"]
    command += ["-kernel", str(kernel["kernel"]), "-initrd", str(kernel["initrd"]), "-append", kernel["append"]]
    command += ["-m", "256M", "-device", "vmcoreinfo", "-serial", f"file:{console}"]
    subprocess.run(command, check=True, timeout=DEADLINE)
    report = linux_report.decode(console.read_bytes())
    theirs = linux.complaints(report)
    known = set(linux.QEMU_CAUSES_TOO[MachineType(board)])
    if "Linux 6.1." in report.firmware_vendor:
        known.remove(linux.NO_CPC)
    assert len(theirs) == len(known)
    assert all(any(words in text for text in theirs) for words in known)
