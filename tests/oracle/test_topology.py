"""What CPUs and NUMA nodes become, beside Debian's QEMU 7.2 with the same options."""

import struct
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import cycle
from pathlib import Path

import pytest
from cpuid_rom import image
from qemu_qtest import Qemu

from vmm.config.machine import MachineConfig
from vmm.config.parts import RamPlaces, low_memory
from vmm.config.topology import Topology, parse_smp
from vmm.cpu.cpuid import Guest, cpuid_entries
from vmm.devices.fw_cfg_format import Key
from vmm.devices.fw_cfg_items import numa
from vmm.errors import ConfigError
from vmm.handoff import tables
from vmm.handoff.interface import cpu_nodes
from vmm.kvm import CpuidEntry
from vmm.platform import Standing
from vmm.tables.files import ACPI_FILE, SMBIOS_FILE
from vmm.tables.smbios_options import split_structures

pytestmark = pytest.mark.usefixtures("qemu_of_debian_12")

GIB = 1 << 30
CACHE_INFORMATION = 7
MEMORY = 256 << 20
STANDING = Standing(pm_base=0x600, gpe0=range(0x620, 0x630))

ARRANGED = [
    "6,maxcpus=12,sockets=3",
    "3,maxcpus=8,threads=2",
    "12,sockets=2,dies=2,cores=3,threads=1",
    "24,dies=2,cores=3,threads=2",
    "cores=2,threads=2,sockets=3",
    "8,cores=2",
    "8,cores=2,sockets=2",
    "7,maxcpus=9,sockets=3,cores=1,threads=3",
    "45,sockets=3,dies=3,cores=5",
]
REFUSED = ["4,threads=3", "5,sockets=2,cores=2", "2,clusters=2", "4,maxcpus=2", "7,dies=2"]


def table_of(tables_file: bytes, signature: bytes) -> bytes:
    at = tables_file.index(signature)
    return tables_file[at : at + int.from_bytes(tables_file[at + 4 : at + 8], "little")]


def apic_ids(madt: bytes) -> list[tuple[int, int]]:
    """APIC id and flags of each processor."""
    at, found = 44, []
    while at < len(madt):
        entry = madt[at : at + madt[at + 1]]
        at += len(entry)
        if entry[0] == 0:
            found.append((entry[3], int.from_bytes(entry[4:8], "little")))
        elif entry[0] == 9:
            found.append((int.from_bytes(entry[4:8], "little"), int.from_bytes(entry[8:12], "little")))
    return found


def sockets(structures: bytes) -> list[tuple[int, int, int, int]]:
    """Status, cores, enabled cores, threads of each type 4 structure; QEMU 7.2 counts the cores of one die."""
    return [(each[24], *each[35:38]) for each in split_structures(structures) if each[0] == 4]


@pytest.mark.parametrize("text", ARRANGED)
def test_cpus_are_arranged_as_in_qemu(tmp_path: Path, text: str) -> None:
    smp = parse_smp(text)
    with Qemu(tmp_path, MEMORY, ["-smp", text], machine="q35") as qemu:
        slots = qemu.qmp("query-hotpluggable-cpus")
        files = qemu.files()
        acpi, smbios = qemu.item(*files[ACPI_FILE]), qemu.item(*files[SMBIOS_FILE])
        limit = int.from_bytes(qemu.item(Key.MAX_CPUS, 2), "little")
    places = [
        tuple(slot["props"].get(f"{level}-id", 0) for level in ("socket", "die", "core", "thread")) for slot in slots
    ]
    topology = smp.topology
    assert sorted(places) == [tuple(topology.place(index)) for index in range(smp.max_cpus)]
    assert sum("qom-path" in slot for slot in slots) == smp.cpus
    config = MachineConfig.create("probe", cpus=smp.cpus, max_cpus=smp.max_cpus, topology=topology)
    mine = tables.AcpiFiles(config, RamPlaces(MEMORY)).build(STANDING)[ACPI_FILE]
    assert apic_ids(table_of(mine, b"APIC")) == apic_ids(table_of(acpi, b"APIC"))
    assert topology.apic_id(smp.max_cpus - 1) + 1 == limit
    assert b"PPTT" not in mine + acpi
    structures = tables.smbios_files(config, RamPlaces(MEMORY), 0)[SMBIOS_FILE]
    assert CACHE_INFORMATION not in {each[0] for side in (structures, smbios) for each in split_structures(side)}
    own, theirs = sockets(structures), sockets(smbios)
    assert len(own) == len(theirs) == topology.sockets
    # QEMU says of all that they are populated, whatever there is at boot, and 7.2 counts the cores of one die.
    assert [each[0] == 0x41 for each in own] == [n * topology.cpus_per_socket < smp.cpus for n in range(len(own))]
    assert all(each[0] == 0x41 for each in theirs)
    if topology.dies == 1:
        assert [each[1:] for each in own] == [each[1:] for each in theirs]


