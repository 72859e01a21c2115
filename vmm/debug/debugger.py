"""Holds a machine in the middle of a run while a debugger looks at it, and lets it go on.

All of it happens on the thread that is in `Machine.run`, between two looks at the consoles: while the machine runs, the
socket is looked at every few milliseconds, and while it is held, the thread waits there. Where there is no debugger,
none of this is loaded.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from vmm.debug import packets
from vmm.debug.connection import Connection, Listener, wait
from vmm.debug.monitor import Monitor
from vmm.debug.packets import Kind
from vmm.debug.points import Hit, KvmPoints, Point, SoftwarePoints
from vmm.debug.session import OK, SIGINT, SIGTRAP, Detach, Printed, Resume, Session
from vmm.debug.target import Debuggee, Target
from vmm.firmware.images import FirmwareKind
from vmm.run.outcome import Reason
from vmm.run.runner import POLL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.config.debugger import DebugAddress
    from vmm.config.listening import DebugSocket
    from vmm.run.lifetime import Lifetime
    from vmm.run.threads import VcpuThreads

_SIGNALS = {
    Reason.TRIPLE_FAULT: 11,
    Reason.EMULATION_FAILURE: 4,
    Reason.KVM_FAILURE: 6,
    Reason.DEVICE_FAILURE: 6,
    Reason.RESET: 15,
    Reason.RESET_LOOP: 15,
}
"""The ends at which a debugger gets a last look, with the signal (Linux's number) that it is told."""

_64_BIT = {FirmwareKind.OVMF, FirmwareKind.BHYVE, FirmwareKind.NONE}
"""Soon, if not in their first instructions."""


_INBOX = 64
"""Packets that may wait while the machine runs; a debugger sends none then."""

_PIECES = 8
"""Of what a debugger says, so many are listened to at a time, as the machine has its turn, too."""


class Debugger:
    """The gdb server of one machine.

    Args:
        machine: for the monitor's commands.
        core: its ``struct vmm_vm``.
        cores: the ``struct vmm_vcpu`` of each vCPU.
        threads: of the vCPUs.
        lifetime: of the machine.
        listener: where a debugger finds it; whoever made it closes it.
        hold: the first run waits for a debugger.
        interprets: KVM executes the guest, and interprets ring 0.
    """

    def __init__(
        self,
        machine: Debuggee,
        core: Any,
        cores: Sequence[Any],
        threads: VcpuThreads,
        lifetime: Lifetime,
        *,
        listener: DebugSocket,
        hold: bool,
        interprets: bool,
    ) -> None:
        self._threads = threads
        self._life = lifetime
        self._target = Target(machine.vcpus, cores, machine.memory)
        self._points: SoftwarePoints | KvmPoints
        if machine.softcpu is not None:
            self._points = SoftwarePoints(core, cores)
        else:
            self._points = KvmPoints(self._target, interprets=interprets)
        self._wanted: list[Point] = []
        self._monitor = Monitor(machine, self._target)
        self._everybody = Resume(frozenset(range(len(cores))), frozenset())
        self._resume = self._everybody
        self._stopped: list[int] = []
        self._listener = Listener(listener)
        self._connection: Connection | None = None
        self._session: Session | None = None
        self._bits_of_firmware = 64 if machine.config.firmware.kind in _64_BIT else 32
        self._hold = hold
        self._held = False
        self._asked = False
        self._left = False
        self._awaited = False
        self._told_bits = 0
        self._inbox: deque[bytes] = deque()
        self._idle: Callable[[], None] = _nothing
        self._reset: Callable[[], None] = _nothing

    @property
    def address(self) -> DebugAddress:
        """Where a debugger finds the machine: its text is what ``target remote`` takes."""
        return self._listener.address

    @property
    def connected(self) -> bool:
        """Whether a debugger is there."""
        return self._connection is not None

    def close(self) -> None:
        """Tell the debugger that the machine is gone; may be called twice."""
        self._say_goodbye()
        self._listener.close()

    # -- the vCPUs' side --------------------------------------------------------------------------------------------

    def note_debug(self, index: int) -> None:
        """A vCPU has stopped at a point or after a step; on its thread."""
        self._stopped.append(index)
        self._life.nudge()

    # -- the run loop's side ----------------------------------------------------------------------------------------

    def begin(self, idle: Callable[[], None], reset: Callable[[], None]) -> None:
        """As `vmm.run.runner.Debugger.begin`."""
        self._idle, self._reset = idle, reset
        # What was in the machine before a reset.
        self._points.disarm()
        self._stopped.clear()
        hold, self._hold = self._hold, False
        if hold or self._held:
            self._serve(wait_for_one=hold)
        else:
            self._go()

    def poll(self) -> None:
        """As `vmm.run.runner.Debugger.poll`."""
        asked = self._look()
        if not self._life.take_restart() and not self._stopped and not asked and not self._left:
            return
        self._halt()
        hits = [hit for index in self._stopped if (hit := self._points.hit(index)) is not None]
        self._stopped.clear()
        if self._life.end is not None:
            return
        if self._session is None or (not hits and not asked):
            self._go()
            return
        # One hit is told; the other vCPUs come to their breakpoints again.
        self._tell(self._session, hits[0] if hits else None, SIGTRAP if hits else SIGINT)
        self._serve()

    def end(self) -> None:
        """As `vmm.run.runner.Debugger.end`."""
        self._points.disarm()
        self._stopped.clear()
        end = self._life.end
        if end is not None and self._session is not None and end.reason in _SIGNALS:
            self._print(f"{end.message}\n")
            self._tell(self._session, None, _SIGNALS[end.reason])
            self._serve(after_end=True)
        if self._life.final is not None:
            self._say_goodbye()

    def _go(self) -> None:
        self._held = self._left = False
        self._target.forget()
        self._points.arm(self._wanted, self._resume.stepping)
        self._threads.start(self._life.fail, self._resume.running | self._resume.stepping)

    def _halt(self) -> None:
        self._threads.stop()
        self._points.disarm()
        self._target.forget()

    def _serve(self, *, wait_for_one: bool = False, after_end: bool = False) -> None:
        """Answer the debugger until it lets the machine go, or the run is to end."""
        self._held = True
        with self._life.pause():
            while self._held and not self._life.is_leaving and (after_end or self._life.end is None):
                if self.connected or wait_for_one:
                    wait(self._listener, self._connection, POLL_SECONDS)
                    self._look()
                    self._reset_if_asked()
                    self._idle()
                    wait_for_one &= not self.connected
                else:
                    self._held = False
        if self._life.end is None and not self._held:
            self._go()

    # -- the debugger's side ----------------------------------------------------------------------------------------

    def _look(self) -> bool:
        """Take what was said, and obey while the machine is held; whether it is to stop."""
        self._listen()
        if self._listener.has_one:
            self._listen()  # who disconnected and came again has done both by now
            self._take_in()
        return self._asked

    def _take_in(self) -> None:
        """Let a debugger in that has come, if there is none."""
        came = self._listener.accept(taken=self.connected)
        if came is not None:
            self._connection = came
            self._session = Session(
                self._target, self._wanted, self._points.check, self._choose_bits, self._monitor.run
            )
            self._awaited = False
            self._asked = not self._held

    def _listen(self) -> None:
        connection, session = self._connection, self._session
        if connection is None or session is None:
            return
        self._obey_all(connection, session)
        for _ in range(_PIECES):
            events = connection.receive()
            for event in events:
                if event.kind is Kind.PACKET:
                    self._inbox.append(event.text)
                    self._obey_all(connection, session)
                elif event.kind is Kind.BROKEN:
                    connection.send(b"-")
                elif event.kind is Kind.INTERRUPT and not self._held:
                    self._asked = True
            if not events:
                break
        if connection.closed or len(self._inbox) > _INBOX:
            self._leave()

    def _obey_all(self, connection: Connection, session: Session) -> None:
        """What was said, while the machine is held; the rest waits until it is held again."""
        while self._held and self._inbox:
            self._obey(connection, session, self._inbox.popleft())
            self._reset_if_asked()

    def _reset_if_asked(self) -> None:
        """A reset of a machine that is held: it stays held, at its first instruction."""
        if self._held and self._life.wants_reset:
            self._reset()
            self._target.forget()

    def _choose_bits(self, index: int) -> int:
        """The code at RIP; where nothing has run yet, what the firmware is made of."""
        if self._monitor.code is not None:
            return self._monitor.code
        return self._target.state(index).registers.bits if self._target.has_started(index) else self._bits_of_firmware

    def _obey(self, connection: Connection, session: Session, packet: bytes) -> None:
        if session.acknowledges:
            connection.send(b"+")
        answer = session.answer(packet)
        if isinstance(answer, bytes):
            connection.send(packets.encode(answer))
        elif isinstance(answer, Printed):
            for said in answer.packets():
                connection.send(packets.encode(said))
        elif isinstance(answer, Resume):
            self._resume = answer
            self._awaited = True
            self._held = False
        elif isinstance(answer, Detach):
            connection.send(packets.encode(OK))
            self._leave()
        else:
            connection.send(packets.encode(OK))
            self._leave()
            self._life.finish(Reason.STOPPED, "the debugger ended the machine")

    def _tell(self, session: Session, hit: Hit | None, signal: int) -> None:
        """Say that the machine has stopped, if the debugger waits for that."""
        packet = session.stopped(hit, signal)
        bits = self._target.state(session.current).registers.bits
        if session.bits not in {None, bits} and bits != self._told_bits:
            self._told_bits = bits
            self._print(
                f"vmm: this is {bits}-bit code, and the debugger was told of {session.bits}-bit registers: "
                "'disconnect' and connect again, maybe after 'monitor code', to have it otherwise\n"
            )
        self._say(packet)
        self._awaited = self._asked = False

    def _print(self, text: str) -> None:
        self._say(b"O" + text.encode("ascii", "replace").hex().encode())

    def _say(self, packet: bytes) -> None:
        if self._connection is not None and self._awaited:
            self._connection.send(packets.encode(packet))

    def _say_goodbye(self) -> None:
        end = self._life.end
        self._say(b"W%02x" % (0 if end is None else end.exit_status))
        self._leave()

    def _leave(self) -> None:
        """The debugger is gone, and with it what it wanted."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._session = None
        self._wanted.clear()
        self._inbox.clear()
        self._resume = self._everybody  # whom it held, too, in a machine that runs
        self._left = True
        self._awaited = self._asked = self._held = False


def _nothing() -> None:
    pass
