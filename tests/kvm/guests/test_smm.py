"""System management mode of KVM's: its second address space, SMIs, for one CPU and another."""

import pytest
from smm_guest import (
    HALTED_SAYS,
    OTHER,
    OTHER_MEMORY,
    OTHER_MEMORY_SAYS,
    SMI_ALL,
    SMI_HERE,
    other_memory,
    smi_to_some,
    smi_to_who_halts,
)
from softcpu_rig import SoftcpuRig
from vmm._native import lib

from vmm import layout
from vmm.cpu.smi import send_smi
from vmm.kvm import Kvm

pytestmark = [pytest.mark.needs_kvm, pytest.mark.hw, pytest.mark.usefixtures("kvm_device")]


@pytest.fixture(autouse=True)
def _smm_in_kvm() -> None:
    with Kvm() as kvm:
        if not kvm.check_extension(lib.KVM_CAP_X86_SMM):
            pytest.skip("this host's KVM has no system management mode")


def machine(source: str, cpus: int = 1) -> SoftcpuRig:
    """With the actions of `smm_guest`; `OTHER` is an SMI to the second CPU, by an MSI."""
    rig = SoftcpuRig(source, cpus=cpus, software_cpu=False, kvm_smm=True)

    def to_the_second() -> None:
        rig.vm.signal_msi(layout.LAPIC_BASE | 1 << 12, 2 << 8)

    rig.actions = {
        SMI_HERE: lambda: send_smi(rig.core, rig.vcpus, None, broadcast=False),
        SMI_ALL: lambda: send_smi(rig.core, rig.vcpus, None, broadcast=True),
        OTHER: to_the_second,
    }
    return rig


def test_an_smi_comes_behind_the_access_and_sees_other_memory() -> None:
    with machine(OTHER_MEMORY) as rig:
        assert other_memory(rig) == OTHER_MEMORY_SAYS


def test_an_smi_to_another_cpu_that_halts() -> None:
    with machine(smi_to_who_halts(f"action {OTHER}"), cpus=2) as rig:
        rig.run()
        assert set(rig.values) == HALTED_SAYS


def test_an_smi_to_all() -> None:
    with machine(smi_to_some(f"action {SMI_ALL}", 3), cpus=3) as rig:
        rig.run()
        assert sorted(rig.values) == [0, 1, 2]
