"""Writes that KVM keeps: no guest and no user can tell, but by the number of exits."""

from pathlib import Path

import pytest
from accelerators import PLAIN
from moments import run_in_moments
from real_mode_rom import RESET, START, image

from vmm import Machine
from vmm.firmware import guests
from vmm.kvm import MpState
from vmm.run.outcome import Reason

pytestmark = [pytest.mark.needs_kvm, pytest.mark.hw]

ROUNDS = 400

SELECT = (
    "ba 10 05  31 db"  # mov dx, 0x510; xor bx, bx
    "89 d8  25 01 00  ef"  # next: mov ax, bx; and ax, 1; out dx, ax
    "fe 06 00 05"  # inc byte [0x500]
    "f6 06 00 05 01  f3 90  75 f7"  # wait: test byte [0x500], 1; pause; jnz wait
    "43  81 fb" + ROUNDS.to_bytes(2, "little").hex() + "75 e6"  # inc bx; cmp bx, ROUNDS; jne next
)
READ = (
    "f6 06 00 05 01  f3 90  74 f7"  # wait: test byte [0x500], 1; pause; jz wait
    "ba 11 05  ec  ba 02 04  ee"  # mov dx, 0x511; in al, dx; mov dx, 0x402; out dx, al
    "fe 06 00 05  eb e9"  # inc byte [0x500]; jmp wait
)


def strings(count: int) -> str:
    """`REP OUTSB` of so many bytes, from address 0 on, to the debug port."""
    return "31 f6  ba 02 04  b9" + count.to_bytes(2, "little").hex() + "fc  f3 6e"


@pytest.mark.parametrize("coalesced", [True, False])
@pytest.mark.usefixtures("kvm_device")
def test_one_vcpu_selects_and_another_reads(tmp_path: Path, coalesced: bool) -> None:
    rom = tmp_path / "rom.bin"
    first = bytes.fromhex(SELECT + RESET)
    rom.write_bytes(image(first.hex() + READ))
    with Machine(str(rom), machine="pc", accel=PLAIN, cpus=2, coalesced=coalesced, reboot=False) as machine:
        reader = machine.vcpus[1]
        regs = reader.get_regs()
        regs.rip = START + len(first)
        reader.set_regs(regs)
        reader.set_mp_state(MpState.RUNNABLE)
        assert machine.run(deadline=60).reason is Reason.RESET
        assert machine.debugcon.since(0) == b"Q\3" * (ROUNDS // 2)
        exits = machine.exit_counts()["io"]
        # Each round has a read, which leaves KVM anyway, and two writes.
        assert exits < 2 * ROUNDS if coalesced else exits > 3 * ROUNDS


@pytest.mark.parametrize("coalesced", [True, False])
def test_a_string_arrives_whole(tmp_path: Path, coalesced: bool) -> None:
    rom = tmp_path / "rom.bin"
    rom.write_bytes(image(strings(20_000) + RESET))
    with Machine(str(rom), machine="pc", accel=PLAIN, coalesced=coalesced, reboot=False) as machine:
        text = bytes(at * 7 % 251 for at in range(20_000))
        machine.memory.write(0, text)
        assert machine.run(deadline=60).reason is Reason.RESET
        assert machine.debugcon.since(0) == text


def test_what_waits_is_served_before_a_stopped_guest_is_looked_at(tmp_path: Path) -> None:
    rom = tmp_path / "rom.bin"
    rom.write_bytes(image("ba 10 05  b8 05 00  ef  eb fe"))  # mov dx, 0x510; mov ax, 5; out dx, ax; jmp $
    with Machine(str(rom), machine="pc", accel=PLAIN) as machine:
        assert machine.fw_cfg is not None
        native = machine.fw_cfg.native
        assert run_in_moments(machine, lambda _: native.key).reason is Reason.TIMEOUT
        assert native.key == 5


def test_what_is_printed_shows_though_the_guest_never_leaves(tmp_path: Path) -> None:
    rom = tmp_path / "rom.bin"
    rom.write_bytes(image("ba 02 04  b0 48 ee  b0 69 ee  eb fe"))  # mov dx, 0x402; mov al, 'H'; out dx, al; …; jmp $
    with Machine(str(rom), machine="pc", accel=PLAIN) as machine:
        outcome = machine.run(until="Hi", deadline=20)
        assert outcome.reason is Reason.UNTIL
        assert outcome.elapsed_s < 20, "it shows only once the guest is stopped"
        assert machine.exit_counts().get("io", 0) == 0


def test_a_reset_forgets_what_was_selected_before(tmp_path: Path) -> None:
    rom = tmp_path / "rom.bin"
    # mov dx, 0x511; in al, dx; mov dx, 0x402; out dx, al; mov dx, 0x510; mov ax, 5; out dx, ax
    rom.write_bytes(image("ba 11 05 ec  ba 02 04 ee  ba 10 05 b8 05 00 ef" + RESET))
    with Machine(str(rom), machine="pc", accel=PLAIN, max_resets=4) as machine:
        machine.run(deadline=60)
        assert machine.reset_count == 4
        assert machine.debugcon.since(0) == b"Q" * 5


@pytest.mark.parametrize("observer", ["trace", "exit_times"])
@pytest.mark.usefixtures("kvm_device")
def test_who_looks_at_each_access_has_an_exit_for_each(tmp_path: Path, observer: str) -> None:
    options = {"trace": str(tmp_path / "trace")} if observer == "trace" else {"exit_times": True}
    with Machine(str(guests.path("probe")), accel=PLAIN, **options) as machine:
        assert machine.run(deadline=60).reached
        writes = sum(area.writes for area in machine.ports.ranges() if area.name == "debugcon")
        assert machine.exit_counts()["io"] > writes > 0


def test_a_closed_machine_still_tells_what_was_written() -> None:
    with Machine(str(guests.path("probe")), accel=PLAIN) as machine:
        assert machine.run(deadline=60).reached
        used = machine.ports.ranges()
    assert machine.ports.ranges() == used


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        pytest.param("fa f4", Reason.UNTIL, id="halts for good"),
        pytest.param("eb fe", Reason.UNTIL, id="spins"),
        pytest.param(RESET, Reason.RESET, id="ends"),
    ],
)
def test_the_last_byte_shows_whatever_the_guest_does_then(
    tmp_path: Path, pytestconfig: pytest.Config, then: str, reason: Reason
) -> None:
    rom = tmp_path / "rom.bin"
    rom.write_bytes(image("ba 02 04 b0 41 ee" + then))  # mov dx, 0x402; mov al, 'A'; out dx, al
    with Machine(str(rom), machine="pc", accel=PLAIN, reboot=False) as machine:
        for number in range(1, pytestconfig.getoption("--ends") + 1):
            outcome = machine.run("A" if reason is Reason.UNTIL else None, deadline=60)
            assert (outcome.reason, machine.debugcon.total) == (reason, number)
            machine.reset()
