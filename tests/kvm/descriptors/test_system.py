"""/dev/kvm: opening it, and what it says of itself."""

import doctest
import errno
import fcntl
import grp
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from mounts import own_mounts
from vmm._native import lib

import vmm.kvm
from vmm.errors import ExitStatus, HostError, KvmError
from vmm.kvm import Kvm, capabilities
from vmm.kvm.capabilities import REQUIRED_BY_IOCTL
from vmm.kvm.system import MACHINE

pytestmark = [pytest.mark.needs_kvm, pytest.mark.hw, pytest.mark.usefixtures("kvm_device")]


def test_documented_example() -> None:
    result = doctest.testmod(vmm.kvm)
    assert result.attempted >= 4
    assert result.failed == 0


def test_open_is_close_on_exec() -> None:
    with Kvm() as kvm:
        assert fcntl.fcntl(kvm.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        fd = kvm.fd
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_close_twice() -> None:
    kvm = Kvm()
    assert not kvm.closed
    kvm.close()
    kvm.close()
    assert kvm.closed
    assert kvm.fd == -1
    assert repr(kvm) == "<Kvm /dev/kvm, closed>"


def test_open_absent_device() -> None:
    with pytest.raises(
        HostError, match=r"cannot open /dev/no-kvm: No such file.*sudo modprobe kvm_(intel|amd)"
    ) as info:
        Kvm("/dev/no-kvm")
    assert info.value.exit_status is ExitStatus.HOST_LACKS
    assert "\n" not in str(info.value)


def test_open_something_else() -> None:
    with pytest.raises(HostError, match=r"/dev/null is a character device, number 1:3, not KVM's device") as refused:
        Kvm("/dev/null")
    assert "modprobe" not in str(refused.value)


def test_open_directory(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r" is a directory, not KVM's device .*container --device=/dev/kvm instead$"):
        Kvm(str(tmp_path))


def test_open_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "kvm").symlink_to("nowhere")
    with pytest.raises(HostError, match=r"kvm is a symbolic link to nowhere, where there is nothing, not KVM's device"):
        Kvm(str(tmp_path / "kvm"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device, on a file system that forbids it")
def test_open_a_device_where_devices_are_forbidden() -> None:
    script = 'mount -t tmpfs -o nodev none /mnt; mknod /mnt/kvm c 10 232; exec "$0" "$@"'
    command = [*own_mounts(), "sh", "-c", script, sys.executable, "-c", "from vmm.kvm import Kvm; Kvm('/mnt/kvm')"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Permission denied; the file system that it lies on" in told.stderr
    assert "usermod" not in told.stderr


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """Like tmp_path, but other users can look inside."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def open_as(user: int, device: Path) -> str:
    """Return the last line of what a user is told who opens it."""
    # The session's groups are not the account's; what is imported later may lie where this user cannot read.
    program = (
        "import grp, os, pwd, sys; from vmm.kvm import Kvm, access; os.setgroups([]); os.setresgid(100, 100, 100);"
        "user = int(sys.argv[2]); os.setresuid(user, user, user); Kvm(sys.argv[1])"
    )
    command = [sys.executable, "-c", program, str(device), str(user)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return ended.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("mode", "gid", "facts", "remedy"),
    [
        (0o660, 1, "its group is daemon, its mode 0660", "run 'sudo usermod -aG daemon nobody'"),
        (
            0o600,
            0,
            "its group is root, its mode 0600",
            "sudo chgrp kvm {0} && sudo chmod 0660 {0} && sudo usermod -aG kvm nobody'",
        ),
        (0o060, 65534, "its mode 0060", "nobody has joined nogroup after this session began: log out and in again"),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try what another user may open")
def test_open_without_permission(public_directory: Path, mode: int, gid: int, facts: str, remedy: str) -> None:
    device = public_directory / "kvm"
    device.touch()
    os.chown(device, 0, gid)
    device.chmod(mode)
    message = open_as(65534, device)
    assert "Permission denied for user nobody (uid 65534)" in message
    assert facts in message
    assert remedy.format(device) in message
    known = {entry.gr_name for entry in grp.getgrall()}
    assert ("sudo groupadd --system kvm && sudo chgrp" in message) == (mode == 0o600 and "kvm" not in known)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try what another user may open")
def test_open_without_permission_or_an_account(public_directory: Path) -> None:
    device = public_directory / "kvm"
    device.touch()
    device.chmod(0o660)
    message = open_as(4711, device)
    assert "Permission denied for uid 4711: its group is root, its mode 0660; it has no account to join" in message
    assert "usermod" not in message


def test_other_api_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kvm, "api_version", lambda _: 11)
    with pytest.raises(HostError, match="speaks KVM API version 11, and vmm needs 12"):
        Kvm()


def test_api_version(kvm: Kvm) -> None:
    assert kvm.api_version() == 12


def test_check_extension(kvm: Kvm) -> None:
    assert kvm.check_extension(lib.KVM_CAP_USER_MEMORY) == 1
    assert kvm.check_extension(0x7FFF) == 0


def test_capabilities(kvm: Kvm) -> None:
    found = {capability.name: capability for capability in kvm.capabilities()}
    assert len(found) > 50
    assert found["KVM_CAP_IRQCHIP"].number == lib.KVM_CAP_IRQCHIP
    assert found["KVM_CAP_IRQCHIP"].value == 1
    assert found["KVM_CAP_MAX_VCPUS"].value == kvm.max_vcpus


def test_require(kvm: Kvm) -> None:
    kvm.require()


def test_require_reports_all_missing_together(kvm: Kvm, monkeypatch: pytest.MonkeyPatch) -> None:
    # Real numbers that no x86 host has: PowerPC's and s390's.
    absent = {"KVM_CAP_PPC_HTM": 132, "KVM_CAP_S390_BPB": 152}
    known = {name: getattr(lib, name) for name in dir(lib) if name.startswith("KVM_CAP_")}
    monkeypatch.setattr("vmm.kvm.system.lib", SimpleNamespace(**known, **absent))
    with pytest.raises(HostError, match=r"lacks KVM_CAP_PPC_HTM, KVM_CAP_S390_BPB; run a newer kernel") as info:
        kvm.require(["KVM_CAP_IRQCHIP", "KVM_CAP_PPC_HTM", "KVM_CAP_S390_BPB"])
    assert info.value.exit_status is ExitStatus.HOST_LACKS


def test_every_ioctl_names_a_capability_that_exists() -> None:
    names = capabilities.known()
    assert {name for name in REQUIRED_BY_IOCTL.values() if name} | set(MACHINE) <= names.keys()
    for ioctl in REQUIRED_BY_IOCTL:
        assert getattr(lib, ioctl) >> 8 & 0xFF == 0xAE, "KVMIO"
    text = "".join(source.read_text(encoding="utf-8") for source in Path(vmm.kvm.__file__).parent.glob("*.py"))
    called = {name for name in re.findall(r'"(KVM_[A-Z0-9_]+[A-Z0-9])"', text) if not name.startswith("KVM_EXIT_")}
    assert called - set(names) == REQUIRED_BY_IOCTL.keys()


def test_limits(kvm: Kvm) -> None:
    assert 1 <= kvm.recommended_vcpus <= kvm.max_vcpus
    assert kvm.max_memory_slots >= 32
    assert kvm.vcpu_mmap_size >= 4096


def test_supported_cpuid(kvm: Kvm) -> None:
    leaves = {(entry.function, entry.subleaf): entry for entry in kvm.supported_cpuid()}
    assert leaves[0x40000000, 0].ebx.to_bytes(4, "little") == b"KVMK"
    assert leaves[1, 0].edx & 1, "an FPU"
    assert leaves[7, 0].indexed
    assert not leaves[1, 0].indexed


def test_msr_index_list(kvm: Kvm) -> None:
    assert 0x174 in kvm.msr_index_list()


def test_msr_feature_index_list(kvm: Kvm) -> None:
    features = kvm.msr_feature_index_list()
    assert 0x8B in features
    assert kvm.get_feature_msrs(features).keys() == set(features)


def test_get_feature_msrs_stops_at_the_first_unknown(kvm: Kvm) -> None:
    assert kvm.get_feature_msrs([0x8B, 0xDEAD0000, 0x10A]).keys() == {0x8B}


def test_create_vm_is_close_on_exec(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        assert fcntl.fcntl(vm.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_create_vm_out_of_descriptors(kvm: Kvm) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(KvmError, match=r"KVM_CREATE_VM failed.*EMFILE.*ulimit -n") as info:
            kvm.create_vm()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert info.value.errno == errno.EMFILE


CALLS: dict[str, Callable[[Kvm], object]] = {
    "api_version": lambda kvm: kvm.api_version(),
    "check_extension": lambda kvm: kvm.check_extension(0),
    "capabilities": lambda kvm: kvm.capabilities(),
    "require": lambda kvm: kvm.require(),
    "recommended_vcpus": lambda kvm: kvm.recommended_vcpus,
    "max_vcpus": lambda kvm: kvm.max_vcpus,
    "max_vcpu_id": lambda kvm: kvm.max_vcpu_id,
    "max_memory_slots": lambda kvm: kvm.max_memory_slots,
    "vcpu_mmap_size": lambda kvm: kvm.vcpu_mmap_size,
    "supported_cpuid": lambda kvm: kvm.supported_cpuid(),
    "msr_index_list": lambda kvm: kvm.msr_index_list(),
    "msr_feature_index_list": lambda kvm: kvm.msr_feature_index_list(),
    "get_feature_msrs": lambda kvm: kvm.get_feature_msrs([0x8B]),
    "create_vm": lambda kvm: kvm.create_vm(),
}


@pytest.mark.parametrize("name", CALLS)
def test_closed(kvm: Kvm, name: str) -> None:
    kvm.close()
    with pytest.raises(KvmError, match=r"Bad file descriptor \(EBADF\); it is closed already") as info:
        CALLS[name](kvm)
    assert info.value.errno == errno.EBADF


def test_closed_covers_every_call() -> None:
    assert {name for name in vars(Kvm) if not name.startswith("_")} - {"stands_in"} == CALLS.keys()
