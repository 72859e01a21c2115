"""Page walks, at tables written by hand from Intel's manual (volume 3, chapter 4)."""

import pytest

from vmm.cpu.paging import walk

PG, PE = 1 << 31, 1
PSE, PAE, LA57 = 1 << 4, 1 << 5, 1 << 12
LMA = 1 << 10
P, PS = 1, 1 << 7
NX = 1 << 63


class Tables:
    """Physical memory with a few entries; none at all from 4 GiB on."""

    def __init__(self, entries: dict[int, int]) -> None:
        self.entries = entries

    def read(self, gpa: int, size: int) -> bytes:
        if gpa >= 1 << 32:
            raise ValueError
        return self.entries.get(gpa, 0).to_bytes(size, "little")


def registers(cr0: int = PG | PE, cr3: int = 0x1000, cr4: int = 0, efer: int = 0) -> dict[str, int]:
    return {"cr0": cr0, "cr3": cr3, "cr4": cr4, "efer": efer}


FORMS: dict[str, tuple[dict[str, int], dict[int, int], dict[int, int | None]]] = {
    "none": (registers(cr0=PE), {}, {0x12345678: 0x12345678, 0x1_2345_6789: 0x23456789}),
    "32-bit": (
        registers(cr3=0x1018, cr4=PSE),
        {
            0x1000 + 4 * 1: 0x2000 | P,
            0x2000 + 4 * 2: 0xABCDE000 | P,
            0x1000 + 4 * 3: 0x00C00000 | PS | P,
            0x1000 + 4 * 4: 0x00C00000 | 0x5 << 13 | PS | P,
            0x1000 + 4 * 5: 1 << 31,
        },
        {
            0x00402123: 0xABCDE123,
            0x00C12345: 0x00C12345,
            0x01012345: 0x5_00C12345,
            0x01400000: None,
            0x00403000: None,
        },
    ),
    "PAE": (
        registers(cr3=0x1020, cr4=PAE),
        {
            0x1020 + 8 * 3: 0x2000 | P,
            0x2000 + 8 * 1: 0x3000 | P,
            0x3000 + 8 * 2: 0x7_89ABC000 | NX | P,
            0x2000 + 8 * 4: 0x1_00600000 | PS | P,
        },
        {0xC0202FFF: 0x7_89ABCFFF, 0xC0812345: 0x1_00612345, 0: None},
    ),
    "4-level": (
        registers(cr3=0x1018, cr4=PAE, efer=LMA),
        {
            0x1000: 0x2000 | P,
            0x1000 + 8 * 0x1FF: 0x2000 | P,
            0x2000: 0x3000 | P,
            0x2000 + 8 * 1: 0x1_40000000 | PS | P,
            0x2000 + 8 * 2: 0x1_00000000 | P,
            0x3000: 0x4000 | P,
            0x3000 + 8 * 1: 0x00600000 | NX | PS | P,
            0x4000 + 8 * 5: 0x000F_FFFF_FFFF_F000 | P,
        },
        {
            0x5678: 0x000F_FFFF_FFFF_F678,
            0x2ABCDE: 0x6ABCDE,
            0x7FFF_FFFF: 0x1_7FFF_FFFF,
            0xFFFF_FF80_0020_0001: 0x600001,
            0x8000_0000: None,
            0x0000_8000_0000_0000: None,
            0xC000_0000: None,
        },
    ),
    "5-level": (
        registers(cr4=PAE | LA57, efer=LMA),
        {0x1000 + 8 * 1: 0x2000 | P, 0x2000 + 8 * 1: 0x3000 | P, 0x3000 + 8 * 1: 0x40000000 | PS | P},
        {0x0001_0080_4123_4567: 0x41234567, 0xFF00_0000_0000_0000: None, 0x0200_0000_0000_0000: None},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_walk(form: str) -> None:
    state, entries, expected = FORMS[form]
    memory = Tables(entries)
    assert {linear: walk(linear, state, memory.read).gpa for linear in expected} == expected


def test_a_walk_in_words() -> None:
    state, entries, _ = FORMS["4-level"]
    memory = Tables(entries)
    assert walk(0x5678, state, memory.read).text == (
        "0x5678: GPA 0xffffffffff678\nPML4E at 0x1000: 0x2001\nPDPTE at 0x2000: 0x3001\nPDE at 0x3000: 0x4001\n"
        "PTE at 0x4028: 0xffffffffff001"
    )
    assert walk(0x8000_0000, state, memory.read).text.endswith("PDE at 0x100000000: no memory")
    assert walk(1 << 47, state, memory.read).text == "0x800000000000: not canonical"
    assert walk(5, registers(cr0=1), memory.read).text == "0x5: paging is off"
