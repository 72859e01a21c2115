"""A result's pictures, as SVG elements to be put into a page.

All take the object that ``--json`` writes, so that a page can be made again from a file.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from vmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Json = dict[str, Any]

COLOURS = {
    "vmm": "#1b5fc1",
    "vmm-python": "#8e6bd1",
    "vmm-warm": "#5b9bd5",
    "bare-loop": "#333333",
    "qemu-kvm": "#e07b27",
    "qemu-tcg": "#3b9a58",
    "interpreter": "#c9c9c9",
    "site": "#a6a6a6",
    "library": "#838383",
    "modules": "#5f5f5f",
    "kvm": "#c2426b",
}
"""Of contenders, in every picture."""

INK, GRID, TIE, LIMIT = "#1a1a1a", "#e4e4e4", "#999999", "#b00020"
"""Of text and axes, of the lines behind, of what is a tie, and of the line that parts better from worse."""

ORDER = tuple(COLOURS)
WIDTH = 10.0
"""Inches; the page scales it."""

LEGEND_COLUMNS = 4
"""As many names as there is room for in a row."""

INCH_PER_ROW = 0.32
TAIL = 0.95
"""Part of the slowest contender's values at which a distribution's axis ends; the table has the rest."""

FEW = 200
"""Up to so many values are drawn one by one, and all of them."""

UNIT_STEPS = {"ns": ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns")), "ms": ((1e3, "s"), (1, "ms"))}


_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 9,
    "savefig.transparent": True,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def pictures(result: Json) -> dict[str, str | None]:
    """Draw all of them; None where the result has nothing to draw."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        return {
            "ratios": ratios(result),
            "distributions": distributions(result),
            "sizes": sizes(result),
            "timeline": timeline(result),
            "growth": growth(result),
        }


def headline(result: Json) -> str:
    """Draw one picture for a document, as an SVG file: single accesses, and the first test of many sizes.

    Raises:
        ConfigError: the result lacks one of them.
    """
    import matplotlib as mpl

    single = next((case for case in result["cases"] if not case["bytes"] and case["measured"]), None)
    tests: dict[str, list[Json]] = {}
    for case in result["cases"]:
        if case["bytes"] and case["measured"]:
            tests.setdefault(case["key"].partition("/")[0], []).append(case)
    swept = next((cases for cases in tests.values() if len(cases) > 1), None)
    if single is None or swept is None:
        raise ConfigError("--svg needs a single access and a test of many sizes, as vmm bench pio has")
    with mpl.rc_context(_STYLE | {"savefig.transparent": False}):
        figure, axes = _figure(WIDTH, 3.4, 1, 2)
        _draw_distribution(axes[0], single, result["contenders"])
        _draw_sizes(axes[1], swept, result["contenders"])
        axes[0].legend(frameon=False, fontsize=8, loc="lower right")
        return _svg(figure, "headline") + "\n"


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    # The object interface: no pyplot, no global state, no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [axis for row in axes for axis in row]


def _svg(figure: Figure, name: str) -> str:
    import matplotlib as mpl

    output = io.StringIO()
    # Ids must differ between the pictures of a page, and be the same from run to run.
    mpl.rcParams["svg.hashsalt"] = name
    figure.savefig(output, format="svg", metadata={"Date": None, "Creator": None})
    text = output.getvalue()
    return text[text.index("<svg") :]


def _tidy(axis: Axes) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.grid(visible=True, color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)


def _contenders(case: Json) -> list[str]:
    return sorted(case["measured"], key=lambda key: ORDER.index(key) if key in ORDER else len(ORDER))


def _scaled(value: float, unit: str) -> tuple[float, str]:
    """Return the divisor and the name of the unit that suits a value."""
    return next((step for step in UNIT_STEPS[unit] if value >= step[0]), UNIT_STEPS[unit][-1])


