"""What happened, in order."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class EventReport(TypedDict):
    """Something that happened."""

    t_s: float
    kind: Literal["vcpu-started", "first-output", "console-line", "fw-cfg-item", "fwctl-request", "reset", "end"]
    subject: int | str
    """Of vcpu-started the vCPU's index, of first-output and console-line the console, of fw-cfg-item the item that was
    selected for the first time, of fwctl-request the OID, of reset the same as kind in resets, of end the reason."""
    instructions: NotRequired[int]
    """How many the guest had executed; with virtual time."""
    event: str
    """The same for people; of console-line the line that ended then, or its first 200 bytes. Where a console has more
    than 512 lines, an even choice of them."""
