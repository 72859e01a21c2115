"""Firmware images: what a file is, whether it is whole, and where the machine maps it.

Three shapes exist. A *flash* image is edk2's: firmware volumes, in one file or split into CODE (never written) and VARS
(the variable store, which the guest writes through CFI flash commands). A *ROM* is SeaBIOS's or our own guests': bytes
that end at 4 GiB. An *ELF* file is a guest of ours before it was laid out; its segments become a ROM.

Where files are found by name is :mod:`vmm.firmware_search`; what is in compressed volumes, :mod:`vmm.firmware_clients`.
"""

import struct
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from vmm import guests
from vmm.errors import ConfigError
from vmm.layout import FOUR_GIB, IMAGE_WINDOW

WINDOW_SIZE = len(IMAGE_WINDOW)

VOLUME_HEADER = struct.Struct("<16x16sQ4sIHHH3x")
"""EFI_FIRMWARE_VOLUME_HEADER (UEFI Platform Initialization 1.8, volume 3, section 3.2.1): file system GUID, FvLength,
"_FVH", attributes, header length, checksum, extended header offset. Little-endian."""

NVRAM_GUID = bytes.fromhex("8d2bf1ff96768b4ca9852747075b4f50")
"""gEfiSystemNvDataFvGuid, fff12b8d-7696-4c8b-a985-2747075b4f50: a volume that holds the variable store."""

ELF_MAGIC = b"\x7fELF"
QCOW2_MAGIC = b"QFI\xfb"


class FirmwareKind(StrEnum):
    """Whose firmware an image is; it decides which machine is built for it."""

    OVMF = "ovmf"
    SEABIOS = "seabios"
    BHYVE = "bhyve"
    PROBE = "probe"
    NONE = "none"
    """No image: the machine starts a kernel by itself."""
    UNKNOWN = "unknown"


class Layout(StrEnum):
    """How the machine maps an image."""

    FLASH = "flash"
    """CFI flash: VARS, then CODE, ending at 4 GiB."""
    BIOS = "bios"
    """ROM that ends at 4 GiB; its last 128 KiB appear below 1 MiB too."""


MACHINES = {
    FirmwareKind.OVMF: "q35",
    FirmwareKind.SEABIOS: "pc",
    FirmwareKind.BHYVE: "bhyve",
    FirmwareKind.PROBE: "q35",
    FirmwareKind.NONE: "q35",
}
"""The machine that each kind of firmware is known to run on."""

MINIMUM_MEMORY = {FirmwareKind.OVMF: 48 << 20, FirmwareKind.BHYVE: 64 << 20}
"""Bytes of RAM below which a kind of firmware cannot work; others need :data:`LEAST_MEMORY`. OVMF 2022.11 reaches its
shell with 48 MiB and hangs with 40; bhyve's platform code expects 64 MiB or more."""

LEAST_MEMORY = 16 << 20


class Interface(StrEnum):
    """What answers at ports 0x510 and 0x511."""

    AUTO = "auto"
    """The one that the firmware image has a client for; fw_cfg where it has both or none."""
    QEMU = "qemu"
    """QEMU's fw_cfg."""
    BHYVE = "bhyve"
    """bhyve's fwctl."""


class Identity(NamedTuple):
    """What a look into an image found out; :mod:`vmm.firmware_identity` looks.

    Attributes:
        kind: as :attr:`vmm.firmware_clients.FirmwareAnalysis.kind`.
        interface: what ``fwcfg=auto`` means for the image; never AUTO.
        reason: why, in one clause.
    """

    kind: str
    interface: Interface
    reason: str


class VariableStore(NamedTuple):
    """The flash that the guest may write: a file's bytes, and whether they go back into it."""

    path: Path
    data: bytes
    """What the flash holds at power-on."""
    persist: bool = False
    """Write what the guest stored back into ``path``, from its first byte; else the guest writes a private copy."""


class FirmwareImages(NamedTuple):
    """The image or images that a machine starts from, checked."""

    kind: FirmwareKind
    layout: Layout
    path: Path
    """The file of the code."""
    code: bytes
    """What is mapped read-only, ending at 4 GiB."""
    variables: VariableStore | None = None
    """What is mapped writable, directly below ``code``; None where the firmware has no variable store."""
    notes: tuple[str, ...] = ()
    """What was decided about the files, one sentence each, for the user."""
    identity: Identity | None = None
    """What a look into the code found; None where nobody had to look."""

    @property
    def code_address(self) -> int:
        """Guest physical address of the first byte of ``code``."""
        return FOUR_GIB - len(self.code)

    @property
    def variables_address(self) -> int:
        """Guest physical address of the first byte of the variable store."""
        return self.code_address - (len(self.variables.data) if self.variables else 0)

    @property
    def machine(self) -> str:
        """The machine type that this firmware wants: "q35", "pc" or "bhyve"."""
        return MACHINES.get(self.kind, "q35" if self.layout is Layout.FLASH else "pc")

    @property
    def minimum_memory(self) -> int:
        """Bytes of guest RAM below which this firmware does not start."""
        return MINIMUM_MEMORY.get(self.kind, LEAST_MEMORY)


