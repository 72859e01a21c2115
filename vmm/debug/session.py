"""What a debugger asks, packet by packet: GDB's manual, appendix E. A session lasts as long as its connection."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from vmm.debug.description import description, layout
from vmm.debug.packets import PACKET_BYTES, escape
from vmm.debug.points import Hit, Point, PointError, PointKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.debug.target import Target

OK = b"OK"
UNKNOWN = b""
BAD = b"E16"
"""EINVAL."""
NO_MEMORY = b"E0e"
"""EFAULT."""

SIGINT = 2
SIGTRAP = 5

_READ_BYTES = (PACKET_BYTES - 16) // 2


class Resume(NamedTuple):
    """The debugger lets vCPUs go: those in ``stepping`` for one instruction, those in ``running`` on."""

    running: frozenset[int]
    stepping: frozenset[int]


class Detach(NamedTuple):
    """It leaves, and the machine goes on."""


class Kill(NamedTuple):
    """The run is to end."""


class Printed(NamedTuple):
    """It is shown a text, and everything went well."""

    text: bytes

    def packets(self) -> list[bytes]:
        """The texts of the packets: a console's output in pieces, then the reply."""
        pieces = range(0, len(self.text), _READ_BYTES)
        return [*(b"O" + self.text[at : at + _READ_BYTES].hex().encode() for at in pieces), OK]


Answer = bytes | Printed | Resume | Detach | Kill
"""A reply; or what happens to the machine."""


