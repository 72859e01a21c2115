"""Disks as people write them: QEMU's ``-drive`` and ``-device virtio-blk-pci``, and bhyve's ``-s N,virtio-blk``.

QEMU tells what a disk is made of (``-drive``) from what the guest sees of it (``-device``); ``if=virtio`` says both.
Here, one `Drive` is both.
"""

import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from vmm import options
from vmm.errors import ConfigError
from vmm.tables.boot_order import MAX_BOOTINDEX

DEVICES = ("virtio-blk-pci", "virtio-blk-pci-non-transitional", "virtio-blk")
"""QEMU's names for the device; here it is always a modern one."""

_DRIVE_KEYS = (
    *("if", "format", "file", "readonly", "read-only", "id", "snapshot", "cache", "discard", "media", "aio"),
    "secret-file",
)
_DEVICE_KEYS = ("driver", "drive", "id", "bootindex", "serial", "addr", "bus", "disable-legacy", "disable-modern")
_BHYVE_FLAGS = {
    "ro": "readonly=on",
    "nocache": "cache=none",
    "direct": "cache=directsync",
    "nodelete": "discard=ignore",
}
_INTERFACES = ("virtio", "none")
_MAX_SERIAL = 20
"""Bytes (virtio 1.2, 5.2.6: VIRTIO_BLK_T_GET_ID)."""

ROOT_BUSES = {"pcie.0", "pci.0"}
"""What QEMU calls the root bus of its boards."""

SERVED = ("qcow2", "vmdk", "vdi", "vhdx", "qed", "luks")
"""Formats of images that are not read here, but by QEMU's storage daemon (`vmm.vhost.storage_daemon`)."""

SCHEMES = ("nbd", "nbd+unix", "http", "https")
"""Of images elsewhere, which that daemon serves, too."""

DEFAULT_INTERFACE = "virtio"
"""QEMU's is IDE, which there is none of."""


class Cache(StrEnum):
    """How writes reach the disk, as QEMU's ``cache=`` names it."""

    WRITEBACK = "writeback"
    """Through the host's page cache; on the disk once the guest flushes."""
    NONE = "none"
    """Past the host's page cache (O_DIRECT); on the disk once the guest flushes."""
    WRITETHROUGH = "writethrough"
    """Through the page cache, and on the disk before the guest hears of it."""
    DIRECTSYNC = "directsync"
    """Past the page cache, and on the disk before the guest hears of it."""
    UNSAFE = "unsafe"
    """Through the page cache; the guest's flushes do nothing."""

    @property
    def direct(self) -> bool:
        """Past the host's page cache."""
        return self in {Cache.NONE, Cache.DIRECTSYNC}

    @property
    def write_back(self) -> bool:
        """Whether a write that the guest was told of may be lost with the host's power."""
        return self not in {Cache.WRITETHROUGH, Cache.DIRECTSYNC}


