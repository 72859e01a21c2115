"""Breakpoints and watchpoints: what a debugger asks for, and how the two accelerators do it.

The software CPU takes any number of them (`SoftwarePoints`). KVM has the four debug registers of a processor, and INT3
for breakpoints that find none free (`KvmPoints`). They are in the machine only while it runs: a debugger that reads
memory never sees an INT3 of ours.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm._native import lib

if TYPE_CHECKING:
    from vmm.debug.target import Target
    from vmm.kvm import Vcpu

_INT3 = b"\xcc"
_DB_VECTOR = 1
_BP_VECTOR = 3
_SLOTS = 4
_DR6_SLOTS = 0xF
_DR6_OTHERS = 0xE000
"""What else raises #DB: access to debug registers, a single step, a task switch (SDM volume 3, 17.2.3)."""
_DR7_FIXED = 0x400


class PointKind(IntEnum):
    """The numbers of the protocol's Z packets."""

    SOFTWARE = 0
    HARDWARE = 1
    WRITE = 2
    READ = 3
    ACCESS = 4

    @property
    def is_breakpoint(self) -> bool:
        """Rather than a watchpoint."""
        return self <= PointKind.HARDWARE


class Point(NamedTuple):
    """One of them; the address is linear, the length in bytes."""

    kind: PointKind
    address: int
    length: int


class Hit(NamedTuple):
    """Why a vCPU stopped: at a point, or after a single step."""

    vcpu: int
    point: Point | None = None


class PointError(Exception):
    """The machine cannot have a point; the text says why."""


_KINDS = {
    PointKind.SOFTWARE: lib.DEBUG_EXECUTE,
    PointKind.HARDWARE: lib.DEBUG_EXECUTE,
    PointKind.WRITE: lib.DEBUG_WRITE,
    PointKind.READ: lib.DEBUG_READ,
    PointKind.ACCESS: lib.DEBUG_READ | lib.DEBUG_WRITE,
}


class SoftwarePoints:
    """The software CPU's.

    Args:
        core: the machine's ``struct vmm_vm``.
        cores: the ``struct vmm_vcpu`` of each vCPU.
    """

    def __init__(self, core: Any, cores: Sequence[Any]) -> None:
        self._core = core
        self._cores = cores
        self._armed: list[Point] = []

    def check(self, points: Iterable[Point], index: int) -> None:
        """Whether the machine can have these together; the last is new, its address as vCPU ``index`` translates it.

        Raises:
            PointError: it cannot.
        """
        _check_count(points)

    def arm(self, points: Iterable[Point], stepping: Iterable[int]) -> None:
        """The machine is about to run with these, in the order in which they were checked.

        The vCPUs in ``stepping`` run for one instruction.
        """
        stepping = set(stepping)
        for index, core in enumerate(self._cores):
            core.debug.control = lib.KVM_GUESTDBG_SINGLESTEP if index in stepping else 0
        wanted = sorted(points)  # gdb takes them away at each stop and sets them again, in any order
        if wanted == self._armed:
            return
        self._armed = wanted
        for slot, point in zip(self._core.debug_points, wanted, strict=False):
            slot.address, slot.length, slot.kinds = point.address, point.length, _KINDS[point.kind]
        self._core.debug_count = len(wanted)
        self._core.debug_generation += 1

    def disarm(self) -> None:
        """The machine has stopped. Its translations stay, for it mostly goes on with the same points."""

    def hit(self, index: int) -> Hit | None:
        """Why a vCPU's run ended with VCPU_DEBUG; None: it was the guest's own business, which is seen to."""
        number = self._cores[index].end.point
        return Hit(index, None if number < 0 else self._armed[number])


