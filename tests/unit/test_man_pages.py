"""vmm(1) and a manual page for each command, made from the parsers."""

import re

import man_pages
import pytest

from vmm.cli import COMMANDS, module_of

PAGES = man_pages.man_pages("1.2")


def test_each_command_has_a_page() -> None:
    assert set(PAGES) == {"vmm.1", *(f"vmm-{command}.1" for command in COMMANDS)}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_there(command: str) -> None:
    shown = PAGES[f"vmm-{command}.1"].replace(r"\-", "-")
    for action in module_of(command).parser()._actions:
        if action.dest != "help":
            for option in action.option_strings:
                assert f"\\fB{option}\\fR" in shown, option


@pytest.mark.parametrize("command", COMMANDS)
def test_it_has_the_usual_sections_and_names_itself(command: str) -> None:
    page = PAGES[f"vmm-{command}.1"]
    name = f"vmm-{command}".replace("-", r"\-")
    assert page.startswith(f'.TH {name.upper()} "1" ')
    assert page.split("\n", 1)[0].endswith(' "vmm 1.2" "vmm"')
    assert f".SH NAME\n{name} \\- {COMMANDS[command].replace('-', chr(92) + '-')}\n" in page
    headings = re.findall(r"^\.SH (.*)", page, re.MULTILINE)
    assert headings[:3] == ["NAME", "SYNOPSIS", "DESCRIPTION"]
    assert ".SH COMMENTS" not in page


def test_what_stands_behind_the_options_is_there() -> None:
    for command, expected in (("boot", ["SCRIPT", "EXAMPLES", "EXIT STATUS"]), ("bench", ["NOTES", "EXAMPLES"])):
        headings = re.findall(r"^\.SH (.*)", PAGES[f"vmm-{command}.1"], re.MULTILINE)
        assert headings[-len(expected) :] == expected


def test_the_overview_leads_to_each_page() -> None:
    shown = PAGES["vmm.1"].replace(r"\-", "-")
    for command, summary in COMMANDS.items():
        assert f"\\fBvmm-{command}\\fR(1)\n{summary}\n" in shown


def test_what_is_laid_out_by_hand_stays_so_whatever_its_lines_begin_with() -> None:
    (section,) = man_pages.sections("\nexamples:\n  a \\n-b\n.c\n'd\n")
    assert section == {"heading": "examples", "content": ".nf\n  a \\en\\-b\n\\&.c\n\\&'d\n.fi"}
