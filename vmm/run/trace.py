"""What the guest did with fw_cfg or fwctl: counts at any time, and, where asked for, a log of every access.

C keeps the counts (`struct fw_cfg_item`) and, while a log is wanted, fills a
ring of records per vCPU (`native/trace.c`). Here records become events with
names, neighbouring port reads become one event, and events become lines:
JSON objects for a file, text for a person.

Log lines are JSON objects of three kinds, told apart by ``event``:
``access`` (fields as `Access`), ``item`` (fields as
`vmm.devices.fw_cfg_item.ItemStatistics`, one per item at the end) and ``end``
(``never_read``: names; ``dropped``: records lost because the guest was faster
than the log). A machine with fwctl has ``request`` instead (fields as
`vmm.devices.fwctl.FwctlRequest`), and ``end`` has ``never_asked``: OIDs.
Addresses are hexadecimal strings, times seconds since the first run began,
sizes bytes.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vmm._native import ffi, lib
from vmm.errors import HostError
from vmm.legible import legible

if TYPE_CHECKING:
    from vmm.config.output_files import GrowingFile
    from vmm.devices.fw_cfg import FwCfg
    from vmm.devices.fw_cfg_item import ItemStatistics
    from vmm.devices.fwctl import Fwctl
    from vmm.devices.fwctl_format import FwctlRequest

RING_RECORDS = 1 << 14
"""Records per vCPU: more than a guest makes between two looks at the ring, at a million accesses a second."""

DRAIN_SECONDS = 0.02
"""How often the rings are looked at: before they can fill, and no more."""

_BATCH = 1024

OPERATIONS = {
    lib.TRACE_SELECT: "select",
    lib.TRACE_PORT_READ: "port-read",
    lib.TRACE_DMA_READ: "dma-read",
    lib.TRACE_DMA_WRITE: "dma-write",
    lib.TRACE_DMA_SKIP: "dma-skip",
    lib.TRACE_DMA_SELECT: "dma-select",
    lib.TRACE_DMA_LOST: "dma-lost",
}
"""Names in the log; "dma-lost" is a descriptor where no memory is."""

_WITH_BUFFER = {"dma-read", "dma-write", "dma-lost"}


@dataclass(frozen=True)
class Access:
    """One operation of the guest on the device, or several port reads in a row."""

    t_s: float
    vcpu: int
    rip: int | None
    """Of the instruction, or right behind it; None if it could not be had."""
    operation: str
    item: str
    key: int
    offset: int
    """In the item, before the operation."""
    length: int
    """Bytes asked for; for a selection the selector."""
    gpa: int | None
    """Of a DMA's buffer; of the descriptor, if that could not be read."""
    result: str
    """``ok``; ``short``: the item ended and zeros followed; ``zeros``: nothing of an item; ``error``: refused."""

    def as_json(self) -> str:
        """One line of the log's JSON form."""
        fields = vars(self) | {"t_s": round(self.t_s, 6)}
        for name in ("rip", "gpa"):
            fields[name] = None if fields[name] is None else f"{fields[name]:#x}"
        return json.dumps({"event": "access"} | fields)

    def as_text(self) -> str:
        """One line of the log's readable form."""
        rip = "?" if self.rip is None else f"{self.rip:x}"
        line = f"{self.t_s:10.6f} cpu{self.vcpu} {rip:>16} {self.operation:<10} {self.item}"
        if self.operation not in {"select", "dma-select", "dma-lost"}:
            line += f" +{self.offset} {self.length} B"
        if self.gpa is not None:
            line += f" at {self.gpa:#x}"
        return line if self.result == "ok" else f"{line}: {self.result}"


class Trace:
    """What the guest read so far, by file name.

    Args:
        fw_cfg: the device; None on a machine without one.
    """

    def __init__(self, fw_cfg: "FwCfg | None") -> None:
        self._fw_cfg = fw_cfg

    def items(self) -> "list[ItemStatistics]":
        """Every item with its counts, by key."""
        return self._fw_cfg.items() if self._fw_cfg is not None else []

    def reads(self, name: str) -> int:
        """Port accesses and DMA transfers that delivered bytes of an item; 0 for one that does not exist."""
        return sum(item.reads for item in self.items() if item.name == name)

    def bytes_read(self, name: str) -> int:
        """Bytes of an item that were delivered; more than its size if it was read more than once."""
        return sum(item.bytes_read for item in self.items() if item.name == name)

    def was_read_to_end(self, name: str) -> bool:
        """Whether an item's last byte was delivered."""
        return any(item.read_to_end for item in self.items() if item.name == name)

    def never_read(self) -> list[str]:
        """Names of the items that the guest never selected."""
        return [item.name for item in self.items() if not item.selects]