class Session:
    """Answers packets while the machine stands still.

    Args:
        target: the machine.
        points: what it is to stop at, in any order; this object changes it.
        check: raises `PointError` where the machine cannot have these points, as a vCPU sees their addresses.
        choose_bits: says what code (16, 32 or 64 bits) of a vCPU the debugger is to be told of.
        monitor: runs a ``monitor`` command of the current vCPU; returns what it prints.

    Attributes:
        current: the vCPU that the debugger looks at.
        bits: of the code that the debugger was told of: 16, 32 or 64.
        acknowledges: packets are acknowledged.
        last: why the machine stopped, as the debugger was told.
    """

    def __init__(
        self,
        target: Target,
        points: list[Point],
        check: Callable[[Sequence[Point], int], None],
        choose_bits: Callable[[int], int],
        monitor: Callable[[str, int], str],
    ) -> None:
        self.current = 0
        self.bits: int | None = None
        self.acknowledges = True
        self.last: bytes = b"T%02xthread:1;" % SIGTRAP
        self._target = target
        self._points = points
        self._check = check
        self._choose_bits = choose_bits
        self._monitor = monitor
        self._resumes = 0
        self._physical = False
        self._says_why = False
        self._count = len(target.vcpus)
        # By how a packet begins; the first that fits counts.
        self._commands: tuple[tuple[bytes, Callable[[bytes], Answer]], ...] = (
            (b"qSupported", self._supported),
            (b"QStartNoAckMode", self._no_acknowledgements),
            (b"qXfer:features:read:", self._features),
            (b"qXfer:threads:read:", self._threads_in_xml),
            (b"qHostInfo", self._host),
            (b"qfThreadInfo", self._first_threads),
            (b"qsThreadInfo", self._next_threads),
            (b"qThreadExtraInfo,", self._about_thread),
            (b"qC", self._current_thread),
            (b"qAttached", self._is_attached),
            (b"qRcmd", self._run_monitor),
            (b"qWatchpointSupportInfo", self._says_watchpoints),
            (b"qqemu.PhyMemMode", self._says_physical),
            (b"Qqemu.PhyMemMode:", self._set_physical),
            (b"vCont?", self._says_how_to_go),
            (b"vCont;", self._go),
            (b"vKill", self._kill),
            (b"?", self._last_stop),
            (b"H", self._select),
            (b"T", self._is_alive),
            (b"g", self._read_registers),
            (b"G", self._write_registers),
            (b"p", self._read_register),
            (b"P", self._write_register),
            (b"m", self._read_memory),
            (b"M", self._write_memory),
            (b"X", self._write_binary),
            (b"Z", self._add_point),
            (b"z", self._remove_point),
            (b"c", self._go_on),
            (b"C", self._go_on),
            (b"s", self._step),
            (b"S", self._step),
            (b"D", self._detach),
            (b"k", self._kill),
        )

    def answer(self, packet: bytes) -> Answer:
        """What a packet asks for; nothing in it makes this raise."""
        for name, serve in self._commands:
            if packet.startswith(name):
                try:
                    return serve(packet[len(name) :])
                except (ValueError, IndexError, OverflowError):
                    return BAD
        return UNKNOWN

    def stopped(self, hit: Hit | None, signal: int = SIGTRAP) -> bytes:
        """The packet that says why the machine stopped; None: somebody wanted it to."""
        if hit is not None:
            self.current = hit.vcpu
        self._resumes = self.current
        why = b""
        if hit is not None and hit.point is not None:
            kind = hit.point.kind
            if not kind.is_breakpoint:
                name = {PointKind.WRITE: b"watch", PointKind.READ: b"rwatch", PointKind.ACCESS: b"awatch"}[kind]
                why = b"%s:%x;" % (name, hit.point.address)
            elif self._says_why:
                why = b"swbreak:;" if kind is PointKind.SOFTWARE else b"hwbreak:;"
        self.last = b"T%02xthread:%x;%s" % (signal, self.current + 1, why)
        return self.last

    # -- what there is ----------------------------------------------------------------------------------------------

    def _supported(self, rest: bytes) -> Answer:
        self._says_why = b"swbreak+" in rest
        return (
            b"PacketSize=%x;QStartNoAckMode+;vContSupported+;swbreak+;hwbreak+;qXfer:features:read+;"
            b"qXfer:threads:read+;qemu.PhyMemMode+" % PACKET_BYTES
        )

    def _no_acknowledgements(self, rest: bytes) -> Answer:
        self.acknowledges = False
        return OK

    def _last_stop(self, rest: bytes) -> Answer:
        return self.last

    def _host(self, rest: bytes) -> Answer:
        """Lldb's question; its architecture comes from the description."""
        return b"endian:little;ptrsize:%d;" % (8 if self._code_bits() == 64 else 4)

    def _features(self, rest: bytes) -> Answer:
        name, _, window = rest.partition(b":")
        if name != b"target.xml":
            return b"E00"
        self.bits = None
        return _window(description(self._code_bits()).encode(), window)

    def _code_bits(self) -> int:
        """What the debugger is told once; it cannot be told anew when the code changes."""
        if self.bits is None:
            self.bits = self._choose_bits(self.current)
        return self.bits

    def _threads_in_xml(self, rest: bytes) -> Answer:
        rows = "".join(
            f'<thread id="{index + 1:x}" name="vCPU {index}">{self._where(index)}</thread>'
            for index in range(self._count)
        )
        return _window(f"<threads>{rows}</threads>".encode(), rest.removeprefix(b":"))

    def _first_threads(self, rest: bytes) -> Answer:
        return b"m" + b",".join(b"%x" % (index + 1) for index in range(self._count))

    def _next_threads(self, rest: bytes) -> Answer:
        return b"l"

    def _about_thread(self, rest: bytes) -> Answer:
        return self._where(self._vcpu(rest)).encode().hex().encode()

    def _where(self, index: int) -> str:
        return self._target.state(index).registers.mode if self._target.has_started(index) else "not started"

    def _current_thread(self, rest: bytes) -> Answer:
        return UNKNOWN if rest else b"QC%x" % (self.current + 1)

    def _is_alive(self, rest: bytes) -> Answer:
        self._vcpu(rest)
        return OK

    def _select(self, rest: bytes) -> Answer:
        index = self.current if rest[1:] in {b"0", b"-1"} else self._vcpu(rest[1:])
        if rest[:1] == b"g":
            self.current = index
        elif rest[:1] == b"c":
            self._resumes = index
        else:
            return UNKNOWN
        return OK

    def _vcpu(self, text: bytes) -> int:
        number = _number(text)
        if not 1 <= number <= self._count:
            raise ValueError
        return number - 1

    # -- registers and memory ---------------------------------------------------------------------------------------

    def _read_registers(self, rest: bytes) -> Answer:
        state = self._target.state(self.current)
        return b"".join(state.read(register) for register in layout(self._code_bits())).hex().encode()

    def _write_registers(self, rest: bytes) -> Answer:
        data = _bytes(rest)
        state = self._target.state(self.current)
        registers = layout(self._code_bits())
        if len(data) * 8 != sum(register.bits for register in registers):
            return BAD
        at = 0
        for register in registers:
            size = register.bits // 8
            state.write(register, data[at : at + size])
            at += size
        return OK

    def _read_register(self, rest: bytes) -> Answer:
        return self._target.state(self.current).read(layout(self._code_bits())[_number(rest)]).hex().encode()

    def _write_register(self, rest: bytes) -> Answer:
        number, _, value = rest.partition(b"=")
        register, data = layout(self._code_bits())[_number(number)], _bytes(value)
        try:
            self._target.state(self.current).write(register, data)
        except ValueError as error:
            return _why(error)
        return OK

    def _read_memory(self, rest: bytes) -> Answer:
        address, size = map(_number, rest.split(b","))
        try:
            data = self._target.read(self.current, address, min(size, _READ_BYTES), physical=self._physical)
        except ValueError:
            return NO_MEMORY
        return data.hex().encode()

    def _write_memory(self, rest: bytes) -> Answer:
        where, _, data = rest.partition(b":")
        return self._store(where, _bytes(data))

    def _write_binary(self, rest: bytes) -> Answer:
        where, _, data = rest.partition(b":")
        return self._store(where, data)

    def _store(self, where: bytes, data: bytes) -> Answer:
        address, size = map(_number, where.split(b","))
        if size != len(data):
            return BAD
        try:
            self._target.write(self.current, address, data, physical=self._physical)
        except ValueError:
            return NO_MEMORY
        return OK

    def _says_physical(self, rest: bytes) -> Answer:
        return b"%d" % self._physical

    def _set_physical(self, rest: bytes) -> Answer:
        self._physical = {b"0": False, b"1": True}.get(rest, self._physical)
        return OK if rest in {b"0", b"1"} else BAD

    # -- points, going, leaving -------------------------------------------------------------------------------------

    def _add_point(self, rest: bytes) -> Answer:
        point = _point(rest)
        if point is None:
            return UNKNOWN
        if point in self._points:
            return OK
        try:
            self._check([*self._points, point], self.current)
        except PointError as error:
            return _why(error)
        self._points.append(point)
        return OK

    def _remove_point(self, rest: bytes) -> Answer:
        point = _point(rest)
        if point in self._points:
            self._points.remove(point)
        return UNKNOWN if point is None else OK

    def _says_how_to_go(self, rest: bytes) -> Answer:
        return b"vCont;c;C;s;S"

    def _go(self, rest: bytes) -> Answer:
        running: set[int] = set()
        stepping: set[int] = set()
        everybody = set(range(self._count))
        for action in rest.split(b";"):
            verb, _, thread = action.partition(b":")
            left = everybody - running - stepping
            who = left if thread in {b"", b"-1"} else {self._vcpu(thread)} & left
            if re.fullmatch(rb"c|C[0-9a-f]{2}", verb):
                running |= who
            elif re.fullmatch(rb"s|S[0-9a-f]{2}", verb):
                stepping |= who
            else:
                return BAD
        return Resume(frozenset(running), frozenset(stepping)) if running or stepping else BAD

    def _go_on(self, rest: bytes) -> Answer:
        """As ``vCont``, for debuggers that don't know that one; an address to go on at is not taken."""
        return Resume(frozenset(range(self._count)), frozenset())

    def _step(self, rest: bytes) -> Answer:
        return Resume(frozenset(), frozenset({self._resumes}))

    def _detach(self, rest: bytes) -> Answer:
        return Detach()

    def _kill(self, rest: bytes) -> Answer:
        return Kill()

    def _run_monitor(self, rest: bytes) -> Answer:
        command = _bytes(rest.removeprefix(b",")).decode("utf-8", "replace")
        return Printed(self._monitor(command, self.current).encode("utf-8", "replace"))

    def _is_attached(self, rest: bytes) -> Answer:
        return b"1"

    def _says_watchpoints(self, rest: bytes) -> Answer:
        """Lldb's question; they are told after the access, as on every x86."""
        return b"num:4;"


def _number(text: bytes) -> int:
    if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", text):
        raise ValueError
    return int(text, 16)


def _bytes(text: bytes) -> bytes:
    return bytes.fromhex(text.decode("ascii"))


def _point(text: bytes) -> Point | None:
    """From TYPE,ADDRESS,KIND; conditions and commands behind that are not taken, and were never offered."""
    kind, address, length = map(_number, text.partition(b";")[0].split(b","))
    if kind > PointKind.ACCESS:
        return None
    if not PointKind(kind).is_breakpoint and not 1 <= length <= 0x1000:
        raise ValueError
    return Point(PointKind(kind), address, 1 if PointKind(kind).is_breakpoint else length)


def _window(text: bytes, window: bytes) -> bytes:
    """The piece OFFSET,LENGTH of a longer text; whether more follows."""
    offset, length = map(_number, window.split(b","))
    piece = text[offset : offset + min(length, _READ_BYTES)]
    return (b"m" if offset + len(piece) < len(text) else b"l") + escape(piece)


def _why(error: Exception) -> bytes:
    return b"E." + str(error).encode("ascii", "replace").replace(b"$", b"?").replace(b"#", b"?")
