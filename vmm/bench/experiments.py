"""``pio``, ``dma``, ``exits`` and ``boot``: rounds of all contenders, made into a `vmm.bench.result.Result`."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from vmm.bench import boot, host, latency, scale
from vmm.bench.contenders import DEADLINE_S, VMM_ALONE, ContenderFailedError
from vmm.bench.result import CaseResult, Measured, Result, Target, names
from vmm.bench.rounds import Rounds, not_done, run_rounds
from vmm.errors import ConfigError, HostError
from vmm.statistics import median, summarize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from vmm.bench.contenders import Contender
    from vmm.bench.rounds import Goal

    Progress = Callable[[str, float, int], None]

PAIRS = (
    *(("vmm", "bare-loop"), ("vmm", "qemu-kvm"), ("vmm-python", "vmm"), ("vmm", "qemu-tcg"), ("vmm", "vmm-cold")),
    *(("vmm-softcpu", "vmm"), ("vmm-softcpu", "qemu-tcg")),
)
"""What is compared with what, where both took part."""

_ROUNDS_PART = 0.8
"""Of the time of ``pio`` and ``dma``; what is left is for `_vmm_times`."""

TARGETS = {
    "pio": (
        Target("in8-fwcfg", "vmm", "bare-loop", 1.02, "IN AL, 0x511 next to the bare loop"),
        Target("in8-fwcfg", "vmm", "qemu-kvm", 1.0, "IN AL, 0x511 below QEMU"),
        Target("out16-select", "vmm", "bare-loop", 0.15, "OUT 0x510, AX without an exit"),
        Target("out8-log/10000", "vmm", "qemu-kvm", 0.15, "a log by single OUTs next to QEMU"),
        Target("insb-up/4096", "vmm", "bare-loop", 1.15, "REP INSB per byte next to the bare loop"),
        Target("insb-up/4096", "vmm", "qemu-kvm", 0.2, "REP INSB five times as fast as QEMU"),
        Target(
            "in8-fwcfg", "vmm-softcpu", "vmm", 0.1, "IN AL, 0x511 without KVM, ten times as fast where it interprets"
        ),
        Target("insb-up/4096", "vmm-softcpu", "vmm", 0.1, "REP INSB, likewise"),
    ),
    "dma": (Target("dma-read/67108864", "vmm", "bare-loop", 1 / 0.9, "DMA of 64 MiB at 0.9 of memcpy"),),
    "exits": (
        Target("inl_from_qemu", "vmm", "bare-loop", 1.05, "IN from an unclaimed port next to the bare loop"),
        Target("mmio_read_hpet", "vmm", "bare-loop", 1.05, "MMIO to a device in C next to the bare loop"),
        Target("cpuid", "vmm", "bare-loop", 1.02, "an exit that stays in KVM as short as the bare loop's"),
        Target("inl_from_qemu", "vmm", "qemu-kvm", 1.0, "IN from an unclaimed port below QEMU"),
        Target("mmio_read_hpet", "vmm", "qemu-kvm", 1.0, "HPET below QEMU"),
    ),
    "boot": (
        Target("exit", "vmm", "qemu-kvm", 1.0, "process start to the end of a guest that exits at once, below QEMU pc"),
        Target("machine", "vmm-warm", "", 5.0, "Machine() to the guest's end in a warm Python, ms"),
        Target("seabios", "vmm", "qemu-tcg", 1.5, "SeaBIOS next to QEMU's TCG"),
        Target("ovmf", "vmm", "qemu-tcg", 0.8, "OVMF next to QEMU's TCG"),
        Target("seabios", "vmm-softcpu", "qemu-tcg", 1.0, "SeaBIOS without KVM next to QEMU's TCG"),
        Target("ovmf", "vmm-softcpu", "qemu-tcg", 0.4, "OVMF without KVM next to QEMU's TCG"),
        Target("linux", "vmm-softcpu", "qemu-tcg", 0.9, "Linux without KVM next to QEMU's TCG"),
        Target("debian", "vmm", "qemu-tcg", 0.7, "Debian's boot next to QEMU's TCG"),
        Target("secboot", "vmm", "qemu-tcg", 0.7, "OVMF with SMM and Secure Boot next to QEMU's TCG"),
    ),
    "snapshot": (
        Target("first", "vmm", "", 50.0, "restore to the first new byte on the console, ms"),
        Target("first", "vmm", "vmm-cold", 0.05, "the same next to a cold boot"),
        Target("take", "vmm", "", 300.0, "taking a snapshot, ms"),
        Target("test", "vmm", "", 150.0, "a test from a snapshot, ms: 100 in 15 s"),
    ),
    "disk": tuple(
        Target(case, "vmm", rival, 1.0, f"{title} as fast as QEMU's {rival.removeprefix('qemu-').upper()}")
        for rival in ("qemu-kvm", "qemu-tcg")
        for case, title in (("sequential", "dd"), ("random-1", "4 KiB alone"), ("random-32", "32 of 4 KiB"))
    ),
}
"""Targets of this program. The bare loop's DMA is one memcpy."""


