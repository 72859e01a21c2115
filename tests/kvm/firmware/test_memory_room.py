"""What firmware and Linux do where the machine keeps addresses free for memory that may be plugged in."""

from pathlib import Path

import pytest

from vmm import Machine
from vmm.config.machine import MachineConfig
from vmm.report.collect import collect as report_of
from vmm.report.text import rows as rows_of
from vmm.tables.files import RESERVED_END_FILE
from vmm.verify import linux_guest
from vmm.verify.collect import collect
from vmm.verify.run import compare

pytestmark = pytest.mark.needs_kvm

GIB = 1 << 30
DEADLINE = 180.0


def wide_bar(machine: Machine) -> int:
    """Where the firmware has put the disk's BAR of 64 bits."""
    for function in machine.platform.pci.functions().values():
        for bar in function.bars:
            if bar.wide:
                return int.from_bytes(function.config[bar.register : bar.register + 8], "little") & -bar.size
    raise AssertionError("no function has a BAR of 64 bits")


def test_ovmf_gives_devices_what_is_behind_the_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    places = []
    for memory in ("256M", "256M,slots=3,maxmem=450G"):
        with Machine("ovmf", memory=memory, cpu="host,phys-bits=39", drives=disk) as machine:
            machine.expect("Shell>", deadline=DEADLINE)
            places.append(wide_bar(machine))
            assert machine.fw_cfg is not None
            read = {item.name for item in machine.fw_cfg.items() if item.read_to_end}
            assert (RESERVED_END_FILE in read) == ("maxmem" in memory)
            room = machine.memory.places.hotplug
    assert room == range(4 * GIB, 4 * GIB + 450 * GIB - (256 << 20) + 3 * GIB)
    assert 4 * GIB <= places[0] < room.stop <= places[1]


def test_linux_keeps_room_and_has_no_memory_there() -> None:
    with linux_guest.options() as kernel:
        numa = ["node,mem=384,cpus=0", "node,mem=128,cpus=1"]
        config = MachineConfig.create("ovmf", cpus=2, memory="512M,slots=2,maxmem=2G", numa=numa, **kernel)
        collected = collect(config, deadline=DEADLINE, linux=True)
    assert collected.report is not None, collected.failure
    result = compare(collected)
    assert not [(subject.name, row) for subject in result.subjects for row in subject.rows if not row.verdict.ok]
    stated = {row.name: (row.offered, row.found, row.true) for row in result.subject("what tables state").rows}
    assert stated["SRAT: room for memory"] == ("node 1 0x100000000-0x1dfffffff",) * 3
    assert stated[RESERVED_END_FILE] == ("0x200000000", "-", "0x200000000")
    rows = {row.name: (row.offered, row.found) for row in result.subject("processors").rows}
    assert rows["Linux: room for memory"] == ("node 1 0x100000000-0x1dfffffff",) * 2
    assert rows["Linux: blocks of memory"] == ("0x0-0x1fffffff",) * 2
    assert rows["Linux: memory of node 1"][1] == "0x18000000-0x1fffffff"
    said = [text for _, text in collected.report.log]
    assert any("SRAT: Node 1 PXM 1 [mem 0x100000000-0x1dfffffff] hotplug" in text for text in said)
    # Memory beyond 4 GiB may come, for which devices of 32 bits need buffers; without the range, Linux has none.
    assert any("software bounce buffering for IO (SWIOTLB)" in text for text in said)


def test_a_snapshot_and_the_report_keep_the_room() -> None:
    with Machine("probe", memory="64M", max_memory="1G", memory_slots=1) as machine:
        places, snapshot = machine.memory.places, machine.snapshot()
    assert places.room == GIB - (64 << 20) + GIB
    with snapshot, Machine.restore(snapshot) as restored:
        assert restored.memory.places == places
        outcome = restored.run(deadline=DEADLINE)
        report = report_of(restored, outcome)
    assert report["memory"]["room"] == {"gpa": 4 * GIB, "size": places.room, "max_memory": GIB, "slots": 1}
    assert ", room for 1 GiB" in dict(rows_of(report))["machine"]
    assert RESERVED_END_FILE in {item["name"] for item in report["fw_cfg"]["items"]}
