"""Time that goes by what the guest does, instead of the host's clock (docs/virtual-time.md).

The software CPU counts instructions, and moves the machine's clock (`native/softcpu/virtual_time.c`). What comes from
outside of the guest (what is typed, the power button, deadlines of devices, the look at what was printed) comes on the
thread that executes all vCPUs, between two instructions that depend on nothing but the guest.
"""

import json
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vmm._native import ffi
from vmm.devices.clock import VIRTUAL_START_NS, GuestClock
from vmm.errors import ConfigError
from vmm.legible import counted

if TYPE_CHECKING:
    from vmm.devices.timer import TimerService
    from vmm.softcpu.engine import SoftwareCpu

LOOK_NS: Final = 1_000_000
"""Between two looks at what was printed."""

_NEVER: Final = (1 << 64) - 1
_LATEST: Final = (1 << 62) - 1
"""An instruction, or a time in nanoseconds, that no guest comes to."""

POWER_BUTTON: Final = "power-button"


class Input(NamedTuple):
    """Something from outside that the guest got.

    Attributes:
        instructions: how many it had executed.
        time_ns: its time, in nanoseconds since power-on.
        typed: what was typed into the serial port; None: the power button was pressed.
    """

    instructions: int
    time_ns: int
    typed: bytes | None

    def line(self) -> bytes:
        """Return it as a line of a recording."""
        event = {"press": POWER_BUTTON} if self.typed is None else {"type": self.typed.decode("latin-1")}
        return json.dumps({"instructions": self.instructions, "time_ns": self.time_ns} | event).encode() + b"\n"


class Replayed(NamedTuple):
    """What became of a recording.

    Attributes:
        recorded: how many inputs it has.
        given: how many of them the guest got.
        exact: whether each of these came where it was recorded.
    """

    recorded: int
    given: int
    exact: bool

    @property
    def same(self) -> bool:
        """Whether the run was the recorded one, as far as its inputs tell."""
        return self.exact and self.given == self.recorded

    def __str__(self) -> str:
        where = "" if self.exact else ", not all of them at the instructions of the recording"
        run = "" if self.same else ": the run was not the recorded one"
        return f"{self.given} of {counted(self.recorded, 'input')} given{where}{run}"


def read_recording(data: bytes) -> list[Input]:
    """Return what `Input.line` wrote.

    Raises:
        ConfigError: somebody else did.
    """
    inputs: list[Input] = []
    for number, line in enumerate(data.splitlines(), 1):
        found = _read_line(line)
        if found is None:
            raise ConfigError(f"--replay: line {number} is none that --record writes: {line[:80]!r}")
        if inputs and found[:2] < inputs[-1][:2]:
            raise ConfigError(f"--replay: line {number} comes before the one in front of it")
        inputs.append(found)
    return inputs


def _read_line(line: bytes) -> Input | None:
    try:
        entry = json.loads(line)
        typed = None if entry.get("press") == POWER_BUTTON else entry["type"].encode("latin-1")
        found = Input(entry["instructions"], entry["time_ns"], typed)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return found if all(type(at) is int and 0 <= at <= _LATEST for at in found[:2]) else None


