"""Write the manual pages, made from the parsers of all commands, into a directory: vmm.1, vmm-boot.1 and so on.

The build of the package calls this, and `scripts/build-docs`. The parsers are those of the source tree that this file
lies in, and nothing that is compiled is needed.

usage: man_pages.py VERSION DIRECTORY
"""

import argparse
import re
import sys
from pathlib import Path

from argparse_manpage.manpage import Manpage

Section = dict[str, str]


def man_pages(version: str) -> dict[str, str]:
    """Return the pages by file name, in man(7)'s language."""
    from vmm.cli import COMMANDS, module_of

    pages = {"vmm.1": overview(version)}
    for command, summary in COMMANDS.items():
        parser = module_of(command).parser()
        parser.prog = f"vmm-{command}"
        more, parser.epilog = sections(parser.epilog or ""), None
        pages[f"vmm-{command}.1"] = _page(parser, summary, version, more)
    return pages


def overview(version: str) -> str:
    """Return vmm(1), which leads to the others."""
    from vmm.cli import COMMANDS, EXIT_STATUSES

    about = "Boots real firmware on /dev/kvm, and gives it QEMU's fw_cfg or bhyve's fwctl."
    parser = argparse.ArgumentParser("vmm", usage="vmm COMMAND [ARGUMENT ...]", description=about, add_help=False)
    listed = "".join(
        f".TP\n\\fBvmm\\-{_escaped(command)}\\fR(1)\n{_escaped(summary)}\n" for command, summary in COMMANDS.items()
    )
    commands = {"heading": "commands", "content": listed}
    return _page(parser, "a virtual machine monitor for firmware", version, [commands, *sections(EXIT_STATUSES)])


def _page(parser: argparse.ArgumentParser, summary: str, version: str, more: list[Section]) -> str:
    # Where argparse-manpage looks for more sections; an epilog, laid out by hand, it would fill.
    parser._manpage = more  # type: ignore[attr-defined]  # noqa: SLF001
    page = Manpage(parser, {"project_name": "vmm", "version": version}, format="single-commands-section")
    page.description = summary
    page.manual = "vmm"
    return str(page)


def sections(epilog: str) -> list[Section]:
    """Split an epilog into sections, each begun by a line that ends with a colon; what comes before are notes."""
    notes, *parts = re.split(r"^(\S.*):\n", epilog, flags=re.MULTILINE)
    found = [("notes", notes), *zip(parts[::2], parts[1::2], strict=True)]
    return [
        {"heading": heading, "content": f".nf\n{_escaped(text)}\n.fi"} for heading, text in found if text.strip("\n")
    ]


def _escaped(text: str) -> str:
    return re.sub(r"^(?=[.'])", r"\\&", text.strip("\n").replace("\\", r"\e").replace("-", r"\-"), flags=re.MULTILINE)


def main(version: str, directory: str) -> None:
    """Write the pages."""
    # Not by PYTHONPATH, in which pip hands over what the build requires.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    for name, page in man_pages(version).items():
        Path(directory, name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
