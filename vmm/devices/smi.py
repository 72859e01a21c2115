"""What firmware and ICH9 agree on about SMIs: the three files etc/smi/* of fw_cfg.

Source: hw/isa/lpc_ich9.c and include/hw/i386/ich9.h in QEMU. All numbers are little-endian.
"""

from typing import TYPE_CHECKING, Any

from vmm.bus import Device

if TYPE_CHECKING:
    from vmm.devices.fw_cfg import FwCfg

SUPPORTED_FILE = "etc/smi/supported-features"
REQUESTED_FILE = "etc/smi/requested-features"
OK_FILE = "etc/smi/features-ok"

BROADCAST = 1 << 0
"""An SMI by APM control is one for all CPUs."""

CPU_HOTPLUG = 1 << 1
"""ACPI sends one, with `HOTPLUG_COMMAND`, when a CPU was plugged in, before the OS is told. The bit for one that is
taken out is never supported, as that is not."""

HOTPLUG_COMMAND = 4
"""Source: OVMF, OvmfPkg/Include/IndustryStandard/Q35MchIch9.h, ICH9_APM_CNT_CPU_HOTPLUG."""


class SmiFeatures(Device):
    """The agreement; no range of addresses belongs to it.

    Firmware writes what it wants into one file and selects another, which then reads 1 if it can have that; from then
    on it is settled until the next reset.

    Args:
        supported: what it can have: `BROADCAST`, or `CPU_HOTPLUG`, too.
    """

    def __init__(self, supported: int = BROADCAST) -> None:
        self._supported = supported
        self._requested = bytearray(8)
        self._ok = bytearray(1)
        self._negotiated = 0

    @property
    def broadcast(self) -> bool:
        """Whether an SMI is for all CPUs, or for the one that asks for it."""
        return bool(self._negotiated & BROADCAST)

    @property
    def announces_cpus(self) -> bool:
        """Whether firmware is told by an SMI when a CPU was plugged in."""
        return bool(self._negotiated & CPU_HOTPLUG)

    def add_to(self, fw_cfg: "FwCfg") -> None:
        """Publish the files.

        Raises:
            ConfigError: a name is taken.
        """
        fw_cfg.add_file(SUPPORTED_FILE, self._supported.to_bytes(8, "little"))
        fw_cfg.add_file(REQUESTED_FILE, bytes(8), writable=True, on_write=self._request)
        fw_cfg.add_file(OK_FILE, self._ok, on_select=self._settle)

    def state(self) -> dict[str, Any]:
        """What was asked for, and what was agreed on."""
        return {"requested": bytes(self._requested), "ok": bytes(self._ok), "negotiated": self._negotiated}

    def restore(self, state: dict[str, Any]) -> None:
        """As `state` gave it."""
        self._requested[:] = state["requested"]
        self._ok[:] = state["ok"]
        self._negotiated = state["negotiated"]

    def reset(self) -> None:
        """Nothing asked for, nothing agreed on."""
        self._requested[:] = bytes(8)
        self._ok[:] = bytes(1)
        self._negotiated = 0

    def _request(self, offset: int, data: bytes) -> None:
        self._requested[offset : offset + len(data)] = data

    def _settle(self) -> None:
        requested = int.from_bytes(self._requested, "little")
        if not self._ok[0] and not requested & ~self._supported:
            self._negotiated = requested
            self._ok[0] = 1
