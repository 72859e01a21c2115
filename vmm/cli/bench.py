"""``vmm bench``: what exits, DMA and a boot cost here, with rivals in the same run."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, TypeVar

from vmm.cli.parser import Parser
from vmm.config.outputs import STANDARD, Outputs
from vmm.errors import ConfigError, ExitStatus, HostError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from vmm.bench.contenders import Contender
    from vmm.bench.result import Result
    from vmm.bench.rounds import Goal
    from vmm.report.schema import OriginReport

KINDS = ("pio", "dma", "exits", "boot", "disk", "snapshot")

DESCRIPTION = """\
Measure WHAT, with rivals in the same run: vmm with fw_cfg in C and in Python, a bare KVM_RUN loop in C that does
nothing else (the floor), and QEMU. All take turns in random order, round after round, until the time is up.

  pio    single IN and OUT, and REP INSB, timed by a guest with RDTSC
  dma    fw_cfg's DMA, 16 bytes to 64 MiB, likewise
  exits  what else leaves a guest, one by one, likewise: CPUID, MSRs, MMIO, HLT and timer, interrupts between CPUs,
         first writes to RAM; under the names of kvm-unit-tests' vmexit where it has them
  boot   whole processes: a guest that exits at once, SeaBIOS, OVMF; a Machine() in a warm Python; with --case debian
         the disk that scripts/make-guest makes, to its login; with --case secboot OVMF with SMM and Secure Boot; with
         --case linux the kernel that vmm fetch-linux gets, to its /init
  disk   what a Linux guest's reads take, past all caches: dd, and 4 KiB here and there, 1 and 32 at a time; QEMU's
         virtio-blk with cache=none,aio=threads. Needs vmm fetch-linux
  snapshot
         taking one of OVMF at its prompt, going on from it, and a test there; QEMU's savevm and loadvm, a cold boot
"""

EPILOG = """\
The table shows medians of single values; a ratio is the median of the rounds' ratios, with a 95 % bootstrap interval,
and is called a tie if that contains 1. A warning says when the machine was too noisy: others had the processors before
(load average above 0.5 a processor), the hypervisor below took time (steal above 2 %), or the reference's own rounds
lie more than 5 % apart. QEMU is taken from the PATH, and left out where it is missing.
--contender vmm-softcpu is vmm without KVM, in pio, dma, exits and boot; it takes no part unless it is named.

examples:
  vmm bench pio                                    a minute; the table
  vmm bench pio --mode user64 --seconds 300 --html pio.html
  vmm bench boot --case ovmf --contender vmm --contender qemu-tcg
  vmm bench boot --cpus 1,2,4,8,16,32,64 --memory 64M,1G,16G,64G --html growth.html
"""

DEFAULT_SECONDS = {"pio": 60.0, "dma": 60.0, "exits": 60.0, "boot": 120.0, "disk": 240.0, "snapshot": 120.0}


def parser() -> Parser:
    """Return the command's options."""
    options = Parser("bench", "WHAT [OPTION ...]", DESCRIPTION, EPILOG)
    add = options.add_argument_group("what").add_argument
    add("--mode", metavar="MODE", help="the guest's: real16, protected32 (exits are in), long64 (default), user64")
    add("--test", metavar="NAME", action="append", default=[], help="only this test of pio or exits; may be repeated")
    add(
        "--case",
        metavar="NAME",
        action="append",
        default=[],
        help="only this case of boot or snapshot; may be repeated",
    )
    add("--contender", metavar="NAME", action="append", default=[], help="only this one; may be repeated")
    for axis in ("cpus", "items", "memory", "initrd"):
        add(
            f"--{axis}",
            metavar="N,N,...",
            nargs="?",
            const="",
            help=f"boot: instead, how the cost grows with {axis}; without a list, the usual values",
        )
    add = options.add_argument_group("how long").add_argument
    add(
        "--seconds",
        metavar="N",
        help="how long it may take in all; what there was no time for is said (default: 60; boot and snapshot 120, "
        "disk 240)",
    )
    add("--rounds", metavar="N", help="end after so many rounds; without --seconds, whatever the time")
    add("--seed", metavar="N", default="1", help="of the random order and the bootstrap (default 1)")
    add = options.add_argument_group("output").add_argument
    add(
        "--json", metavar="PATH", help="write all of it, with samples, as a JSON object; - is stdout, without the table"
    )
    add("--html", metavar="PATH", help="write one self-contained page with plots")
    add("--svg", metavar="PATH", help="pio: write one picture for a document: IN from fw_cfg, and REP INSB")
    add("-q", "--quiet", action="store_true", help="no progress")
    return options


