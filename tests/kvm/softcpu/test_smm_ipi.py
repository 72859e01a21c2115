"""SMIs that one CPU of the software CPU's sends another, by its LAPIC: who gets them, also while it halts."""

import pytest
from smm_guest import HALTED_SAYS, smi_to_some, smi_to_who_halts
from softcpu_rig import NOT_HERE, values_of

from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
    pytest.mark.usefixtures("all_kinds_of_turns"),
]


@pytest.mark.parametrize(
    ("high", "command", "who"),
    [
        (1 << 24, 0x4200, [1]),
        (0xFF << 24, 0x4200, [0, 1, 2]),
        (0, 0x44200, [0]),
        (0, 0x84200, [0, 1, 2]),
        (0, 0xC4200, [1, 2]),
        (0x06 << 24, 0x4A00, [1, 2]),
    ],
    ids=["to one", "broadcast", "self", "all", "others", "logical"],
)
def test_an_smi_by_interprocessor_interrupt(high: int, command: int, who: list[int]) -> None:
    """Also to CPUs that halt with interrupts off."""
    send = f"""
        mov $0xfee00000, %rax
        movl ${high:#x}, 0x310(%rax)
        movl ${command:#x}, 0x300(%rax)
    """
    assert sorted(values_of(smi_to_some(send, len(who)), cpus=3)) == who


def test_who_halts_goes_on_behind_hlt_after_an_smi() -> None:
    send = """
        mov $0xfee00000, %rax
        movl $0x01000000, 0x310(%rax)
        movl $0x4200, 0x300(%rax)
    """
    assert set(values_of(smi_to_who_halts(send), cpus=2)) == HALTED_SAYS
