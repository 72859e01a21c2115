"""The pages of real runs in a real browser: light and dark, wide and narrow, legible to everybody."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import axe
import pytest
from browser import Tab, browser

from vmm.firmware import guests

pytestmark = pytest.mark.needs_kvm

CONSOLES = ("-serial", "none", "-debugcon", "none")
DROPPED = ("-e820", "base=0xfd100000,size=64K,type=nvs")

RUNS = {
    "boot": ((
        "boot", "seabios", "-smp", "2", "--exit-times", "--until", "No bootable device", "--timeout", "100", *CONSOLES
    ), 0),
    "fwctl": (("boot", str(guests.path("conformance-fwctl")), "-machine", "fwcfg=bhyve", *CONSOLES), 0),
    "failed": (("boot", str(guests.path("triple-fault")), *CONSOLES), 1),
    "verify": (("verify", "seabios", *DROPPED), 1),
    "sweep": (("sweep", "--firmware", "seabios", "-smp", "1,0", "--e820", "0,64", "--results", "RESULTS"), 1),
    "bench": (("bench", "pio", "--rounds", "2", "--contender", "vmm", "--contender", "bare-loop"), 0),
    "growth": (("bench", "boot", "--rounds", "1", "--cpus", "1,2,3", "--contender", "vmm"), 0),
}  # fmt: skip
"""Command lines and their exit statuses, by page."""

NARROW, WIDE = 500, 1200

LEAST_TEXT = 8.5
"""Pixels, of the smallest text."""

CONTRAST = 4.5
"""WCAG 2.1, 1.4.3."""

TEXTS = """
(() => {
  const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(part => linear(part / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const page = luminance(getComputedStyle(document.body).backgroundColor);
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!own || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const drawn = element instanceof SVGTextContentElement;
    const ink = drawn ? luminance(style.fill) : null;
    found.push({
      words: element.textContent.trim().slice(0, 40),
      pixels: parseFloat(style.fontSize) * (drawn ? Math.hypot(element.getScreenCTM().a, element.getScreenCTM().b) : 1),
      contrast: drawn ? (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05) : null,
    });
  }
  return found;
})()
"""
"""All texts that show: their size on the screen and, in pictures, where axe does not look, their contrast."""

VIOLATIONS = """
axe.run(document, {resultTypes: ['violations']}).then(found => found.violations.flatMap(
  rule => rule.nodes.map(node => `${rule.id}: ${node.target}: ${node.failureSummary}`)))
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture(scope="module", params=RUNS)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    words, status = RUNS[request.param]
    if words[0] == "bench":
        request.getfixturevalue("kvm_device")
    path = tmp_path_factory.mktemp("page") / f"{request.param}.html"
    words = tuple(str(path.with_suffix(".jsonl")) if word == "RESULTS" else word for word in words)
    command = [sys.executable, "-m", "vmm", *words, "--html", str(path), "-q"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert run.returncode == status, run.stderr
    return path


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_legible_and_fetches_nothing(tab: Tab, page: Path, scheme: str, width: int) -> None:
    tab.show(page, width=width, scheme=scheme)
    assert tab.requested == [page.as_uri()]
    assert tab.complaints == []
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == {
        "light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)",
    }[scheme]  # fmt: skip
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    texts = tab.evaluate(TEXTS)
    assert len(texts) > 20
    assert [text for text in texts if text["pixels"] < LEAST_TEXT] == []
    assert [text for text in texts if text["contrast"] is not None and text["contrast"] < CONTRAST] == []


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_against_a_page(tab: Tab, page: Path, scheme: str, width: int) -> None:
    script = axe.source()
    tab.show(page, width=width, scheme=scheme)
    tab.evaluate(script)
    assert tab.evaluate(VIOLATIONS) == []


def test_the_checks_can_fail(tab: Tab, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<html><body style="background: #fff"><p style="color: #ccc; width: 900px">pale</p><img src="missing.png">'
        '<svg width="50" viewBox="0 0 100 100"><text y="50" font-size="10" fill="#ccc">small</text></svg>',
        encoding="ascii",
    )
    tab.show(bad, width=NARROW, scheme="light")
    assert [url.rpartition("/")[2] for url in tab.requested] == ["bad.html", "missing.png"]
    assert len(tab.complaints) == 1
    assert tab.evaluate("document.documentElement.scrollWidth") > NARROW
    _, small = tab.evaluate(TEXTS)
    assert small["pixels"] == 5
    assert small["contrast"] < 2
    tab.evaluate(axe.source())
    found = {line.partition(":")[0] for line in tab.evaluate(VIOLATIONS)}
    assert {"color-contrast", "image-alt", "html-has-lang", "document-title"} <= found
