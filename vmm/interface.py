"""Which firmware interface the machine has at ports 0x510 and up, and what it tells the guest.

fw_cfg and fwctl claim the same ports, so a machine has one of them.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vmm.config import MachineConfig
from vmm.devices.fw_cfg import FwCfg, map_file
from vmm.devices.fw_cfg_items import PcItems, add_pc_items
from vmm.tables import e820

if TYPE_CHECKING:
    from vmm.memory import GuestMemory


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
    for item in config.fw_cfg:
        fw_cfg.add_user_file(item.name, map_file(item.path) if item.path is not None else item.data or b"")
    fw_cfg.publish()
    return fw_cfg