def run(words: list[str]) -> int:
    """Measure what a command line asks for; return the exit status: 0 even if a target was missed."""
    arguments = parser().parse(words, "kind")
    kind = arguments.kind
    if kind not in KINDS:
        raise ConfigError(f"vmm bench {kind or '…'}: what should be measured? known are {', '.join(KINDS)}")
    if arguments.html is not None:
        from vmm.report import html as pages

        pages.require("matplotlib")
    works = {"boot": _boot_work, "disk": _disk_work, "snapshot": _snapshot_work}
    work = works[kind](arguments) if kind in works else _latency_work(kind, arguments)
    from vmm.bench import progress, table

    with Outputs(None, {f"--{name}": getattr(arguments, name) for name in ("json", "html", "svg")}) as outputs:
        with progress.Bar(enabled=not arguments.quiet and sys.stderr.isatty()) as bar:
            result = work(bar.update)
        if outputs.documents:
            result.origin = _origin(result, words)
        try:
            if arguments.json != STANDARD:
                table.show(result)
        finally:
            outputs.write(_documents(result))
    nothing_measured = not any(case.measured for case in result.cases) and not any(s.points for s in result.scales)
    return ExitStatus.HOST_LACKS if nothing_measured else ExitStatus.OK


def _origin(result: Result, words: list[str]) -> OriginReport:
    from vmm.bench import experiments
    from vmm.firmware.load import find
    from vmm.report.origin import images_of_firmware, origin

    images = (image for name in experiments.images(result) for image in images_of_firmware(find(name)))
    return origin(["bench", *words], images)


def _documents(result: Result) -> dict[str, Callable[[], str]]:
    def page() -> str:
        from vmm.bench import page

        return page.render(result.as_json())

    def picture() -> str:
        from vmm.bench import plots

        return plots.headline(result.as_json())

    return {"--json": lambda: json.dumps(result.as_json(), indent=1) + "\n", "--html": page, "--svg": picture}


def _latency_work(kind: str, arguments: argparse.Namespace) -> Callable[..., Result]:
    from vmm.bench import experiments, latency
    from vmm.bench.contenders import VMM_ALONE

    if kind != "pio":
        _refuse("svg", arguments.svg, kind)
    for option in ("case", "cpus", "items", "memory", "initrd"):
        _refuse(option, getattr(arguments, option), kind)
    plan = latency.PLANS[kind]
    known = sorted({case.test for case in plan.cases})
    _check_words(arguments.test, known, "--test")
    mode = arguments.mode or (latency.EXITS_MODE if kind == "exits" else "long64")
    _check_words([mode], (latency.EXITS_MODE,) if kind == "exits" else latency.MODES, "--mode")
    chosen = latency.select_cases(plan, arguments.test)
    contenders = _contenders(arguments, latency.CONTENDERS, VMM_ALONE, boots=False)
    goal, seed = _goal(arguments, kind), _seed(arguments)
    return lambda told: experiments.run_latency(chosen, mode, contenders, goal, seed, told)


