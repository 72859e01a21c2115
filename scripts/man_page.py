"""Write vmm-boot(1), made from the parser of ``vmm boot``: to the path given, or to stdout.

The build of the package calls this, and `scripts/build-docs`. The parser is that of the source tree that this file lies
in, and nothing that is compiled is needed.

usage: man_page.py VERSION [PATH]
"""

import re
import sys
from pathlib import Path

from argparse_manpage.manpage import Manpage

NAME = "vmm-boot"
SUMMARY = "boot firmware on KVM and report what it did"


def man_page(version: str) -> str:
    """Return the page in man(7)'s language."""
    from vmm.cli import boot

    parser = boot.parser()
    parser.prog = NAME
    # Where argparse-manpage looks for more sections; the epilog, laid out by hand, it would fill.
    parser._manpage = sections(parser.epilog or "")  # type: ignore[attr-defined]  # noqa: SLF001
    parser.epilog = None
    page = Manpage(parser, {"project_name": "vmm", "version": version}, format="single-commands-section")
    page.description = SUMMARY
    page.manual = "vmm"
    return str(page)


def sections(epilog: str) -> list[dict[str, str]]:
    """Split an epilog into sections, each begun by a line that ends with a colon."""
    _, *parts = re.split(r"^(\S.*):\n", epilog, flags=re.MULTILINE)
    return [
        {"heading": heading, "content": f".nf\n{_escaped(text)}\n.fi"}
        for heading, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def _escaped(text: str) -> str:
    return re.sub(r"^(?=[.'])", r"\\&", text.strip("\n").replace("\\", r"\e").replace("-", r"\-"), flags=re.MULTILINE)


def main(version: str, path: str | None = None) -> None:
    """Write the page."""
    # Not by PYTHONPATH, in which pip hands over what the build requires.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    if path is None:
        sys.stdout.write(man_page(version))
    else:
        Path(path).write_text(man_page(version), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
