"""What happened in a machine's runs, and when."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from vmm.devices.fwctl import Fwctl
    from vmm.run.console import Stream
    from vmm.run.lifetime import Lifetime


class TimelineEvent(NamedTuple):
    """Something that happened, in seconds since the first run began."""

    t_s: float
    event: str


def collect_timeline(
    lifetime: "Lifetime", vcpus: Sequence[Any], streams: "Iterable[Stream]", fwctl: "Fwctl | None"
) -> list[TimelineEvent]:
    """What happened when, in order.

    Args:
        lifetime: of the machine.
        vcpus: C's ``struct vmm_vcpu``, by index.
        streams: what the guest printed on.
        fwctl: what it asked, if the machine has that.
    """
    start = lifetime.started_ns
    events = [
        TimelineEvent((vcpu.started_ns - start) / 1e9, f"vCPU {index} started")
        for index, vcpu in enumerate(vcpus)
        if vcpu.started_ns
    ]
    events += [
        TimelineEvent(stream.first_at - start / 1e9, f"first output on {stream.name}")
        for stream in streams
        if stream.first_at is not None
    ]
    if fwctl is not None:
        events += [TimelineEvent((r.time_ns - start) / 1e9, f"fwctl {r}") for r in fwctl.requests]
    events += [TimelineEvent(t_s, reason.value) for t_s, reason in lifetime.ends]
    return sorted(events, key=lambda event: event.t_s)
