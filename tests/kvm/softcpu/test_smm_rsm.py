"""RSM of the software CPU where it cannot return: outside of the mode, and to what no processor can be in."""

import pytest
from smm_guest import HANDLER, with_smis
from softcpu_rig import NOT_HERE, SoftcpuRig, values_of
from vmm._native import lib

from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
]


def test_rsm_outside_of_the_mode_is_an_invalid_opcode() -> None:
    source = """
    main:
        gate 6, invalid
        rsm
        done
    invalid:
        report $6
        done
    """
    assert values_of(source) == [6]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("SAVED_CR0", 0x8000_0000),
        ("SAVED_CR0", 0x2000_0001),
        ("SAVED_CR4", 0x8000_0000),
        ("SAVED_EFER", 0x2),
        ("SAVED_EFER", 0x100),
        ("SAVED_CR4", 0),
    ],
    ids=["PG without PE", "NW without CD", "reserved bit of CR4", "reserved bit of EFER", "LME without LMA", "no PAE"],
)
def test_rsm_to_what_no_processor_can_be_in_is_a_shutdown(place: str, value: int) -> None:
    source = (
        HANDLER
        + f"""
    main:
        install
        action 1
        done
    .code16
    handler:
        mov ${place}, %ebx
        movl ${value:#x}, (%ebx)
        rsm
    handler_end:
    .code64
    """
    )
    with with_smis(SoftcpuRig(source)) as rig:
        assert rig.run() == [lib.VCPU_SHUTDOWN]
