"""etc/vmcoreinfo: the fw_cfg file in which a guest's kernel leaves the address of its crash notes.

Source: docs/specs/vmcoreinfo.rst in QEMU's tree. All numbers are little-endian.
"""

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vmm.devices.fw_cfg import FwCfg

FILE = "etc/vmcoreinfo"

_RECORD = struct.Struct("<HHIQ")
"""u16 format of the host, u16 format of the guest, u32 size, u64 address."""

_FORMAT_ELF = 1


class VmCoreInfo(NamedTuple):
    """What a guest kernel said about its vmcoreinfo note (docs/specs/vmcoreinfo.rst in QEMU)."""

    guest_format: int
    size: int
    address: int
    """GPA of the ELF note."""


def add_vmcoreinfo(fw_cfg: "FwCfg", on_info: Callable[[VmCoreInfo | None], None]) -> None:
    """Offer etc/vmcoreinfo, where a guest kernel leaves the address of its crash notes.

    Args:
        fw_cfg: not yet published.
        on_info: called after each write, with None if it makes no valid note: the write must cover the whole
            item, and name a format. Called with None at a reset, too.

    Raises:
        ConfigError: the file is there already.
    """

    def on_write(offset: int, data: bytes) -> None:
        if offset != 0 or len(data) != _RECORD.size:
            on_info(None)
            return
        _, guest_format, size, address = _RECORD.unpack(data)
        on_info(VmCoreInfo(guest_format, size, address) if guest_format else None)

    initial = _RECORD.pack(_FORMAT_ELF, 0, 0, 0)
    fw_cfg.add_file(FILE, initial, writable=True, on_write=on_write)
    fw_cfg.at_reset(lambda: on_info(None))