NO_FIRMWARE = FirmwareImages(FirmwareKind.NONE, Layout.BIOS, Path("none"), b"")
"""For a machine whose kernel is started without firmware."""


class Volume(NamedTuple):
    """A firmware volume in an image."""

    offset: int
    """Bytes from the image's start."""
    size: int
    guid: bytes

    @property
    def is_variable_store(self) -> bool:
        """Whether the volume holds UEFI variables rather than code."""
        return self.guid == NVRAM_GUID


def read_image(path: Path, *, what: str = "firmware image") -> bytes:
    """Return a file's bytes.

    Raises:
        ConfigError: it can't be read, is empty, larger than the firmware window, or not a raw image.
    """
    try:
        size = path.stat().st_size
        if path.is_file() and size > WINDOW_SIZE:
            raise ConfigError(
                f"{path}: {size} bytes; the window for firmware below 4 GiB has {WINDOW_SIZE} ({WINDOW_SIZE >> 20} MiB)"
            )
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the {what}: {(error.strerror or str(error)).lower()}") from None
    if not data:
        raise ConfigError(f"{path}: the {what} is empty")
    if data.startswith(QCOW2_MAGIC):
        raise ConfigError(f"{path}: a qcow2 image; make it raw first: qemu-img convert -O raw {path} {path.stem}.fd")
    return data


def volumes(data: bytes) -> Iterator[Volume]:
    """Yield the firmware volumes that follow each other from the image's start; stops at the first gap.

    A volume may claim to end beyond the image: that is for the caller to see.
    """
    offset = 0
    while offset + VOLUME_HEADER.size <= len(data):
        guid, size, signature, *_ = VOLUME_HEADER.unpack_from(data, offset)
        if signature != b"_FVH" or size < VOLUME_HEADER.size:
            return
        yield Volume(offset, size, guid)
        offset += size


