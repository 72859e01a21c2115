"""Why the guest came to vmm, and how long it waited there."""

from __future__ import annotations

from typing import TypedDict


class AreaReport(TypedDict):
    """A device's ports (up to 0xffff) or addresses, and how often the guest accessed them."""

    name: str
    first: int
    last: int
    reads: int
    writes: int


class TimesReport(TypedDict):
    """How long vmm took for an exit reason, or for the answer of the device at a port or in a page."""

    name: str
    kind: str
    """exit, port or page."""
    address: int
    """The port, the page's address, or the number of the exit reason."""
    is_write: bool
    count: int
    total_ns: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    max_ns: int
    buckets: list[list[int]]
    """Pairs: from how many nanoseconds on, how many."""


class ExitsReport(TypedDict):
    """Why the guest came to vmm."""

    by_reason: dict[str, int]
    """How often KVM_RUN returned, of all vCPUs together."""
    by_device: list[AreaReport]
    """The busiest first; those that were never accessed are missing."""
    times: list[TimesReport]
    """Of --exit-times; what took longest in all first."""
    times_lost: int
    """How many measurements are not in there."""
