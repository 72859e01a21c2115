"""Firmware images: what a file is, whether it is whole, and where the machine maps it.

Three shapes exist. A *flash* image is edk2's: firmware volumes, in one file or split into CODE (never written) and VARS
(the variable store, which the guest writes through CFI flash commands). A *ROM* is SeaBIOS's or our own guests': bytes
that end at 4 GiB. An *ELF* file is a guest of ours before it was laid out; its segments become a ROM.

Where files are found by name is :mod:`vmm.firmware.search`; what is in compressed volumes, :mod:`vmm.firmware.clients`.
"""

from __future__ import annotations

import os
from io import BytesIO

from vmm.errors import ConfigError
from vmm.firmware import guests
from vmm.firmware.images import FirmwareImages, FirmwareKind, Layout, VariableStore, read_image
from vmm.firmware.volumes import Volume, volumes
from vmm.layout import FOUR_GIB, IMAGE_WINDOW, PAGE
from vmm.legible import suggestion
from vmm.options import quoted_drive
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("ovmf", "seabios", "bhyve", "probe")
"""What may stand for a path."""

ELF_MAGIC = b"\x7fELF"


def load(
    path: str | Path,
    variables: str | Path | None = None,
    *,
    persist: bool = False,
    kind: FirmwareKind | None = None,
) -> FirmwareImages:
    """Load an image, and find out what it is.

    Args:
        path: CODE, a single image with or without variable store, a BIOS, or an ELF file of a guest of ours.
        variables: the VARS file that belongs to a CODE image.
        persist: write what the guest stores back into ``variables``, or into ``path`` where it is a single image.
        kind: whose UEFI it is, if that is known; else its code is looked into.

    Raises:
        ConfigError: unreadable, truncated, too large, only half of a pair, or no firmware at all.
    """
    data = read_image(path)
    if data.startswith(ELF_MAGIC):
        return _bios(path, _rom_of_elf(path, data))._replace(kind=FirmwareKind.PROBE)
    found = list(volumes(data))
    if not found:
        if variables is not None:
            raise ConfigError(f"{variables}: {path} is no UEFI image and has no use for a variable store")
        return _bios(path, data)
    _check_whole(path, data, found)
    if not found[0].is_variable_store:
        return _with_variables(_uefi(path, data, kind), variables, persist=persist)
    if len(found) == 1:
        raise ConfigError(f"{path}: a variable store (VARS) without firmware; give the CODE image that belongs to it")
    if variables is not None:
        raise ConfigError(f"{variables}: not needed, {path} has its own variable store; give one or the other")
    split = found[0].size
    images = _uefi(path, data[split:], kind)
    if persist:
        _check_writable(images.path)
    return images._replace(variables=VariableStore(images.path, data[:split], persist=persist))


def find(firmware: str | Path, variables: str | Path | None = None, *, persist: bool = False) -> FirmwareImages:
    """Load what a name (``ovmf``, ``seabios``, ``bhyve``, ``probe`` or another guest of ours) or a path stands for.

    The names of firmware are names even where files are called so: write ``./ovmf`` for the file.

    Raises:
        ConfigError: as :func:`load`, or nothing of that name is on this host.
    """
    path = named_file(firmware)
    if path is not None:
        return load(path, variables, persist=persist)
    from vmm.firmware import search

    located = search.locate(str(firmware))
    kind = FirmwareKind(str(firmware))
    images = load(
        located.code,
        variables or located.variables,
        persist=persist and variables is not None,
        kind=kind if kind is FirmwareKind.OVMF else None,
    )
    return images._replace(kind=kind)


def named_file(firmware: str | Path) -> str | Path | None:
    """Return the file that a path or the name of a guest of ours stands for; None for a name of other firmware.

    Raises:
        ConfigError: it is none of these.
    """
    if not firmware:
        raise ConfigError("'': an empty name of firmware; is a variable unset?")
    if not isinstance(firmware, str) or "/" in firmware:
        return firmware
    if firmware in NAMES:
        return guests.file(firmware) if firmware == FirmwareKind.PROBE else None
    if os.path.exists(firmware):
        return firmware
    if firmware not in guests.names():
        known = f"({', '.join(NAMES)}, or a guest of ours)"
        near = suggestion(firmware, (*NAMES, *guests.names()))
        meant = near and f"; did you mean {near}?"
        raise ConfigError(f"{firmware}: neither a file nor a name of firmware {known}{meant}")
    return guests.file(firmware)


def variables_size(code: bytes) -> int:
    """Return how many bytes of variable store a CODE image was built to lie above.

    edk2's platforms make the pair a power of two: 0x1e0000 + 0x20000 is 2 MiB, 0x37c000 + 0x84000 is 4 MiB
    (OvmfPkg/Include/Fdf/OvmfPkgDefines.fdf.inc).
    """
    return (1 << (len(code) - 1).bit_length()) - len(code)


