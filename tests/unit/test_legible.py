"""Text of others on a terminal of ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.cli import say
from vmm.legible import legible, shortened


@given(st.text(st.characters(exclude_categories=())))
def test_whatever_it_is_it_prints(text: str) -> None:
    shown = legible(text, keep="\n")
    assert shown.replace("\n", "").isprintable()
    shown.encode("utf-8")
    assert legible(shown, keep="\n") == shown
    assert text == shown or not text.isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, ä, 漢", "plain text, ä, 漢"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\u202eb", r"a\u202eb"),
        ("\udcff", r"\udcff"),
        ("one\ntwo", r"one\ntwo"),
    ],
)
def test_escapes(text: str, shown: str) -> None:
    assert legible(text) == shown


def test_what_the_command_line_says_is_legible(capsys: pytest.CaptureFixture[str]) -> None:
    say("vmm: two\nlines \x1b[2J\udcff")
    assert capsys.readouterr().err == "vmm: two\nlines \\x1b[2J\\udcff\n"


@pytest.mark.parametrize(("length", "shown"), [(80, "x" * 80), (81, "x" * 79 + "…"), (1 << 20, "x" * 79 + "…")])
def test_a_line_of_others_has_a_most(length: int, shown: str) -> None:
    assert shortened("x" * length) == shown