@pytest.mark.parametrize("text", REFUSED)
def test_what_qemu_refuses_is_refused(text: str) -> None:
    command = ["qemu-system-x86_64", "-machine", "q35", "-S", "-display", "none", "-smp", text]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 1
    with pytest.raises(ConfigError, match="-smp"):
        parse_smp(text)


NUMA: dict[str, tuple[str, int, list[str]]] = {
    "two nodes, by socket": (
        "4,sockets=2",
        MEMORY,
        ["node,memdev=a", "node,memdev=b", "dist,src=0,dst=1,val=21"],
    ),
    "CPUs by number, across the PCI hole": (
        "6,sockets=2,cores=3,maxcpus=6",
        8 * GIB,
        ["node,cpus=0-1,memdev=a", "node,cpus=2-3,cpus=5,memdev=b", "node,nodeid=2,cpus=4,memdev=c"]
        + [f"dist,src={a},dst={b},val={10 + 10 * a + b}" for a in range(3) for b in range(3) if a != b],
    ),
    "CPUs by place, a node without memory": (
        "4,sockets=1,dies=2,cores=1,threads=2",
        4 * GIB,
        ["node,memdev=a", "node", "cpu,node-id=0,socket-id=0,die-id=0", "cpu,node-id=1,socket-id=0,die-id=1"],
    ),
    "more than 255 APIC ids": ("2,maxcpus=260", MEMORY, ["node,memdev=a", "node,memdev=b,cpus=1-259", "node,cpus=0"]),
}
LB = "hmat-lb,initiator={},target={},hierarchy={},data-type={}"
PAIRS = [(a, b) for a in range(2) for b in range(2)]
HMAT: dict[str, tuple[str, int, list[str]]] = {
    "nothing but initiators": (
        "4,sockets=2",
        MEMORY,
        ["node,memdev=a,cpus=0-3", "node,memdev=b,initiator=0"],
    ),
    "latencies, bandwidths, and caches of three levels": (
        "4,sockets=2",
        MEMORY,
        [
            *("node,memdev=a,cpus=0-1", "node,memdev=b,cpus=2-3", "dist,src=0,dst=1,val=21"),
            *(f"{LB.format(a, b, 'memory', 'access-latency')},latency={5 + 100 * abs(a - b)}" for a, b in PAIRS),
            *(f"{LB.format(a, b, 'memory', 'access-bandwidth')},bandwidth={200 - 150 * abs(a - b)}M" for a, b in PAIRS),
            LB.format(0, 0, "first-level", "read-latency") + ",latency=30",
            LB.format(1, 0, "first-level", "read-latency") + ",latency=1200",
            LB.format(0, 1, "third-level", "write-bandwidth") + ",bandwidth=3G",
            "hmat-cache,node-id=0,size=10K,level=1,associativity=direct,policy=write-back,line=64",
            "hmat-cache,node-id=0,size=20K,level=2,associativity=complex,policy=write-through,line=128",
            "hmat-cache,node-id=0,size=1M,level=3,associativity=none,policy=none,line=0",
            "hmat-cache,node-id=1,size=4G,level=1,associativity=direct,policy=write-through,line=8",
        ],
    ),
    "memory without CPUs, in another order": (
        "4,sockets=2",
        8 * GIB,
        [
            *("node,memdev=a,initiator=1", "node,memdev=b,cpus=0-3", "node,memdev=c,initiator=1"),
            *(f"{LB.format(1, b, 'memory', 'access-latency')},latency={10 ** (b + 1)}" for b in range(3)),
        ],
    ),
    "a node in the middle that nobody is near": (
        "4,sockets=2",
        8 * GIB,
        [
            *("node,memdev=a,cpus=0-1", "node,memdev=b", "node,memdev=c,cpus=2-3"),
            LB.format(2, 1, "memory", "write-latency") + ",latency=70",
            LB.format(0, 2, "memory", "write-latency") + ",latency=140",
        ],
    ),
}
"""The machine has an HMAT."""
SIZES = {2: (1, 1), 3: (1, 4, 3), 1: (1,)}


