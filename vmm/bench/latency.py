"""What single exits, string instructions and DMA cost, by the latency guest's own clock (`firmware/latency`).

The guest times each repetition with RDTSC and prints the ticks; the empty loop of the same run is subtracted. All
contenders run the very same image on the same processor, so ticks compare as they are; nanoseconds are for people.
"""

from __future__ import annotations

import functools
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.bench.contenders import BARE_LOOP, QEMU_KVM, VMM_C, VMM_PYTHON, Contender, ContenderFailedError
from vmm.statistics import median

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TITLE = "vmm latency 1"
OVERFLOW = 0xFFFFFFFF
"""What the guest prints for that many ticks or more."""

EMPTY = "empty"

LOG = "out8-log"

EXITS_MODE = "protected32"
"""That of the single exits."""

CONTENDERS = (VMM_C, VMM_PYTHON, BARE_LOOP, QEMU_KVM)

MODES = ("real16", "protected32", "long64", "user64")

BULK_BYTES = 64 << 20


@dataclass(frozen=True)
class Case:
    """One thing that is measured.

    Attributes:
        test: the guest's name for it.
        size: bytes of a transfer; 0 for a single access.
        title: for people.
    """

    test: str
    size: int
    title: str

    @property
    def key(self) -> str:
        """Name in results: ``in8-fwcfg``, ``insb-up/4096``."""
        return f"{self.test}/{self.size}" if self.size else self.test


@dataclass(frozen=True)
class Plan:
    """What ``vmm bench pio``, ``dma`` or ``exits`` runs.

    Attributes:
        kind: which of them.
        cases: what is measured; of exits, those that the guest finds possible.
        samples: of each case in one run.
        memory_mib: the guest's.
        bulk_bytes: what there is to transfer.
        cpus: the guest's.
        empty: the test whose time is no case's.
    """

    kind: str
    cases: tuple[Case, ...]
    samples: int
    memory_mib: int
    bulk_bytes: int
    cpus: int = 1
    empty: str = EMPTY

    def options(self, mode: str) -> str:
        """Return the guest's options; one repetition a batch, so that the slowest single ones are seen."""
        tests = dict.fromkeys([self.empty, *(case.test for case in self.cases)])
        word = "exit" if self.kind == "exits" else "test"
        largest = max((case.size for case in self.cases if case.test != LOG), default=0)
        words = ["batch=1", f"samples={self.samples}", f"mode={mode}", *(f"{word}={test}" for test in tests)]
        return " ".join([*words, f"max-size={max(largest, 16)}"])


_SINGLE = {
    "in8-fwcfg": "IN AL, 0x511: fw_cfg, C device",
    "out16-select": "OUT 0x510, AX: selector",
    "in8-nobody": "IN AL from an unclaimed port",
    "in32-nobody": "IN EAX from an unclaimed port",
    "out8-nobody": "OUT AL to an unclaimed port",
    "out32-nobody": "OUT EAX to an unclaimed port",
    "in8-rtc": "IN AL, 0x71: RTC, Python device",
    "in8-pic": "IN AL, 0x21: PIC, in the kernel",
}

_UNITS = ((1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))


def size_words(size: int) -> str:
    """Return 16 B, 4 KiB, 64 MiB."""
    unit, name = next(pair for pair in _UNITS if size >= pair[0])
    return f"{size // unit} {name}"


def _sizes(last: int) -> Iterator[int]:
    size = 16
    while size < last:
        yield size
        size *= 4
    yield last


PIO = Plan(
    "pio",
    (
        *(Case(test, 0, title) for test, title in _SINGLE.items()),
        Case(LOG, 10_000, "10,000 times OUT AL to the debug port, a log"),
        *(Case("insb-up", size, f"REP INSB, {size_words(size)}") for size in _sizes(4096)),
        *(Case("insb-down", size, f"REP INSB backwards, {size_words(size)}") for size in _sizes(4096)),
    ),
    samples=48,
    memory_mib=64,
    bulk_bytes=1 << 16,
)

DMA = Plan(
    "dma",
    tuple(Case("dma-read", size, f"DMA read, {size_words(size)}") for size in _sizes(BULK_BYTES)),
    samples=12,
    memory_mib=128,
    bulk_bytes=BULK_BYTES,
)


