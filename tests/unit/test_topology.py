"""How CPUs and memory are arranged: rules, APIC ids, NUMA nodes, and where RAM is."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.config.cpu_model import CpuModel
from vmm.config.machine import MachineConfig, MachineType
from vmm.config.numa import Numa, NumaNode
from vmm.config.parts import RamPlaces
from vmm.config.topology import Place, Smp, Topology, parse_smp
from vmm.cpu.cpuid import Addresses
from vmm.devices.fw_cfg_items import numa as numa_item
from vmm.errors import ConfigError
from vmm.firmware.images import FirmwareKind
from vmm.handoff import tables
from vmm.handoff.interface import cpu_nodes
from vmm.platform import Standing
from vmm.run import snapshot_plain
from vmm.tables import e820
from vmm.tables.acpi_numa import memory_ranges
from vmm.tables.files import ACPI_FILE, SMBIOS_FILE
from vmm.tables.smbios_options import split_structures
from vmm.verify import linux_cpus
from vmm.verify.truth import nodes_of

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
STANDING = Standing(pm_base=0x600, gpe0=range(0x620, 0x630))


# -- -smp -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cpus", "most", "topology"),
    [
        ("4", 4, 4, (1, 1, 4, 1)),
        ("4,maxcpus=8", 4, 8, (1, 1, 8, 1)),
        ("8,sockets=2", 8, 8, (2, 1, 4, 1)),
        ("8,cores=2", 8, 8, (4, 1, 2, 1)),
        ("8,cores=2,sockets=2", 8, 8, (2, 1, 2, 2)),
        ("8,threads=2", 8, 8, (1, 1, 4, 2)),
        ("8,dies=2,threads=2", 8, 8, (1, 2, 2, 2)),
        ("sockets=2,dies=2,cores=3,threads=2", 24, 24, (2, 2, 3, 2)),
        ("3,sockets=4,clusters=1,maxcpus=8", 3, 8, (4, 1, 2, 1)),
        ("maxcpus=6,threads=2", 6, 6, (1, 1, 3, 2)),
        ("1024,sockets=4", 1024, 1024, (4, 1, 256, 1)),
    ],
)
def test_what_is_left_out_is_found_as_in_qemu(text: str, cpus: int, most: int, topology: tuple[int, ...]) -> None:
    assert parse_smp(text) == (cpus, most, topology)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4,threads=3", r"sockets \(1\) \* dies \(1\) \* cores \(1\) \* threads \(3\) must be maxcpus, which is 4"),
        ("0", r"^-smp 0: a machine has from 1 to 1024 CPUs"),
        ("4,cores=0", r"^-smp cores=0: a machine has from 1"),
        ("1025", "from 1 to 1024"),
        ("sockets=64,cores=64", "these are 4096 CPUs, and a machine has from 1 to 1024"),
        ("4,maxcpus=2", "-smp 4,maxcpus=2: maxcpus is 4 or more"),
        ("4,clusters=2", "a PC has no clusters"),
        ("4,books=2", "unknown key 'books'; known: clusters, cores, cpus, dies, maxcpus, sockets, threads"),
        ("4,sockets=0x", "not a whole number"),
    ],
)
def test_what_contradicts_itself_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_smp(text)


LEVEL = st.integers(1, 9)


@given(st.builds(Topology, LEVEL, LEVEL, LEVEL, LEVEL))
def test_apic_ids_are_distinct_and_their_fields_are_the_places(topology: Topology) -> None:
    last = -1
    for index in range(topology.cpus):
        place, apic_id = topology.place(index), topology.apic_id(index)
        assert topology.index_of(place) == index
        assert apic_id > last
        last = apic_id
        assert apic_id >> topology.socket_offset == place.socket
        assert (apic_id & (1 << topology.socket_offset) - 1) >> topology.die_offset == place.die
        assert (apic_id & (1 << topology.die_offset) - 1) >> topology.core_offset == place.core
        assert apic_id & (1 << topology.core_offset) - 1 == place.thread


def test_three_cores_leave_a_hole() -> None:
    topology = Topology(sockets=2, cores=3)
    assert [topology.apic_id(index) for index in range(6)] == [0, 1, 2, 4, 5, 6]
    assert topology.place(4) == Place(1, 0, 1, 0)


def test_python_says_it_in_words_or_numbers() -> None:
    whole = MachineConfig.create("probe", topology=Topology(sockets=2, threads=2))
    assert (whole.cpus, whole.max_cpus, whole.cpu_topology) == (4, 4, (2, 1, 1, 2))
    some = MachineConfig.create("probe", cpus=3, max_cpus=8, topology="sockets=2,threads=2")
    assert (some.cpus, some.max_cpus, some.cpu_topology) == (3, 8, (2, 1, 2, 2))
    assert MachineConfig.create("probe", cpus=3).cpu_topology == Topology(cores=3)
    with pytest.raises(ConfigError, match=r"must be maxcpus, which is 5"):
        MachineConfig.create("probe", cpus=4, max_cpus=5, topology=Topology(sockets=2, cores=2))
    with pytest.raises(ConfigError, match=r"-smp cores=0: must be 1 or more"):
        MachineConfig.create("probe", cpus=4, max_cpus=4, topology=Topology(cores=0))
    with pytest.raises(TypeError, match="topology: must be str or Topology, not int"):
        MachineConfig.create("probe", topology=4)  # type: ignore[arg-type]


def test_smbios_has_a_structure_of_each_socket() -> None:
    config = MachineConfig.create("probe", cpus=5, max_cpus=24, topology="sockets=2,dies=2,cores=3,threads=2")
    structures = list(split_structures(tables.smbios_files(config, RamPlaces(GIB), 0)[SMBIOS_FILE]))
    sockets = [(each[24], *each[35:38]) for each in structures if each[0] == 4]
    assert sockets == [(0x41, 6, 6, 12), (0, 6, 6, 12)]
    assert [struct.unpack_from("<H", each, 38)[0] & 0x18 for each in structures if each[0] == 4] == [0x18, 0x18]


# -- -numa ------------------------------------------------------------------------------------------------------------


def nodes(*texts: str, smp: str = "4,sockets=2", memory: int = 512 * MIB, objects: tuple[str, ...] = ()) -> Numa:
    whole = parse_smp(smp)
    config = MachineConfig.create(
        "probe",
        cpus=whole.cpus,
        max_cpus=whole.max_cpus,
        topology=whole.topology,
        memory=memory,
        numa=texts,
        objects=objects,
    )
    assert config.numa is not None
    return config.numa


def test_sockets_and_memory_are_spread_where_nobody_says_how() -> None:
    assert nodes("node", "node").nodes == (NumaNode((0, 1), 256 * MIB), NumaNode((2, 3), 256 * MIB))
    assert nodes("node", "node", "node", memory=100 * MIB).nodes[2] == NumaNode((), 34 * MIB)


def test_cpus_by_number_by_place_and_left_over() -> None:
    some = nodes("node,cpus=1,mem=512", "node,cpus=2-3").nodes
    assert some == (NumaNode((0, 1), 512 * MIB), NumaNode((2, 3), 0)), "CPU 0 is in the first node, as in QEMU"
    placed = nodes("node", "node", "cpu,node-id=1,core-id=0", "cpu,node-id=0,core-id=1").nodes
    assert [node.cpus for node in placed] == [(1, 3), (0, 2)]


def test_memory_by_backend() -> None:
    ram = ("memory-backend-ram,id=a,size=128M", "memory-backend-memfd,id=b,size=384M,share=on")
    assert [node.memory >> 20 for node in nodes("node,memdev=b", "node,memdev=a", objects=ram).nodes] == [384, 128]


def test_distances_that_are_given_one_way_are_those_of_the_other() -> None:
    three = nodes(
        "node", "node", "node", *(f"src={a},dst={b},val={20 + b},type=dist" for a, b in ((0, 1), (0, 2), (1, 2)))
    )
    assert three.distances == ((10, 21, 22), (21, 10, 22), (22, 22, 10))
    assert nodes("node", "node").distances == ()


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (("nodes",), "-numa nodes: known are node, cpu, dist, hmat-lb and hmat-cache"),
        (("node,nodeid=1",), "nodes have the numbers from 0 on, and there are 1"),
        (("node", "node,nodeid=0"), "there is a node 0 already"),
        (("node,mem=100", "node"), "the nodes have 100 MiB together, and -m says 512 MiB"),
        (("node,mem=1,memdev=a",), "mem and memdev say the same"),
        (("node,memdev=a",), "no -object memory-backend-ram,id=a,size=SIZE is there"),
        (("node,cpus=3-2",), "-numa cpus=3-2: ends before it begins"),
        (("node,cpus=0-4",), "node 0 has CPU 4; there are 4, from 0 on"),
        (("node,cpus=0-2", "node,cpus=2-3"), "CPU 2 is in node 0 and in node 1"),
        (("node", "cpu,node-id=1,socket-id=0"), "node-id= names no -numa node"),
        (("node", "cpu,node-id=0"), "names no CPU"),
        (("node", "cpu,node-id=0,socket-id=2"), "socket-id is from 0 to 1"),
        (("node", "node", "dist,src=0,dst=1"), "val= is missing"),
        (("node", "dist,src=0,dst=1,val=20"), "there is no -numa node 1"),
        (("node", "node", "dist,src=0,dst=1,val=256"), "must be from 10 to 255"),
        (("node", "node", "dist,src=0,dst=0,val=20", "dist,src=0,dst=1,val=20"), "to itself a node has 10"),
        (("node", "node", "node", "dist,src=0,dst=1,val=20"), "src=0,dst=2 is missing: .* one way at least"),
        (
            ("node", "node", "node", "dist,src=0,dst=1,val=20", "dist,src=1,dst=0,val=21"),
            "src=0,dst=2 is missing: .* both ways",
        ),
        (("node",) * 129, "nodeid=128: must be from 0 to 127"),
    ],
)
def test_nodes_that_make_no_sense_are_refused(texts: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        nodes(*texts)


def test_python_gives_nodes_as_objects() -> None:
    two = (NumaNode((0,), 192 * MIB), NumaNode((1, 2), 64 * MIB))
    config = MachineConfig.create("probe", cpus=3, numa=two)
    assert config.numa == Numa(two)
    far = Numa(two, ((10, 40), (40, 10)))
    assert MachineConfig.create("probe", cpus=3, numa=far).numa == far
    with pytest.raises(ConfigError, match="distances are 2 rows of 2"):
        MachineConfig.create("probe", cpus=3, numa=far._replace(distances=((10, 40),)))


def test_an_own_srat_beside_it_is_refused(tmp_path: Path) -> None:
    srat = tmp_path / "srat"
    srat.write_bytes(b"SRAT" + struct.pack("<IBB6s8sI4sI", 36, 1, 0, b"", b"", 1, b"", 1))
    with pytest.raises(ConfigError, match="-acpitable with SRAT: -numa makes these"):
        MachineConfig.create("probe", numa="node", acpi_tables=[f"file={srat}"])


def test_memory_goes_around_holes_and_belongs_to_nodes_in_order() -> None:
    low = 2 * GIB
    assert memory_ranges((GIB, 3 * GIB), low, 4 * GIB) == [
        (0, 640 << 10, 0),
        (MIB, GIB - MIB, 0),
        (GIB, GIB, 1),
        (4 * GIB, 2 * GIB, 1),
    ]
    assert memory_ranges((0, 4 * GIB, GIB), low, TIB)[-2:] == [(TIB, 2 * GIB, 1), (TIB + 2 * GIB, GIB, 2)]


@given(st.lists(st.integers(0, 4096), min_size=1, max_size=8).filter(any), st.integers(16, 2816))
def test_all_ram_is_some_nodes(sizes: list[int], low: int) -> None:
    total = sum(sizes) * MIB
    low = min(low * MIB, total)
    ranges = memory_ranges(tuple(size * MIB for size in sizes), low, 4 * GIB)
    hole = max(0, min(low, MIB) - (640 << 10))
    assert sum(length for _, length, _ in ranges) == total - hole
    assert ranges == sorted(ranges)
    assert [owner for *_, owner in ranges] == sorted(owner for *_, owner in ranges)


def test_srat_and_fw_cfg_say_the_same_of_ids_with_holes_and_beyond_255() -> None:
    config = MachineConfig.create(
        "probe", cpus=4, max_cpus=258, topology="sockets=86,cores=3", numa=["node,cpus=0-1", "node,cpus=2-257"]
    )
    assert config.numa is not None
    acpi = tables.AcpiFiles(config, RamPlaces(256 * MIB)).build(STANDING)[ACPI_FILE]
    at = acpi.index(b"SRAT")
    found = nodes_of(acpi[at : at + int.from_bytes(acpi[at + 4 : at + 8], "little")])
    assert found[0][0] == [0, 1]
    assert found[1][0][:3] == [2, 4, 5]
    assert found[1][0][-1] == 85 << 2 | 2
    limit = 343
    words = struct.unpack(f"<{1 + limit + 2}Q", numa_item(limit, cpu_nodes(config), [128 * MIB, 128 * MIB]))
    assert words[0] == 2
    assert [apic_id for apic_id, node in enumerate(words[1 : 1 + limit]) if node] == found[1][0]
    assert words[-2:] == (128 * MIB, 128 * MIB)


# -- -cpu, and where RAM is -------------------------------------------------------------------------------------------


def test_cpu_words() -> None:
    assert CpuModel.parse("host,phys-bits=40,-svm,+nx,la57=off") == CpuModel(
        40, (("svm", False), ("nx", True), ("la57", False))
    )
    assert CpuModel.parse("max,migratable=off,host-phys-bits=on") == CpuModel()
    assert CpuModel.parse("max,migratable=no,+invtsc,kvm=on") == CpuModel(None, (("invtsc", True),))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("EPYC", "known models are host and max"),
        ("host,phys-bits=53", "-cpu phys-bits=53: must be from 32 to 52"),
        ("host,sse=off", r"'sse=off' can't be changed here; known are phys-bits=N and hypervisor, x2apic"),
        ("host,host-phys-bits=off", "can't be changed here"),
        ("host,kvm=off", "'kvm=off' can't be changed here"),
        ("host,nx=maybe", "write on or off"),
    ],
)
def test_cpu_words_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CpuModel.parse(text)


def places(memory: int, *, amd: bool = False, bits: int = 48, machine: str = "q35") -> RamPlaces:
    return tables.place_ram(MachineConfig.create("probe", memory=memory, machine=machine), Addresses(amd, bits))


def test_ram_that_would_reach_amds_hole_is_behind_it() -> None:
    # 2 GiB below 4 GiB; the rest, and 32 GiB of PCI window behind it, up to 0xfd_0000_0000 exactly.
    most = 0xFD_0000_0000 - 36 * GIB + 2 * GIB
    assert places(most, amd=True) == RamPlaces(2 * GIB, most - 2 * GIB)
    assert places(most + MIB, amd=True) == RamPlaces(2 * GIB, most + MIB - 2 * GIB, TIB)
    assert places(most + MIB) == RamPlaces(2 * GIB, most + MIB - 2 * GIB)
    config = MachineConfig.create("probe", memory=2 * TIB)
    entries = tables.e820_map(config, places(2 * TIB, amd=True))
    assert e820.E820Entry(TIB, 2 * TIB - 2 * GIB, 1) in entries
    assert e820.E820Entry(0xFD_0000_0000, 12 * GIB, 2) in entries


def test_an_entry_of_the_users_where_ram_has_gone_is_refused() -> None:
    config = MachineConfig.create("probe", memory=TIB, e820=["base=0x18000000000,size=1M,type=nvs"])
    with pytest.raises(ConfigError, match="overlap"):
        tables.e820_map(config, tables.place_ram(config, Addresses(amd=True, bits=48)))


@pytest.mark.parametrize(
    ("memory", "amd", "bits", "machine", "words"),
    [
        (992 * GIB, False, 40, "q35", r"-m 992G: .* end at 0x10080000000, .* 40 bits, up to 0x10000000000; .*m 990G"),
        (992 * GIB, True, 40, "q35", "-m 978G or less"),
        (2 * TIB, True, 40, "pc", "-m 1009G or less"),
        (256 * MIB, False, 35, "q35", "-cpu host,phys-bits=N"),
        (64 * GIB, False, 36, "bhyve", "-m 31G or less"),
    ],
)
def test_a_machine_beyond_its_cpus_addresses_is_refused(
    memory: int, amd: bool, bits: int, machine: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        places(memory, amd=amd, bits=bits, machine=machine)


def test_ovmf_takes_a_window_of_32_gib_on_every_board() -> None:
    config = MachineConfig.create("probe", memory=991 * GIB, machine="pc")
    ovmf = config._replace(firmware=config.firmware._replace(kind=FirmwareKind.OVMF))
    for amd in (False, True):
        addresses = Addresses(amd, 40)
        assert tables.place_ram(ovmf, addresses).end == 992 * GIB
        assert tables.place_ram(config._replace(memory=1009 * GIB), addresses).end == 1010 * GIB
        with pytest.raises(ConfigError, match=r"-m 992G: .* end at 0x10800000000, .* 40 bits, .*ask for -m 991G or"):
            tables.place_ram(ovmf._replace(memory=992 * GIB), addresses)


def test_what_is_said_to_fit_fits_exactly() -> None:
    assert places(990 * GIB, bits=40).end == (990 + 2) * GIB
    with pytest.raises(ConfigError, match="990G or less"):
        places(990 * GIB + MIB, bits=40)


def test_tables_follow_ram() -> None:
    ram = RamPlaces(2 * GIB, 4 * GIB, TIB)
    assert tables.pci_windows(MachineType.Q35, ram, None)[-1] == (TIB + 4 * GIB, TIB + 36 * GIB - 1)
    config = MachineConfig.create("probe", memory=6 * GIB, numa=["node", "node"])
    structures = split_structures(tables.smbios_files(config, ram, 0)[SMBIOS_FILE])
    in_kib = struct.pack("<II", TIB >> 10, (TIB + 4 * GIB >> 10) - 1)
    assert in_kib in [each[4:12] for each in structures if each[0] == 19]
    acpi = tables.AcpiFiles(config, ram).build(STANDING)[ACPI_FILE]
    srat = acpi[acpi.index(b"SRAT") :]
    assert nodes_of(srat[: int.from_bytes(srat[4:8], "little")])[1][1] == [(TIB + GIB, 3 * GIB)]


# -- snapshots, Linux -------------------------------------------------------------------------------------------------


def test_a_snapshot_keeps_all_of_it() -> None:
    config = MachineConfig.create(
        "probe",
        topology=Topology(sockets=2, cores=3),
        cpu="host,phys-bits=40,-svm",
        numa=["node,mem=192", "node,mem=64", "dist,src=0,dst=1,val=30"],
    )
    kept = (config.cpus, config.topology, config.cpu, config.numa)
    assert snapshot_plain.decode(*snapshot_plain.encode(kept)) == kept


@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=200))
def test_whatever_linux_sends_is_decoded(apic_ids: bytes, topology: bytes, node: bytes) -> None:
    cpus, found = linux_cpus.decode({"apicids": apic_ids, "topology": topology, "nodes": node})
    assert len(cpus) <= len(topology)
    assert len(found) <= len(node)


def test_what_linux_sends_is_decoded() -> None:
    cpus, found = linux_cpus.decode(
        {
            "apicids": b"processor\t: 0\napicid\t\t: 0\nprocessor\t: 1\napicid\t\t: 4\n",
            "topology": b"0 0 0 0\n1 1 0 2\n2 - - -\n",
            "nodes": b"0 ,0,1 222052 10 20\n1 , 0 20 10\n",
        }
    )
    assert cpus == {0: (0, 0, 0, 0), 1: (4, 1, 0, 2)}
    assert found == {0: ((0, 1), 222052, (10, 20)), 1: ((), 0, (20, 10))}


def test_the_default_is_one_cpu() -> None:
    assert Smp() == (1, 1, Topology())