def backends(memory: int, texts: list[str]) -> list[str]:
    """``-object`` texts for the nodes that have memory: 1/2 and 1/2, or 1/8, 4/8 and 3/8."""
    names = [name for name in "abc" if any(f"memdev={name}" in text for text in texts)]
    shares = SIZES[len(names)]
    return [
        f"memory-backend-ram,id={name},size={memory * share // sum(shares)}"
        for name, share in zip(names, shares, strict=True)
    ]


@pytest.mark.parametrize("case", [*NUMA, *HMAT])
def test_nodes_are_those_of_qemu(tmp_path: Path, case: str) -> None:
    text, memory, texts = (NUMA | HMAT)[case]
    board = "q35,hmat=on" if case in HMAT else "q35"
    objects = backends(memory, texts)
    arguments = ["-smp", text, *(word for each in objects for word in ("-object", each))]
    arguments += [word for each in texts for word in ("-numa", each)]
    smp = parse_smp(text)
    size = 8 * (1 + smp.topology.apic_id(smp.max_cpus - 1) + 1 + 3)
    accelerator = "kvm" if smp.topology.apic_id(smp.max_cpus - 1) > 254 else "tcg"  # which has no x2APIC
    with Qemu(tmp_path, memory, arguments, machine=board, shared=False, accelerator=accelerator) as qemu:
        acpi = qemu.item(*qemu.files()[ACPI_FILE])
        item = qemu.item(Key.NUMA, size)
    config = MachineConfig.create(
        *("probe",),
        cpus=smp.cpus,
        max_cpus=smp.max_cpus,
        topology=smp.topology,
        memory=memory,
        numa=texts,
        objects=objects,
        hmat=case in HMAT,
    )
    low = low_memory(config.machine_type, memory)
    mine = tables.AcpiFiles(config, RamPlaces(low, memory - low)).build(STANDING)[ACPI_FILE]
    assert (b"HMAT" in acpi) == (case in HMAT)
    for signature in (b"SRAT", b"SLIT", b"HMAT"):
        assert (signature in mine) == (signature in acpi)
        if signature in acpi:
            theirs, own = table_of(acpi, signature), table_of(mine, signature)
            assert own[36:] == theirs[36:]
            assert (len(own), own[8]) == (len(theirs), theirs[8]), "length, revision"
    assert config.numa is not None
    limit = smp.topology.apic_id(smp.max_cpus - 1) + 1
    own_item = numa(limit, cpu_nodes(config), [node.memory for node in config.numa.nodes])
    assert own_item.ljust(size, b"\0") == item


NUMA_REFUSED = [
    ["node,memdev=a", "node,nodeid=0,memdev=b"],
    ["node,memdev=a", "node,memdev=b", "cpu,node-id=2,socket-id=0"],
    ["node,memdev=a", "node,memdev=b", "cpu,node-id=1,core-id=9"],
    ["node,memdev=a", "node,memdev=b", "dist,src=0,dst=1,val=9"],
    ["node,memdev=a", "node,memdev=b", "dist,src=0,dst=2,val=20"],
    ["node,memdev=a", "node,memdev=b", "dist,src=0,dst=0,val=20"],
    ["node,memdev=a,cpus=0-1", "node,memdev=b,cpus=1-3"],
    ["node,memdev=a,cpus=4", "node,memdev=b"],
    ["node,memdev=a"],
    ["node,memdev=a", "node,nodeid=2,memdev=b"],
    ["node,memdev=a", "node,memdev=b", "node", "dist,src=0,dst=1,val=20"],
    ["node,memdev=a", "node,memdev=b", "node", "dist,src=0,dst=1,val=20", "dist,src=1,dst=0,val=30"],
    ["node,memdev=z", "node,memdev=b"],
]