def _boot_work(arguments: argparse.Namespace) -> Callable[..., Result]:
    from vmm.bench import boot, experiments, scale
    from vmm.bench.contenders import VMM_ALONE

    _refuse("test", arguments.test, "boot")
    _refuse("svg", arguments.svg, "boot")
    goal, seed = _goal(arguments, "boot"), _seed(arguments)
    axes = {
        axis: scale.parse_values(axis, getattr(arguments, key) or axis.usual)
        for key, axis in scale.AXES.items()
        if getattr(arguments, key) is not None
    }
    if axes:
        rivals = _contenders(arguments, scale.CONTENDERS, boots=False)
        return lambda told: experiments.run_scales(axes, rivals, goal, seed, told)
    _check_words(arguments.case, [case.key for case in boot.CASES], "--case")
    contenders = _contenders(arguments, boot.CONTENDERS, VMM_ALONE)
    return lambda told: experiments.run_boot(boot.select_cases(arguments.case), contenders, goal, seed, told)


def _disk_work(arguments: argparse.Namespace) -> Callable[..., Result]:
    from vmm.bench import disk, experiments
    from vmm.softcpu.decision import has_hardware_virtualization

    for option in ("test", "case", "svg", "cpus", "items", "memory", "initrd"):
        _refuse(option, getattr(arguments, option), "disk")
    other = "qemu-tcg" if has_hardware_virtualization() else "qemu-kvm"
    contenders = _contenders(arguments, disk.CONTENDERS)
    if not arguments.contender:
        contenders = [contender for contender in contenders if contender.key != other]
    goal, seed = _goal(arguments, "disk"), _seed(arguments)
    return lambda told: experiments.run_disk(contenders, goal, seed, told)


def _snapshot_work(arguments: argparse.Namespace) -> Callable[..., Result]:
    from vmm.bench import experiments

    for option in ("test", "svg", "contender", "cpus", "items", "memory", "initrd"):
        _refuse(option, getattr(arguments, option), "snapshot")
    goal, seed = _goal(arguments, "snapshot"), _seed(arguments)
    return lambda told: experiments.run_snapshot(arguments.case, goal, seed, told)


def _contenders(
    arguments: argparse.Namespace, known: Sequence[Contender], *more: Contender, boots: bool = True
) -> list[Contender]:
    """Those that were named; if none was, all but ``more``, or, without KVM, all that do without."""
    _check_words(arguments.contender, [contender.key for contender in (*known, *more)], "--contender")
    chosen = [contender for contender in (*more, *known) if contender.key in arguments.contender] or list(known)
    from vmm.bench.host import kvm_lacks

    if (lacks := kvm_lacks()) is None:
        return chosen
    able = [contender for contender in (*more, *known) if not contender.needs_kvm(boots=boots)]
    if not able:
        raise HostError(lacks)
    for contender in chosen:
        if arguments.contender and contender not in able:
            others = ", ".join(contender.key for contender in able)
            raise HostError(f"--contender {contender.key}: {lacks}; without KVM there are {others}")
    return chosen if arguments.contender else able


def _goal(arguments: argparse.Namespace, kind: str) -> Goal:
    from vmm.bench.rounds import Goal

    seconds = DEFAULT_SECONDS[kind] if arguments.rounds is None else math.inf
    if arguments.seconds is not None:
        seconds = _number(arguments.seconds, "--seconds", float)
    return Goal(seconds, None if arguments.rounds is None else _number(arguments.rounds, "--rounds", int))


def _seed(arguments: argparse.Namespace) -> int:
    try:
        return int(arguments.seed)
    except ValueError:
        raise ConfigError(f"--seed {arguments.seed}: a whole number") from None


Number = TypeVar("Number", int, float)


def _number(text: str, option: str, kind: type[Number]) -> Number:
    try:
        value = kind(text)
    except ValueError:
        value = kind(0)
    if not 0 < value < 1e9:
        raise ConfigError(f"{option} {text}: a number above 0")
    return value


def _check_words(words: Sequence[str], known: Sequence[str], option: str) -> None:
    for word in words:
        if word not in known:
            raise ConfigError(f"{option} {word}: not known; known are {', '.join(known)}")


def _refuse(option: str, value: object, kind: str) -> None:
    if value not in (None, []):
        raise ConfigError(f"--{option} does not belong to vmm bench {kind}")
