"""Opens a raw disk image: which file it is, whether it can be one, and nobody else's."""

import errno
import mmap
import os
import stat
import tempfile
from contextlib import ExitStack, suppress
from typing import Final, Self

from vmm._native import lib
from vmm.disks import locks
from vmm.disks.drives import SERVED, Drive
from vmm.errors import ConfigError

SECTOR: Final[int] = lib.SECTOR_SIZE

_LARGEST_OVERLAY: Final = 16 << 40
"""Bytes of an image with an overlay, whose bitmap of sectors has an address space of a 4096th of that."""

_MAP_NORESERVE: Final = 0x4000
"""<asm-generic/mman.h>: of the bitmap, only pages that have a bit set ever need memory."""

_PROBED: Final = 4096

_FORMATS: Final = {
    b"QFI\xfb": "qcow2",
    b"KDMV": "vmdk",
    b"COWD": "vmdk",
    b"# Disk DescriptorFile": "vmdk",
    b"vhdxfile": "vhdx",
    b"conectix": "vpc",
    b"QED\0": "qed",
    b"LUKS\xba\xbe": "luks",
    b"<<< ": "vdi",
    b"WithoutFreeSpace": "parallels",
    b"WithouFreSpacExt": "parallels",
}
"""What other formats begin with, and qemu-img's names for them."""

_PACKED: Final = {b"\x1f\x8b": "gzip -d", b"\xfd7zXZ\0": "xz -d", b"\x28\xb5\x2f\xfd": "zstd -d", b"BZh": "bzip2 -d"}
"""What packed files begin with, and what unpacks them."""

_ALIGNMENTS: Final = (512, 4096)
"""What direct I/O may ask of offsets and lengths: the logical block size of the disk below."""