def run_latency(
    plan: latency.Plan,
    mode: str,
    contenders: Sequence[Contender],
    goal: Goal,
    seed: int,
    progress: Progress,
) -> Result:
    """Run ``pio``, ``dma`` or ``exits``."""
    load, clock, ends_at = host.load_per_cpu(), host.Clock.read(), time.monotonic() + goal.seconds
    with latency.Bulk(plan.bulk_bytes) as bulk:
        part = goal.share(goal.seconds * _ROUNDS_PART, 0.0)
        rounds = run_rounds(contenders, latency.measurer(plan, mode, bulk), part, seed, progress)
        result = _new_result(plan.kind, contenders, rounds, seed)
        result.settings = {"mode": mode, "samples_per_round": plan.samples, "guest_memory_mib": plan.memory_mib}
        try:
            result.vmm_times = _vmm_times(plan, mode, bulk, ends_at - time.monotonic())
        except HostError as error:
            result.failed["vmm's own histograms"] = str(error)
    khz = _tsc_khz(rounds)
    result.settings["tsc_khz"] = khz
    for case in plan.cases if khz else ():
        found = CaseResult(case.key, case.title, "ns", bytes_moved=case.size)
        for key, runs in rounds.values.items():
            why = next((run.skipped[case.test, case.size] for run in runs if (case.test, case.size) in run.skipped), "")
            if why:
                result.failed[f"{case.key} {key}"] = why
                continue
            costs = [run.cost(case, plan.empty) for run in runs]
            found.measured[key] = Measured.of([[t * 1e6 / khz for t in cost] for cost in costs], seed)
        found.compare(PAIRS, seed)
        result.cases.append(found)
    result.noise = _noise(result, load, clock, "bare-loop")
    return result


def run_boot(
    cases: Sequence[boot.BootCase], contenders: Sequence[Contender], goal: Goal, seed: int, progress: Progress
) -> Result:
    """Run ``boot``; the time is divided among the cases."""
    load, clock = host.load_per_cpu(), host.Clock.read()
    result = _new_result("boot", contenders, Rounds[Any](), seed)
    shares = _shares(goal.seconds, [case.weight for case in cases])
    for number, (case, share) in enumerate(zip(cases, shares, strict=True)):
        taking_part = [c for c in case.contenders if c in contenders or c not in boot.CONTENDERS]
        if case.contenders is boot.CONTENDERS and VMM_ALONE in contenders:
            taking_part.insert(0, VMM_ALONE)

        def told(name: str, part: float, count: int, number: int = number, title: str = case.title) -> None:
            progress(f"{title}: {name}", (number + part) / len(cases), count)

        rounds = run_rounds(taking_part, partial(boot.measure, case=case), goal.share(*share), seed + number, told)
        found = CaseResult(case.key, case.title, "ms")
        for key, runs in rounds.values.items():
            found.measured[key] = Measured.of([[run.elapsed_s * 1000] for run in runs], seed)
            if case.until is not None:
                result.timelines[f"{case.key} {key}"] = _typical_timeline(runs)
        found.compare(PAIRS, seed)
        result.cases.append(found)
        result.contenders |= names(taking_part)
        result.failed |= {f"{case.key} {key}": why for key, why in rounds.failed.items()}
        result.rounds = max(result.rounds, rounds.count)
        result.elapsed_s += rounds.elapsed_s
    result.noise = _noise(result, load, clock, "qemu-tcg")
    return result


