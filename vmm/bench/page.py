"""A result as one self-contained HTML page: pictures inline, no scripts, nothing fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmm.bench import plots
from vmm.bench.table import number, value_words
from vmm.errors import HostError

TEMPLATE = Path(__file__).with_name("page.html.j2")

TITLES = {"pio": "What port I/O costs", "dma": "What fw_cfg's DMA costs", "boot": "What a boot costs"}


def render(result: dict[str, Any]) -> str:
    """Return the page for the object that ``--json`` writes.

    Raises:
        HostError: matplotlib or jinja2 is not installed.
    """
    try:
        import jinja2  # noqa: PLC0415  # of the extra [report]
        import matplotlib as mpl  # noqa: F401, PLC0415
    except ImportError as error:
        raise HostError(f"the page needs {error.name}: pip install 'vmm[report]'") from None
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": number, "value": value_words}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=TITLES[result["kind"]], r=result, pictures=plots.pictures(result))
