"""A result as tables on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm import installation
from vmm.bench.result import TOO_FEW_ROUNDS
from vmm.errors import HostError

if TYPE_CHECKING:
    from rich.table import Table

    from vmm.bench.result import CaseResult, Result, Scale
    from vmm.statistics import Ratio

PIPE_WIDTH = 132
"""Columns where stdout is no terminal."""

SHOWN_TIMES = 8


def show(result: Result) -> None:
    """Print a result.

    Raises:
        HostError: rich is not installed.
    """
    try:
        from rich.console import Console  # of the extra [report]
    except ImportError:
        raise HostError(f"the table needs rich: {installation.extra_remedy('report')}; or take --json -") from None
    console = Console(width=None) if Console().is_terminal else Console(width=PIPE_WIDTH)
    console.print(host_line(result), highlight=False)
    if result.cases:
        console.print(_case_table(result))
    if any(case.pairs for case in result.cases):
        console.print(_ratio_table(result))
    for scale in result.scales:
        console.print(_scale_table(scale, result.contenders))
    if result.targets and result.cases:
        console.print(_target_table(result))
    if result.vmm_times:
        console.print(_times_table(result))
    for name, why in result.failed.items():
        console.print(f"left out: {name}: {why}", highlight=False, markup=False)
    for warning in result.noise.warnings() if result.noise else ():
        console.print(f"[bold yellow]too noisy:[/] {warning}", highlight=False)
    if result.has_too_few_rounds:
        console.print(f"[bold yellow]note:[/] {TOO_FEW_ROUNDS}", highlight=False)


def host_line(result: Result) -> str:
    """Return what this was measured on, in a line."""
    host = result.host
    governor = f", governor {host['governor']}" if host["governor"] else ""
    return (
        f"{host['cpus']} x {host['cpu']}, Linux {host['kernel']}, KVM {host['kvm']}{governor}, "
        f"load {host['load_average'][0]:.2f}; {result.rounds} rounds in {result.elapsed_s:.0f} s, seed {result.seed}"
    )


def number(value: float, unit: str) -> str:
    """Return a value for people: 812 ns, 8.52 µs, 1.32 s."""
    steps = {"ns": ("ns", "µs", "ms", "s"), "ms": ("ms", "s")}[unit]
    index = 0
    while value >= 1000 and index < len(steps) - 1:
        value /= 1000
        index += 1
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {steps[index]}"


def ratio_words(ratio: Ratio) -> str:
    """Return 1.01 (1.00 to 1.02), and "tie" where that contains 1."""
    words = f"{ratio.median:.3g} ({ratio.low:.3g} to {ratio.high:.3g})"
    return f"{words} tie" if ratio.verdict == "tie" else words


def _new_table(title: str, first: str, *columns: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", header_style="bold")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _case_table(result: Result) -> Table:
    table = _new_table("single values", "", "contender", "median", "p90", "p99", "max", "quartiles apart", "throughput")
    for case in result.cases:
        for row, (key, measured) in enumerate(case.measured.items()):
            found = measured.summary
            table.add_row(
                case.title if row == 0 else "",
                result.contenders[key],
                *(number(value, case.unit) for value in (found.median, found.p90, found.p99, found.maximum)),
                f"{found.spread:.1%}",
                _throughput(case, found.median),
            )
        table.add_section()
    return table


def _throughput(case: CaseResult, median_ns: float) -> str:
    if not case.bytes_moved or not median_ns:
        return ""
    kib = case.bytes_moved / median_ns * 1e9 / 1024
    return f"{kib:,.0f} KiB/s" if kib < 10 * 1024 else f"{kib / 1024:,.0f} MiB/s"


def _ratio_table(result: Result) -> Table:
    pairs = list(dict.fromkeys((pair.of, pair.to) for case in result.cases for pair in case.pairs))
    headings = [f"{result.contenders[of]} / {result.contenders[to]}" for of, to in pairs]
    table = _new_table("ratios of the same rounds, 95 % interval", "", *headings)
    for case in result.cases:
        if case.pairs:
            ratios = [case.pair(of, to) for of, to in pairs]
            table.add_row(case.title, *("" if ratio is None else ratio_words(ratio) for ratio in ratios))
    return table


def _target_table(result: Result) -> Table:
    table = _new_table("what vmm is held to", "", "at most", "is", "")
    for target in result.targets:
        ratio, verdict = result.judge(target)
        table.add_row(target.text, f"{target.limit:.3g}", "" if ratio is None else ratio_words(ratio), verdict)
    return table


def _scale_table(scale: Scale, names: dict[str, str]) -> Table:
    table = _new_table(f"{scale.title}: whole process, median", scale.x_unit, *(names[key] for key in scale.points))
    values = sorted({x for points in scale.points.values() for x, _ in points})
    for value in values:
        cells = (dict(points).get(value) for points in scale.points.values())
        table.add_row(value_words(value, scale.x_unit), *("" if cell is None else number(cell, "ms") for cell in cells))
    table.add_section()
    table.add_row("grows as", *(growth_words(scale, key) or scale.no_growth for key in scale.points))
    return table


def growth_words(scale: Scale, key: str) -> str:
    """Return n^0.97, or "flat"."""
    growth = scale.growth.get(key)
    if growth is None:
        return ""
    return f"n^{growth.exponent:.2f} + {number(growth.base, 'ms')}" if growth.factor else "flat"


def value_words(value: float, unit: str) -> str:
    """Return 64 MiB or 1000."""
    if unit != "bytes":
        return f"{value:,.0f}"
    step, name = next(pair for pair in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1, "B")) if value >= pair[0])
    return f"{value / step:g} {name}"


def _times_table(result: Result) -> Table:
    title = "inside vmm, by its own histograms (another run, timing on)"
    table = _new_table(title, "", "count", "median", "p99", "max")
    for row in result.vmm_times[:SHOWN_TIMES]:
        times = (number(row[key], "ns") for key in ("p50_ns", "p99_ns", "max_ns"))
        table.add_row(row["name"], f"{row['count']:,}", *times)
    return table