class VirtualTime:
    """The time of one machine, and what comes to it from outside.

    Args:
        clock: the machine's.
        softcpu: executes it.
        timers: of its devices.
        type_into: types into the serial port.
        press: presses the power button.
        fail: told what a device raises.
        record: gets the lines of a recording, as they come; None: nobody wants them.
        replay: what the guest is to get, and nothing else; None: what is typed now.

    Attributes:
        inputs: how many things the guest got from outside.
    """

    def __init__(
        self,
        clock: GuestClock,
        softcpu: "SoftwareCpu",
        timers: "TimerService",
        type_into: Callable[[bytes], object],
        press: Callable[[], object],
        fail: Callable[[BaseException], None],
        record: Callable[[bytes], object] | None,
        replay: list[Input] | None,
    ) -> None:
        self.inputs = 0
        self._clock = clock
        self._softcpu = softcpu
        self._timers = timers
        self._type_into = type_into
        self._press = press
        self._fail = fail
        self._record = record
        self._replay = None if replay is None else deque(replay)
        self._recorded = 0 if replay is None else len(replay)
        self._exact = True
        self._queue: deque[bytes | None] = deque()
        self._closed = False
        self._lock = threading.Lock()
        self._look: Callable[[], object] | None = None
        self._look_timer = timers.timer(self._on_look)
        self._handle = ffi.new_handle(self)
        timers.drive(softcpu.set_due)
        softcpu.go_by(clock, self._handle)

    def close(self) -> None:
        """Take nothing more from other threads: the software CPU goes next."""
        with self._lock:
            self._closed = True

    def begin(self) -> None:
        """Before a run, once there are vCPUs: say what comes first."""
        self._aim()

    @property
    def instructions(self) -> int:
        """How many the guest had executed when the time was looked at last, which is at every access to a device."""
        return int(self._clock.core.instructions)

    @property
    def seconds(self) -> float:
        """How much time has passed for the guest, likewise."""
        return self._now() / 1e9

    @property
    def replayed(self) -> Replayed | None:
        """What became of the recording; None: there is none."""
        return None if self._replay is None else Replayed(self._recorded, self.inputs, self._exact)

    def trace(self) -> tuple[int, int]:
        """A hash over what the guest did outside of memory, and how often it did."""
        return self._softcpu.trace_hash()

    def watch(self, look: Callable[[], object]) -> None:
        """Have ``look`` called soon after something was printed, on the vCPUs' thread, with io_lock held."""
        self._look = look
        self.note_output()

    def note_output(self) -> None:
        """Something was printed; with io_lock held, or between runs."""
        if not self._look_timer.armed:
            self._look_timer.arm((self._clock() // LOOK_NS + 1) * LOOK_NS)

    def _on_look(self) -> None:
        if self._look is not None:
            self._look()

    def feed(self, data: bytes) -> None:
        """Type into the serial port, soon; any thread may.

        Raises:
            ConfigError: what was typed is replayed.
            ValueError: the machine is closed.
        """
        self._enqueue(data)

    def press_power_button(self) -> None:
        """Press the power button, soon; as `feed`."""
        self._enqueue(None)

    def _enqueue(self, typed: bytes | None) -> None:
        if self._replay is not None:
            raise ConfigError("a replay has what was typed already; leave --send and the like out, or --replay")
        with self._lock:
            if self._closed:
                raise ValueError("the machine is closed")
            self._queue.append(typed)
            self._softcpu.note_input()

    def run(self, takes: bool) -> None:
        """What is due now; the software CPU calls it."""
        try:
            if takes:
                self._take_replayed() if self._replay is not None else self._take_queued()
            self._timers.run_due()
            self._aim()
        except BaseException as error:  # noqa: BLE001 - it ends the machine, and must not unwind through C
            self._fail(error)

    def _take_queued(self) -> None:
        with self._lock:
            typed, self._queue = self._queue, deque()
        for each in typed:
            self._give(Input(self.instructions, self._now(), each))

    def _take_replayed(self) -> None:
        replay = self._replay or deque()
        now = self._now()
        while replay and replay[0].instructions <= self.instructions and replay[0].time_ns <= now:
            given = replay.popleft()
            self._exact &= given[:2] == (self.instructions, now)
            self._give(given)

    def _now(self) -> int:
        return self._clock() - VIRTUAL_START_NS

    def _give(self, given: Input) -> None:
        self.inputs += 1
        if self._record is not None:
            self._record(given.line())
        if given.typed is None:
            self._press()
        else:
            self._type_into(given.typed)

    def _aim(self) -> None:
        """Say when something is due next."""
        self._softcpu.set_due(self._timers.next_deadline())
        if self._replay:
            first = self._replay[0]
            self._softcpu.set_replay(first.instructions, first.time_ns + VIRTUAL_START_NS)
        else:
            self._softcpu.set_replay(_NEVER, _NEVER)


@ffi.def_extern()  # type: ignore[untyped-decorator]
def vmm_python_virtual_time(opaque: Any, takes: bool) -> None:
    """C's way to a `VirtualTime`."""
    time: VirtualTime = ffi.from_handle(opaque)
    time.run(takes)
