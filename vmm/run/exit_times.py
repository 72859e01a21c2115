"""How long the VMM took for what the guest asked: the C core's histograms, read.

C counts (`native/exit_times.c`); this module merges the vCPUs and computes what people look at. A value is known to one
part in eight, for that is how wide a bucket is.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from vmm._native import lib
from vmm.kvm.exit_reasons import reason_name

REASON = "exit"
"""From KVM_RUN's return until the run loop is ready to go back, by KVM exit reason."""
PORT = "port"
"""Waiting for the devices' lock and the device's answer, by port."""
MMIO = "MMIO"
"""Likewise, by 4 KiB page."""

_KINDS = {lib.EXIT_TIMES_REASON: REASON, lib.EXIT_TIMES_PORT: PORT, lib.EXIT_TIMES_MMIO: MMIO}


@dataclass(frozen=True)
class ExitTimes:
    """One histogram; times in nanoseconds.

    Attributes:
        kind: `REASON`, `PORT` or `MMIO`.
        address: the exit reason's number, the port, or the GPA of the page.
        is_write: the guest's OUT or store; False for exit reasons.
        count: measurements.
        total_ns: their sum.
        max_ns: the longest, exactly.
        buckets: (first value of the bucket in ns, measurements in it), rising, without empty ones.
    """

    kind: str
    address: int
    is_write: bool
    count: int
    total_ns: int
    max_ns: int
    buckets: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        """What was timed, for people: ``exit io``, ``in 0x511``, ``out 0x402``, ``load 0xfec00000``."""
        if self.kind == REASON:
            return f"exit {reason_name(self.address)}"
        verb = ("out" if self.is_write else "in") if self.kind == PORT else ("store" if self.is_write else "load")
        return f"{verb} {self.address:#x}"

    def percentile(self, percent: float) -> int:
        """Return the value below or at which ``percent`` of the measurements are: the first of its bucket."""
        wanted = self.count * percent / 100
        passed = 0
        for start, count in self.buckets:
            passed += count
            if passed >= wanted:
                return start
        return self.max_ns

    def summary(self) -> dict[str, Any]:
        """Return what ``vmm boot --json`` prints."""
        return {
            "name": self.name,
            "kind": self.kind,
            "address": self.address,
            "is_write": self.is_write,
            "count": self.count,
            "total_ns": self.total_ns,
            "p50_ns": self.percentile(50),
            "p90_ns": self.percentile(90),
            "p99_ns": self.percentile(99),
            "max_ns": self.max_ns,
            "buckets": [list(bucket) for bucket in self.buckets],
        }


def collect(tables: Iterable[Any]) -> list[ExitTimes]:
    """Merge the ``struct exit_times`` of all vCPUs; what took longest in total comes first."""
    merged: dict[tuple[str, int, bool], list[Any]] = {}
    for table in tables:
        for row in _used_rows(table):
            key = _KINDS[row.kind], row.address, bool(row.is_write)
            merged.setdefault(key, []).append(row.times)
    return sorted((_merge(*key, histograms) for key, histograms in merged.items()), key=lambda row: -row.total_ns)


def _used_rows(table: Any) -> Iterator[Any]:
    for index in range(lib.EXIT_TIMES_ROWS):
        row = table.rows[index]
        if row.kind != lib.EXIT_TIMES_UNUSED:
            yield row


def _merge(kind: str, address: int, is_write: bool, histograms: list[Any]) -> ExitTimes:
    counts = [sum(histogram.buckets[index] for histogram in histograms) for index in range(lib.HISTOGRAM_BUCKETS)]
    return ExitTimes(
        kind=kind,
        address=address,
        is_write=is_write,
        count=sum(histogram.count for histogram in histograms),
        total_ns=sum(histogram.total_ns for histogram in histograms),
        max_ns=max(histogram.max_ns for histogram in histograms),
        buckets=tuple((lib.histogram_bucket_start(index), count) for index, count in enumerate(counts) if count),
    )
