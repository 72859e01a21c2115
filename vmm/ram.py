"""Where guest RAM comes from: memory of this process alone, or such as other processes can map."""

from __future__ import annotations

import mmap
import os

from vmm.errors import ConfigError, HostError
from vmm.typed import NamedTuple

HUGE_PAGE_SIZE = 2 << 20
"""RAM begins at a multiple of it, for KVM maps 2 MiB at once only where host and guest addresses agree that far
(kvm_alloc_memslot_metadata in arch/x86/kvm/x86.c). It forgets all mappings when a memory slot goes, and flash's goes
for each variable that firmware writes: with pages of 4 KiB, OVMF's boot has ten times as many nested page faults.
"""

_MAP_NORESERVE = 0x4000
"""<asm-generic/mman-common.h>; Python names it from 3.13 on."""


class KeptRam(NamedTuple):
    """RAM that is there already, of an earlier machine.

    Attributes:
        mapping: all of it, and nothing else.
        filled: offsets and sizes of what may hold other bytes than zeros.
    """

    mapping: mmap.mmap
    filled: list[tuple[int, int]]


def shared_ram(size: int) -> tuple[int, mmap.mmap]:
    """Memory that other processes can map, too, with room for `HUGE_PAGE_SIZE`: a memfd, and its mapping.

    Its size is sealed: who cut it off would make us touch what is not there.
    """
    import fcntl  # few machines share their memory

    size += HUGE_PAGE_SIZE
    try:
        fd = os.memfd_create("vmm-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise HostError(f"no shared memory for the guest's RAM: {error}") from error
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return fd, mmap.mmap(fd, size, flags=mmap.MAP_SHARED | _MAP_NORESERVE)
    except (OSError, OverflowError) as error:
        os.close(fd)
        raise ConfigError(f"cannot map {size >> 20} MiB of guest RAM: {error}; ask for less with -m") from error


def fresh_ram(size: int) -> mmap.mmap:
    """Anonymous memory, with room for `HUGE_PAGE_SIZE`.

    Not a memfd: Linux gives those huge pages only where an administrator asked for it (shmem_enabled, "never" by
    default), and without them KVM maps 4 KiB at a time.
    """
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        return mmap.mmap(-1, size + HUGE_PAGE_SIZE, flags=flags)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot map {size >> 20} MiB of guest RAM: {error}; ask for less with -m") from error
