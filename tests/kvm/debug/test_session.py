"""Whatever a debugger asks, the answer is a packet, and nothing raises; points on both accelerators."""

from collections.abc import Iterator

import pytest
from accelerators import PLAIN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vmm._native import ffi, lib

from vmm import Machine
from vmm.debug.description import layout
from vmm.debug.monitor import Monitor
from vmm.debug.points import Hit, KvmPoints, Point, PointError, PointKind
from vmm.debug.session import Detach, Kill, Printed, Resume, Session
from vmm.debug.target import Target

pytestmark = pytest.mark.needs_kvm

NAMES = [
    *(b"qSupported", b"qXfer:features:read:", b"qXfer:threads:read:", b"qRcmd,", b"vCont;", b"H", b"T", b"g", b"G"),
    *(b"p", b"P", b"m", b"M", b"X", b"Z", b"z", b"c", b"s", b"Qqemu.PhyMemMode:", b"qThreadExtraInfo,", b"?", b"qC"),
]
WORDS = st.sampled_from(
    [b"target.xml", b":", b",", b";", b"=", b"0", b"1", b"ffffffffffffffff", b"-1", b"s", b"c", b"2000"]
)
ARGUMENTS = st.one_of(st.lists(WORDS, max_size=7).map(b"".join), st.binary(max_size=40))
COMMANDS = ["help", "registers", "registers 1", "registers 9", "translate 0x1000", "translate x", "fw_cfg", "trace", ""]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine("probe", cpus=2, accel=PLAIN, memory="64M") as made:
        yield made


def target_of(machine: Machine) -> Target:
    return Target(machine.vcpus, machine._processors.cores, machine.memory)


@pytest.fixture
def session(machine: Machine) -> Session:
    target = target_of(machine)
    monitor = Monitor(machine, target)
    return Session(target, [], KvmPoints(target, interprets=False).check, {0: 64, 1: 64}.__getitem__, monitor.run)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.tuples(st.sampled_from(NAMES), ARGUMENTS).map(b"".join), st.binary(max_size=60)))
def test_any_packet_is_answered(session: Session, packet: bytes) -> None:
    answer = session.answer(packet)
    assert isinstance(answer, bytes | Printed | Resume | Detach | Kill)
    if isinstance(answer, bytes):
        assert b"$" not in answer
        assert b"#" not in answer


@pytest.mark.parametrize("command", COMMANDS)
def test_monitor_commands(session: Session, command: str) -> None:
    answer = session.answer(b"qRcmd," + command.encode().hex().encode())
    assert isinstance(answer, Printed)
    text = answer.text.decode()
    assert text.endswith("\n")
    expected = {
        "registers": "RIP 000000000000fff0",
        "registers 9": "there is no vCPU 9",
        "translate x": "an address is wanted",
        "fw_cfg": "etc/e820",
        "": "monitor translate",
    }
    assert expected.get(command, "") in text


def said(session: Session, command: str) -> str:
    answer = session.answer(b"qRcmd," + command.encode().hex().encode())
    return answer.text.decode() if isinstance(answer, Printed) else str(answer)


def test_closed_smram_is_read_where_that_is_asked_for(session: Session, machine: Machine) -> None:
    machine.memory.store_behind(0xA0FFE, bytes(range(0x11, 0x15)))
    machine.memory.map_smm(0xA0000, 0x20000, 0xA0000)
    look, nothing = b"ma0ffe,4", session.answer(b"ma0ffe,4")
    assert isinstance(nothing, bytes)
    assert nothing.startswith(b"E")
    assert said(session, "smram on") == ""
    assert session.answer(look) == b"11121314"
    assert session.answer(b"m9fffe,2") == b"0000", "other memory as ever"
    assert session.answer(b"Ma0ffe,1:00") == nothing, "not written"
    assert said(session, "smram maybe") == "on or off is wanted\n"
    assert said(session, "smram off") == ""
    assert session.answer(look) == nothing
    machine.memory.unmap_smm(0xA0000)


def test_every_register_can_be_read_by_its_number(session: Session) -> None:
    whole = session.answer(b"g")
    pieces = [session.answer(b"p%x" % number) for number in range(len(layout(64)))]
    assert all(isinstance(piece, bytes) for piece in pieces)
    assert b"".join(piece for piece in pieces if isinstance(piece, bytes)) == whole
    assert session.answer(b"G" + whole) == b"OK" if isinstance(whole, bytes) else False


def test_x87_tags_are_those_of_fnstenv(machine: Machine) -> None:
    vcpu = machine.vcpus[0]
    area = vcpu.get_xsave()
    area[2:4] = (6 << 11).to_bytes(2, "little")  # the top is physical register 6
    area[4] = 0b1110_0000  # physical registers 5, 6 and 7 are not empty
    area[512] |= 3
    one, zero, infinity = (0x3FFF << 64) | 1 << 63, 0, 0x7FFF << 64 | 1 << 63
    for slot, value in enumerate([one, zero]):  # ST(0), ST(1)
        area[32 + 16 * slot : 42 + 16 * slot] = value.to_bytes(10, "little")
    area[32 + 16 * 7 : 42 + 16 * 7] = infinity.to_bytes(10, "little")  # ST(7) is physical register 5
    vcpu.set_xsave(area)
    state = target_of(machine).state(0)
    register = next(register for register in layout(64) if register.name == "ftag")
    assert state.read(register) == (0b01_00_10_11_11_11_11_11).to_bytes(4, "little")
    state.write(register, b"\xff\xff\x00\x00")
    assert vcpu.get_xsave()[4] == 0