LATENCY, BANDWIDTH = (LB.format(0, 0, "memory", data_type) for data_type in ("access-latency", "access-bandwidth"))
FAR = LB.format(0, 1, "memory", "access-latency")
BOTH = [LATENCY + ",latency=5", BANDWIDTH + ",bandwidth=1G"]
CACHE = "hmat-cache,node-id=0,"
HMAT_REFUSED = [
    [LATENCY],
    [LATENCY + ",bandwidth=1G"],
    [BANDWIDTH + ",latency=5"],
    [BANDWIDTH + ",bandwidth=1500K"],
    [LB.format(0, 0, "memory", "latency") + ",latency=5"],
    [LB.format(0, 2, "memory", "access-latency") + ",latency=5"],
    [LB.format(1, 0, "memory", "access-latency") + ",latency=5"],
    [BOTH[0], BOTH[0]],
    [BOTH[0], FAR + ",latency=65535"],
    [CACHE + "size=10K,level=1"],
    [BOTH[0], CACHE + "size=10K,level=1"],
    [*BOTH, CACHE + "size=10K,level=0"],
    [*BOTH, CACHE + "size=10K,level=4"],
    [*BOTH, CACHE + "size=10K,level=2"],
    [*BOTH, CACHE + "size=10K,level=1", CACHE + "size=10K,level=2"],
    [*BOTH, CACHE + "size=10K,level=1", CACHE + "size=20K,level=1"],
    [*BOTH, CACHE + "size=10K,level=1,policy=back"],
]
NODES = ["node,memdev=a,cpus=0-3", "node,memdev=b,initiator=0"]
REFUSED_WITH_HMAT = [
    *(NODES + texts for texts in HMAT_REFUSED),
    ["node,memdev=a,cpus=0-3", "node,memdev=b,initiator=1"],
    ["node,memdev=a,cpus=0-1,initiator=1", "node,memdev=b,cpus=2-3"],
    ["node,memdev=a,cpus=0-3", "node,memdev=b,initiator=2"],
]


@pytest.mark.parametrize(
    ("board", "texts"),
    [
        *(("q35,hmat=on", texts) for texts in REFUSED_WITH_HMAT),
        *(("q35", texts) for texts in (NODES, [NODES[0], NODES[1].partition(",initiator")[0], *BOTH])),
    ],
)
def test_what_qemu_refuses_of_an_hmat_is_refused(board: str, texts: list[str]) -> None:
    said = refused_by_qemu(board, texts)
    assert said.returncode == 1, said.stderr
    with pytest.raises(ConfigError, match="-numa"):
        MachineConfig.create("probe", cpus=4, memory="256M", numa=texts, objects=BACKENDS, hmat="hmat=on" in board)


BACKENDS = [f"memory-backend-ram,id={name},size=128M" for name in "ab"]


def refused_by_qemu(board: str, texts: list[str]) -> subprocess.CompletedProcess[str]:
    command = ["qemu-system-x86_64", "-machine", board, "-S", "-display", "none", "-smp", "4", "-m", "256"]
    command += [word for each in BACKENDS for word in ("-object", each)]
    command += [word for each in texts for word in ("-numa", each)]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.fail(f"QEMU takes {texts}")


@pytest.mark.parametrize("texts", NUMA_REFUSED)
def test_nodes_that_qemu_refuses_are_refused(texts: list[str]) -> None:
    assert refused_by_qemu("q35", texts).returncode == 1
    with pytest.raises(ConfigError, match="-numa"):
        MachineConfig.create("probe", cpus=4, memory="256M", numa=texts, objects=BACKENDS)


# -- CPUID ------------------------------------------------------------------------------------------------------------

LEAVES = [
    *((0, 0), (1, 0), (4, 0), (4, 1), (4, 2), (4, 3), (7, 0)),
    *((0xB, 0), (0xB, 1), (0xB, 2), (0x1F, 0), (0x1F, 1), (0x1F, 2), (0x1F, 3)),
    *((0x80000000, 0), (0x80000001, 0), (0x80000008, 0)),
    *((0x8000001D, 0), (0x8000001D, 1), (0x8000001D, 2), (0x8000001D, 3), (0x8000001E, 0)),
]
INDEXED = {4, 7, 0xB, 0x1F, 0x8000001D}


@pytest.fixture(scope="module")
def rom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rom") / "cpuid.bin"
    path.write_bytes(image(LEAVES))
    return path


