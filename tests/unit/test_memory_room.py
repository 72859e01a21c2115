"""Addresses that are kept for memory that may be plugged in: options, places, tables, and how verify holds them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.config.machine import MachineConfig
from vmm.config.numa import NumaNode
from vmm.config.parts import RamPlaces
from vmm.cpu.cpuid import Addresses
from vmm.errors import ConfigError
from vmm.handoff import tables
from vmm.platform import Standing
from vmm.run import snapshot_plain
from vmm.run.outcome import Outcome, Reason
from vmm.tables import e820
from vmm.tables.files import ACPI_FILE, E820_FILE, RESERVED_END_FILE
from vmm.verify import linux_cpus, truth
from vmm.verify.collect import Collected
from vmm.verify.evidence import Evidence
from vmm.verify.facts import Facts
from vmm.verify.guest_report import GuestReport, Kind, LinuxBlocks, LinuxNode, Located
from vmm.verify.result import Subject

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
STANDING = Standing(pm_base=0x600, gpe0=range(0x620, 0x630))


def places(text: str, bits: int = 40, *, amd: bool = True, machine: str = "q35") -> RamPlaces:
    return tables.place_ram(MachineConfig.create("probe", memory=text, machine=machine), Addresses(amd, bits))


def test_the_spellings_are_one() -> None:
    config = MachineConfig.create("probe", memory="512M,slots=2,maxmem=2G")
    assert (config.memory, config.max_memory, config.memory_slots) == (512 * MIB, 2 * GIB, 2)
    assert config.memory_room == 1536 * MIB + 2 * GIB
    assert config == MachineConfig.create("probe", memory="512M", max_memory="2G", memory_slots=2)
    assert config == MachineConfig.create("probe", memory=512 * MIB, max_memory=2 * GIB, memory_slots=2)
    assert MachineConfig.create("probe", memory="maxmem=1G").memory == 256 * MIB
    assert snapshot_plain.decode(*snapshot_plain.encode(config))._replace(firmware=config.firmware) == config


def test_there_is_a_node_then_as_in_qemu() -> None:
    config = MachineConfig.create("probe", cpus=2, memory="512M,maxmem=1G")
    assert config.numa is not None
    assert config.numa.nodes == (NumaNode((0, 1), 512 * MIB),)
    assert MachineConfig.create("probe", memory="512M,maxmem=512M").numa is None
    with pytest.raises(ConfigError, match="give numa, too"):
        config._replace(numa=None)
    with pytest.raises(ConfigError, match="without -numa"):
        MachineConfig.create("probe", memory="512M,maxmem=1G", objects="memory-backend-ram,id=a,size=512M")


def test_room_begins_at_a_whole_gib_and_the_window_behind_it() -> None:
    ram = places("5200M,slots=1,maxmem=6000M")
    assert ram.hotplug == range(8 * GIB, 8 * GIB + 800 * MIB + GIB)
    assert tables.reserved_end(ram) == 10 * GIB
    assert tables.pci_windows("q35", ram, None)[-1] == (10 * GIB, 42 * GIB - 1)  # type: ignore[arg-type]
    assert places("512M").hotplug == range(4 * GIB, 4 * GIB)


def test_nothing_else_changes() -> None:
    with_room, without = (MachineConfig.create("probe", memory=f"6G{more}") for more in (",maxmem=8G", ""))
    ram = places("6G,maxmem=8G")
    assert ram._replace(room=0) == places("6G")
    assert tables.e820_map(with_room, ram) == tables.e820_map(without, places("6G"))
    assert b"SRAT" not in tables.AcpiFiles(without, places("6G")).build(STANDING)[ACPI_FILE]
    assert tables.smbios_files(with_room, ram, 0) == tables.smbios_files(without, places("6G"), 0)


def test_room_that_would_reach_amds_hole_moves_all_of_it() -> None:
    # 976 GiB from 4 GiB on, and 32 GiB of PCI window, end at 0xfd_0000_0000 exactly.
    assert places("512M,maxmem=999936M").hotplug == range(4 * GIB, 980 * GIB)
    assert places("512M,maxmem=999937M", 48).hotplug == range(TIB, TIB + 976 * GIB + MIB)
    assert places("512M,maxmem=999937M", 48, amd=False).hotplug == range(4 * GIB, 980 * GIB + MIB)
    config = MachineConfig.create("probe", memory="512M,maxmem=999937M")
    assert e820.E820Entry(0xFD_0000_0000, 12 * GIB, 2) in tables.e820_map(config, places("512M,maxmem=999937M", 48))


@pytest.mark.parametrize(
    ("text", "bits", "words"),
    [
        (
            "512M,maxmem=1T",
            40,
            "-m maxmem=1024G: .* end at 0x20800000000, .* 40 bits, .* for maxmem=999936M or less",
        ),
        ("512M,maxmem=999937M", 40, "ask for maxmem=999936M or less"),
        ("512M,slots=256,maxmem=900G", 40, "ask for maxmem=737792M or less"),
        ("512M,slots=64,maxmem=1G", 36, "ask for fewer slots"),
        ("512M,maxmem=4096T", 52, "ask for maxmem=.* or less"),
        ("2T,maxmem=3T", 40, "-m 2048G: RAM and the PCI window behind it .* ask for -m 978G or less"),
        ("512M,maxmem=1G", 35, "-m 512M: RAM and the PCI window .* ask for more of them: -cpu host,phys-bits=N"),
    ],
)
def test_room_beyond_the_cpus_addresses_is_refused(text: str, bits: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        places(text, bits)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory": "512M,slots=1"}, r"-m slots=1: .* give maxmem=SIZE, too"),
        ({"memory": "512M", "memory_slots": 0}, r"-m slots=0: .* give maxmem=SIZE, too"),
        (
            {"memory": "512,maxmem=1024"},
            "-m maxmem=1024: must be at least the 536870912 bytes of .* it is in bytes",
        ),
        ({"memory": "512M,maxmem=512M,slots=1"}, "leaves nothing to plug in"),
        ({"memory": "512M,maxmem=1G,slots=257"}, "-m slots=257: must be from 0 to 256"),
        ({"memory": "512M,maxmem=1G,slots=-1"}, "-m slots=-1: must be from 0 to 256"),
        ({"memory": "512M,maxmem=536870913"}, "must be whole pages of 4K"),
        ({"memory": "512M,maxmem=9999999E"}, "no more than 4096T"),
        ({"memory": "512M,maxmem=1G", "max_memory": "1G"}, "maxmem= is there, and max_memory is given, too"),
        ({"memory": "512M,maxmem=1G,slots=1", "memory_slots": 1}, "slots= is there, and memory_slots is given, too"),
        ({"memory": "512M,maxmem="}, "-m maxmem=''|-m maxmem=: not a size"),
        ({"memory": "512M,maxmem=1G", "machine": "bhyve"}, "-m maxmem=: for q35 and pc"),
        ({"memory": "512M,maxmem=1G", "fwcfg": "bhyve"}, "-m maxmem="),
        ({"memory": "512M,maxmem=1G,memslots=1"}, "unknown key 'memslots'; known: maxmem, size, slots"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        MachineConfig.create("probe", **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"max_memory": 1.5}, {"max_memory": True}, {"memory_slots": "2"}])
def test_types_that_neither_can_have(options: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        MachineConfig.create("probe", **options)  # type: ignore[arg-type]


# -- verify -----------------------------------------------------------------------------------------------------------

ROOM = RamPlaces(128 * MIB, room=GIB)


def stated(said: bytes, memory: tuple[tuple[int, int], ...] = (), bits: int = 40) -> dict[str, tuple[str, bool]]:
    """What is true of each row, and whether it is called so, where firmware was told this."""
    config = MachineConfig.create("seabios", memory=128 * MIB, max_memory=128 * MIB + GIB)
    files = tables.AcpiFiles(config, ROOM).build(STANDING) | {E820_FILE: e820.encode(tables.e820_map(config, ROOM))}
    report = GuestReport(kind=Kind.BIOS, acpi=[Located(0, srat_of(files[ACPI_FILE]))])
    collected = Collected(
        config=config,
        ram=ROOM,
        tables=files,
        published={RESERVED_END_FILE: said},
        firmware_reads={},
        writable=frozenset(),
        written={},
        vmgenid_address=None,
        vmgenid_found=None,
        report=report,
        failure="",
        guest_was_read=True,
        log="",
        outcome=Outcome(Reason.POWER_OFF, 1.0, ""),
        facts=Facts(memory=memory, physical_bits=bits),
    )
    rows = {row.name: row for row in truth.compare(collected, report, Evidence(collected)).rows}
    return {name: (rows[name].true, rows[name].verdict.ok) for name in ("SRAT: room for memory", RESERVED_END_FILE)}


def srat_of(files: bytes) -> bytes:
    at = files.index(b"SRAT")
    return files[at : at + int.from_bytes(files[at + 4 : at + 8], "little")]


def test_what_firmware_is_told_is_held_against_the_machine() -> None:
    words, end = "node 0 0x100000000-0x13fffffff", (5 * GIB).to_bytes(8, "little")
    assert stated(end) == {"SRAT: room for memory": (words, True), RESERVED_END_FILE: ("0x140000000", True)}
    assert stated(b"")[RESERVED_END_FILE] == ("0x140000000", False)
    assert stated(bytes(8))[RESERVED_END_FILE] == ("0x140000000", False)
    there = stated(end, ((0, 128 * MIB), (4 * GIB + 4096, 4 * GIB + 8191)))["SRAT: room for memory"]
    assert there == (f"{words}, memory at 0x100001000", False)
    assert stated(end, bits=32)["SRAT: room for memory"] == (f"{words}, addresses have 32 bits", False)


def test_what_linux_says_is_held_against_the_machine() -> None:
    range_of = "ACPI: SRAT: Node 0 PXM 0 [mem 0x100000000-0x13fffffff]"
    right = shown([f"{range_of} hotplug"], LinuxBlocks(128 * MIB, (0,)))
    assert right == {
        "room for memory": ("node 0 0x100000000-0x13fffffff", True),
        "blocks of memory": ("0x0-0x7ffffff", True),
    }
    wrong = shown([range_of], LinuxBlocks(128 * MIB, (0, 32)))
    assert wrong["room for memory"] == ("none", False)
    assert wrong["blocks of memory"] == ("0x0-0x7ffffff, 0x100000000-0x107ffffff", False)
    # Linux that takes no memory in has no blocks, and is not asked for any.
    assert "blocks of memory" not in shown([f"{range_of} hotplug"], LinuxBlocks(0, ()))


def test_a_node_that_has_nothing_but_room_is_none_to_linux() -> None:
    config = MachineConfig.create("probe", memory="128M,maxmem=1152M", numa=["node,mem=128,cpus=0", "node"])
    report = GuestReport(kind=Kind.LINUX, linux_nodes={0: LinuxNode((0,), 130_000, (10,))})
    subject = Subject("processors")
    linux_cpus.compare(subject, config, ROOM, report)
    rows = {row.name: row for row in subject.rows}
    assert rows["Linux: distances of node 0"].verdict.ok
    assert rows["Linux: distances of node 1"].verdict.ok
    report.linux_nodes.clear()
    linux_cpus.compare(missing := Subject("processors"), config, ROOM, report)
    assert not next(row for row in missing.rows if row.name == "Linux: distances of node 0").verdict.ok


def shown(log: list[str], blocks: LinuxBlocks) -> dict[str, tuple[str, bool]]:
    config = MachineConfig.create("probe", memory=128 * MIB, max_memory=128 * MIB + GIB)
    subject = Subject("processors")
    report = GuestReport(kind=Kind.LINUX, log=[(6, text) for text in log], linux_blocks=blocks)
    linux_cpus.compare(subject, config, ROOM, report)
    rows = {row.name.removeprefix("Linux: "): (row.found, row.verdict.ok) for row in subject.rows}
    return {name: row for name, row in rows.items() if name.endswith("memory")}


def test_blocks_are_decoded() -> None:
    names = " ".join(f"/sys/devices/system/memory/memory{number}" for number in (10, 2, 0))
    assert linux_cpus.blocks({"blocks": f"8000000 {names}\n".encode()}) == (128 * MIB, (0, 2, 10))
    # Nothing is there for a pattern of the shell, which then stays as it is.
    assert linux_cpus.blocks({"blocks": b"8000000 /sys/devices/system/memory/memory[0-9]*\n"}) == (128 * MIB, ())
    assert linux_cpus.blocks({"blocks": b" /sys/devices/system/memory/memory[0-9]*\n"}) == (0, ())
    assert linux_cpus.blocks({}) == (0, ())


@given(st.binary(max_size=300))
def test_whatever_linux_sends_of_blocks_is_decoded(line: bytes) -> None:
    size, numbers = linux_cpus.blocks({"blocks": line})
    assert 0 <= size < 1 << 48
    assert len(numbers) <= len(line)


@given(st.binary(max_size=200))
def test_whatever_an_srat_says_is_decoded(entries: bytes) -> None:
    srat = bytes(48) + entries
    assert len(truth.hotplug_of(srat)) + len(truth.nodes_of(srat)) <= len(entries)
