"""KVM's breakpoints and watchpoints: what a debugger asks for, and what a guest does to them."""

import pytest
from device_rig import MIB, Rig
from vmm._native import lib

from vmm.debug.points import KvmPoints, Point, PointError, PointKind
from vmm.debug.session import Session
from vmm.debug.target import Target

GPA = 2 * MIB
CODE = b"\x90" * 8


class Unpaged(Target):
    """A machine without vCPUs; linear addresses are guest physical ones, or as far from them as is said."""

    moved = 0

    def gpa(self, index: int, linear: int) -> int | None:
        return linear + self.moved


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.memory.write(GPA, CODE)
    return rig


@pytest.fixture
def points(rig: Rig) -> KvmPoints:
    return KvmPoints(Unpaged([], [], rig.memory), interprets=False)


def breakpoints(count: int) -> list[Point]:
    """More than four have an INT3 each."""
    return [Point(PointKind.SOFTWARE, GPA + index, 1) for index in range(count)]


def test_what_finds_no_debug_register_is_planted_and_taken_out(points: KvmPoints, rig: Rig) -> None:
    wanted = breakpoints(6)
    points.check(wanted, 0)
    points.arm(wanted, ())
    assert rig.memory.read(GPA, 8) == CODE[:4] + b"\xcc\xcc" + CODE[:2]
    points.disarm()
    assert rig.memory.read(GPA, 8) == CODE


def test_who_has_a_debug_register_is_settled_by_who_came_first(rig: Rig) -> None:
    wanted: list[Point] = []
    target = Unpaged([], [], rig.memory)
    points = KvmPoints(target, interprets=False)
    session = Session(target, wanted, points.check, lambda _: 64, lambda *_: "")
    for index in reversed(range(6)):
        assert session.answer(b"Z0,%x,1" % (GPA + index)) == b"OK"
    points.arm(wanted, ())
    assert rig.memory.read(GPA, 8) == b"\xcc\xcc" + CODE[2:]
    points.disarm()


def test_a_breakpoint_that_is_set_again_is_where_its_address_leads_now(rig: Rig) -> None:
    target = Unpaged([], [], rig.memory)
    points = KvmPoints(target, interprets=False)
    wanted = breakpoints(5)
    points.check(wanted, 0)
    target.moved = 0x1000
    points.check(wanted, 0)
    points.arm(wanted, ())
    assert rig.memory.read(GPA, 8) == CODE
    assert rig.memory.read(GPA + 0x1004, 1) == b"\xcc"
    points.disarm()


def test_two_addresses_of_one_byte_leave_nothing_behind(rig: Rig) -> None:
    class Twice(Unpaged):
        def gpa(self, index: int, linear: int) -> int | None:
            return linear % (1 << 32)

    points = KvmPoints(Twice([], [], rig.memory), interprets=False)
    wanted = [*breakpoints(5), Point(PointKind.SOFTWARE, (1 << 32) + GPA + 4, 1)]
    points.check(wanted[:-1], 0)
    points.check(wanted, 0)
    points.arm(wanted, ())
    assert rig.memory.read(GPA, 8) == CODE[:4] + b"\xcc" + CODE[:3]
    points.disarm()
    assert rig.memory.read(GPA, 8) == CODE


def test_a_breakpoint_that_gives_up_its_debug_register_is_looked_up_anew(rig: Rig) -> None:
    target = Unpaged([], [], rig.memory)
    points = KvmPoints(target, interprets=False)
    first = breakpoints(5)
    for count in range(1, 6):
        points.check(first[:count], 0)
    # The fifth had an INT3; set again as the fourth it has a debug register, until one is wanted that has to have one.
    target.moved = 0x1000
    again = first[1:]
    for count in range(1, 5):
        points.check(again[:count], 0)
    again.append(Point(PointKind.HARDWARE, GPA, 1))
    points.check(again, 0)
    points.arm(again, ())
    assert rig.memory.read(GPA, 8) == CODE
    assert rig.memory.read(GPA + 0x1004, 1) == b"\xcc"
    points.disarm()


def test_what_is_refused_leaves_the_others_as_they_were(rig: Rig) -> None:
    class Partly(Unpaged):
        def gpa(self, index: int, linear: int) -> int | None:
            return None if linear == GPA + 3 else linear

    points = KvmPoints(Partly([], [], rig.memory), interprets=False)
    wanted = breakpoints(6)
    for count in range(1, 7):
        points.check(wanted[:count], 0)
    with pytest.raises(PointError, match="no RAM at 0x200003"):
        points.check([*wanted, Point(PointKind.HARDWARE, GPA, 1)], 0)
    points.arm(wanted, ())
    assert rig.memory.read(GPA, 8) == CODE[:4] + b"\xcc\xcc" + CODE[:2]
    points.disarm()


def test_a_guest_that_switches_its_ram_off_harms_nobody(points: KvmPoints, rig: Rig) -> None:
    start = next(region.gpa for region in rig.memory.regions() if region.gpa <= GPA < region.gpa + region.size)
    wanted = breakpoints(6)
    points.check(wanted, 0)
    points.arm(wanted, ())
    rig.memory.unmap(start)
    points.disarm()
    points.arm(wanted, ())
    rig.memory.map_ram(start, 4 * MIB, read_only=True)
    points.disarm()
    points.arm(wanted, ())


def test_there_is_an_end_to_them(points: KvmPoints) -> None:
    points.check(breakpoints(lib.VMM_DEBUG_POINTS), 0)
    with pytest.raises(PointError, match=f"{lib.VMM_DEBUG_POINTS} points at the most"):
        points.check(breakpoints(lib.VMM_DEBUG_POINTS + 1), 0)


def test_no_data_is_watched_behind_the_last_address(points: KvmPoints) -> None:
    points.check([Point(PointKind.WRITE, (1 << 64) - 8, 8)], 0)
    with pytest.raises(PointError, match="beyond the last address"):
        points.check([Point(PointKind.WRITE, (1 << 64) - 4, 8)], 0)