class AccessLog:
    """Records every access until closed; `poll` it often.

    Args:
        fw_cfg: the device, published.
        core: the C core's ``struct vmm_vm``.
        vcpus: its ``struct vmm_vcpu`` pointers, by index.
        sink: gets the events in order.
        start_ns: CLOCK_MONOTONIC that events count from, once there are any.
    """

    def __init__(
        self,
        fw_cfg: "FwCfg",
        core: Any,
        vcpus: list[Any],
        sink: Callable[[Access], None],
        start_ns: Callable[[], int] = lambda: 0,
    ) -> None:
        self._start_ns = start_ns
        self._fw_cfg = fw_cfg
        self._core = core
        self._sink = sink
        self._vcpus = ffi.new("struct vmm_vcpu *[]", vcpus)
        rip = ffi.addressof(lib, "vmm_vcpu_rip_of")
        self._trace = ffi.gc(lib.trace_new(len(vcpus), RING_RECORDS, rip, self._vcpus), lib.trace_free)
        if self._trace == ffi.NULL:
            raise MemoryError
        self._batch = ffi.new("struct trace_record[]", _BATCH)
        self._held: Access | None = None
        self._drained_at = 0.0
        fw_cfg.native.trace = self._trace

    def poll(self) -> None:
        """`drain`, if the last time is long enough ago; cheap to call often."""
        now = time.monotonic()
        if now - self._drained_at >= DRAIN_SECONDS:
            self._drained_at = now
            self.drain()

    def drain(self) -> None:
        """Give what happened since the last call to the sink, but for a port read that may still go on."""
        # A device that does not come back must not keep the run's deadline from being looked at.
        if lib.vmm_io_trylock(self._core):
            lib.trace_flush(self._trace)
            lib.vmm_io_unlock(self._core)
        start_ns = self._start_ns()
        fresh = sorted(self._take(start_ns), key=lambda access: access.t_s)
        for access in fresh:
            self._give(access)
        if not fresh:
            self._release()

    def close(self) -> None:
        """Stop recording, and give the sink what is left; no vCPU runs."""
        self.drain()
        self._release()
        self._fw_cfg.native.trace = ffi.NULL

    @property
    def dropped(self) -> int:
        """Records that found their ring full."""
        return int(lib.trace_dropped(self._trace))

    def _take(self, start_ns: int) -> Iterator[Access]:
        for index in range(len(self._vcpus)):
            while count := lib.trace_take(self._trace, index, self._batch, _BATCH):
                for at in range(count):
                    yield self._access(self._batch[at], start_ns)

    def _access(self, record: Any, start_ns: int) -> Access:
        operation = OPERATIONS[record.operation]
        return Access(
            t_s=(record.time_ns - start_ns) / 1e9,
            vcpu=record.vcpu,
            rip=record.rip or None,
            operation=operation,
            item=self._fw_cfg.name_of(record.key) if record.key != lib.FW_CFG_KEY_INVALID else "no such key",
            key=record.key,
            offset=record.offset,
            length=record.length,
            gpa=record.gpa if operation in _WITH_BUFFER else None,
            result=_result(operation, record),
        )

    def _give(self, access: Access) -> None:
        held = self._held
        if held is not None and _continues(held, access):
            self._held = replace(held, length=held.length + access.length, result=_joined(held.result, access.result))
            return
        self._release()
        if access.operation == "port-read":
            self._held = access
        else:
            self._sink(access)

    def _release(self) -> None:
        if self._held is not None:
            self._sink(self._held)
            self._held = None


