"""Which capability each ioctl needs.

Source: the "Capability:" line of each ioctl in the kernel's Documentation/virt/kvm/api.rst, and the comments beside
the numbers in ``<linux/kvm.h>``. "Basic" there is None here: what has no capability of its own.
"""

from collections.abc import Mapping

from vmm._native import lib

REQUIRED_BY_IOCTL: Mapping[str, str | None] = {
    # /dev/kvm
    "KVM_GET_API_VERSION": None,
    "KVM_CREATE_VM": None,
    "KVM_CHECK_EXTENSION": None,
    "KVM_GET_VCPU_MMAP_SIZE": None,
    "KVM_GET_MSR_INDEX_LIST": None,
    "KVM_GET_MSR_FEATURE_INDEX_LIST": "KVM_CAP_GET_MSR_FEATURES",
    "KVM_GET_SUPPORTED_CPUID": "KVM_CAP_EXT_CPUID",
    # A virtual machine
    "KVM_SET_USER_MEMORY_REGION": "KVM_CAP_USER_MEMORY",
    "KVM_GET_DIRTY_LOG": None,
    "KVM_SET_TSS_ADDR": "KVM_CAP_SET_TSS_ADDR",
    "KVM_SET_IDENTITY_MAP_ADDR": "KVM_CAP_SET_IDENTITY_MAP_ADDR",
    "KVM_SET_BOOT_CPU_ID": "KVM_CAP_SET_BOOT_CPU_ID",
    "KVM_CREATE_IRQCHIP": "KVM_CAP_IRQCHIP",
    "KVM_GET_IRQCHIP": "KVM_CAP_IRQCHIP",
    "KVM_SET_IRQCHIP": "KVM_CAP_IRQCHIP",
    "KVM_IRQ_LINE": "KVM_CAP_IRQCHIP",
    "KVM_SET_GSI_ROUTING": "KVM_CAP_IRQ_ROUTING",
    "KVM_SIGNAL_MSI": "KVM_CAP_SIGNAL_MSI",
    "KVM_IRQFD": "KVM_CAP_IRQFD",
    "KVM_IOEVENTFD": "KVM_CAP_IOEVENTFD",
    "KVM_REGISTER_COALESCED_MMIO": "KVM_CAP_COALESCED_MMIO",
    "KVM_UNREGISTER_COALESCED_MMIO": "KVM_CAP_COALESCED_MMIO",
    "KVM_CREATE_PIT2": "KVM_CAP_PIT2",
    "KVM_GET_PIT2": "KVM_CAP_PIT_STATE2",
    "KVM_SET_PIT2": "KVM_CAP_PIT_STATE2",
    "KVM_REINJECT_CONTROL": "KVM_CAP_REINJECT_CONTROL",
    "KVM_GET_CLOCK": "KVM_CAP_ADJUST_CLOCK",
    "KVM_SET_CLOCK": "KVM_CAP_ADJUST_CLOCK",
    "KVM_ENABLE_CAP": "KVM_CAP_ENABLE_CAP_VM",
    "KVM_CREATE_VCPU": None,
    # A vCPU
    "KVM_RUN": None,
    "KVM_GET_REGS": None,
    "KVM_SET_REGS": None,
    "KVM_GET_SREGS": None,
    "KVM_SET_SREGS": None,
    "KVM_TRANSLATE": None,
    "KVM_GET_FPU": None,
    "KVM_SET_FPU": None,
    "KVM_GET_MSRS": None,
    "KVM_SET_MSRS": None,
    "KVM_GET_CPUID2": "KVM_CAP_EXT_CPUID",
    "KVM_SET_CPUID2": "KVM_CAP_EXT_CPUID",
    "KVM_GET_LAPIC": "KVM_CAP_IRQCHIP",
    "KVM_SET_LAPIC": "KVM_CAP_IRQCHIP",
    "KVM_GET_MP_STATE": "KVM_CAP_MP_STATE",
    "KVM_SET_MP_STATE": "KVM_CAP_MP_STATE",
    "KVM_NMI": "KVM_CAP_USER_NMI",
    "KVM_SMI": "KVM_CAP_X86_SMM",
    "KVM_SET_GUEST_DEBUG": "KVM_CAP_SET_GUEST_DEBUG",
    "KVM_GET_VCPU_EVENTS": "KVM_CAP_VCPU_EVENTS",
    "KVM_SET_VCPU_EVENTS": "KVM_CAP_VCPU_EVENTS",
    "KVM_GET_DEBUGREGS": "KVM_CAP_DEBUGREGS",
    "KVM_SET_DEBUGREGS": "KVM_CAP_DEBUGREGS",
    "KVM_GET_XSAVE": "KVM_CAP_XSAVE",
    "KVM_SET_XSAVE": "KVM_CAP_XSAVE",
    "KVM_GET_XSAVE2": "KVM_CAP_XSAVE2",
    "KVM_GET_NESTED_STATE": "KVM_CAP_NESTED_STATE",
    "KVM_SET_NESTED_STATE": "KVM_CAP_NESTED_STATE",
    "KVM_GET_XCRS": "KVM_CAP_XCRS",
    "KVM_SET_XCRS": "KVM_CAP_XCRS",
    "KVM_GET_TSC_KHZ": "KVM_CAP_GET_TSC_KHZ",
    "KVM_SET_TSC_KHZ": "KVM_CAP_TSC_CONTROL",
    "KVM_GET_DEVICE_ATTR": "KVM_CAP_VCPU_ATTRIBUTES",
    "KVM_SET_DEVICE_ATTR": "KVM_CAP_VCPU_ATTRIBUTES",
}


def known() -> dict[str, int]:
    """Name to number of every capability that this build knows of."""
    return {name: getattr(lib, name) for name in dir(lib) if name.startswith("KVM_CAP_")}
