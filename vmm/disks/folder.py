"""A folder as a disk: its files in a FAT32 file system, which is the EFI system partition of a GPT disk.

mtools makes the file system, for which it needs neither root nor a mount. It is a copy: the guest may write to it, and
it is gone with the machine.
"""

import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from vmm.disks import gpt
from vmm.disks.fat import long_names
from vmm.errors import ConfigError, HostError
from vmm.legible import legible, shortened

_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
_LABEL = "VMM ESP"
_SERIAL = 0x564D4D00
_MADE: Final = 1_767_225_600
"""When the file system was made, for what in it has no time of its own: 2026-01-01, in seconds since 1970."""

_SLACK: Final = 32 * _MIB
"""Room for what the guest writes, beside an eighth of what is there."""
_LEAST: Final = 64 * _MIB
"""Of a partition: with clusters of one sector, more than the 65525 that make it FAT32 (Microsoft's FAT specification
1.03, 3.5)."""
_LARGEST: Final = (1 << 41) - 64 * _MIB
"""Of a partition: FAT32 counts its sectors in 32 bits."""
_LARGEST_FILE: Final = (1 << 32) - 1
_CLUSTERS: Final = ((260 * _MIB, 1), (8 * _GIB, 8), (16 * _GIB, 16), (32 * _GIB, 32))
"""Sectors of a cluster, by size of the partition (FAT specification 1.03, 3.5); larger ones have 64."""
_LARGEST_CLUSTER: Final = 64 * gpt.SECTOR