class LogWriter:
    """The log as lines: JSON into a file, text on stderr.

    Args:
        file: where to; None: stderr.
    """

    def __init__(self, file: "GrowingFile | None") -> None:
        self._file = file
        self._as_text = file is None

    @property
    def behind(self) -> bool:
        """Whether who reads the log has not read all of it."""
        return self._file is not None and self._file.behind

    def access(self, access: Access) -> None:
        """One access; the thread that waits for the machine, which calls this, waits for no reader of the log."""
        self._line(access.as_text() if self._as_text else access.as_json(), wait=False)

    def catch_up(self) -> None:
        """Write what its reader has room for by now."""
        self._write(b"", wait=False)

    def request(self, request: "FwctlRequest", start_ns: int) -> None:
        """One request to fwctl; times count from ``start_ns`` of CLOCK_MONOTONIC."""
        if self._as_text:
            self._line(f"{(request.time_ns - start_ns) / 1e9:10.6f} fwctl {request}")
        else:
            self._line(json.dumps({"event": "request"} | request.as_dict(start_ns)))

    def end_of_requests(self, fwctl: "Fwctl") -> None:
        """The summary of a machine with fwctl."""
        if self._as_text:
            self._line(f"never asked: {', '.join(fwctl.never_asked) or 'nothing'}")
        else:
            self._line(json.dumps({"event": "end", "never_asked": fwctl.never_asked}))

    def end(self, trace: Trace, dropped: int) -> None:
        """The summary."""
        for line in _summary_text(trace, dropped) if self._as_text else _summary_json(trace, dropped):
            self._line(line)

    def _line(self, line: str, *, wait: bool = True) -> None:
        if self._file is None:
            print(legible(line), file=sys.stderr)
        else:
            self._write(f"{line}\n".encode(), wait=wait)

    def _write(self, data: bytes, *, wait: bool) -> None:
        """A disk that is full ends the log, not the guest."""
        if self._file is not None and not self._file.failed:
            try:
                self._file.write(data, wait=wait)
            except HostError as error:
                print(f"vmm: {error}; the log ends here", file=sys.stderr)


def start_log(
    file: "GrowingFile | None",
    device: "FwCfg | Fwctl",
    core: Any,
    vcpus: list[Any],
    start_ns: Callable[[], int],
    closers: ExitStack,
) -> Callable[[], None]:
    """Log every access to fw_cfg, or every request to fwctl, until ``closers`` end it.

    Args:
        file: as `LogWriter` takes it.
        device: which of the two the machine has.
        core: the C core's ``struct vmm_vm``.
        vcpus: its ``struct vmm_vcpu`` pointers, by index.
        start_ns: CLOCK_MONOTONIC at the start of the first run.
        closers: of the machine, whose vCPUs have stopped by then.

    Returns:
        What is to be called often while the machine runs.
    """
    from vmm.devices.fwctl import Fwctl

    writer = LogWriter(file)
    if isinstance(device, Fwctl):
        device.on_request = lambda request: writer.request(request, start_ns())
        closers.callback(writer.end_of_requests, device)
        return lambda: None
    log = AccessLog(device, core, vcpus, writer.access, start_ns)

    def end() -> None:
        log.close()
        writer.end(Trace(device), log.dropped)

    def poll() -> None:
        if writer.behind:
            writer.catch_up()
        if not writer.behind:  # else what comes next waits in the log's rings, which count what they drop
            log.poll()

    closers.callback(end)
    return poll


def _summary_text(trace: Trace, dropped: int) -> Iterator[str]:
    yield f"{'item':<40} {'size':>10} {'reads':>8} {'bytes':>10} {'writes':>6}  whole"
    for item in trace.items():
        if item.selects:
            whole = "yes" if item.read_to_end else "no"
            yield f"{item.name:<40} {item.size:>10} {item.reads:>8} {item.bytes_read:>10} {item.writes:>6}  {whole}"
    yield f"never read: {', '.join(trace.never_read()) or 'nothing'}"
    if dropped:
        yield f"{dropped} accesses are missing above: the guest was faster than the log"


def _summary_json(trace: Trace, dropped: int) -> Iterator[str]:
    for item in trace.items():
        yield json.dumps({"event": "item"} | item._asdict())
    yield json.dumps({"event": "end", "never_read": trace.never_read(), "dropped": dropped})


def _result(operation: str, record: Any) -> str:
    if record.control:
        return "error"
    if operation in {"port-read", "dma-read"} and record.moved < record.length:
        return "short" if record.moved else "zeros"
    return "ok"


def _joined(first: str, second: str) -> str:
    """The result of two port reads in a row: bytes, then zeros, is short."""
    return first if first == second else "short"


def _continues(held: Access, access: Access) -> bool:
    if access.operation != "port-read" or (access.vcpu, access.key) != (held.vcpu, held.key):
        return False
    # Behind the end of an item the offset stays.
    return access.offset == held.offset + held.length or (held.result != "ok" and access.result == "zeros")
