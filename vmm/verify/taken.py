"""What firmware starts of all that it may boot: another boot, without the report guest; the disks stay as they are.

OVMF says on the console what it loads and starts, by its device path. SeaBIOS says on the debug port that it boots
from a disk or a ROM, and where that begins; which disk it was is what the guest read from first.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.firmware.images import FirmwareKind
from vmm.machine import Machine

if TYPE_CHECKING:
    from vmm.config.machine import MachineConfig

_UEFI: Final = re.compile(
    r'^BdsDxe: (starting|failed to load|failed to start) Boot\w+ "([^"\n]*)" from (\S+?):?(?=\s)', re.MULTILINE
)
UEFI_END: Final = r"(?m)^BdsDxe: starting Boot.* from \S+\s|No bootable option or device"
"""When OVMF has started something, with all of its path, or will start nothing."""

_BIOS: Final = re.compile(
    r"^Booting from (?P<kind>[A-Z][^.\n]*)\.\.\.\n"
    r"(?:Boot failed: (?P<failed>.*)|Booting from (?P<at>[0-9a-f]+):[0-9a-f]+$)",
    re.MULTILINE,
)
_BIOS_END: Final = r"(?m)^Booting from [0-9a-f]+:[0-9a-f]+$|No bootable device"
_HARD_DISK = "Hard Disk"

_ROM_HEAD: Final = slice(3, 512)
"""Bytes of an option ROM that name it: its size before them, and its checksum behind, may be changed."""


class Attempt(NamedTuple):
    """What firmware tried to start.

    Attributes:
        path: as an OpenFirmware path where it is a disk or a ROM of the machine's, else firmware's name for it.
        uefi: nodes of its UEFI device path behind the root, in lower case; empty under a BIOS.
        why_not: why it was not started; empty if it was.
    """

    path: str
    uefi: tuple[str, ...] = ()
    why_not: str = ""


def leave_disks(config: MachineConfig) -> MachineConfig:
    """Return the machine with disks that stay as they are: what is compared is firmware, whatever it starts."""
    drives = tuple(drive if drive.only_read else drive._replace(snapshot=True) for drive in config.drives)
    return config._replace(drives=drives)


def attempts(config: MachineConfig, deadline: float) -> list[Attempt]:
    """Boot until firmware has started something, or says that there is nothing; return what it tried, in order.

    Args:
        config: the machine, without a report guest.
        deadline: seconds.

    Raises:
        ConfigError: a disk cannot be opened.
        HostError: no KVM.
    """
    bios = config.firmware.kind is FirmwareKind.SEABIOS
    with Machine(leave_disks(config)._replace(reboot=False)) as machine:
        machine.run(_BIOS_END if bios else UEFI_END, deadline).raise_interrupt()
        return _of_bios(machine) if bios else of_uefi(machine.serial.text())


def of_uefi(text: str) -> list[Attempt]:
    """Return what OVMF says on the console that it tried."""
    found = []
    for said, name, path in _UEFI.findall(text.replace("\r", "")):
        nodes = tuple(path.lower().split("/")[1:])
        found.append(Attempt(name, nodes, "" if said == "starting" else said))
        if said == "starting":
            break
    return found


def _of_bios(machine: Machine) -> list[Attempt]:
    read = sorted((disk.first_read, disk.path) for disk in machine.platform.disks if disk.first_read)
    found = []
    for match in _BIOS.finditer(machine.debugcon.text()):
        path = match["kind"]
        if path == _HARD_DISK and read:
            path = read[0][1]
        elif match["at"] and path == "ROM":
            path = _rom(machine, int(match["at"], 16) << 4) or path
        found.append(Attempt(path, why_not=match["failed"] or ""))
        if match["at"]:
            break
    return found


def _rom(machine: Machine, address: int) -> str:
    """Return the path of the option ROM of fw_cfg's that lies at a GPA."""
    there = bytes(machine.memory.read(address, _ROM_HEAD.stop))[_ROM_HEAD]
    fw_cfg = machine.fw_cfg
    names = [item.name for item in fw_cfg.items() if item.name.startswith("genroms/")] if fw_cfg else []
    return next((f"/rom@{name}" for name in names if fw_cfg and fw_cfg.contents(name)[_ROM_HEAD] == there), "")