class DiskImage:
    """An image, open and locked; a context manager that closes it.

    Args:
        drive: which file, and how it is used.
        copy: of a folder, the descriptor of the disk that an earlier machine made of it; becomes this object's. None:
            it is made now.
        number: which of the machine's disks it is, for a folder's identifiers.

    Attributes:
        drive: the same.
        size: bytes, whole sectors.
        fd: the image.
        direct_fd: the image with O_DIRECT, where that was asked for; else -1.
        direct_alignment: what it needs.
        overlay_fd: the file that takes what is written, where there is one; else -1.
        overlaid: one bit for each sector of the image: it is in the overlay.

    Raises:
        ConfigError: it cannot be opened, is no raw image, or somebody else writes to it.
    """

    def __init__(self, drive: Drive, copy: int | None = None, number: int = 0) -> None:
        self.drive = drive
        self.direct_fd = self.overlay_fd = -1
        self.direct_alignment = SECTOR
        self.overlaid: mmap.mmap | None = None
        with ExitStack() as closers:
            flags = os.O_RDONLY if drive.only_read else os.O_RDWR
            if copy is None:
                copy = _copy(drive, number) if drive.folder else open_image(drive, flags)
            self.fd = copy
            closers.callback(os.close, self.fd)
            check_kind(self.fd, drive)
            self.size = _size(self.fd, drive)
            lock_image(self.fd, drive)
            if drive.cache.direct:
                self.direct_fd = open_image(drive, flags | os.O_DIRECT)
                closers.callback(os.close, self.direct_fd)
                self.direct_alignment = _alignment(self.direct_fd)
            if drive.snapshot and not drive.read_only:
                self._lay_over(closers)
            self._closers = closers.pop_all()

    @property
    def slot(self) -> int | None:
        """PCI device number that was asked for."""
        return self.drive.slot

    @property
    def option(self) -> str:
        """What messages call it."""
        return self.drive.option

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and give up the locks; an overlay is gone then. May be called twice."""
        self._closers.close()

    def _lay_over(self, closers: ExitStack) -> None:
        if self.size > _LARGEST_OVERLAY:
            raise ConfigError(
                f"{self.drive.option}: snapshot=on is for images up to {_LARGEST_OVERLAY >> 40} TiB; "
                f"this one has {self.size >> 40} TiB"
            )
        try:
            file = tempfile.TemporaryFile(prefix="vmm-", buffering=0)  # noqa: SIM115  # closed with the image
            closers.callback(file.close)
            self.overlay_fd = file.fileno()
            os.ftruncate(self.overlay_fd, self.size)
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
            self.overlaid = mmap.mmap(-1, -(-self.size // SECTOR // 8), flags=flags)
        except OSError as error:
            raise ConfigError(
                f"{self.drive.option}: no room in {tempfile.gettempdir()} for what the guest writes: {_reason(error)}; "
                "TMPDIR names another place"
            ) from None


def _copy(drive: Drive, number: int) -> int:
    from vmm.disks.folder import image_of  # few disks are one

    return image_of(drive.path, drive.option, number)


def open_image(drive: Drive, flags: int) -> int:
    """Return the descriptor of a disk's image, opened with these flags.

    Raises:
        ConfigError: it cannot be opened.
    """
    path = drive.path
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except FileNotFoundError:
        make = f"qemu-img create -f {drive.format} {path} 64M" if drive.served else f"truncate -s 64M {path}"
        raise ConfigError(f"{drive.option}: there is no such file; {make} makes an empty disk") from None
    except (OSError, ValueError) as error:
        why = _reason(error)
        if isinstance(error, OSError) and error.errno == errno.EINVAL and flags & os.O_DIRECT:
            why = f"its file system has no direct I/O, which cache={drive.cache} needs; cache=writeback does without"
        elif (
            isinstance(error, OSError) and error.errno in {errno.EACCES, errno.EPERM, errno.EROFS} and flags & os.O_RDWR
        ):
            why += "; readonly=on or snapshot=on leaves it as it is"
        raise ConfigError(f"{drive.option}: cannot open it: {why}") from None


def check_kind(fd: int, drive: Drive) -> None:
    """Refuse what is no image, or one of another format than was said.

    Raises:
        ConfigError: says what it is.
    """
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{drive.option}: is a directory; give the file of an image")
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
        raise ConfigError(f"{drive.option}: is neither a file nor a block device, and cannot be read at any place")
    if drive.format != "raw":
        _check_format(fd, drive)


def lock_image(fd: int, drive: Drive) -> None:
    """Lock a disk's image for what the disk does with it, until the descriptor is closed.

    Raises:
        ConfigError: somebody else does what excludes that; says who.
    """
    try:
        owner = locks.lock(fd, writes=not drive.only_read)
    except OSError as error:
        raise ConfigError(f"{drive.option}: cannot lock the image: {_reason(error)}") from None
    if owner is not None:
        what = "writes to it" if drive.only_read else "uses it"
        raise ConfigError(f"{drive.option}: {owner} {what}; end it first, or give this machine a copy")


def _size(fd: int, drive: Drive) -> int:
    size = os.lseek(fd, 0, os.SEEK_END)
    if size == 0:
        raise ConfigError(f"{drive.option}: is empty; truncate -s 64M {drive.path} gives it a size")
    if size % SECTOR:
        raise ConfigError(
            f"{drive.option}: has {size} bytes, no whole number of sectors of {SECTOR}; "
            f"truncate -s %{SECTOR} {drive.path} adds what is missing"
        )
    return size


def _check_format(fd: int, drive: Drive) -> None:
    """Refuse what is in another format: a guest would see the format's own data, and destroy it by the first write."""
    try:
        start = os.pread(fd, _PROBED, 0)
    except OSError as error:
        raise ConfigError(f"{drive.option}: cannot read it: {_reason(error)}") from None
    found = next((name for magic, name in _FORMATS.items() if start.startswith(magic)), None)
    if drive.format is not None:
        if found != drive.format:
            what = "no image of any format that is known" if found is None else f"a {found} image"
            raise ConfigError(f"{drive.option}: format={drive.format}: is {what}")
        return
    if found in SERVED:
        raise ConfigError(
            f"{drive.option}: is a {found} image: format={found} uses it as one (format=raw takes it as it is)"
        )
    if found is not None:
        raise ConfigError(
            f"{drive.option}: is a {found} image, which is not known: qemu-img convert -f {found} -O raw {drive.path} "
            "disk.raw makes a raw one (format=raw takes it for a disk as it is)"
        )
    for magic, command in _PACKED.items():
        if start.startswith(magic):
            raise ConfigError(f"{drive.option}: is packed; {command} unpacks it (format=raw takes it as it is)")


def _alignment(fd: int) -> int:
    """Find out by trying what direct reads of a file have to be aligned to."""
    with mmap.mmap(-1, _PROBED) as page:
        for alignment in _ALIGNMENTS:
            with suppress(OSError):
                os.preadv(fd, [memoryview(page)[:alignment]], 0)
                return alignment
    return _ALIGNMENTS[-1]


def _reason(error: OSError | ValueError) -> str:
    return ((error.strerror if isinstance(error, OSError) else None) or str(error)).lower()
