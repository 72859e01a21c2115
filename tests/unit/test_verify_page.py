"""The page of a verification: the verdict and what failed first, and the memory maps side by side."""

from html_page import check_self_contained, read

from vmm.tables.e820 import E820Entry, E820Type
from vmm.verify import picture, show
from vmm.verify.result import Subject, Verification
from vmm.verify.values import Verdict

KIB = 1 << 10
OFFERED = [E820Entry(0, 1024 * KIB, E820Type.RAM), E820Entry(2048 * KIB, 64 * KIB, E820Type.NVS)]
FOUND = [
    E820Entry(0, 640 * KIB, E820Type.RAM),
    E820Entry(640 * KIB, 384 * KIB, E820Type.RESERVED),
    E820Entry(4096 * KIB, 4 * KIB, 12),
]
MAPS = {"offered": OFFERED, "found": FOUND}


def verification(*verdicts: Verdict, maps: dict[str, list[E820Entry]] | None = None) -> Verification:
    subjects = [Subject("ACPI tables"), Subject("SMBIOS")]
    for number, verdict in enumerate(verdicts):
        subject = subjects[number % 2]
        subject.add(f"table-{number}", "4 bytes", f"found-{number}", verdict, reason=f"reason-{number}")
    return Verification("bios.bin", "pc", 1.0, tuple(subjects), maps or {})


def text_of(made: Verification) -> str:
    html = show.as_html(made)
    check_self_contained(html)
    return " ".join(read(html).text.split())


def test_it_opens_with_the_verdict_and_what_failed() -> None:
    text = text_of(verification(Verdict.ARRIVED, Verdict.ARRIVED, Verdict.EXTRA, Verdict.MISSING, maps=MAPS))
    opening = text.partition("Memory map, as a picture")[0]
    for words in (
        "vmm verify: not all arrived vmm verify Not everything arrived 1 of 4 did not arrive as offered bios.bin on pc",
        "SMBIOS table-3 4 bytes found-3 missing because: reason-3",
    ):
        assert words in opening
    assert "table-0" not in opening
    assert "ACPI tables all 2 right" in text
    assert "SMBIOS 1 of 2 wrong" in text


def test_where_all_arrived_it_says_so_and_nothing_else_first() -> None:
    text = text_of(verification(Verdict.ARRIVED, Verdict.ARRIVED))
    assert "Everything arrived all 2 arrived and are true bios.bin on pc, 1.00 s ACPI tables all 1 right" in text
    assert "Memory map" not in text


def test_what_is_true_has_a_column_where_it_is_known() -> None:
    made = verification(Verdict.ARRIVED, Verdict.ARRIVED)
    made.subject("SMBIOS").add("clock", "1 MHz", "1 MHz", Verdict.UNTRUE, true="2 MHz")
    text = text_of(made)
    assert "1 of 3 are not true bios.bin" in text
    assert "SMBIOS clock 1 MHz 1 MHz 2 MHz untrue" in text
    assert text.count("what offered found true verdict") == 2
    assert text.count("what offered found verdict") == 1


def test_maps_lie_side_by_side() -> None:
    found = [(row.first, row.last, row.kinds) for row in reversed(picture.rows(MAPS))]
    assert found == [
        (0, 0x9FFFF, ("ram", "ram")),
        (0xA0000, 0xFFFFF, ("ram", "reserved")),
        (0x100000, 0x1FFFFF, ("", "")),
        (0x200000, 0x20FFFF, ("nvs", "")),
        (0x210000, 0x3FFFFF, ("", "")),
        (0x400000, 0x400FFF, ("", "12")),
    ]
    text = text_of(verification(Verdict.ARRIVED, maps=MAPS))
    assert "offered found addresses size nothing 12 0x400000-0x400fff 4 KiB" in text
    assert "ram reserved 0xa0000-0xfffff 384 KiB" in text


def test_any_number_of_maps_has_columns() -> None:
    rows = picture.rows(MAPS | {"true": OFFERED[:1]})
    assert rows[-1].kinds == ("ram", "ram", "ram")
    assert picture.rows({}) == []


def test_neighbours_that_agree_are_one() -> None:
    halves = [E820Entry(0, KIB, E820Type.RAM), E820Entry(KIB, KIB, E820Type.RAM)]
    (row,) = picture.rows({"offered": halves, "found": [E820Entry(0, 2 * KIB, E820Type.RAM)]})
    assert (row.first, row.last) == (0, 2 * KIB - 1)