def run_disk(contenders: Sequence[Contender], goal: Goal, seed: int, progress: Progress) -> Result:
    """Run ``disk``: QEMU in the mode in which vmm is on this host, unless it was named."""
    from vmm.bench import disk  # finds a Linux

    load, clock = host.load_per_cpu(), host.Clock.read()
    with disk.Guest.made() as guest:
        rounds = run_rounds(contenders, partial(disk.measure, guest=guest), goal, seed, progress)
    result = _new_result("disk", contenders, rounds, seed)
    result.targets = [target for target in result.targets if target.to in result.contenders]
    result.settings = {"image_mib": disk.IMAGE_MIB, "cache": "none", "aio": "threads"}
    for case in disk.CASES:
        found = CaseResult(case.key, case.title, "ns", bytes_moved=case.size)
        for key, runs in rounds.values.items():
            found.measured[key] = Measured.of([[run[case.key]] for run in runs], seed)
        found.compare(PAIRS, seed)
        result.cases.append(found)
    result.noise = _noise(result, load, clock, contenders[-1].key)
    return result


def run_snapshot(names_of_cases: Sequence[str], goal: Goal, seed: int, progress: Progress) -> Result:
    """Run ``snapshot``; the time is divided among the cases."""
    from vmm.bench import snapshot  # loads the machine

    load, clock = host.load_per_cpu(), host.Clock.read()
    result = _new_result("snapshot", (), Rounds[Any](), seed)
    with snapshot.Subjects() as subjects:
        cases = [case for case in subjects.cases() if not names_of_cases or case.key in names_of_cases]
        if unknown := set(names_of_cases) - {case.key for case in subjects.cases()}:
            known = ", ".join(case.key for case in subjects.cases())
            raise ConfigError(f"--case {unknown.pop()}: not known; known are {known}")
        shares = _shares(goal.seconds, [8 if case.key == "first" else 1 for case in cases])
        for number, (case, share) in enumerate(zip(cases, shares, strict=True)):

            def told(name: str, part: float, count: int, number: int = number, title: str = case.title) -> None:
                progress(f"{title}: {name}", (number + part) / len(cases), count)

            rounds = run_rounds(case.contenders, snapshot.measure, goal.share(*share), seed + number, told)
            found = CaseResult(case.key, case.title, "ms")
            for key, runs in rounds.values.items():
                found.measured[key] = Measured.of([[seconds * 1000] for seconds in runs], seed)
            found.compare(PAIRS, seed)
            result.cases.append(found)
            result.contenders = names(case.contenders) | result.contenders
            result.failed |= {f"{case.key} {key}": why for key, why in rounds.failed.items()}
            result.rounds = max(result.rounds, rounds.count)
            result.elapsed_s += rounds.elapsed_s
    result.noise = _noise(result, load, clock, "vmm-cold")
    return result


def run_scales(
    axes: Mapping[scale.Axis, Sequence[int]],
    contenders: Sequence[Contender],
    goal: Goal,
    seed: int,
    progress: Progress,
) -> Result:
    """Run ``boot`` with ``--cpus``, ``--items``, ``--memory`` or ``--initrd``; the time is divided among them."""
    load, clock = host.load_per_cpu(), host.Clock.read()
    result = _new_result("boot", contenders, Rounds[Any](), seed)
    result.targets = []
    began = time.monotonic()
    shares = _shares(goal.seconds, [1] * len(axes))
    for number, ((axis, values), share) in enumerate(zip(axes.items(), shares, strict=True)):

        def told(name: str, part: float, count: int, number: int = number) -> None:
            progress(name, (number + part) / len(axes), count)

        result.scales.append(scale.run_scale(axis, values, contenders, goal.share(*share), seed + number, told))
        result.rounds = max(result.rounds, result.scales[-1].rounds)
        result.failed |= {f"{axis.key}: {where}": why for where, why in result.scales[-1].failed.items()}
    result.elapsed_s = time.monotonic() - began
    result.noise = host.Noise(load, host.Clock.read().steal_since(clock), _scale_spread(result))
    if result.noise.warnings():
        for measured in result.scales:
            measured.drop_growth("too noisy to say")
    return result


