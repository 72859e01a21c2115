"""What happened in a machine's runs, and when."""

from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vmm.devices.fw_cfg import FwCfg
    from vmm.devices.fwctl import Fwctl
    from vmm.run.console import Stream
    from vmm.run.lifetime import Lifetime


class EventKind(StrEnum):
    """What an event is, and what its subject."""

    VCPU_STARTED = "vcpu-started"
    """The vCPU's index."""
    FIRST_OUTPUT = "first-output"
    """The console's name."""
    CONSOLE_LINE = "console-line"
    """The console's name; the line itself is the event."""
    FW_CFG_ITEM = "fw-cfg-item"
    """The name of an item of fw_cfg that was selected for the first time."""
    FWCTL_REQUEST = "fwctl-request"
    """The OID."""
    RESET = "reset"
    """Who wanted it: guest, triple-fault or user."""
    END = "end"
    """Of a run; the reason."""


class TimelineEvent(NamedTuple):
    """Something that happened, in seconds since the first run began."""

    t_s: float
    kind: EventKind
    subject: int | str
    event: str
    """For people."""
    instructions: int | None = None
    """How many the guest had executed, where time goes by them."""


def collect_timeline(
    lifetime: "Lifetime",
    starts: Iterable[tuple[int, int, int]],
    streams: "Iterable[Stream]",
    fw_cfg: "FwCfg | None",
    fwctl: "Fwctl | None",
) -> list[TimelineEvent]:
    """What happened when, in order.

    Args:
        lifetime: of the machine.
        starts: of each vCPU's first instruction after power-on or a reset, as `Processors.starts` has it.
        streams: what the guest printed on.
        fw_cfg: what it read, if the machine has that.
        fwctl: what it asked, if the machine has that.
    """
    start = lifetime.started_ns
    latest = lifetime.ends[-1][0] if lifetime.ends and not lifetime.running else float("inf")
    events = []
    for index, at_ns, executed in starts:
        at = (at_ns - start) / 1e9
        count = None if lifetime.instructions is None else executed
        events.append(TimelineEvent(at, EventKind.VCPU_STARTED, index, f"vCPU {index} started", count))
    for stream in streams:
        if stream.first_at is not None:
            at = stream.first_at - start / 1e9
            events.append(TimelineEvent(at, EventKind.FIRST_OUTPUT, stream.name, f"first output on {stream.name}"))
        for at, count, line in stream.lines():
            # What a device had collected arrives after the end.
            t_s = min(at - start / 1e9, latest)
            events.append(TimelineEvent(t_s, EventKind.CONSOLE_LINE, stream.name, line, count))
    if fw_cfg is not None:
        events += [
            TimelineEvent((at_ns - start) / 1e9, EventKind.FW_CFG_ITEM, name, f"fw_cfg item {name} selected", count)
            for name, at_ns, count in fw_cfg.first_selected()
        ]
    if fwctl is not None:
        events += [
            TimelineEvent((request.time_ns - start) / 1e9, EventKind.FWCTL_REQUEST, request.oid, f"fwctl {request}")
            for request in fwctl.requests
        ]
    events += [
        TimelineEvent(reset.t_s, EventKind.RESET, reset.kind.value, reset.cause, reset.instructions)
        for reset in lifetime.resets
    ]
    events += [
        TimelineEvent(t_s, EventKind.END, reason.value, reason.value, count) for t_s, reason, count in lifetime.ends
    ]
    return sorted(events, key=lambda event: event.t_s)
