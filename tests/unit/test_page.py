"""What all pages share: what goes in is escaped and legible, and missing packages are named."""

import re
import sys
from pathlib import Path

import pytest

from vmm import installation
from vmm.errors import ExitStatus, HostError
from vmm.report import html as pages
from vmm.verify import show
from vmm.verify.result import Subject, Verification
from vmm.verify.values import Verdict


def verification(name: str) -> Verification:
    subject = Subject("ACPI tables")
    subject.add(name, "offered", "found", Verdict.ALTERED, reason="because")
    return Verification("ovmf", "q35", 1.0, (subject,))


def test_what_a_guest_says_is_no_markup() -> None:
    html = show.as_html(verification("<script>alert('&')</script>"))
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;" in html


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("bell \x07", r"bell \x07"),
        ("left \u202e right", r"left \u202e right"),
        ("byte \udcff", r"byte \udcff"),  # a path that is no UTF-8
        ("\x00\x1b[31m", r"\x00\x1b[31m"),
        ("tab\there", r"tab\there"),
        ("Ünïcode €", "Ünïcode €"),
    ],
)
def test_what_does_not_print_is_shown_as_its_escape(tmp_path: Path, text: str, shown: str) -> None:
    html = show.as_html(verification(text))
    assert f">{shown}</td>" in html
    (tmp_path / "page.html").write_text(html, encoding="utf-8")


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_the_hosts_lack(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    pages.require("matplotlib")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        HostError, match=re.escape(f"--html needs {package}: {installation.extra_remedy('report')}")
    ) as raised:
        pages.require("matplotlib")
    assert raised.value.exit_status is ExitStatus.HOST_LACKS


@pytest.mark.parametrize("words", [["verify", "seabios"], ["bench", "pio"]])
def test_it_is_missed_before_a_guest_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str]
) -> None:
    from vmm.cli import main
    from vmm.kvm import Kvm

    def opened(*_: object) -> None:
        pytest.fail("/dev/kvm was opened")

    monkeypatch.setattr(Kvm, "__init__", opened)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main([*words, "--html", str(tmp_path / "page.html")]) == ExitStatus.HOST_LACKS
    assert capsys.readouterr().err == f"vmm: --html needs jinja2: {installation.extra_remedy('report')}\n"
