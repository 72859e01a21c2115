"""Who executes a guest of a test that is not about that."""

from vmm.errors import HostError
from vmm.kvm import Kvm


def device_lacks() -> str | None:
    """Return what keeps this user from KVM itself, in one line."""
    try:
        Kvm().close()
    except HostError as error:
        return str(error)
    return None


PLAIN = "kvm" if device_lacks() is None else "softcpu"
"""What starts at once, and runs small guests on each host."""