class Drive(NamedTuple):
    """An image, and the virtio-blk device that shows it to the guest."""

    path: Path
    read_only: bool = False
    snapshot: bool = False
    """Writes go into a private file that is gone with the machine; the image stays as it is."""
    cache: Cache = Cache.WRITEBACK
    unmap: bool = False
    """What the guest discards is given back to the file system, ``discard=unmap``."""
    format: str | None = None
    """What the image was said to be: "raw", whatever it looks like, or one of `SERVED`; None: raw, if it looks so."""
    id: str | None = None
    serial: str = ""
    """What the guest can ask for, up to 20 ASCII characters."""
    bootindex: int | None = None
    """Its place among what firmware boots, the lowest first; None: it has none."""
    slot: int | None = None
    """PCI device number, ``addr=``; None: the first that is free."""
    folder: bool = False
    """The path is a folder (or one file), and the disk a copy of it with an EFI system partition, ``--esp``."""
    secret: Path | None = None
    """The file that holds the passphrase of an encrypted image, all of it, a newline at its end included."""
    url: str = ""
    """Where the image is, if it is no file: ``nbd://HOST/EXPORT``, ``https://HOST/PATH`` and their like; `path` is no
    more than its name then."""

    @property
    def option(self) -> str:
        """What messages call it."""
        return f"--esp {self.path}" if self.folder else f"-drive file={self.url or self.path}"

    @property
    def served(self) -> bool:
        """Whether another process serves it."""
        return self.format in SERVED or bool(self.url)

    @property
    def only_read(self) -> bool:
        """Whether the image stays as it is, whatever the guest writes."""
        return self.read_only or self.snapshot or self.folder

    def check(self) -> None:
        """Refuse what no disk can be.

        Raises:
            ConfigError: says what.
        """
        if len(self.serial) > _MAX_SERIAL or not self.serial.isascii() or not self.serial.isprintable():
            raise ConfigError(f"{self.option}: serial={self.serial}: {_MAX_SERIAL} ASCII characters at the most")
        if self.served and self.serial:
            raise ConfigError(f"{self.option}: serial={self.serial}: only for raw images; the daemon has its own")
        if (self.format == "luks") != (self.secret is not None) and self.format != "qcow2":
            what = (
                "needs the passphrase" if self.secret is None else "has no passphrase; format=luks and qcow2 have one"
            )
            raise ConfigError(f"{self.option}: {what}: secret-file=PATH, or key-secret=ID of an -object secret")
        if self.url and self.format is None:
            raise ConfigError(f"{self.option}: say which format it has: format=raw, or {' or '.join(SERVED)}")
        if self.url.startswith("http") and not self.only_read:
            raise ConfigError(f"{self.option}: cannot be written; readonly=on or snapshot=on leaves it as it is")
        if self.folder and self.cache.direct:
            raise ConfigError(f"{self.option}: cache={self.cache} is for images; the disk of a folder is a copy")

    @classmethod
    def parse(cls, value: "Drive | Path | str") -> "Drive":
        """Return the disk of a ``-drive`` text, or of a path: a raw image that the guest may write.

        Raises:
            ConfigError: what the text has to say is not known.
        """
        if isinstance(value, Drive):
            return value
        if isinstance(value, str):
            return _Backend.parse(value).drive
        return cls(value, snapshot=is_of_a_package(value))


class Placed(Protocol):
    """What has a place in PCI, and perhaps one in the boot order."""

    @property
    def option(self) -> str:
        """What messages call it."""

    @property
    def bootindex(self) -> int | None:
        """Its place among what firmware boots."""

    @property
    def slot(self) -> int | None:
        """PCI device number, where one was asked for."""


class _Backend(NamedTuple):
    """A ``-drive``, and whether a ``-device`` is to come."""

    drive: Drive
    waits: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        keys = options.parse_keys(text, "-drive", known=_DRIVE_KEYS)
        what = f"-drive {text}"
        interface = keys.get("if", DEFAULT_INTERFACE)
        if interface not in _INTERFACES:
            raise ConfigError(f"{what}: if={interface} is not known; there are virtio, none (with -device) and pflash")
        if keys.get("format", "raw") not in {"raw", *SERVED}:
            raise ConfigError(
                f"{what}: format={keys['format']} is not known; known are raw (qemu-img convert -O raw), "
                f"{', '.join(SERVED)}"
            )
        scheme, separator, _ = keys.get("file", "").partition("://")
        if separator and re.fullmatch(r"[a-z][a-z0-9+]*", scheme) and scheme not in SCHEMES:
            raise ConfigError(f"{what}: {scheme}:// is not known; known are {', '.join(SCHEMES)}")
        if keys.get("media", "disk") != "disk":
            raise ConfigError(
                f"{what}: media={keys['media']}: there are no CD drives; an image of a CD boots as a disk"
            )
        if keys.get("aio", "threads") != "threads":
            raise ConfigError(f"{what}: aio={keys['aio']} is not known; threads is")
        if not keys.get("file"):
            raise ConfigError(f"{what}: file=PATH is missing")
        if interface == "none" and not keys.get("id"):
            raise ConfigError(f"{what}: if=none needs an id=, for -device virtio-blk-pci,drive=ID")
        discard = keys.get("discard", "ignore")
        if discard not in {"ignore", "off", "unmap", "on"}:
            raise ConfigError(f"{what}: discard={discard}: write ignore or unmap")
        if keys.get("cache", "writeback") not in set(Cache):
            raise ConfigError(f"{what}: cache={keys['cache']} is not known; known are {', '.join(Cache)}")
        path = Path(keys["file"])
        drive = Drive(
            path,
            read_only=options.parse_bool(keys.get("readonly", keys.get("read-only", "off")), "-drive readonly"),
            snapshot=is_of_a_package(path)
            if "snapshot" not in keys
            else options.parse_bool(keys["snapshot"], "-drive snapshot"),
            cache=Cache(keys.get("cache", "writeback")),
            unmap=discard in {"unmap", "on"},
            format=keys.get("format"),
            id=keys.get("id"),
            secret=Path(keys["secret-file"]) if "secret-file" in keys else None,
            url=keys["file"] if separator and scheme in SCHEMES else "",
        )
        return cls(drive, interface == "none")