def load(
    path: Path, variables: Path | None = None, *, persist: bool = False, kind: FirmwareKind | None = None
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
        return _bios(path, _rom_of_elf(path))._replace(kind=FirmwareKind.PROBE)
    found = list(volumes(data))
    if not found:
        if variables is not None:
            raise ConfigError(f"{variables}: {path} is no UEFI image and has no use for a variable store")
        return _bios(path, data)
    _check_whole(path, data, found)
    if not found[0].is_variable_store:
        return _with_variables(_uefi(path, data, None, kind), variables, persist=persist)
    if len(found) == 1:
        raise ConfigError(f"{path}: a variable store (VARS) without firmware; give the CODE image that belongs to it")
    if variables is not None:
        raise ConfigError(f"{variables}: not needed, {path} has its own variable store; give one or the other")
    split = found[0].size
    store = VariableStore(path, data[:split], persist=persist)
    if persist:
        _check_writable(path)
    return _uefi(path, data[split:], store, kind)


def find(firmware: str | Path, variables: Path | None = None, *, persist: bool = False) -> FirmwareImages:
    """Load what a name (``ovmf``, ``seabios``, ``bhyve``, ``probe`` or another guest of ours) or a path stands for.

    The names of firmware are names even where files are called so: write ``./ovmf`` for the file.

    Raises:
        ConfigError: as :func:`load`, or nothing of that name is on this host.
    """
    path = named_file(firmware)
    if path is not None:
        return load(path, variables, persist=persist)
    from vmm import firmware_search  # noqa: PLC0415  # reads JSON, which a path does not need

    located = firmware_search.locate(str(firmware))
    kind = FirmwareKind(str(firmware))
    images = load(
        located.code,
        variables or located.variables,
        persist=persist and variables is not None,
        kind=kind if kind is FirmwareKind.OVMF else None,
    )
    return images._replace(kind=kind)


def named_file(firmware: str | Path) -> Path | None:
    """Return the file that a path or the name of a guest of ours stands for; None for a name of firmware.

    Raises:
        ConfigError: it is none of these.
    """
    path = Path(firmware)
    if isinstance(firmware, Path) or "/" in firmware:
        return path
    from vmm.firmware_search import NAMES  # noqa: PLC0415  # see find

    if firmware in NAMES:
        return None
    if path.exists():
        return path
    if firmware not in guests.names():
        raise ConfigError(f"{firmware}: neither a file nor a name of firmware ({', '.join(NAMES)}, or a guest of ours)")
    return guests.path(firmware)


def variables_size(code: bytes) -> int:
    """Return how many bytes of variable store a CODE image was built to lie above.

    edk2's platforms make the pair a power of two: 0x1e0000 + 0x20000 is 2 MiB, 0x37c000 + 0x84000 is 4 MiB
    (OvmfPkg/Include/Fdf/OvmfPkgDefines.fdf.inc).
    """
    return (1 << (len(code) - 1).bit_length()) - len(code)


def _check_whole(path: Path, data: bytes, found: list[Volume]) -> None:
    last = found[-1]
    if last.offset + last.size > len(data):
        raise ConfigError(
            f"{path}: truncated: the firmware volume at {last.offset:#x} has {last.size:#x} bytes, "
            f"the file ends after {len(data) - last.offset:#x} of them"
        )
    if len(data) % 4096:
        raise ConfigError(f"{path}: {len(data)} bytes is not a multiple of 4096; the file is truncated or no raw image")
    if len(found) > 1 or not last.is_variable_store:
        _check_reset_vector(path, data)


def _check_reset_vector(path: Path, data: bytes) -> None:
    if not data[-16:].strip(b"\0") or not data[-16:].strip(b"\xff"):
        raise ConfigError(
            f"{path}: no code at the reset vector (the last 16 bytes are blank); "
            "the file is truncated or not x86 firmware"
        )


def _bios(path: Path, data: bytes) -> FirmwareImages:
    if len(data) % 65536:
        raise ConfigError(
            f"{path}: {len(data)} bytes is not a multiple of 64 KiB; the file is truncated or no x86 firmware"
        )
    _check_reset_vector(path, data)
    if guests.is_ours(path):
        return FirmwareImages(FirmwareKind.PROBE, Layout.BIOS, path, data)
    kind = FirmwareKind.SEABIOS if b"SeaBIOS" in data else FirmwareKind.UNKNOWN
    return FirmwareImages(kind, Layout.BIOS, path, data)


def _uefi(path: Path, code: bytes, variables: VariableStore | None, kind: FirmwareKind | None) -> FirmwareImages:
    if kind is not None:
        return FirmwareImages(kind, Layout.FLASH, path, code, variables)
    from vmm.firmware_identity import identify  # noqa: PLC0415  # firmware that is known by name does without

    identity = identify(code, path)
    kind = FirmwareKind(identity.kind) if identity.kind in set(FirmwareKind) else FirmwareKind.UNKNOWN
    return FirmwareImages(kind, Layout.FLASH, path, code, variables, identity=identity)


def _with_variables(images: FirmwareImages, path: Path | None, *, persist: bool) -> FirmwareImages:
    from vmm import firmware_search  # noqa: PLC0415  # reads JSON, which other images do not need

    expected = variables_size(images.code)
    notes = list(images.notes)
    descriptor = firmware_search.description(images.path)
    if descriptor is not None and "requires-smm" in descriptor.features:
        notes.append(f"{images.path.name} was built for system management mode, which this machine does not have")
    if path is None:
        path = firmware_search.variables_template(images.path, expected)
        if path is None:
            raise ConfigError(
                f"{images.path}: CODE only, and no VARS template of {expected} bytes was found beside it; give both: "
                f"-drive if=pflash,format=raw,readonly=on,file={images.path} "
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
    if persist:
        _check_writable(path)
    return images._replace(variables=VariableStore(path, data, persist=persist), notes=tuple(notes))


def _check_writable(path: Path) -> None:
    try:
        path.open("r+b").close()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot write the variable store: {(error.strerror or str(error)).lower()}; make it writable, or "
            "add readonly=on to let the guest write a private copy"
        ) from None


def _rom_of_elf(path: Path) -> bytes:
    """Return the ROM that an ELF file's loadable segments make up, by physical address, ending at 4 GiB."""
    from elftools.common.exceptions import ELFError  # noqa: PLC0415  # costs 20 ms that other images need not pay
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415

    try:
        with path.open("rb") as file:
            parts = [
                (segment["p_paddr"], segment.data())
                for segment in ELFFile(file).iter_segments(type="PT_LOAD")
                if segment["p_filesz"]
            ]
    except (ELFError, OSError, ValueError) as error:
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
