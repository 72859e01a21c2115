"""Which firmware interface the machine has at ports 0x510 and up, and what it tells the guest.

fw_cfg and fwctl claim the same ports, so a machine has one of them.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vmm.config import MachineConfig, MachineType
from vmm.devices.fw_cfg import FwCfg, map_file
from vmm.devices.fw_cfg_items import PcItems, add_pc_items
from vmm.devices.fwctl import Fwctl
from vmm.tables import e820

if TYPE_CHECKING:
    from vmm.memory import GuestMemory


CPU_COUNT_OID = "hw.ncpu"
"""FreeBSD, usr.sbin/bhyve/amd64/fwctl.c: the only OID that bhyve has; a 4-byte integer."""

CPU_COUNT_FILE = "opt/bhyve/hw.ncpu"
"""FreeBSD, usr.sbin/bhyve/bhyverun.c: the same as an fw_cfg file. edk2, OvmfPkg/Bhyve/AcpiPlatformDxe, takes exactly 4
bytes, little-endian; where it is missing it assumes one CPU and does not turn to fwctl."""


def build_fw_cfg(
    config: MachineConfig, memory: "GuestMemory", core: Any, on_failure: Callable[[Exception], None]
) -> FwCfg:
    """QEMU's fw_cfg with a PC's items and the user's.

    Raises:
        ConfigError: a name is taken, overlong or unreadable.
    """
    fw_cfg = FwCfg(core, on_failure=on_failure)
    add_pc_items(
        fw_cfg,
        PcItems(
            memory=config.memory,
            cpus=config.cpus,
            apic_id_limit=config.max_cpus,
            e820=e820.encode(e820.build_map(memory.low_size, memory.high_size)),
            uuid=config.uuid,
        ),
    )
    own = {item.name for item in config.fw_cfg}
    if config.machine_type is MachineType.BHYVE and config.cpu_count and CPU_COUNT_FILE not in own:
        fw_cfg.add_file(CPU_COUNT_FILE, config.cpus.to_bytes(4, "little"))
    for item in config.fw_cfg:
        fw_cfg.add_user_file(item.name, map_file(item.path) if item.path is not None else item.data or b"")
    fw_cfg.publish()
    return fw_cfg


def build_fwctl(config: MachineConfig) -> Fwctl:
    """What bhyve has as fwctl: its OID, and the user's, which may replace it.

    Raises:
        ConfigError: a name or a value that the protocol cannot carry.
    """
    fwctl = Fwctl(extensions=config.fwctl_extensions)
    if config.cpu_count:
        fwctl.register(CPU_COUNT_OID, config.cpus)
    for item in config.fwctl:
        fwctl.register(item.name, item.value)
    return fwctl
