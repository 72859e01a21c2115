"""A guest in system management mode that spoils what it can: its own save area, SMBASE, the other CPUs' SMIs."""

import random

import pytest
from smm_guest import HANDLER, with_smis
from softcpu_rig import NOT_HERE, SoftcpuRig
from vmm._native import lib

from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
]

ENDS = {lib.VCPU_STOPPED, lib.VCPU_SHUTDOWN, lib.VCPU_INTERNAL_ERROR}
NO_FIRMWARE = lib.VCPU_EMULATION_FAILURE
"""Of the boot processor, which an INIT sends to the reset vector, where there is nothing."""

SPOIL = (
    HANDLER
    + """
    main:
        install
        action 1
        report $0xa
        action 1
        report $0xb
        done
    .code16
    handler:
        mov $0x3fe00, %edi                  # 512 bytes from 0x6000 are XORed onto the save area
        mov $0x6000, %esi
        mov $512, %ecx
    1:  mov (%esi), %al
        xor %al, (%edi)
        inc %esi
        inc %edi
        dec %ecx
        jnz 1b
        rsm
    handler_end:
    .code64
    """
)


def spoiled(source: random.Random) -> bytes:
    area = bytearray(512)
    for _ in range(source.choice((1, 1, 2, 4, 64))):
        at = source.randrange(512)
        area[at] = source.choice((1 << source.randrange(8), 0xFF, source.randrange(256)))
    return bytes(area)


def test_rsm_to_any_state_ends_or_goes_on(request: pytest.FixtureRequest) -> None:
    for seed in range(request.config.getoption("--spoiled")):
        area = spoiled(random.Random(seed))
        with with_smis(SoftcpuRig(SPOIL)) as rig:
            rig.memory.write(0x6000, area)
            (outcome,) = rig.run(seconds=0.4)
            assert outcome in ENDS, (seed, outcome)
            assert rig.stop_seconds < 20, seed


@pytest.mark.parametrize(
    "smbase",
    [
        *(0xFFFF_8000, 0xFFFF_FFFF, 0x8000_0000),
        *((16 << 20) - 0x8000, (16 << 20) - 0x10000, (16 << 20) - 0xFE01),
        *(0xFEE0_0000 - 0xFE00, 0xFEE0_0000 - 0x8000, 0xFEDF_0180, 0xFEC0_0000 - 0xFE00, 0xA0000, 0x1),
    ],
    ids=hex,
)
def test_smbase_may_be_anywhere(smbase: int) -> None:
    """Where no memory is, or a LAPIC, there is neither a handler nor a state to return to."""
    source = (
        HANDLER
        + f"""
    main:
        install
        action 1
        report $0xa
        action 1
        report $0xb
        done
    .code16
    handler:
        mov $SAVED_SMBASE, %ebx
        movl ${smbase:#x}, (%ebx)
        rsm
    handler_end:
    .code64
    """
    )
    with with_smis(SoftcpuRig(source)) as rig:
        rig.memory.map_smm(0xA0000, 0x20000, 0xA0000)
        (outcome,) = rig.run(seconds=0.5)
        assert rig.values[:1] == [0xA]
        assert outcome in ENDS
        assert rig.stop_seconds < 20


def storm(more: str, handler: str) -> str:
    """A guest whose eight CPUs send all of them SMIs."""
    return (
        HANDLER
        + f"""
    main:
        cmp $0, %ebx
        jne storm
        install
        start_others
        wait_for_cpus 8
    storm:
        mov $0xfee00000, %rax
        movl $0x1ff, 0xf0(%rax)
    1:  incl rounds(%rip)
        movl $0, 0x310(%rax)
        movl $0x84200, 0x300(%rax)          # to all, this one too
        {more}
        jmp 1b
    .code16
    handler:
        {handler}
        rsm
    handler_end:
    .code64
    .align 8
    rounds: .long 0
    """
    )


@pytest.mark.parametrize(
    ("more", "handler"),
    [
        ("", ""),
        ("action 2", ""),
        ("movl $0xc4500, 0x300(%rax)\nmovl $0xc4601, 0x300(%rax)", ""),
        ("", "mov $0xfee00300, %ebx\nmovl $0x84200, (%ebx)"),
        ("cli\nhlt", "mov $0xfee00300, %ebx\nmovl $0x84400, (%ebx)"),
        ("movl $0xc4500, 0x300(%rax)", "hlt"),
    ],
    ids=["IPIs", "and the chipset's", "and INITs", "from the handler", "NMIs from the handler", "HLT in the handler"],
)
def test_a_storm_of_smis_to_eight_cpus_can_be_stopped(more: str, handler: str) -> None:
    """All have one SMBASE, so that each returns to what another one was doing, or to nothing that there is."""
    with with_smis(SoftcpuRig(storm(more, handler), cpus=8)) as rig:
        outcomes = rig.run(seconds=2)
        assert set(outcomes) <= ENDS | {NO_FIRMWARE}
        assert rig.stop_seconds < 20
        assert set(rig.run(seconds=0.5)) <= ENDS | {NO_FIRMWARE}, "and goes on"
