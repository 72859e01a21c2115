"""A result as one self-contained HTML page: pictures inline, no scripts, nothing fetched."""

from __future__ import annotations

from typing import Any

from vmm.bench import plots
from vmm.bench.table import number, value_words
from vmm.report import html

TITLES = {"pio": "What port I/O costs", "dma": "What fw_cfg's DMA costs", "boot": "What a boot costs"}


def render(result: dict[str, Any]) -> str:
    """Return the page for the object that ``--json`` writes.

    Raises:
        HostError: matplotlib or jinja2 is not installed.
    """
    html.require("matplotlib")
    filters = {"duration": number, "value": value_words}
    return html.render(
        "bench/page.html.j2", filters, title=TITLES[result["kind"]], r=result, pictures=plots.pictures(result)
    )