SOFTWARE, HARDWARE, WRITE, READ, ACCESS = PointKind


def points(*kinds: PointKind) -> list[Point]:
    return [Point(kind, 0x1000 * (number + 1), 1 if kind.is_breakpoint else 4) for number, kind in enumerate(kinds)]


@pytest.mark.usefixtures("kvm_device")
def test_debug_registers_hold_four_points(machine: Machine) -> None:
    kvm = KvmPoints(target_of(machine), interprets=False)
    wanted = [*points(WRITE, ACCESS, HARDWARE), Point(SOFTWARE, 0x9000, 1)]
    kvm.check(wanted, 0)
    kvm.arm(wanted, [1])
    debug = [core.debug for core in machine._processors.cores]
    assert [list(one.arch.debugreg)[:4] for one in debug] == [[0x1000, 0x2000, 0x3000, 0x9000]] * 2
    # Intel SDM volume 3, 17.2.4: GE and G0-G3, and R/W and LEN of each: writes, all accesses, instructions twice.
    assert debug[0].arch.debugreg[7] == 0x400 | 0b10101010 | 0b0000_0000_1111_1101 << 16
    everybody = lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_USE_HW_BP
    assert [one.control for one in debug] == [
        everybody,
        everybody | lib.KVM_GUESTDBG_SINGLESTEP | lib.KVM_GUESTDBG_BLOCKIRQ,
    ]
    kvm.disarm()
    for more in (HARDWARE, WRITE):
        with pytest.raises(PointError, match="4 debug registers, and these would need 5"):
            kvm.check([*wanted, Point(more, 0x8000, 1), Point(more, 0x8001, 1)], 0)
    with pytest.raises(PointError, match="would need 5"):
        kvm.check([Point(WRITE, 0x1001, 16)], 0)  # 1, 2, 4, 8 and 1 bytes
    kvm.arm([], [])


@pytest.mark.usefixtures("kvm_device")
def test_what_finds_no_debug_register_becomes_an_int3_while_the_machine_runs(machine: Machine) -> None:
    kvm = KvmPoints(target_of(machine), interprets=False)
    machine.memory.write(0x5000, b"\x90\x91")
    wanted = points(SOFTWARE, SOFTWARE, SOFTWARE, SOFTWARE, SOFTWARE)
    kvm.check(wanted, 0)
    for change in (b"\xcc\x91", b"\x42\x43"):
        kvm.arm(wanted, [])
        assert machine.memory.read(0x5000, 2) == b"\xcc\x91"
        assert machine._processors.cores[0].debug.control & lib.KVM_GUESTDBG_USE_SW_BP
        arch = machine.vcpus[0].run.debug.arch
        arch.exception, arch.pc = 3, 0x5000  # what KVM says of it
        assert kvm.hit(0) == Hit(0, wanted[4])
        machine.memory.write(0x5000, change)  # the guest's own doing is left alone
        kvm.disarm()
        assert machine.memory.read(0x5000, 2) == (b"\x90\x91" if change[0] == 0xCC else change)
        machine.memory.write(0x5000, b"\x90\x91")
    arch.pc = 0x7000  # an INT3 of the guest
    assert kvm.hit(0) is None
    # KVM does not report that a software exception is injected: kvm_vcpu_ioctl_x86_get_vcpu_events.
    events = machine.vcpus[0].get_vcpu_events()
    assert events.exception.nr == 3
    machine.vcpus[0].set_vcpu_events(events)
    with pytest.raises(PointError, match="no RAM at 0xfffffff0"):
        kvm.check([*wanted, Point(SOFTWARE, 0xFFFFFFF0, 1)], 0)
    kvm.arm([], [])


@pytest.mark.usefixtures("kvm_device")
def test_a_guest_that_traces_itself_gets_its_exceptions_beside_points(machine: Machine) -> None:
    kvm = KvmPoints(target_of(machine), interprets=False)
    wanted = points(HARDWARE)
    kvm.check(wanted, 0)
    kvm.arm(wanted, [1])
    for vcpu in machine.vcpus:
        arch = vcpu.run.debug.arch
        arch.exception, arch.pc, arch.dr6 = 1, 0x7000, 0xFFFF4FF0  # DR6.BS: single step
    assert kvm.hit(1) == Hit(1), "the debugger's step"
    assert kvm.hit(0) is None, "the guest's own"
    assert machine.vcpus[0].get_debugregs().dr6 & 0xE000 == 0x4000
    events = machine.vcpus[0].get_vcpu_events()
    assert (events.exception.nr, events.exception.has_error_code) == (1, 0)
    machine.vcpus[0].set_vcpu_events(events)
    machine.vcpus[0].run.debug.arch.dr6 = 0xFFFF0FF1
    assert kvm.hit(0) == Hit(0, wanted[0])
    kvm.arm([], [])


def test_structures_have_room() -> None:
    assert len(ffi.new("struct vmm_vm *").debug_points) == lib.VMM_DEBUG_POINTS
