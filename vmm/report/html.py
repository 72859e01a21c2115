"""What the pages of boot, verify and bench have in common: one HTML file, no scripts, nothing fetched.

A page is a Jinja template beside the module that fills it in. It extends ``report/base.html.j2``, which says where the
page comes from and has the one style sheet, ``report/style.css``: light or dark as the reader's system is, and legible
from 500 pixels on. ``report/parts.html.j2`` has what several pages use.
jinja2 is in the extra [report] and is loaded only to make a page.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm import installation
from vmm.errors import HostError
from vmm.legible import legible

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_PACKAGE = Path(__file__).parents[1]


def require(*packages: str) -> None:
    """Find out that a page can be made before time is spent on what it shall show.

    Args:
        packages: what it needs beside jinja2.

    Raises:
        HostError: one is not installed, or does not load.
    """
    for package in ("jinja2", *packages):
        try:
            import_module(package)
        except ImportError as error:
            raise HostError(f"--html needs {error.name or package}: {installation.extra_remedy('report')}") from None


def render(template: str, filters: Mapping[str, Callable[..., object]] | None = None, /, **values: Any) -> str:
    """Return the page that a template makes of values, all of which are escaped.

    Args:
        template: its path inside the package.
        filters: more filters that it uses.
        values: what it knows by name.

    Raises:
        HostError: see `require`.
    """
    require()
    import jinja2  # of the extra [report]

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PACKAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_legible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters or {}
    return environment.get_template(template).render(values)


def _legible(value: Any) -> Any:
    return legible(value, keep="\n\t") if isinstance(value, str) and not hasattr(value, "__html__") else value
