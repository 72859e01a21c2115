"""``/dev/kvm``: what this host's KVM is and can do, and where virtual machines come from."""

import errno
import os
from collections.abc import Iterable

from vmm._native import ffi, lib
from vmm.errors import HostError, KvmError
from vmm.kvm.descriptor import Descriptor
from vmm.kvm.structs import Capability, CpuidEntry, msrs_to_c
from vmm.kvm.vm import Vm

DEVICE = "/dev/kvm"

MACHINE = (
    "KVM_CAP_USER_MEMORY",
    "KVM_CAP_DESTROY_MEMORY_REGION_WORKS",
    "KVM_CAP_JOIN_MEMORY_REGIONS_WORKS",
    "KVM_CAP_READONLY_MEM",
    "KVM_CAP_IRQCHIP",
    "KVM_CAP_IRQ_ROUTING",
    "KVM_CAP_SIGNAL_MSI",
    "KVM_CAP_PIT2",
    "KVM_CAP_PIT_STATE2",
    "KVM_CAP_SET_TSS_ADDR",
    "KVM_CAP_SET_IDENTITY_MAP_ADDR",
    "KVM_CAP_EXT_CPUID",
    "KVM_CAP_MP_STATE",
    "KVM_CAP_VCPU_EVENTS",
    "KVM_CAP_DEBUGREGS",
    "KVM_CAP_XSAVE",
    "KVM_CAP_XCRS",
    "KVM_CAP_SET_GUEST_DEBUG",
    "KVM_CAP_IMMEDIATE_EXIT",
)
"""What a machine of vmm cannot do without."""


class Kvm(Descriptor):
    """KVM itself.

    Args:
        path: the device to open.

    Attributes:
        stands_in: why something else takes the place of the device; None: it is the device.

    Raises:
        HostError: it is absent, not permitted, or speaks another version of the API; the text has the remedy.
    """

    stands_in: str | None = None

    def __init__(self, path: str = DEVICE) -> None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            from vmm.kvm.access import cannot_open

            raise HostError(cannot_open(path, error)) from error
        super().__init__(fd, path)
        try:
            self._check_api_version()
        except BaseException:
            self.close()
            raise

    def _check_api_version(self) -> None:
        try:
            version = self.api_version()
        except KvmError as error:
            from vmm.kvm.access import not_kvm

            raise HostError(not_kvm(self._name) or f"{self._name} does not answer as KVM's device: {error}") from error
        if version != lib.KVM_API_VERSION:
            raise HostError(
                f"{self._name} speaks KVM API version {version}, and vmm needs {lib.KVM_API_VERSION}; "
                "run a kernel of 2007 or later"
            )

    def api_version(self) -> int:
        """KVM_GET_API_VERSION: 12 on every kernel since 2.6.22."""
        return self._ioctl_value("KVM_GET_API_VERSION")

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 if ``capability`` is absent, else 1 or a number with a meaning of its own."""
        return self._ioctl_value("KVM_CHECK_EXTENSION", capability, subject=f"capability {capability}")

    def capabilities(self) -> list[Capability]:
        """What KVM_CHECK_EXTENSION says of each capability that this build knows, by number."""
        from vmm.kvm.capabilities import known

        found = [Capability(name, number, self.check_extension(number)) for name, number in known().items()]
        return sorted(found, key=lambda capability: capability.number)

    def require(self, names: Iterable[str] = MACHINE) -> None:
        """Check capabilities (named as in ``<linux/kvm.h>``), all at once.

        Raises:
            HostError: names every one that is missing.
        """
        missing = [name for name in names if not self.check_extension(getattr(lib, name))]
        if missing:
            raise HostError(
                f"this kernel's KVM ({os.uname().release}) lacks {', '.join(missing)}; run a newer kernel, "
                "or one that is built with them"
            )

    @property
    def recommended_vcpus(self) -> int:
        """KVM_CAP_NR_VCPUS: more than these in one guest share the host's CPUs."""
        return self.check_extension(lib.KVM_CAP_NR_VCPUS) or 4

    @property
    def max_vcpus(self) -> int:
        """KVM_CAP_MAX_VCPUS: more than these cannot be created."""
        return self.check_extension(lib.KVM_CAP_MAX_VCPUS) or self.recommended_vcpus

    @property
    def max_vcpu_id(self) -> int:
        """KVM_CAP_MAX_VCPU_ID: a vCPU's id, which is its APIC id, is less than this."""
        return self.check_extension(lib.KVM_CAP_MAX_VCPU_ID) or self.max_vcpus

    @property
    def max_memory_slots(self) -> int:
        """KVM_CAP_NR_MEMSLOTS; the answer of kernels that don't say is 32."""
        return self.check_extension(lib.KVM_CAP_NR_MEMSLOTS) or 32

    @property
    def vcpu_mmap_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE: bytes that each vCPU shares with its thread."""
        return self._ioctl_value("KVM_GET_VCPU_MMAP_SIZE")

    def supported_cpuid(self) -> list[CpuidEntry]:
        """KVM_GET_SUPPORTED_CPUID: the leaves that host and KVM can give a guest, for APIC id 0 and one CPU.

        It may differ between CPUs of the host, and it has TSC_DEADLINE clear even where KVM_CAP_TSC_DEADLINE_TIMER
        says that the timer works.
        """
        return self._get_cpuid("KVM_GET_SUPPORTED_CPUID")

    def msr_index_list(self) -> list[int]:
        """KVM_GET_MSR_INDEX_LIST: the MSRs that make up a guest's state, as to be saved and restored."""
        return self._msr_list("KVM_GET_MSR_INDEX_LIST")

    def msr_feature_index_list(self) -> list[int]:
        """KVM_GET_MSR_FEATURE_INDEX_LIST: the MSRs that describe the CPU, as CPUID does."""
        return self._msr_list("KVM_GET_MSR_FEATURE_INDEX_LIST")

    def get_feature_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """KVM_GET_MSRS on ``/dev/kvm``: what the MSRs of `msr_feature_index_list` can hold at most; as `Vcpu.get_msrs`.

        For IA32_ARCH_CAPABILITIES (0x10a) that may be more than a vCPU of this host accepts.
        """
        table = msrs_to_c(dict.fromkeys(indices, 0))
        done = self._ioctl("KVM_GET_MSRS", table)
        return {entry.index: entry.data for entry in table.entries[0:done]}

    def _msr_list(self, ioctl: str) -> list[int]:
        header = ffi.new("struct kvm_msr_list *", {"indices": 0})
        try:
            self._ioctl(ioctl, header)
        except KvmError as error:
            # How KVM says how many there are.
            if error.errno != errno.E2BIG:
                raise
        table = ffi.new("struct kvm_msr_list *", {"nmsrs": header.nmsrs, "indices": header.nmsrs})
        self._ioctl(ioctl, table)
        return list(table.indices[0 : table.nmsrs])

    def create_vm(self) -> Vm:
        """KVM_CREATE_VM: a machine without CPUs and memory.

        Raises:
            KvmError: EBUSY if another hypervisor has the CPU's virtualization, ENOMEM, EMFILE.
        """
        while True:
            try:
                return Vm(self, self._ioctl_value("KVM_CREATE_VM"))
            except KvmError as error:
                # Creation waits for other CPUs, and a signal ends that wait.
                if error.errno != errno.EINTR:
                    raise
