"""The one of fw_cfg and fwctl that a machine has: asked for, or read from the firmware image."""

from __future__ import annotations

from vmm.errors import ConfigError
from vmm.firmware.images import FirmwareImages, FirmwareKind, Interface
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMES = {Interface.QEMU: "fw_cfg", Interface.BHYVE: "fwctl"}

ASKED_FOR = "asked for"

CLASH = "fw_cfg and fwctl answer at the same ports, 0x510 and 0x511, so a machine has one of them"

_SPEAK_FW_CFG = {
    FirmwareKind.OVMF: "OVMF speaks fw_cfg",
    FirmwareKind.SEABIOS: "SeaBIOS speaks fw_cfg",
    FirmwareKind.PROBE: "a guest of ours speaks both, and fw_cfg carries more",
    FirmwareKind.NONE: "Linux has a driver for fw_cfg",
}
"""What needs no look into the image."""


class InterfaceChoice(NamedTuple):
    """What answers at ports 0x510 and 0x511, and why (one clause, for people)."""

    interface: Interface
    why: str


def choose(images: FirmwareImages, wanted: Interface) -> InterfaceChoice:
    """Return the interface asked for; for AUTO the one that the image has a client for, fw_cfg where it has both."""
    if wanted is not Interface.AUTO:
        return InterfaceChoice(wanted, ASKED_FOR)
    if images.kind in _SPEAK_FW_CFG:
        return InterfaceChoice(Interface.QEMU, _SPEAK_FW_CFG[images.kind])
    identity = images.identity
    if identity is None:
        from vmm.firmware.identity import identify

        identity = identify(images.code, images.path)
    return InterfaceChoice(identity.interface, identity.reason)


def check_options(choice: InterfaceChoice, fw_cfg: Sequence[str], fwctl: Sequence[str]) -> None:
    """Refuse options that are meant for the interface that the machine does not have.

    Args:
        choice: the interface that it has.
        fw_cfg: what was said to fw_cfg, as the user wrote it.
        fwctl: what was said to fwctl.

    Raises:
        ConfigError: names the first such option, and what to do.
    """
    if fw_cfg and fwctl:
        raise ConfigError(f"{fw_cfg[0]} and {fwctl[0]}: {CLASH}")
    other, options = (Interface.BHYVE, fwctl) if choice.interface is Interface.QEMU else (Interface.QEMU, fw_cfg)
    if options:
        why = ASKED_FOR if choice.why == ASKED_FOR else f"chosen by fwcfg=auto, because {choice.why}"
        raise ConfigError(
            f"{options[0]}: this machine has {NAMES[choice.interface]} ({why}). {CLASH}; "
            f"for {NAMES[other]} add fwcfg={other} to -machine or -l"
        )
