"""Firmware images: what a file is, and where the machine maps it."""

from __future__ import annotations

import os
from enum import StrEnum

from vmm import inputs
from vmm.errors import ConfigError
from vmm.layout import FOUR_GIB, IMAGE_WINDOW
from vmm.options import quoted
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

WINDOW_SIZE = len(IMAGE_WINDOW)

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
    """What a look into an image found out; :mod:`vmm.firmware.identity` looks.

    Attributes:
        kind: as :attr:`vmm.firmware.clients.FirmwareAnalysis.kind`.
        interface: what ``fwcfg=auto`` means for the image; never AUTO.
        reason: why, in one clause.
        needs_smm: whether it waits for system management mode, which it drives itself.
    """

    kind: str
    interface: Interface
    reason: str
    needs_smm: bool = False


class VariableStore(NamedTuple):
    """The flash that the guest may write: a file's bytes, and whether they go back into it."""

    path: Path
    data: bytes
    """What the flash holds at power-on."""
    persist: bool = False
    """Write what the guest stored back into ``path``, from its first byte; else the guest writes a private copy."""

    def __repr__(self) -> str:
        """Without the bytes, which are many."""
        return f"<VariableStore {self.path}, {len(self.data)} bytes{', written back' if self.persist else ''}>"


class FirmwareImages(NamedTuple):
    """The image or images that a machine starts from, checked."""

    kind: FirmwareKind
    layout: Layout
    file: str
    """The path of the code."""
    code: bytes
    """What is mapped read-only, ending at 4 GiB."""
    variables: VariableStore | None = None
    """What is mapped writable, directly below ``code``; None where the firmware has no variable store."""
    notes: tuple[str, ...] = ()
    """What was decided about the files, one sentence each, for the user."""
    identity: Identity | None = None
    """What a look into the code found; None where nobody had to look."""

    def __repr__(self) -> str:
        """Without the bytes, which are many."""
        variables = f", {self.variables!r}" if self.variables else ""
        return f"<FirmwareImages {self.kind} {self.file}, {len(self.code)} bytes{variables}>"

    @property
    def path(self) -> Path:
        """`file`, as an object."""
        from pathlib import Path

        return Path(self.file)

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

    @property
    def needs_smm(self) -> bool:
        """Whether the code hangs on a machine without system management mode."""
        return self.identity is not None and self.identity.needs_smm

    @property
    def interpretable(self) -> bool:
        """Whether it runs where KVM interprets ring 0: edk2's uses instructions that the kernel's emulator lacks."""
        return self.layout is not Layout.FLASH


NO_FIRMWARE = FirmwareImages(FirmwareKind.NONE, Layout.BIOS, "none", b"")
"""For a machine whose kernel is started without firmware."""


def read_image(path: str | Path, *, what: str = "firmware image") -> bytes:
    """Return a file's bytes.

    Raises:
        ConfigError: see `vmm.inputs.read_file`, or it is empty, larger than the firmware window, or not a raw image.
    """
    data = inputs.read_file(path, what, limit=WINDOW_SIZE)
    if not data:
        raise ConfigError(f"{path}: the {what} is empty")
    if data.startswith(QCOW2_MAGIC):
        stem, _ = os.path.splitext(os.path.basename(path))
        raise ConfigError(
            f"{path}: a qcow2 image; make it raw first: qemu-img convert -O raw {quoted(path)} {quoted(f'{stem}.fd')}"
        )
    return data