class KvmPoints:
    """KVM's, by KVM_SET_GUEST_DEBUG.

    Args:
        target: the machine.
        interprets: KVM interprets ring 0: it has debug registers for breakpoints only, and no INT3.
    """

    def __init__(self, target: "Target", *, interprets: bool) -> None:
        self._target = target
        self._interprets = interprets
        self._slots: list[Point] = []
        self._gpas: dict[Point, int] = {}
        self._stepping: set[int] = set()
        self._planted: dict[int, bytes] = {}
        self._soft: dict[int, Point] = {}

    def check(self, points: Iterable[Point], index: int) -> None:
        """As `SoftwarePoints.check`."""
        points = list(points)
        _check_count(points)
        _, rest = self._place(points)
        # What was taken away, or has a debug register now, may be somewhere else by the time that it needs an INT3.
        self._gpas = {point: self._gpas[point] for point in rest if point in self._gpas and point != points[-1]}
        for point in rest:
            if point in self._gpas:
                continue
            gpa = self._target.gpa(index, point.address)
            if gpa is None or not self._is_ram(gpa):
                raise PointError(f"no RAM at {point.address:#x}, and all {_SLOTS} debug registers are taken")
            self._gpas[point] = gpa

    def arm(self, points: Iterable[Point], stepping: Iterable[int]) -> None:
        """As `SoftwarePoints.arm`."""
        slots, rest = self._place(points)
        self._slots = [point for point, _, _ in slots]
        memory = self._target.memory
        self._planted = {}
        self._soft = {point.address: point for point in rest}
        # Two linear addresses may lead to one byte.
        for gpa in {self._gpas[point] for point in rest}:
            # Where the guest has switched RAM off since, it executes none.
            with suppress(ValueError):
                byte = memory.read(gpa, 1)
                memory.write(gpa, _INT3)
                self._planted[gpa] = byte
        registers = {number: address for number, (_, address, _) in enumerate(slots)}
        registers[7] = _DR7_FIXED
        for number, (point, _, length) in enumerate(slots):
            access = 0 if point.kind.is_breakpoint else 1 if point.kind is PointKind.WRITE else 3
            size = {1: 0, 2: 1, 4: 3, 8: 2}[length]
            registers[7] |= 2 << 2 * number | (size << 2 | access) << 16 + 4 * number
        control = (lib.KVM_GUESTDBG_USE_HW_BP if slots else 0) | (lib.KVM_GUESTDBG_USE_SW_BP if rest else 0)
        self._stepping = set(stepping)
        for index, (vcpu, core) in enumerate(zip(self._target.vcpus, self._target.cores, strict=True)):
            wanted = control
            wanted |= lib.KVM_GUESTDBG_SINGLESTEP | lib.KVM_GUESTDBG_BLOCKIRQ if index in self._stepping else 0
            wanted |= lib.KVM_GUESTDBG_ENABLE if wanted else 0
            core.debug.control = wanted
            for number, value in registers.items():
                core.debug.arch.debugreg[number] = value
            vcpu.set_guest_debug(wanted, registers)

    def disarm(self) -> None:
        """The machine has stopped."""
        memory = self._target.memory
        for gpa, byte in self._planted.items():
            # The guest may have stored something else there meanwhile, or switched this RAM off.
            with suppress(ValueError):
                if memory.read(gpa, 1) == _INT3:
                    memory.write(gpa, byte)

    def hit(self, index: int) -> Hit | None:
        """As `SoftwarePoints.hit`."""
        vcpu = self._target.vcpus[index]
        arch = vcpu.run.debug.arch
        if arch.exception == _BP_VECTOR:
            if arch.pc in self._soft:
                return Hit(index, self._soft[arch.pc])
            _raise(vcpu, _BP_VECTOR)
            return None
        for number, point in enumerate(self._slots):
            if arch.dr6 & _DR6_SLOTS & 1 << number:
                return Hit(index, point)
        if index in self._stepping:
            return Hit(index)
        # Points make KVM report each #DB, a guest's that traces itself, too.
        registers = vcpu.get_debugregs()
        registers.dr6 |= arch.dr6 & _DR6_OTHERS
        vcpu.set_debugregs(registers)
        _raise(vcpu, _DB_VECTOR)
        return None

    def _place(self, points: Iterable[Point]) -> tuple[list[tuple[Point, int, int]], list[Point]]:
        """What each debug register has (point, address, length), and which points become an INT3."""
        slots: list[tuple[Point, int, int]] = []
        soft: list[Point] = []
        for point in points:
            if point.kind is PointKind.SOFTWARE:
                soft.append(point)
            elif point.kind is PointKind.HARDWARE:
                slots.append((point, point.address, 1))
            elif self._interprets:
                raise PointError("this host's KVM interprets ring 0 and watches no data: use -accel kvm+softcpu")
            elif point.kind is PointKind.READ:
                raise PointError("a processor has no watchpoint for reads alone: use awatch")
            else:
                slots += ((point, address, length) for address, length in _aligned(point.address, point.length))
        if len(slots) > _SLOTS:
            raise PointError(f"a processor has {_SLOTS} debug registers, and these would need {len(slots)}")
        free = _SLOTS - len(slots)
        slots += ((point, point.address, 1) for point in soft[:free])
        if soft[free:] and self._interprets:
            raise PointError(f"this host's KVM interprets ring 0 and has {_SLOTS} breakpoints: use -accel kvm+softcpu")
        return slots, soft[free:]

    def _is_ram(self, gpa: int) -> bool:
        return any(
            region.gpa <= gpa < region.gpa + region.size and not region.read_only
            for region in self._target.memory.regions()
        )


def _raise(vcpu: "Vcpu", vector: int) -> None:
    """Let the guest have an exception that was its own."""
    events = vcpu.get_vcpu_events()
    events.exception.injected, events.exception.nr, events.exception.has_error_code = 1, vector, 0
    vcpu.set_vcpu_events(events)


def _check_count(points: Iterable[Point]) -> None:
    if len(list(points)) > lib.VMM_DEBUG_POINTS:
        raise PointError(f"there are {lib.VMM_DEBUG_POINTS} points at the most")


def _aligned(address: int, length: int) -> list[tuple[int, int]]:
    """A range in pieces that a debug register can watch: 1, 2, 4 or 8 bytes at a multiple of that."""
    pieces: list[tuple[int, int]] = []
    end = address + length
    if end > 1 << 64:
        raise PointError(f"{length} bytes at {address:#x} go beyond the last address")
    while address < end:
        size = next(size for size in (8, 4, 2, 1) if address % size == 0 and address + size <= end)
        pieces.append((address, size))
        address += size
    return pieces