_FORBIDDEN: Final = frozenset('"*/:<>?\\|')
_RESERVED: Final = frozenset(
    ("CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in (1, 2, 3, 4)))
)
"""What mtools takes for a device of DOS, and does not copy."""

_MAX_NAME = 255
"""Characters of a long name (FAT specification 1.03, 7)."""
_NAME_BYTES: Final = 32 * (1 + -(-_MAX_NAME // 13))
"""The most that a name takes in its folder: entries of 32 bytes, one and another for every 13 characters."""


def image_of(folder: Path, option: str, number: int) -> int:
    """Return the descriptor of a new disk with a folder's files; it has no name in any directory.

    The same files, with the same times, make the same disk.

    Args:
        folder: the folder, whose files are in the root of the file system; or one file, which is there alone.
        option: what messages call it.
        number: which of the machine's disks it is.

    Raises:
        ConfigError: there is no such folder, or nothing in it; FAT cannot carry a name, or so much.
        HostError: mtools is missing, or there is no room for a temporary file.
    """
    top = [folder] if folder.is_file() else _entries(folder, option)
    _check_names(top, option)
    odd: list[Path] = []
    sizes = list(_sizes(top, option, (), odd))
    copied = sum(sizes)
    size = copied + copied // 8 + len(sizes) * (_LARGEST_CLUSTER + _NAME_BYTES) + _SLACK
    size = max(_LEAST, -(-size // _MIB) * _MIB)
    if size > _LARGEST:
        raise ConfigError(f"{option}: {copied >> 30} GiB are more than the {_LARGEST >> 30} GiB that FAT can hold")
    sectors = size // gpt.SECTOR + gpt.FIRST_SECTOR + gpt.TRAILER_SECTORS
    start, end = gpt.tables(sectors, _LABEL, number)
    with tempfile.TemporaryFile(prefix="vmm-", buffering=0) as file:
        fd = file.fileno()
        room = os.fstatvfs(fd)
        if room.f_bavail * room.f_frsize < copied + _MIB:
            raise HostError(
                f"{option}: no room in {tempfile.gettempdir()} for a copy of it, {copied >> 20} MiB; "
                "TMPDIR names another place"
            )
        os.ftruncate(fd, sectors * gpt.SECTOR)
        os.pwrite(fd, start, 0)
        os.pwrite(fd, end, sectors * gpt.SECTOR - len(end))
        cluster = next((count for limit, count in _CLUSTERS if size <= limit), 64)
        geometry = ["-T", str(size // gpt.SECTOR), "-h", "255", "-s", "63", "-H", str(gpt.FIRST_SECTOR)]
        serial = f"{_SERIAL + number:08x}"
        label = ["-m", "0xf8", "-N", serial, "-v", _LABEL]
        _mtools(fd, "mformat", ["-F", "-c", str(cluster), *geometry, *label, "::"], option)
        # Absolute, for a word that begins with a dash or has a colon is something else.
        _mtools(fd, "mcopy", ["-s", "-m", "-Q", *(os.path.abspath(path) for path in top), "::"], option)  # noqa: PTH100
        _check_long_names(fd, odd, len(top[0].parts) - 1, option)
        return os.dup(fd)


def _entries(folder: Path, option: str) -> list[Path]:
    """Return what lies directly in the folder that the user named."""
    try:
        entries = sorted(folder.iterdir())
    except FileNotFoundError:
        raise ConfigError(f"{option}: there is no such folder") from None
    except NotADirectoryError:
        raise ConfigError(f"{option}: is neither a folder nor a file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{option}: cannot read it: {_reason(error)}") from None
    if not entries:
        raise ConfigError(f"{option}: the folder is empty; OVMF starts EFI/BOOT/BOOTX64.EFI, its shell startup.nsh")
    return entries


def _sizes(entries: Sequence[Path], option: str, inside: tuple[tuple[int, int], ...], odd: list[Path]) -> Iterator[int]:
    """Give the bytes of all files below, 0 for each folder; ``inside`` are the folders that lead here.

    What has a name beyond ASCII comes into ``odd``.

    Raises:
        ConfigError: something that FAT cannot carry, or that cannot be read.
    """
    for path in entries:
        if not path.name.isascii():
            odd.append(path)
        try:
            status = path.stat()
            if not os.access(path, os.R_OK):
                raise PermissionError(0, "permission denied")
            below = sorted(path.iterdir()) if stat.S_ISDIR(status.st_mode) else []
        except OSError as error:
            raise ConfigError(f"{option}: cannot read {path}: {_reason(error)}") from None
        if stat.S_ISDIR(status.st_mode):
            identity = status.st_dev, status.st_ino
            if identity in inside:
                raise ConfigError(f"{option}: {path} is a link to a folder that it is in; the copy would have no end")
            _check_names(below, option)
            yield 0
            yield from _sizes(below, option, (*inside, identity), odd)
        elif not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{option}: {path} is neither a file nor a folder; leave it out")
        elif status.st_size > _LARGEST_FILE:
            raise ConfigError(f"{option}: {path} has {status.st_size} bytes; a file in FAT has less than 4 GiB")
        else:
            yield status.st_size


def _check_names(entries: Sequence[Path], option: str) -> None:
    """Refuse names of one folder that FAT cannot carry, or not beside each other."""
    names: dict[str, str] = {}
    for path in entries:
        why = _why_not(path.name)
        if why:
            raise ConfigError(f"{option}: {legible(str(path))}: FAT cannot carry the name: {why}; rename it")
        other = names.setdefault(_in_capitals(path.name), path.name)
        if other != path.name:
            raise ConfigError(f"{option}: {path} and {other} are one name for FAT, which is blind to case; rename one")


def _check_long_names(fd: int, paths: Sequence[Path], above: int, option: str) -> None:
    """Refuse names that mtools thought short enough for an entry of DOS alone, in a code page, where UEFI has none.

    Args:
        fd: of the disk.
        paths: what has a name beyond ASCII.
        above: how many parts of these paths lead to the root of the file system.
        option: what messages call the folder.
    """
    start = gpt.FIRST_SECTOR * gpt.SECTOR
    known: dict[tuple[str, ...], set[str]] = {}
    for path in paths:
        *folders, name = path.parts[above:]
        names = known.get(tuple(folders))
        if names is None:
            names = known[tuple(folders)] = long_names(lambda at, size: os.pread(fd, size, start + at), folders)
        if name not in names:
            raise ConfigError(
                f"{option}: {legible(str(path))}: FAT cannot carry the name: it is short, and in UEFI short names have "
                "ASCII letters; rename it, in ASCII or with capital and small letters"
            )


def _in_capitals(name: str) -> str:
    """Letter by letter, as FAT's drivers do it: ß stays what it is."""
    return "".join(capital if len(capital := letter.upper()) == 1 else letter for letter in name)


def _why_not(name: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return "it is not UTF-8"
    bad = next((letter for letter in name if letter in _FORBIDDEN or ord(letter) < 0x20 or ord(letter) == 0x7F), None)
    if bad is not None:
        return f"it has {bad!r}"
    if any(ord(letter) > 0xFFFF for letter in name):
        return "UEFI knows only characters up to U+FFFF"
    if name.upper() in _RESERVED:
        return "it is that of a device of DOS"
    if name[-1] in " .":
        return f"it ends with {name[-1]!r}"
    return f"it has more than {_MAX_NAME} characters" if len(name) > _MAX_NAME else ""


def _mtools(fd: int, tool: str, arguments: Sequence[str], option: str) -> None:
    """Let a program of mtools work on the partition, whatever its user has configured.

    Raises:
        ConfigError: it failed.
        HostError: there is none.
    """
    environment = {name: value for name, value in os.environ.items() if name in {"PATH", "TZ"}}
    environment |= {"LC_ALL": "C.UTF-8", "MTOOLSRC": os.devnull, "SOURCE_DATE_EPOCH": str(_MADE)}
    try:
        done = subprocess.run(
            [tool, "-i", f"/dev/fd/{fd}@@{gpt.FIRST_SECTOR * gpt.SECTOR}", *arguments],
            pass_fds=(fd,),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        raise HostError(
            f"{option}: needs mtools, which makes the file system: apt-get install mtools (dnf, pacman likewise)"
        ) from None
    except OSError as error:
        raise ConfigError(f"{option}: cannot start {tool}: {_reason(error)}") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).decode("utf-8", "replace").split())
        raise ConfigError(f"{option}: {tool} failed: {shortened(said) or f'status {done.returncode}'}")


def _reason(error: OSError | ValueError) -> str:
    return ((error.strerror if isinstance(error, OSError) else None) or str(error)).lower()