def distributions(result: Json) -> str | None:
    """Draw each case's distributions: the part of values that were no longer than x, a curve a contender."""
    cases = [case for case in result["cases"] if case["measured"] and not _is_swept(result, case)]
    if not cases:
        return None
    columns = 2
    rows = -(-len(cases) // columns)
    figure, axes = _figure(WIDTH, 2.3 * rows + 0.5, rows, columns)
    for axis, case in zip(axes, cases, strict=False):
        _draw_distribution(axis, case, result["contenders"])
    for axis in axes[len(cases) :]:
        axis.set_visible(False)
    seen: dict[str, Any] = {}
    for axis in axes[: len(cases)]:
        seen |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    columns = min(len(seen), LEGEND_COLUMNS)
    figure.legend(seen.values(), seen.keys(), loc="outside upper center", ncols=columns, frameon=False)
    return _svg(figure, "distributions")


def _draw_distribution(axis: Axes, case: Json, names: dict[str, str]) -> None:
    contenders = _contenders(case)
    samples = [case["measured"][key]["samples"] for key in contenders]
    few = max(map(len, samples)) <= FEW
    high = max(values[-1 if few else int(TAIL * (len(values) - 1))] for values in samples)
    # An interrupt in the empty loop may make a repetition free.
    low = max(min(values[len(values) // 100] for values in samples), high / 1000, 1e-6)
    divisor, unit = _scaled(low, case["unit"])
    for key in contenders:
        values = [value / divisor for value in case["measured"][key]["samples"]]
        parts = [(number + 1) / len(values) * 100 for number in range(len(values))]
        marker = "." if few else None
        axis.step(values, parts, where="post", color=COLOURS.get(key), label=names[key], linewidth=1.4, marker=marker)
    left, right = low / divisor * 0.97, max(high / divisor * 1.03, low / divisor * 1.1)
    if right / left > 8:
        axis.set_xscale("log")
    axis.set_xlim(left, right)
    axis.set_ylim(0, 101)
    axis.set_title(case["title"], fontsize=10, loc="left")
    axis.set_xlabel(unit)
    axis.set_ylabel("% of values")
    _plain_ticks(axis, left, right)
    _tidy(axis)


def _plain_ticks(axis: Axes, left: float, right: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if axis.get_xscale() == "log":
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if right / left < 200 else (1.0,)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _is_swept(result: Json, case: Json) -> bool:
    """Is this one of many sizes, which `sizes` draws? Only the largest size is drawn as a distribution too."""
    test, slash, _ = case["key"].partition("/")
    return bool(slash) and case["bytes"] != max(
        other["bytes"] for other in result["cases"] if other["key"].startswith(f"{test}/")
    )


def sizes(result: Json) -> str | None:
    """Draw throughput over the size of a transfer: medians, with the middle four fifths of the rounds shaded."""
    tests: dict[str, list[Json]] = {}
    for case in result["cases"]:
        if "/" in case["key"] and case["measured"]:
            tests.setdefault(case["key"].split("/")[0], []).append(case)
    tests = {test: cases for test, cases in tests.items() if len(cases) > 1}
    if not tests:
        return None
    figure, axes = _figure(WIDTH, 3.6, 1, len(tests))
    for axis, cases in zip(axes, tests.values(), strict=True):
        _draw_sizes(axis, cases, result["contenders"])
    axes[0].legend(frameon=False, fontsize=8)
    return _svg(figure, "sizes")


def _draw_sizes(axis: Axes, cases: Sequence[Json], names: dict[str, str]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    from vmm.bench.latency import size_words

    for key in dict.fromkeys(key for case in cases for key in _contenders(case)):
        mine = [case for case in cases if key in case["measured"]]
        xs = [case["bytes"] for case in mine]
        rounds = [sorted(case["measured"][key]["rounds"]) for case in mine]
        middle = [_speed(case, case["measured"][key]["summary"]["median"]) for case in mine]
        slow = [_speed(case, times[(len(times) * 9) // 10 - 1]) for case, times in zip(mine, rounds, strict=True)]
        fast = [_speed(case, times[len(times) // 10]) for case, times in zip(mine, rounds, strict=True)]
        axis.fill_between(xs, slow, fast, color=COLOURS.get(key), alpha=0.15, linewidth=0)
        axis.plot(xs, middle, color=COLOURS.get(key), label=names[key], marker="o", markersize=3, linewidth=1.4)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    ticks = [case["bytes"] for case in cases][:: 2 if len(cases) > 6 else 1]
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size_words(int(value))))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axis.get_ylim()
    if high / low > 20:
        axis.yaxis.set_minor_formatter(NullFormatter())
    else:
        axis.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.tick_params(axis="y", which="minor", labelsize=8)
    axis.set_ylabel("MiB/s")
    axis.set_title(cases[0]["title"].rsplit(",", 1)[0], fontsize=10, loc="left")
    _tidy(axis)


def _speed(case: Json, nanoseconds: float) -> float:
    return float(case["bytes"] / max(nanoseconds, 1e-3) * 1e9 / (1 << 20))


def ratios(result: Json) -> str | None:
    """Draw every paired ratio with its interval; what crosses the line at 1 is a tie."""
    pairs = list(dict.fromkeys((r["of"], r["to"]) for case in result["cases"] for r in case["ratios"]))
    cases = [case for case in result["cases"] if case["ratios"]]
    if not cases:
        return None
    figure, axes = _figure(WIDTH, INCH_PER_ROW * len(cases) * 0.9 + 1.2, 1, len(pairs))
    for column, (axis, (of, to)) in enumerate(zip(axes, pairs, strict=True)):
        _draw_ratios(axis, cases, of, to)
        axis.set_title(f"{result['contenders'][of]} /\n{result['contenders'][to]}", fontsize=9, loc="left")
        axis.set_yticks(range(len(cases)), [case["title"] if column == 0 else "" for case in cases])
        axis.set_ylim(len(cases) - 0.4, -0.6)
    return _svg(figure, "ratios")


def _draw_ratios(axis: Axes, cases: Sequence[Json], of: str, to: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    found = [
        (row, ratio["ratio"], ratio["verdict"])
        for row, case in enumerate(cases)
        for ratio in case["ratios"]
        if (ratio["of"], ratio["to"]) == (of, to)
    ]
    for row, ratio, verdict in found:
        colour = TIE if verdict in {"tie", "too few rounds"} else COLOURS.get(of)
        axis.plot([ratio["low"], ratio["high"]], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
        axis.plot(ratio["median"], row, "o", color=colour, markersize=4.5)
    axis.axvline(1, color=LIMIT, linewidth=0.9)
    axis.set_xscale("log")
    # A round in which the empty loop was disturbed may make something free: that has no place on a logarithmic axis.
    ends = [end for _, ratio, _ in found for end in (ratio["low"], ratio["high"]) if end > 0]
    low, high = min([*ends, 0.95]) * 0.97, max([*ends, 1.05]) * 1.03
    axis.set_xlim(low, high)
    if high / low < 2:
        from matplotlib.ticker import MaxNLocator

        axis.xaxis.set_major_locator(MaxNLocator(4))
    else:
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 50 else (1.0,)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _tidy(axis)


def timeline(result: Json) -> str | None:
    """Draw what happened when in a typical boot: a line a contender, a mark an event."""
    lines = {name: events for name, events in result["timelines"].items() if events}
    if not lines:
        return None
    ordered = sorted(lines, key=lambda name: (name.split()[0], ORDER.index(name.split()[1])))
    figure, (axis,) = _figure(WIDTH, 0.62 * len(lines) + 0.9)
    end = max(events[-1][0] for events in lines.values())
    for row, name in enumerate(ordered):
        colour = COLOURS.get(name.split()[1])
        events = lines[name]
        axis.plot([0, events[-1][0]], [row, row], color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt")
        for number, (seconds, what) in enumerate(events):
            axis.plot(seconds, row, "|", color=colour, markersize=14, markeredgewidth=1.6)
            if number == 0 or seconds - events[number - 1][0] > end / 9:
                axis.text(seconds, row - 0.27, what, fontsize=7.5, ha="left" if seconds < end * 0.8 else "right")
        axis.text(events[-1][0] + end / 150, row, f"{events[-1][0]:.2f} s", fontsize=8, va="center")
    axis.set_yticks(range(len(ordered)), [f"{n.split()[0]}, {result['contenders'][n.split()[1]]}" for n in ordered])
    axis.set_ylim(len(ordered) - 0.4, -0.7)
    axis.set_xlim(0, end * 1.08)
    axis.set_xlabel("seconds since the process was started")
    _tidy(axis)
    return _svg(figure, "timeline")


def growth(result: Json) -> str | None:
    """Draw how cost grows: medians with quartiles, and the fitted curve."""
    scales = [scale for scale in result["scales"] if scale["points"]]
    if not scales:
        return None
    columns = min(2, len(scales))
    rows = -(-len(scales) // columns)
    figure, axes = _figure(WIDTH, 3.2 * rows, rows, columns)
    for axis, scale in zip(axes, scales, strict=False):
        _draw_growth(axis, scale, result["contenders"])
    for axis in axes[len(scales) :]:
        axis.set_visible(False)
    return _svg(figure, "growth")


def _draw_growth(axis: Axes, scale: Json, names: dict[str, str]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    from vmm.bench.table import value_words

    for key, points in scale["points"].items():
        xs, ys = [x for x, _ in points], [y for _, y in points]
        below = [max(0.0, y - low) for y, (low, _) in zip(ys, scale["spreads"][key], strict=True)]
        above = [max(0.0, high - y) for y, (_, high) in zip(ys, scale["spreads"][key], strict=True)]
        colour = COLOURS.get(key)
        fitted = scale["growth"].get(key)
        label = names.get(key, key)
        if fitted is not None:
            label += f": {fitted['base']:.0f} ms + c·n^{fitted['exponent']:.2f}" if fitted["factor"] else ": flat"
            curve = [fitted["base"] + fitted["factor"] * x ** fitted["exponent"] for x in xs]
            axis.plot(xs, curve, color=colour, linewidth=1, linestyle="--")
        axis.errorbar(xs, ys, [below, above], fmt="o", color=colour, markersize=4, capsize=2, label=label)
    values = sorted({x for points in scale["points"].values() for x, _ in points})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_locator(FixedLocator(values))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: value_words(value, scale["x_unit"])))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.tick_params(axis="y", which="minor", labelsize=8)
    axis.set_ylabel("ms, whole process")
    axis.set_title(scale["title"], fontsize=10, loc="left")
    axis.legend(frameon=False, fontsize=8)
    _tidy(axis)
