"""More ports than the table of times holds: what it lacks is counted, and every report says so."""

from pathlib import Path

import pytest
from accelerators import PLAIN
from real_mode_rom import RESET, image
from vmm._native import lib

from vmm import Machine
from vmm.report import collect, page, text
from vmm.run.outcome import Reason

pytestmark = pytest.mark.needs_kvm

PORTS = 600
READ_PORTS = (
    "ba 00 c0"  # mov dx, 0xc000
    "b9"
    + PORTS.to_bytes(2, "little").hex()  # mov cx, PORTS
    + "ec 42 e2 fc"  # next: in al, dx; inc dx; loop next
)


def test_what_the_table_lacks_is_counted_and_reported(tmp_path: Path) -> None:
    rom = tmp_path / "rom.bin"
    rom.write_bytes(image(READ_PORTS + RESET))
    with Machine(str(rom), machine="pc", accel=PLAIN, exit_times=True, reboot=False) as machine:
        outcome = machine.run(deadline=60)
        assert outcome.reason is Reason.RESET
        exits = machine.exit_counts()
        exits.pop("interrupted by a signal", None)
        times, lost = machine.exit_times(), machine.exit_times_lost()
        report = collect.collect(machine, outcome)
    assert len(times) == lib.EXIT_TIMES_ROWS < PORTS
    assert sum(row.count for row in times) + lost == PORTS + 1 + sum(exits.values())
    assert report["exits"]["times_lost"] == lost > 0
    assert f"{lost} too many for the table of times" in " ".join(text.text(report).split())
    assert f"{lost} more were not kept" in page.render(report)