def _shares(seconds: float, weights: Sequence[int]) -> Iterator[tuple[float, float]]:
    """Yield the seconds for each, as it begins, and those that are left for all.

    What those before it did not use is its own, too.
    """
    began = time.monotonic()
    for number in range(len(weights)):
        used = time.monotonic() - began
        yield seconds * sum(weights[: number + 1]) / sum(weights) - used, seconds - used


def images(result: Result) -> list[str]:
    """Return the names of the firmware and guests that a result was measured with."""
    if result.kind == "snapshot":
        return ["ovmf"]
    if result.kind == "disk":
        return []
    if result.kind != "boot":
        return ["latency"]
    measured = {case.key for case in result.cases if case.measured}
    used = [case.firmware or "exit" for case in boot.CASES if case.key in measured]
    used += [scale.AXES[found.key].guest for found in result.scales if found.points]
    return list(dict.fromkeys(used))


def _scale_spread(result: Result) -> float:
    spreads = [
        (high - low) / point[1]
        for found in result.scales
        for key, points in found.points.items()
        for point, (low, high) in zip(points, found.spreads[key], strict=True)
    ]
    return median(spreads) if spreads else 0.0


def _new_result(kind: str, contenders: Sequence[Contender], rounds: Rounds[Any], seed: int) -> Result:
    return Result(
        kind=kind,
        seed=seed,
        host=host.facts(),
        contenders=names(contenders),
        targets=[target for target in TARGETS[kind] if target.of != VMM_ALONE.key or VMM_ALONE in contenders],
        failed=dict(rounds.failed),
        rounds=rounds.count,
        elapsed_s=rounds.elapsed_s,
    )


def _tsc_khz(rounds: Rounds[latency.Run]) -> int:
    """Return the frequency that most guests measured against the PM timer, to the nearest MHz; 0: none came so far.

    The bare loop's PM timer is no clock, so its guest's idea does not count.
    """
    said = Counter(
        round(run.tsc_khz, -3)
        for key, runs in rounds.values.items()
        if key != "bare-loop"
        for run in runs
        if run.tsc_khz
    )
    if not said and rounds.failed:
        return 0
    if not said:
        raise ConfigError("no contender with a clock took part; without one, ticks have no length: add vmm or qemu-kvm")
    return said.most_common(1)[0][0]


def _vmm_times(plan: latency.Plan, mode: str, bulk: Path, limit_s: float) -> list[dict[str, Any]]:
    """Run the guest once more with the core's histograms on: the part of an exit that is ours. Not part of a round.

    Raises:
        ContenderFailedError: it did not come to its end in so many seconds.
    """
    from vmm.firmware import guests
    from vmm.machine import Machine  # loads the native module
    from vmm.run.outcome import Reason

    with Machine(
        str(guests.path("latency")),
        accel="kvm",
        memory=plan.memory_mib << 20,
        cpus=plan.cpus,
        fw_cfg={"opt/vmm/latency": plan.options(mode), "opt/vmm/bulk": bulk},
        exit_times=True,
    ) as machine:
        outcome = machine.run(deadline=max(0.0, min(limit_s, DEADLINE_S))).raise_interrupt()
        if outcome.reason is Reason.TIMEOUT:
            raise ContenderFailedError(not_done(limit_s))
        if not outcome.reached:
            raise ContenderFailedError(outcome.message)
        return [times.summary() for times in machine.exit_times()]


def _typical_timeline(runs: Sequence[boot.BootRun]) -> list[tuple[float, str]]:
    """Return the timeline of the run in the middle."""
    ordered = sorted(runs, key=lambda run: run.elapsed_s)
    return ordered[(len(ordered) - 1) // 2].timeline


def _noise(result: Result, load: float, clock: host.Clock, reference: str) -> host.Noise:
    """Judge the machine by the reference contender's rounds, in the middle one of all cases."""
    spreads = [
        summarize(case.measured[reference].rounds).spread
        for case in result.cases
        if reference in case.measured and case.measured[reference].summary.median
    ]
    return host.Noise(load, host.Clock.read().steal_since(clock), median(spreads) if spreads else 0.0)
