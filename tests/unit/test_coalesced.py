"""The ring of coalesced writes: in order, each once, and nothing that KVM would not have put in."""

import struct

from fw_cfg_rig import Rig
from vmm._native import lib

from vmm.bus import IoLock

SELECTOR = 0x510


def rig() -> tuple[Rig, list[str]]:
    """Items 2 and 3, and what happens to them; item 2's callback looks at the device, and the ring fills meanwhile."""
    machine, log = Rig(coalesced=True), list[str]()

    def on_two() -> None:
        machine.keep(SELECTOR, b"\3\0")
        log.append("two")
        with IoLock(machine.core):
            pass
        log.append("two is done")

    machine.device.add_item(2, b"two", on_select=on_two)
    machine.device.add_item(3, b"three", on_select=lambda: log.append("three"))
    return machine.start(), log


def test_a_write_waits_until_somebody_looks() -> None:
    machine, log = rig()
    machine.select(3)
    assert log == []
    assert machine.inp(0x511, 1, 5) == b"three"
    assert log == ["three"]


def test_no_write_is_served_in_the_midst_of_another_access() -> None:
    machine, log = rig()
    machine.select(2)
    assert machine.inp(0x511, 1, 3) == b"two"
    assert log == ["two", "two is done"]
    assert machine.inp(0x511, 1, 5) == b"three"
    assert log == ["two", "two is done", "three"]


def test_what_finds_the_ring_full_comes_behind_what_is_in_it() -> None:
    machine, log = rig()
    for _ in range(lib.COALESCED_ENTRIES - 1):
        assert machine.keep(SELECTOR, b"\3\0")
    assert not machine.keep(SELECTOR, b"\3\0")
    machine.select(0)
    assert log == ["three"] * (lib.COALESCED_ENTRIES - 1)
    assert machine.inp(0x511, 1, 4) == b"QEMU"


def test_it_goes_round() -> None:
    machine, log = rig()
    for turn in range(3 * lib.COALESCED_ENTRIES):
        machine.select(3)
        machine.trigger(0x1000)  # an access that is not kept
        assert len(log) == turn + 1
    (used,) = machine.bus.ranges()
    assert used.writes == 3 * 3 * lib.COALESCED_ENTRIES


def test_what_kvm_cannot_have_written_is_passed_over() -> None:
    machine, log = rig()
    machine.keep(SELECTOR, b"\3\0", pio=0)
    for size in (0, 3, 8, 0xFFFFFFFF):
        machine.keep(SELECTOR, b"\3\0", size=size)
    machine.keep(0x10000 + SELECTOR, b"\3\0")
    machine.keep(SELECTOR, b"\3\0")
    (used,) = machine.bus.ranges()
    assert used.writes == 1
    assert log == ["three"]


def test_impossible_indices_do_not_lead_out_of_the_page() -> None:
    machine, _ = rig()
    machine.ring.first, machine.ring.last = struct.unpack("II", b"\xff" * 8)
    with IoLock(machine.core):
        pass
    machine.ring.first, machine.ring.last = 100_000, 3
    with IoLock(machine.core):
        assert machine.ring.first == machine.ring.last == 3
