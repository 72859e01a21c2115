"""Every error that vmm raises on purpose, but for those of `vmm.run.expected`.

The text of each says what failed, with which value, and what to do about it;
the command line prints it as one line and exits with ``exit_status``.
"""

from enum import IntEnum


class ExitStatus(IntEnum):
    """What the process returns to its shell."""

    OK = 0
    """The guest reached ``--until``, or powered itself off."""
    GUEST_FAILED = 1
    """Triple fault, emulation failure, or a reset that nobody expected."""
    USAGE = 2
    """Wrong usage, or bad input: a flag, a file, an image."""
    TIMEOUT = 3
    """The deadline passed first."""
    HOST_LACKS = 4
    """The host lacks something: ``/dev/kvm``, a permission, a capability."""
    INTERRUPTED = 130
    """Ctrl-C."""


class VmmError(Exception):
    """Base of all errors here; never raised itself."""

    exit_status = ExitStatus.GUEST_FAILED


class ConfigError(VmmError):
    """What the user asked for makes no sense, or a file of theirs is unusable."""

    exit_status = ExitStatus.USAGE


class TimeoutExpired(VmmError):  # noqa: N818  # it is no defect of anybody's, like subprocess's
    """The time that the user allows was over before the guest could start."""

    exit_status = ExitStatus.TIMEOUT


class HostError(VmmError):
    """The host lacks something that the machine needs."""

    exit_status = ExitStatus.HOST_LACKS


class KvmError(VmmError):
    """KVM refused a call."""

    exit_status = ExitStatus.HOST_LACKS

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


class MachineDiedError(VmmError):
    """The process of a machine that has one of its own (``sandbox="process"``) has ended; others go on."""


class DeviceError(VmmError):
    """A device of ours failed while it served the guest: a defect of vmm, kept for the caller of ``run``."""
