"""The page and the tables: everything is in them, and nothing has to be fetched."""

import json
import re
from collections.abc import Callable

import pytest
from html_page import check_self_contained, read

from vmm.bench import page, plots, table
from vmm.bench.result import Result


@pytest.mark.parametrize("kind", ["pio", "dma", "boot"])
def test_the_page_is_self_contained(made_up: Callable[..., Result], kind: str) -> None:
    # Through JSON, as from a file.
    html = page.render(json.loads(json.dumps(made_up(kind).as_json())))
    check_self_contained(html)
    assert read(html).tags.count("svg") >= 2


def test_the_page_says_what_was_found(made_up: Callable[..., Result]) -> None:
    result = made_up()
    result.failed["qemu-tcg"] = "QEMU said <no> & left"
    found = read(page.render(result.as_json()))
    for word in ("in8-fwcfg", "bare KVM_RUN loop", "reached", "QEMU said <no> & left", result.host["kernel"]):
        assert word in found.text
    assert "Too noisy" not in found.text
    assert "Too noisy" in read(page.render(made_up(rounds=3).as_json())).text


def test_ids_of_pictures_do_not_collide(made_up: Callable[..., Result]) -> None:
    html = page.render(made_up("boot").as_json())
    clips = re.findall(r'<clipPath id="([^"]+)"', html)
    assert clips
    assert len(clips) == len(set(clips))


def test_the_style_sheet_has_every_colour_of_the_pictures(made_up: Callable[..., Result]) -> None:
    for kind in ("pio", "boot"):
        html = page.render(made_up(kind).as_json())
        drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
        assert not re.search(r"#[0-9a-f]{6}\b", drawn)
        light, dark = re.findall(r":root \{(.*?)\}", html, re.DOTALL)
        used = set(re.findall(r"var\((--[a-z-]+)\)", html)) - {"--step", "--level", "--levels", "--share"}
        for scheme in (light, dark):
            assert used <= set(re.findall(r"(--[a-z-]+):", scheme))


def test_a_picture_for_a_document_has_its_own_colours(made_up: Callable[..., Result]) -> None:
    result = made_up().as_json()
    result["cases"].insert(0, {**result["cases"][0], "key": "in8"})
    assert "var(" not in plots.headline(result)


def test_the_same_result_gives_the_same_page(made_up: Callable[..., Result]) -> None:
    result = made_up().as_json()
    assert page.render(result) == page.render(result)


@pytest.mark.parametrize("kind", ["pio", "dma", "boot"])
def test_the_tables_fit_and_say_what_was_found(
    made_up: Callable[..., Result], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table.show(made_up(kind))
    printed = capsys.readouterr().out
    assert "vmm, Python dispatch" in printed
    assert "tie" not in printed.splitlines()[0]
    assert max(map(len, printed.splitlines())) <= 200
    assert ("reached" in printed) or ("not measured" in printed)


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (812.4, "ns", "812 ns"),
        (8520, "ns", "8.52 µs"),
        (1320, "ms", "1.32 s"),
        (0, "ns", "0.00 ns"),
        (76.2, "ms", "76.2 ms"),
    ],
)
def test_durations_for_people(value: float, unit: str, words: str) -> None:
    assert table.number(value, unit) == words


def test_the_page_has_what_only_one_contender_has(made_up: Callable[..., Result]) -> None:
    result = made_up("boot")
    result.scales[0].points["qemu-kvm"] = [(16.0, 123.0)]
    result.scales[0].spreads["qemu-kvm"] = [(122.0, 124.0)]
    text = read(page.render(json.loads(json.dumps(result.as_json())))).text
    assert re.search(r"\b16\s*123 ms", text)