_EXITS = {
    "cpuid": "CPUID",
    "vmcall": "VMCALL or VMMCALL: a hypercall that KVM does not know",
    "inl_from_pmtimer": "IN EAX from the ACPI PM timer, C device",
    "inl_from_qemu": "IN EAX from an unclaimed port",
    "inl_from_kernel": "IN EAX, 0x4d0: PIC, in the kernel",
    "outl_to_kernel": "OUT 0x4d0, EAX: PIC, in the kernel",
    "insb_from_qemu": "REP INSB from an unclaimed port, 1 KiB",
    "rd_tsc_adjust_msr": "RDMSR, in the kernel",
    "wr_tsc_adjust_msr": "WRMSR, in the kernel",
    "apic_read": "local APIC, read",
    "apic_eoi": "local APIC, end of interrupt",
    "mmio_read_hpet": "MMIO read: HPET, C device",
    "mmio_write_hpet": "MMIO write: HPET, in vmm a Python device",
    "mmio_read_nobody": "MMIO read where nothing is",
    "mmio_write_nobody": "MMIO write where nothing is",
    "self_ipi_sti_nop": "an interrupt to itself, taken",
    "hlt_timer": "HLT until the local APIC's timer",
    "ipi": "an interrupt to another CPU, until it has taken it",
    "ipi_halt": "the same to one in HLT",
    "touch_4k": "first write to a page of RAM, 4 KiB on",
    "touch_2m": "first write to a page of RAM, 2 MiB on",
}

EXITS = Plan(
    "exits",
    tuple(Case(test, 0, f"{test}: {title}") for test, title in _EXITS.items()),
    samples=48,
    memory_mib=256,
    bulk_bytes=1 << 16,
    cpus=2,
    empty="nothing",
)

PLANS = {plan.kind: plan for plan in (PIO, DMA, EXITS)}


@dataclass(frozen=True)
class Run:
    """One run of the guest.

    Attributes:
        ticks: of each repetition, by (test, size).
        tsc_khz: the guest's idea of the TSC's frequency.
        skipped: why a test was not made, likewise.
    """

    ticks: dict[tuple[str, int], list[int]]
    tsc_khz: int
    skipped: dict[tuple[str, int], str]

    def cost(self, case: Case, empty: str = EMPTY) -> list[float]:
        """Return ticks of each repetition without the loop around it."""
        loop = median(self.ticks[empty, 0])
        return [max(0.0, ticks - loop) for ticks in self.ticks[case.test, case.size]]


def parse(text: str, mode: str) -> Run:
    """Read what the guest printed.

    Raises:
        ValueError: it is not that, or the guest said that something went wrong.
    """
    lines = [line for line in text.splitlines() if line]  # the log that is measured is of blank ones
    if not lines or lines[0] != TITLE or lines[-1] != "end 0":
        errors = [line for line in lines if line.startswith("error ")]
        raise ValueError(errors[0] if errors else f"not a whole output of the latency guest: {lines[-1:]}")
    ticks: dict[tuple[str, int], list[int]] = {}
    skipped: dict[tuple[str, int], str] = {}
    tsc_khz = 0
    for line in lines[1:-1]:
        kind, *words = line.split()
        if kind == "tsc-khz":
            tsc_khz = int(words[0])
        elif kind == "result" and words[0] == mode:
            batch = int(words[3])
            ticks[words[1], int(words[2])] = [int(word) // batch for word in words[4:] if int(word) != OVERFLOW]
        elif kind == "skip" and words[0] == mode:
            skipped[words[1], int(words[2])] = " ".join(words[3:])
    return Run(ticks, tsc_khz, skipped)


def measure(contender: Contender, limit_s: float, plan: Plan, mode: str, bulk: Path) -> Run:
    """Run the guest once.

    Raises:
        ContenderFailedError: it did not come to its end in so many seconds, or left a case out.
    """
    try:
        result = parse(contender.run_latency(plan.options(mode), plan.memory_mib, plan.cpus, bulk, limit_s), mode)
    except ValueError as error:
        raise ContenderFailedError(f"{contender.name}: {error}") from None
    left_out = result.skipped if plan.kind == "exits" else {}
    missing = [case.key for case in plan.cases if (case.test, case.size) not in {**result.ticks, **left_out}]
    if missing:
        raise ContenderFailedError(f"{contender.name}: the guest did not measure {', '.join(missing)}")
    too_long = [f"{test}/{size}" if size else test for (test, size), ticks in result.ticks.items() if not ticks]
    if too_long:
        raise ContenderFailedError(f"{contender.name}: 2**32 TSC ticks or more, each time: {', '.join(too_long)}")
    return result


class Bulk:
    """A file of random bytes to transfer, as a context manager; made once, so that no contender reads zero pages."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._directory = tempfile.TemporaryDirectory(prefix="vmm-bench-")

    def __enter__(self) -> Path:
        path = Path(self._directory.name, "bulk")
        block = os.urandom(min(self._size, 1 << 20))
        with path.open("wb") as file:
            for _ in range(self._size // len(block)):
                file.write(block)
        return path

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()


def select_cases(plan: Plan, tests: Sequence[str]) -> Plan:
    """Return the plan with only some tests; all of them if none is named."""
    if not tests:
        return plan
    return replace(plan, cases=tuple(case for case in plan.cases if case.test in tests))


def measurer(plan: Plan, mode: str, bulk: Path) -> functools.partial[Run]:
    """Return `measure` with all but the contender and the time given."""
    return functools.partial(measure, plan=plan, mode=mode, bulk=bulk)