def _check_whole(path: str | Path, data: bytes, found: list[Volume]) -> None:
    last = found[-1]
    if last.offset + last.size > len(data):
        raise ConfigError(
            f"{path}: truncated: the firmware volume at {last.offset:#x} has {last.size:#x} bytes, "
            f"the file ends after {len(data) - last.offset:#x} of them"
        )
    if len(data) % PAGE:
        raise ConfigError(
            f"{path}: {len(data)} bytes is not a multiple of {PAGE}; the file is truncated or no raw image"
        )
    if len(found) > 1 or not last.is_variable_store:
        _check_reset_vector(path, data)


def _check_reset_vector(path: str | Path, data: bytes) -> None:
    if not data[-16:].strip(b"\0") or not data[-16:].strip(b"\xff"):
        raise ConfigError(
            f"{path}: no code at the reset vector (the last 16 bytes are blank); "
            "the file is truncated or not x86 firmware"
        )


def _bios(path: str | Path, data: bytes) -> FirmwareImages:
    if len(data) % 65536:
        raise ConfigError(
            f"{path}: {len(data)} bytes is not a multiple of 64 KiB; the file is truncated or no x86 firmware"
        )
    _check_reset_vector(path, data)
    if guests.is_ours(path):
        return FirmwareImages(FirmwareKind.PROBE, Layout.BIOS, os.fspath(path), data)
    kind = FirmwareKind.SEABIOS if b"SeaBIOS" in data else FirmwareKind.UNKNOWN
    return FirmwareImages(kind, Layout.BIOS, os.fspath(path), data)


def _uefi(path: str | Path, code: bytes, kind: FirmwareKind | None) -> FirmwareImages:
    if kind is not None:
        return FirmwareImages(kind, Layout.FLASH, os.fspath(path), code)
    from vmm.firmware.identity import identify

    images = FirmwareImages(FirmwareKind.UNKNOWN, Layout.FLASH, os.fspath(path), code)
    identity = identify(code, images.path)
    kind = FirmwareKind(identity.kind) if identity.kind in set(FirmwareKind) else FirmwareKind.UNKNOWN
    return images._replace(kind=kind, identity=identity)


def _with_variables(images: FirmwareImages, path: str | Path | None, *, persist: bool) -> FirmwareImages:
    from pathlib import Path

    from vmm.firmware import search

    expected = variables_size(images.code)
    notes = list(images.notes)
    if path is None:
        path = search.variables_template(images.path, expected)
        if path is None:
            raise ConfigError(
                f"{images.path}: CODE only, and no VARS template of {expected} bytes was found beside it; give both: "
                f"-drive if=pflash,format=raw,readonly=on,file={quoted_drive(images.path)} "
                "-drive if=pflash,format=raw,file=MY_VARS.fd"
            )
        persist = False
        notes.append(f"{images.path.name} is CODE only: the variables are a private copy of {path}")
    data = read_image(path, what="variable store")
    if len(data) != expected:
        raise ConfigError(
            f"{path}: {len(data)} bytes; the variable store of {images.path.name} has {expected}: not the VARS file of "
            "this CODE image"
        )
    store = next(volumes(data), None)
    if store is None and data.strip(b"\xff") and data.strip(b"\0"):
        raise ConfigError(f"{path}: neither a variable store nor blank; copy the VARS template of {images.path.name}")
    if store is not None and (store.size != len(data) or not store.is_variable_store):
        raise ConfigError(f"{path}: not a variable store; copy the VARS template of {images.path.name} and use that")
    variables = VariableStore(Path(path), data, persist=persist)
    if persist:
        _check_writable(variables.path)
    return images._replace(variables=variables, notes=tuple(notes))


def _check_writable(path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"{path}: the variable store is no file, so nothing can be kept there; add readonly=on")
    try:
        path.open("r+b").close()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot write the variable store: {(error.strerror or str(error)).lower()}; make it writable, or "
            "add readonly=on to let the guest write a private copy"
        ) from None


def _rom_of_elf(path: str | Path, image: bytes) -> bytes:
    """Return the ROM that an ELF file's loadable segments make up, by physical address, ending at 4 GiB."""
    from elftools.common.exceptions import ELFError  # costs 20 ms that other images need not pay
    from elftools.elf.elffile import ELFFile

    try:
        parts = [
            (segment["p_paddr"], segment.data())
            for segment in ELFFile(BytesIO(image)).iter_segments(type="PT_LOAD")
            if segment["p_filesz"]
        ]
    except (ELFError, ValueError) as error:
        raise ConfigError(f"{path}: not a usable ELF file: {error}") from None
    if not parts:
        raise ConfigError(f"{path}: an ELF file without anything to load")
    lowest = min(address for address, _ in parts)
    if lowest < IMAGE_WINDOW.start or any(address + len(data) > FOUR_GIB for address, data in parts):
        raise ConfigError(
            f"{path}: an ELF file with a segment outside of the firmware window "
            f"{IMAGE_WINDOW.start:#x} to {IMAGE_WINDOW.stop - 1:#x}; a kernel is not started by its own"
        )
    rom = bytearray(b"\xff") * (-(lowest - FOUR_GIB) + 0xFFFF & ~0xFFFF)
    for address, data in parts:
        start = address - FOUR_GIB + len(rom)
        rom[start : start + len(data)] = data
    return bytes(rom)
