"""Each call to KVM without which a run cannot go on, made to fail by seccomp: the run ends and names it."""

import subprocess
import sys

import pytest

from vmm.firmware import guests
from vmm.softcpu import decision

pytestmark = pytest.mark.needs_kvm

SCRIPT = """
import ctypes, struct, sys
from vmm import Machine
from vmm._native import lib

ALLOW, FAIL_WITH_EIO = 0x7FFF0000, 0x00050005
IOCTL, NUMBER, SECOND_ARGUMENT = 16, 0, 24  # x86-64's number; offsets in struct seccomp_data

guest, accel, name = sys.argv[1:]
with Machine(guest, accel=accel, cpus=2) as machine:
    rules = [
        (0x20, 0, 0, NUMBER), (0x15, 0, 3, IOCTL),
        (0x20, 0, 0, SECOND_ARGUMENT), (0x15, 0, 1, getattr(lib, name)),
        (0x06, 0, 0, FAIL_WITH_EIO), (0x06, 0, 0, ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *rule) for rule in rules))
    program = struct.pack("<HxxxxxxQ", len(rules), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0      # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP: this thread and its children
    outcome = machine.run(deadline=60)
print(outcome.reason.value, outcome.message)
"""


def fails(accel: str, name: str) -> str:
    """Run the probe on two CPUs with every ``name`` failing; how it ended."""
    command = [sys.executable, "-c", SCRIPT, str(guests.path("probe")), accel, name]
    run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return run.stdout


@pytest.mark.parametrize("name", ["KVM_RUN", "KVM_GET_MP_STATE"])
@pytest.mark.usefixtures("kvm_device")
def test_kvm(name: str) -> None:
    assert f"{name} failed for vCPU " in fails("kvm", name)


@pytest.mark.skipif(decision.has_hardware_virtualization(), reason="the software CPU is for hosts without it")
@pytest.mark.parametrize(
    "name",
    [
        "KVM_GET_DEBUGREGS",
        "KVM_GET_XSAVE",
        "KVM_GET_IRQCHIP",
        "KVM_GET_LAPIC",
        "KVM_GET_MP_STATE",
        "KVM_GET_VCPU_EVENTS",
        "KVM_RUN",
        "KVM_SET_GUEST_DEBUG",
        "KVM_SET_MP_STATE",
    ],
)
@pytest.mark.usefixtures("kvm_device")
def test_softcpu(name: str) -> None:
    assert f"{name} failed for vCPU " in fails("kvm+softcpu", name)
