"""Names of KVM_EXIT numbers, for reports. Apart from `vmm.kvm.exits`, whose classes a machine never loads."""

from vmm._native import lib

_NAMES: dict[int, str] = {
    getattr(lib, name): name.removeprefix("KVM_EXIT_").removeprefix("X86_").lower().replace("_", "-")
    for name in dir(lib)
    if name.startswith("KVM_EXIT_") and name not in {"KVM_EXIT_IO_IN", "KVM_EXIT_IO_OUT"}
}


def reason_name(reason: int) -> str:
    """``io``, ``mmio``, ``hlt`` … for a KVM_EXIT number; ``exit-N`` for one without a name here."""
    return _NAMES.get(reason, f"exit-{reason}")