def is_of_a_package(path: Path) -> bool:
    """Whether a file belongs to what a distribution installed, and is not the user's to be changed by a guest.

    Below /usr, and not below /usr/local (Filesystem Hierarchy Standard 3.0, 4.1 and 4.9).
    """
    real = _real(path)
    return real.is_relative_to("/usr") and not real.is_relative_to("/usr/local")


def _real(path: Path) -> Path:
    """Return where links lead; a path that leads nowhere as it is, for opening it says why."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return path


def _identity(path: Path) -> object:
    """Return what two paths to one file have in common."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return _real(path)
    return status.st_dev, status.st_ino


def is_disk(device: str) -> bool:
    """Whether a ``-device`` text names a disk."""
    return options.implied_value(device, "driver") in DEVICES


def parse_drives(drives: Iterable[Drive | Path | str], devices: Iterable[str]) -> tuple[Drive, ...]:
    """Return the disks of a machine, in the order in which they were given.

    Args:
        drives: disks, images, or ``-drive`` texts.
        devices: ``-device virtio-blk-pci`` texts.

    Raises:
        ConfigError: one of them makes no sense, or does not go with the others.
    """
    backends = [
        _Backend.parse(value) if isinstance(value, str) else _Backend(Drive.parse(value), waits=False)
        for value in drives
    ]
    names = [backend.drive.id for backend in backends if backend.drive.id is not None]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"-drive id={name}: the id is given twice")
    shown: dict[str, Drive] = {}
    for text in devices:
        name, drive = _device(text, {backend.drive.id: backend for backend in backends})
        if name in shown:
            raise ConfigError(f"-device {text}: the drive {name} has a device already")
        shown[name] = drive
    result = []
    for backend in backends:
        drive = shown.get(backend.drive.id or "", backend.drive)
        if backend.waits and drive is backend.drive:
            raise ConfigError(f"-drive id={drive.id}: no device shows it; add -device virtio-blk-pci,drive={drive.id}")
        result.append(drive)
    return tuple(result)


def _device(text: str, backends: dict[str | None, _Backend]) -> tuple[str, Drive]:
    """Return which drive a ``-device`` shows, and the drive as it is then."""
    what = f"-device {text}"
    keys = options.parse_keys(text, "-device", known=_DEVICE_KEYS, implied="driver")
    name = keys.get("drive", "")
    backend = backends.get(name)
    if backend is None or not name:
        raise ConfigError(f"{what}: drive={name}: there is no -drive if=none,id={name or 'ID'},file=PATH,format=raw")
    if not backend.waits:
        raise ConfigError(f"{what}: the drive {name} has a device already: its -drive says if=virtio, not if=none")
    if keys.get("bus", "pci.0") not in ROOT_BUSES:
        raise ConfigError(f"{what}: bus={keys['bus']}: there is one bus, pcie.0 or pci.0")
    if options.parse_bool(keys.get("disable-modern", "off"), "-device disable-modern"):
        raise ConfigError(f"{what}: disable-modern=on: the device has no legacy interface to fall back on")
    return name, backend.drive._replace(
        serial=keys.get("serial", ""),
        bootindex=parse_bootindex(keys.get("bootindex")),
        slot=None if "addr" not in keys else parse_slot(keys["addr"], what),
    )


