"""What a snapshot is made of."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.bus import Bus, IoLock
    from vmm.cpu.processors import Processors
    from vmm.devices.clock import GuestClock
    from vmm.devices.fw_cfg import FwCfg
    from vmm.devices.fwctl import Fwctl
    from vmm.kvm import Vm
    from vmm.memory import GuestMemory
    from vmm.platform import Platform
    from vmm.run.expect import Console
    from vmm.softcpu.engine import SoftwareCpu


class Whole(NamedTuple):
    """The parts of a machine that a snapshot is made of; `vmm.machine.Machine` says what they are."""

    vm: "Vm"
    processors: "Processors"
    softcpu: "SoftwareCpu | None"
    memory: "GuestMemory"
    platform: "Platform"
    clock: "GuestClock"
    io_lock: "IoLock"
    buses: "Sequence[Bus]"
    fw_cfg: "FwCfg | None"
    fwctl: "Fwctl | None"
    consoles: "Sequence[Console]"