@cache
def cpuid_in_qemu(rom: Path, model: str, smp: str) -> list[list[CpuidEntry]]:
    """What each CPU says, in the order of APIC ids."""
    output = rom.with_suffix(".out")
    command = ["qemu-system-x86_64", "-M", "q35", "-nodefaults", "-display", "none", "-no-reboot", "-bios", str(rom)]
    command += ["-accel", "tcg", "-cpu", model, "-smp", smp, "-chardev", f"file,id=out,path={output}"]
    command += ["-device", "isa-debugcon,iobase=0x402,chardev=out"]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    values = list(struct.iter_unpack("<4I", output.read_bytes()))
    entries = [
        CpuidEntry(*leaf, *value)._replace(indexed=leaf[0] in INDEXED)
        for leaf, value in zip(cycle(LEAVES), values, strict=False)
    ]
    cpus = [entries[at : at + len(LEAVES)] for at in range(0, len(entries), len(LEAVES))]
    assert len(cpus[-1]) == len(LEAVES)
    return sorted(cpus, key=lambda cpu: cpu[LEAVES.index((0xB, 0))].edx)


class Host:
    """A Kvm whose processor is the one that QEMU shows a guest with a single CPU."""

    def __init__(self, entries: list[CpuidEntry]) -> None:
        self.supported_cpuid = lambda: entries

    def check_extension(self, _capability: int) -> int:
        return 0


def fields(entries: list[CpuidEntry], smp: Topology, *, amd: bool) -> Iterator[tuple[str, int]]:
    """What is about topology, and the same from both.

    QEMU 7.2 does not count dies where leaves 1, 0xb and 8000_0008 count a package's CPUs; QEMU 9 does. Its L1 caches of
    Intel's belong to a thread, which QEMU 9.2 has changed. Numbers of ids in leaf 4 are compared as bits of ids, which
    is what they are for: in QEMU they are counts, and need not be powers of two.
    """
    leaf = {entry[:2]: entry for entry in entries}
    yield "1 EBX, id", leaf[1, 0].ebx >> 24
    if smp.cpus_per_socket > 1 and smp.dies == 1:
        yield "1 EBX, count", leaf[1, 0].ebx >> 16 & 0xFF
    yield "HTT", leaf[1, 0].edx >> 28 & 1
    for number in range(4):
        entry = leaf[0x8000001D if amd else 4, number]
        if entry.eax & 31 and (amd or number > 1 or smp.threads == 1):
            sharing = entry.eax >> 14 & 0xFFF
            yield f"cache {number}", sharing if amd else sharing.bit_length()
        if entry.eax & 31 and not amd and smp.dies == 1:
            yield f"cache {number}, cores", (entry.eax >> 26).bit_length()
    for function in (0xB, 0x1F) if smp.dies > 1 else (0xB,):
        for level in range(3 if function == 0xB else 4):
            entry = leaf[function, level]
            counted = ("ebx",) if function == 0x1F or level != 1 or smp.dies == 1 else ()
            yield from (
                (f"{function:x}.{level} {name}", getattr(entry, name)) for name in ("eax", *counted, "ecx", "edx")
            )
    if amd:
        yield "CmpLegacy", leaf[0x80000001, 0].ecx >> 1 & 1
        yield "80000008 ECX", leaf[0x80000008, 0].ecx >> 12 if smp.dies > 1 else leaf[0x80000008, 0].ecx
        yield from ((f"8000001e {name}", getattr(leaf[0x8000001E, 0], name)) for name in ("eax", "ebx", "ecx"))


INTEL, AMD = "Skylake-Server-v1,level=0x1f", "EPYC-v1,level=0x1f,xlevel=0x8000001e"


WIDTHS = [
    *("4", "3,sockets=3", "7,sockets=1", "6,sockets=2", "6,threads=2", "9,sockets=3,cores=1,threads=3"),
    *(
        "30,sockets=3,cores=5,threads=2",
        "12,sockets=1,dies=2,cores=3,threads=2",
        "18,sockets=1,dies=3,cores=2,threads=3",
    ),
    *("12,sockets=2,dies=3,cores=1,threads=2", "45,sockets=3,dies=3,cores=5,threads=1"),
]
"""Powers of two and others, of each level."""


@pytest.mark.parametrize("model", [INTEL, AMD])
@pytest.mark.parametrize("text", WIDTHS)
def test_cpuid_of_each_cpu_says_what_qemu_says(rom: Path, model: str, text: str) -> None:
    topology, amd = parse_smp(text).topology, model == AMD
    host = Host(cpuid_in_qemu(rom, model, "1")[0])
    theirs = [dict(fields(cpu, topology, amd=amd)) for cpu in cpuid_in_qemu(rom, model, text)]
    own = [cpuid_entries(host, index, Guest(topology)) for index in range(topology.cpus)]  # type: ignore[arg-type]
    assert [dict(fields(cpu, topology, amd=amd)) for cpu in own] == theirs
