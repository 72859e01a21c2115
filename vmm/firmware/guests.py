"""Our own guests: small ROM images built from ``firmware/`` when the package is built.

Each is there twice: ``NAME.fd`` is what a machine boots, ``NAME.elf`` the same code with its symbols. This module only
says where they lie; ``firmware/README.md`` says what each of them does.
"""

from __future__ import annotations

import os

import vmm
from vmm import inputs
from vmm.errors import ConfigError
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def names() -> list[str]:
    """Return the names of all guests that were built, sorted."""
    return sorted(
        name.removesuffix(".fd")
        for directory in _directories()
        if os.path.isdir(directory)
        for name in os.listdir(directory)
        if name.endswith(".fd")
    )


def path(name: str) -> Path:
    """Return the ROM image of a guest: a multiple of 64 KiB that ends at 4 GiB.

    Raises:
        ConfigError: There is no guest of that name.
    """
    return inputs.as_path(file(name))


def file(name: str) -> str:
    """As `path`, without `pathlib`, which takes longer to load than a guest that exits at once takes to run.

    Raises:
        ConfigError: likewise.
    """
    return _existing(name, ".fd")


def boot_sector() -> Path:
    """Return the first sector of a disk that a BIOS boots: it prints the text in the second, and powers off.

    Raises:
        ConfigError: It was not built.
    """
    return inputs.as_path(_existing("boot-sector", ".img"))


def report(image: str) -> Path:
    """Return a report guest: ``report.efi``, a UEFI driver, or ``report.bin``, an option ROM.

    Raises:
        ConfigError: It was not built.
    """
    stem, _, suffix = image.partition(".")
    return inputs.as_path(_existing(stem, f".{suffix}"))


def efi(name: str) -> Path:
    """Return a UEFI application: ``launcher``, which starts others, or ``example``.

    Raises:
        ConfigError: It was not built.
    """
    return inputs.as_path(_existing(name, ".efi"))


def symbols(name: str) -> Path:
    """Return the ELF file that a guest's image was made from, with symbols and line numbers.

    Raises:
        ConfigError: There is no guest of that name.
    """
    return inputs.as_path(_existing(name, ".elf"))


def is_ours(image: str | Path) -> bool:
    """Whether a file is one of our guests as the package was built with them."""
    return os.path.dirname(os.path.normpath(image)) in _directories()


def _directories() -> list[str]:
    # importlib.resources would do, but costs 20 ms of every start. An editable installation has two places.
    return [os.path.join(place, "_guests") for place in vmm.__path__]


def _existing(name: str, suffix: str) -> str:
    for directory in _directories():
        place = os.path.join(directory, f"{name}{suffix}")
        if "/" not in name and os.path.isfile(place):
            return place
    known = ", ".join(names()) or "none; build the package again"
    raise ConfigError(f"no guest of ours is named {name!r} (there are: {known})")
