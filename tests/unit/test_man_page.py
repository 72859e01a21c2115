"""vmm-boot(1), made from the parser."""

import re

import man_page

from vmm.cli import boot


def test_every_option_is_there() -> None:
    shown = man_page.man_page("1.2").replace(r"\-", "-")
    for action in boot.parser()._actions:
        if action.dest != "help":
            for option in action.option_strings:
                assert f"\\fB{option}\\fR" in shown, option


def test_it_has_the_usual_sections_and_names_itself() -> None:
    page = man_page.man_page("1.2")
    assert re.match(r'\.TH VMM\\-BOOT "1" "[^"]+" "vmm 1\.2" "vmm"\n', page)
    assert ".SH NAME\nvmm\\-boot \\- boot firmware" in page
    headings = re.findall(r"^\.SH (.*)", page, re.MULTILINE)
    assert headings[:3] == ["NAME", "SYNOPSIS", "DESCRIPTION"]
    assert headings[-3:] == ["SCRIPT", "EXAMPLES", "EXIT STATUS"]
    assert ".SH COMMENTS" not in page


def test_what_is_laid_out_by_hand_stays_so_whatever_its_lines_begin_with() -> None:
    (section,) = man_page.sections("\nexamples:\n  a \\n-b\n.c\n'd\n")
    assert section == {"heading": "examples", "content": ".nf\n  a \\en\\-b\n\\&.c\n\\&'d\n.fi"}
