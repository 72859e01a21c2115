"""The one seam to the kernel: every open, ioctl and close of KVM, and the one way from an errno to an error."""

from __future__ import annotations

import errno
import os

from vmm._native import ffi, lib
from vmm.errors import KvmError
from vmm.kvm.structs import CpuidEntry, Struct, cpuid_from_c
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Self

_REMEDIES = {
    errno.EBADF: "it is closed already; use it inside its 'with' block",
    errno.EEXIST: "it exists already, or overlaps one that does; remove that first",
    errno.EINVAL: "KVM does not accept this value here",
    errno.E2BIG: "ask for fewer entries",
    errno.ENOMEM: "give the host more memory, or ask for less",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENFILE: "the system is out of open files: raise fs.file-max",
    errno.EFAULT: "the memory behind it is not mapped in this process, or no longer",
    errno.EBUSY: "another process uses the CPU's virtualization; end it first",
    errno.ENXIO: "create the in-kernel interrupt controller first",
    errno.ENOENT: "there is none",
    errno.EPERM: "the kernel does not permit it; see the host's security settings",
}


def kvm_error(error: int, ioctl: str, subject: str) -> KvmError:
    """The exception for ``error`` (an errno) of the call ``ioctl`` on ``subject``."""
    from vmm.kvm.capabilities import REQUIRED_BY_IOCTL

    needed = REQUIRED_BY_IOCTL.get(ioctl)
    if error == errno.ENOTTY and needed:
        remedy = f"it needs {needed}, which this kernel does not have"
    elif error == errno.ENOTTY:
        remedy = "this kernel does not have it"
    else:
        remedy = _REMEDIES.get(error, "see the kernel log")
    name = errno.errorcode.get(error, str(error))
    return KvmError(f"{ioctl} failed for {subject}: {os.strerror(error)} ({name}); {remedy}", error)


class Descriptor:
    """A file descriptor of KVM, owned: closed by `close`, by the end of a ``with`` block, or with the object.

    Attributes:
        fd: the descriptor, close-on-exec; -1 once closed, so that every later call fails with EBADF.
    """

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self._name = name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}, {'closed' if self.closed else f'fd {self.fd}'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # A constructor that raised leaves an object without a descriptor.
        if hasattr(self, "fd") and not self.closed:
            self.close()

    @property
    def closed(self) -> bool:
        """Has `close` been called?"""
        return self.fd < 0

    def close(self) -> None:
        """Give the descriptor back; calling this again does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _request(self, number: int, argument: Any) -> int:
        """ioctl(2) with a pointer: its result, or a negative errno; what is no file descriptor has another."""
        result: int = lib.kvm_abi_ioctl(self.fd, number, argument)
        return result

    def _request_value(self, number: int, value: int) -> int:
        """ioctl(2) with a number, likewise."""
        result: int = lib.kvm_abi_ioctl_value(self.fd, number, value)
        return result

    def _ioctl(self, ioctl: str, argument: Any = ffi.NULL, *, subject: str = "") -> int:
        """Call ``ioctl`` with a pointer; the GIL is released meanwhile. Returns its result, never negative."""
        argument = argument.cdata if isinstance(argument, Struct) else argument
        result = self._request(getattr(lib, ioctl), argument)
        if result < 0:
            raise kvm_error(-result, ioctl, subject or self._name)
        return result

    def _ioctl_value(self, ioctl: str, value: int = 0, *, subject: str = "") -> int:
        """Call ``ioctl`` with a number. Returns its result, never negative."""
        result = self._request_value(getattr(lib, ioctl), value)
        if result < 0:
            raise kvm_error(-result, ioctl, subject or self._name)
        return result

    def _get(self, ioctl: str, ctype: str) -> Any:
        """A new struct that ``ioctl`` fills, as cffi has it."""
        result = ffi.new(f"{ctype} *")
        self._ioctl(ioctl, result)
        return result

    def _get_struct(self, ioctl: str, ctype: str) -> Any:
        """The same, as users have it."""
        return Struct(self._get(ioctl, ctype))

    def _get_cpuid(self, ioctl: str) -> list[CpuidEntry]:
        """The leaves that ``ioctl`` lists; how many there are it does not say."""
        room = 128
        while True:
            table = ffi.new("struct kvm_cpuid2 *", {"nent": room, "entries": room})
            try:
                self._ioctl(ioctl, table)
            except KvmError as error:
                if error.errno != errno.E2BIG or room > 4096:
                    raise
                room *= 2
            else:
                return cpuid_from_c(table)
