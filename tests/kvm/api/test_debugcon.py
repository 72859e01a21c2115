"""The debug port under firmware that prints byte by byte: all of it arrives, however the machine ends."""

from pathlib import Path

import pytest
from accelerators import PLAIN
from moments import run_in_moments
from real_mode_rom import RESET, image

from vmm import Machine
from vmm.run.outcome import Reason

pytestmark = pytest.mark.needs_kvm

COUNT = 5000

PRINT = (
    "ba 02 04"  # mov dx, 0x402
    "b9"
    + COUNT.to_bytes(2, "little").hex()  # mov cx, COUNT
    + "88 c8 ee"  # next: mov al, cl; out dx, al
    "49 75 fa"  # dec cx; jnz next
)
HANG = "eb fe"  # jmp $
HALT = "f4 eb fd"  # hlt; jmp to it


@pytest.mark.parametrize("accel", ["kvm", "auto"])
@pytest.mark.parametrize(
    ("end", "reason"),
    [
        pytest.param(RESET, Reason.RESET, id="reset"),
        pytest.param(HANG, Reason.TIMEOUT, id="hang"),
        pytest.param(HALT, Reason.TIMEOUT, id="halt"),
    ],
)
def test_everything_is_in_the_file(tmp_path: Path, accel: str, end: str, reason: Reason) -> None:
    rom, log = tmp_path / "rom.bin", tmp_path / "log"
    rom.write_bytes(image(PRINT + end))
    expected = bytes(count & 0xFF for count in range(COUNT, 0, -1))
    with Machine(str(rom), machine="pc", accel=accel, debugcon=f"file:{log}", reboot=False) as machine:
        outcome = run_in_moments(machine, lambda outcome: outcome.reason is reason and machine.debugcon.total >= COUNT)
        assert outcome.reason is reason
        assert log.read_bytes() == expected
        assert machine.debugcon.since(0) == expected


def test_the_last_byte_is_seen_while_the_guest_runs_on(tmp_path: Path) -> None:
    rom = tmp_path / "rom.bin"
    rom.write_bytes(image(PRINT + HANG))
    with Machine(str(rom), machine="pc", accel=PLAIN) as machine:
        assert machine.run(until=r"\x03\x02\x01\Z", deadline=60).reason is Reason.UNTIL
