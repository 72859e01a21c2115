"""-machine hmat=on: what Python says, what a table can say, and what Linux logs of it; beside QEMU in tests/oracle."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.config.machine import MachineConfig
from vmm.config.numa import Numa, NumaNode
from vmm.config.parts import RamPlaces
from vmm.errors import ConfigError
from vmm.handoff import tables
from vmm.platform import Standing
from vmm.run import snapshot_plain
from vmm.tables.files import ACPI_FILE
from vmm.tables.memory_attributes import DATA_TYPES, Hmat, Locality, SideCache, unit
from vmm.verify import linux_hmat
from vmm.verify.guest_report import GuestReport, Kind
from vmm.verify.result import Subject

MIB = 1 << 20
NODES = (NumaNode((0, 1), 192 * MIB), NumaNode((), 64 * MIB, initiator=0))
SAID = Hmat(
    (Locality(0, 0, 10), Locality(0, 1, 250), Locality(0, 1, 512 * MIB, "access-bandwidth")),
    (SideCache(1, MIB, 1, "direct", "write-back", 64),),
)


def create(**options: Any) -> MachineConfig:
    return MachineConfig.create("probe", cpus=2, **options)


def table(config: MachineConfig) -> bytes:
    files = tables.AcpiFiles(config, RamPlaces(config.memory)).build(Standing(pm_base=0x600, gpe0=range(0x620, 0x630)))
    data = files[ACPI_FILE]
    start = data.index(b"HMAT")
    return data[start : start + int.from_bytes(data[start + 4 : start + 8], "little")]


def test_python_gives_it_as_objects_which_a_snapshot_keeps() -> None:
    config = create(numa=Numa(NODES, hmat=SAID))
    assert config.numa is not None
    assert config.numa.hmat == SAID
    assert snapshot_plain.decode(*snapshot_plain.encode(config.numa)) == config.numa
    assert b"HMAT" in table(config)


def test_only_who_asks_has_one() -> None:
    for nodes, hmat in ((NODES[:1] * 1, True), (Numa((NumaNode(),)), True), ("node", True)):
        assert create(numa=nodes, hmat=hmat, memory="192M").numa.hmat == Hmat()  # type: ignore[union-attr]
    assert create(numa="node").numa.hmat is None  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="hmat=on: the HMAT is about NUMA nodes"):
        create(hmat=True)
    with pytest.raises(ConfigError, match="initiator=: that is for the HMAT, which -machine hmat=on adds"):
        create(numa=NODES)


def test_texts_come_in_any_order_and_spread_cpus_ask_for_memory() -> None:
    far = "hmat-lb,initiator=0,target=1,hierarchy=memory,data-type=access-latency,latency=7"
    numa = create(numa=[far, "node", "node"], hmat=True).numa
    assert numa is not None
    assert numa.hmat == Hmat((Locality(0, 1, 7),))


@pytest.mark.parametrize(
    ("hmat", "words"),
    [
        (Hmat((Locality(0, 0, 1, "speed"),)), "data_type 'speed': must be one of access-latency"),
        (Hmat((Locality(0, 0, 1, hierarchy="disk"),)), "hierarchy 'disk': must be one of memory"),
        (Hmat((Locality(0, 0, -1),)), "value -1: must be from 0"),
        (Hmat((Locality(0, 0, 1 << 60),)), "value 1152921504606846976: must be from 0 to 18446744073709551$"),
        (SAID._replace(caches=(SideCache(1, MIB, 1, "wide"),)), "associativity 'wide'"),
        (SAID._replace(caches=(SideCache(1, MIB, 1, line=1 << 16),)), "line 65536: must be from 0 to 65535"),
        (SAID._replace(caches=(SideCache(2, MIB, 1),)), "there is no node 2; nodes are 0 to 1"),
        (SAID._replace(caches=(SideCache(0, MIB, 1),)), "latency and bandwidth must be said too"),
    ],
)
def test_what_python_says_wrongly_is_refused(hmat: Hmat, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        create(numa=Numa(NODES, hmat=hmat))


@pytest.mark.parametrize(
    ("hmat", "words"),
    [
        ("on", "hmat: must be Hmat, not str"),
        (Hmat(iter(())), "localities of an HMAT: must be tuple, not tuple_iterator"),  # type: ignore[arg-type]
        (Hmat((1,)), "one of the localities of an HMAT: must be Locality, not int"),  # type: ignore[arg-type]
        (Hmat((), None), "caches of an HMAT: must be tuple, not NoneType"),  # type: ignore[arg-type]
        (Hmat((), (SAID.localities[0],)), "one of the caches of an HMAT: must be SideCache"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_hmat_is_named(hmat: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        create(memory="256M", numa=Numa(NODES, hmat=hmat))


def test_numbers_are_no_texts() -> None:
    with pytest.raises(TypeError, match="value: must be int, not str"):
        create(numa=Numa(NODES, hmat=Hmat((Locality(0, 0, "5"),))))  # type: ignore[arg-type]


@given(st.integers(1, 0xFFFE), st.integers(0, 0xFFFE), st.integers(0, 11), st.booleans())
def test_a_table_says_what_was_said(near: int, far: int, scale: int, latency: bool) -> None:
    data_type, factor = (DATA_TYPES[1], 10**scale) if latency else (DATA_TYPES[4], MIB << scale)
    group = (Locality(0, 0, near * factor, data_type), Locality(0, 1, far * factor, data_type))
    data = table(create(numa=Numa(NODES, hmat=Hmat(group))))
    structure = data[36 + 4 + 2 * 40 :]
    base = struct.unpack_from("<Q", structure, 24)[0]
    values = struct.unpack_from("<2H", structure, len(structure) - 4)
    found = [value * base // 1000 if latency else value * base * MIB for value in values]
    assert found == [each.value for each in group]
    assert sum(data) & 0xFF == 0


def test_a_unit_is_the_largest() -> None:
    assert unit([Locality(0, 0, 1700), Locality(0, 1, 300), Locality(1, 0, 0)]) == 100
    assert unit([Locality(0, 0, 3 << 33, "read-bandwidth"), Locality(0, 1, 1 << 40, "read-bandwidth")]) == 1 << 33
    assert unit([Locality(0, 0, 0)]) == 1


LINES = st.sampled_from(
    [
        "acpi/hmat: Memory Flags:0001 Processor Domain:0 Memory Domain:1",
        "acpi/hmat: Locality: Flags:0f Type:Access Latency Initiator Domains:1 Target Domains:2 Base:1000",
        "acpi/hmat: HMAT: Locality: Flags:00 Type:Speed Initiator Domains:1 Target Domains:2 Base:1000",
        "acpi/hmat:   Initiator-Target[4000000000-9999999999]:4294967295 nsec",
        "acpi/hmat: Cache: Domain:1 Size:99999999999999999999 Attrs:ffffffff SMBIOS Handles:0",
    ]
)


@given(st.lists(LINES | st.text(max_size=60)))
def test_whatever_linux_logs_is_compared(lines: list[str]) -> None:
    report = GuestReport(kind=Kind.LINUX, complete=True)
    report.log = [(6, line) for line in lines]
    subject = Subject("processors")
    linux_hmat.compare(subject, Numa(NODES, hmat=SAID), SAID, report)
    assert [row.name for row in subject.rows] == [
        *("Linux: initiators", "Linux: access latency", "Linux: access bandwidth", "Linux: memory side caches")
    ]
    assert not any(row.verdict.ok for row in subject.rows[1:])
