"""A result as one self-contained HTML page: pictures inline, no scripts, nothing fetched."""

from __future__ import annotations

from typing import Any

from vmm.bench import plots
from vmm.bench.table import number, value_words
from vmm.report import html

_NAMES = plots.COLOURS | {"ink": plots.INK, "line": plots.GRID, "muted": plots.TIE, "bad": plots.LIMIT}
"""Colours of pictures, by the style sheet's names."""

TITLES = {
    "pio": "What port I/O costs",
    "dma": "What fw_cfg's DMA costs",
    "exits": "What exits cost",
    "boot": "What a boot costs",
    "disk": "What reading a disk takes",
    "snapshot": "What snapshots cost",
}


def render(result: dict[str, Any]) -> str:
    """Return the page for the object that ``--json`` writes.

    Raises:
        HostError: matplotlib or jinja2 is not installed.
    """
    html.require("matplotlib")
    filters = {"duration": number, "value": value_words}
    return html.render(
        "bench/page.html.j2",
        filters,
        command=f"bench {result['kind']}",
        origin=result.get("origin"),
        title=TITLES[result["kind"]],
        r=result,
        pictures={name: svg and _themed(svg) for name, svg in plots.pictures(result).items()},
    )


def _themed(svg: str) -> str:
    """Let the page's style sheet choose a picture's colours, by names that it has for light and for dark."""
    for name, colour in _NAMES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg
