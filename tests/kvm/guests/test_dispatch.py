"""fw_cfg answered by Python instead of C, and the times of exits: the same guests must not see a difference."""

from collections.abc import Callable

import pytest
from accelerators import PLAIN

from vmm import Machine
from vmm.firmware import guests
from vmm.run.exit_times import MMIO, PORT, REASON

pytestmark = pytest.mark.needs_kvm


@pytest.mark.hw_long
def test_python_answers_every_conformance_case_as_c_does(ours: Callable[..., str]) -> None:
    items = {"opt/vmm/pattern": bytes(range(256))}
    in_c = ours("conformance-fw-cfg", fw_cfg=items)
    in_python = ours("conformance-fw-cfg", fw_cfg=items, dispatch="python")
    cases = [line for line in in_c.splitlines() if line.startswith("ok ")]
    assert len(cases) > 100
    assert in_python == in_c


@pytest.mark.hw
def test_the_statistics_do_not_depend_on_who_dispatches() -> None:
    def statistics(dispatch: str, *, coalesced: bool = True) -> list[object]:
        with Machine(str(guests.path("probe")), accel=PLAIN, dispatch=dispatch, coalesced=coalesced) as machine:
            assert machine.run(deadline=60).reached
            assert machine.fw_cfg is not None
            named = ("fw_cfg", "debugcon")
            used = [area for area in machine.ports.ranges() if area.name in named]
            return [*machine.fw_cfg.items(), machine.fw_cfg.probes, *used, machine.debugcon.since(0)]

    assert statistics("python") == statistics("c")
    assert statistics("c") == statistics("c", coalesced=False)


@pytest.mark.hw
def test_exit_times_count_what_the_bus_counts() -> None:
    with Machine(str(guests.path("probe")), accel=PLAIN, cpus=2, exit_times=True) as machine:
        assert machine.run(deadline=60).reached
        times = machine.exit_times()
        ports = next(area for area in machine.ports.ranges() if area.name == "fw_cfg")
        exits = machine.exit_counts()
    ours = [row for row in times if row.kind == PORT and ports.first <= row.address <= ports.last]
    assert sum(row.count for row in ours if not row.is_write) == ports.reads
    assert sum(row.count for row in ours if row.is_write) == ports.writes
    assert {row.name.removeprefix("exit "): row.count for row in times if row.kind == REASON}.items() <= exits.items()
    for row in times:
        assert row.kind in {REASON, PORT, MMIO}
        assert sum(count for _, count in row.buckets) == row.count
        assert row.percentile(50) <= row.percentile(99) <= row.max_ns
        assert row.percentile(100) <= row.max_ns <= row.total_ns


@pytest.mark.hw
def test_nobody_times_unasked() -> None:
    with Machine(str(guests.path("exit")), accel=PLAIN) as machine:
        assert machine.run(deadline=60).reached
        assert machine.exit_times() == []
