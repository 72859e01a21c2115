"""System management mode of KVM's: its second address space, SMIs, for one CPU and another."""

import pytest
from smm_guest import HANDLER
from softcpu_rig import SoftcpuRig
from vmm._native import lib

from vmm import layout
from vmm.kvm import Kvm

pytestmark = pytest.mark.needs_kvm


@pytest.fixture(autouse=True)
def _smm_in_kvm() -> None:
    with Kvm() as kvm:
        if not kvm.check_extension(lib.KVM_CAP_X86_SMM):
            pytest.skip("this host's KVM has no system management mode")


def run(source: str, cpus: int = 1) -> SoftcpuRig:
    """Action 1 is an SMI to the CPU that asks, 2 one to the second CPU, by an MSI."""
    rig = SoftcpuRig(HANDLER + source, cpus=cpus, software_cpu=False, kvm_smm=True)

    def to_who_asks() -> None:
        rig.vcpus[rig.core.accessing].smi()

    def to_the_second() -> None:
        rig.vm.signal_msi(layout.LAPIC_BASE | 1 << 12, 2 << 8)

    rig.actions = {1: to_who_asks, 2: to_the_second}
    rig.memory.store_behind(layout.LEGACY_VIDEO.start, b"\x11" * 4)
    rig.memory.map_smm(layout.LEGACY_VIDEO.start, len(layout.LEGACY_VIDEO), layout.LEGACY_VIDEO.start)
    return rig


def test_an_smi_comes_behind_the_access_and_sees_other_memory() -> None:
    source = """
    main:
        install
        mov $0xa0000, %ebx
        report (%rbx)
        action 1
        report (%rbx)
        done
    .code16
    handler:
        peek SAVED_REVISION
        peek 0xa0000
        movl $0x22222222, (%ebx)
        peek 0xa0000
        rsm
    handler_end:
    .code64
    """
    with run(source) as rig:
        rig.run()
        ones = 0xFFFF_FFFF
        assert rig.values == [ones, 0x20064, 0x11111111, 0x22222222, ones]
        rig.memory.unmap_smm(layout.LEGACY_VIDEO.start)


def test_an_smi_to_another_cpu_that_halts() -> None:
    source = """
    main:
        cmp $0, %ebx
        jne other
        install
        start_others
        wait_for_cpus 2
        mov $2000000, %ecx
    1:  loop 1b
        action 2
    2:  pause
        cmpl $1, awake
        jb 2b
        done
    other:
        cli
        hlt
        report $0xa
        incl awake
        hlt
    .code16
    handler:
        mov $0xfee00020, %ebx
        mov (%ebx), %eax
        shr $24, %eax
        out %eax, $0xf4
        rsm
    handler_end:
    .code64
    .align 8
    awake: .long 0
    """
    with run(source, cpus=2) as rig:
        rig.run()
        assert rig.values == [1, 0xA]