def parse_bootindex(text: str | None) -> int | None:
    """Read ``bootindex=``; None: there is none.

    Raises:
        ConfigError: it is no number that QEMU takes.
    """
    if text is None:
        return None
    return options.parse_int(text, "-device bootindex=", minimum=0, maximum=MAX_BOOTINDEX)


def parse_slot(text: str, what: str) -> int:
    """Read ``addr=``: a PCI device number, in hexadecimal as QEMU's, of which the function can only be 0.

    Raises:
        ConfigError: it is none; says so of ``what``.
    """
    device, _, function = text.partition(".")
    try:
        slot = int(device, 16)
    except ValueError:
        slot = -1
    if not 0 <= slot < 32 or function not in {"", "0"}:
        raise ConfigError(f"{what}: addr={text}: a PCI device number, from 1 to 1f (hexadecimal)")
    return slot


def check_together(drives: Iterable[Drive], others: Iterable[Placed] = ()) -> None:
    """Refuse disks, and other devices on their bus, that contradict each other.

    Raises:
        ConfigError: two are the same image, or have the same place in the boot order, or in PCI.
    """
    drives = tuple(drives)
    images: dict[object, Drive] = {}
    for drive in drives:
        drive.check()
        other = images.setdefault(_identity(drive.path), drive)
        if other is not drive and not (drive.only_read and other.only_read):
            raise ConfigError(f"{drive.option}: the image is another disk's already")
    indices: dict[int, Placed] = {}
    slots: dict[int, Placed] = {}
    for each in (*drives, *others):
        places = (("bootindex={}", each.bootindex, indices), ("addr={:x}", each.slot, slots))
        for what, number, taken in places:
            if number is not None and taken.setdefault(number, each) is not each:
                raise ConfigError(f"{each.option}: {what.format(number)} is taken by {taken[number].option}")


def from_bhyve(text: str) -> tuple[str, str] | None:
    """Return ``-drive`` and ``-device`` texts for bhyve's ``SLOT,virtio-blk,PATH[,OPTION…]``; None: no such disk.

    Raises:
        ConfigError: an option that is not known.
    """
    place, *parts = options.split_commas(text)
    if len(parts) < 2 or parts[0] != "virtio-blk":
        return None
    what = f"-s {text}"
    numbers = place.split(":")
    bus = numbers.pop(0) if len(numbers) == 3 else "0"
    slot, function = numbers if len(numbers) == 2 else (place, "0")
    if bus != "0" or function != "0" or not slot.isdecimal() or not 0 < int(slot) < 32:
        raise ConfigError(f"{what}: the bus is 0, the slot from 1 to 31, the function 0")
    name = f"slot{int(slot)}"
    backend = [f"if=none,id={name},file={parts[1].replace(',', ',,')}"]
    frontend = [f"virtio-blk-pci,drive={name},addr={int(slot):x}"]
    for option in parts[2:]:
        key, separator, value = option.partition("=")
        if option in _BHYVE_FLAGS:
            backend.append(_BHYVE_FLAGS[option])
        elif separator and key == "ser":
            frontend.append(f"serial={value}")
        elif separator and key == "bootindex":
            frontend.append(option)
        else:
            known = ", ".join((*_BHYVE_FLAGS, "ser=", "bootindex="))
            raise ConfigError(f"{what}: unknown option '{option}'; known: {known}")
    return ",".join(backend), ",".join(frontend)
