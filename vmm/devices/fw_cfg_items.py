"""What the fw_cfg items of a PC contain: QEMU's fixed keys, and its files that need no further device.

All numbers are little-endian. Items whose device this machine lacks stay
absent, as in QEMU: SMI features, TPM, vmgenid, ramfb, extra PCI roots.

Source: fw_cfg_arch_create in hw/i386/fw_cfg.c and fw_cfg_init_io_dma in
hw/nvram/fw_cfg.c of QEMU, and what QEMU 7.2's items were seen to contain.
"""

from __future__ import annotations

import struct
from types import MappingProxyType

from vmm.devices.fw_cfg_format import Key
from vmm.tables.files import E820_FILE
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm.devices.fw_cfg import FwCfg

SYSTEM_STATES = bytes((0x80, 0x00, 0x00, 0x01, 0x02, 0x80))
"""etc/system-states: byte x is Sx, bit 7 says that it is there, low bits are its SLP_TYP. Here S0 and S5."""

SYSTEM_STATES_S3 = bytes((0x80, 0x00, 0x00, 0x81, 0x02, 0x80))
"""The same with S3."""

BOOT_FAIL_WAIT_FOREVER = -1
"""etc/boot-fail-wait: do not boot again."""

HPET_SIZE = 121
"""Key 0x8004: a count and eight entries of 15 bytes (struct hpet_fw_config in include/hw/timer/hpet.h)."""


class Hpet(NamedTuple):
    """What key 0x8004 says of the HPET."""

    address: int
    block_id: int
    minimum_ticks: int


def add_pc_items(
    fw_cfg: FwCfg,
    *,
    memory: int,
    cpus: int | bytearray,
    apic_id_limit: int,
    e820: bytes,
    uuid: bytes = bytes(16),
    cpu_nodes: Mapping[int, int] = MappingProxyType({}),
    numa_nodes: Sequence[int] = (),
    graphics: bool = False,
    bootorder: bytes = b"",
    boot_menu: bool = False,
    splash_time: int | None = None,
    reboot_timeout: int = BOOT_FAIL_WAIT_FOREVER,
    acpi_tables: bytes = b"",
    system_states: bytes = SYSTEM_STATES,
    hpet: Hpet | None = None,
    feature_control: int | None = None,
) -> None:
    """Register the items that QEMU publishes on every PC; sizes in bytes, times in milliseconds.

    Args:
        fw_cfg: not yet published.
        memory: size of RAM.
        cpus: CPUs present at boot; or a u16 that changes as some are plugged in, used in place.
        apic_id_limit: one more than the highest APIC id that a CPU may have: what key 0x0f really is.
        e820: records of 20 bytes: u64 base, u64 length, u32 type.
        uuid: 16 bytes, in the order in which a UUID is written (RFC 4122).
        cpu_nodes: NUMA node of each APIC id; 0 where nothing is said.
        numa_nodes: RAM of each node.
        graphics: a display exists; without one, SeaBIOS puts its screen on COM1.
        bootorder: OpenFirmware device paths, one a line, NUL at the end; empty if there is no order.
        boot_menu: firmware shows its menu.
        splash_time: how long a picture or the menu stays; None leaves it to firmware.
        reboot_timeout: wait before another attempt to boot; -1 for ever.
        acpi_tables: key 0x8000, the user's tables: u16 count, then u16 length and bytes of each.
        system_states: contents of etc/system-states.
        hpet: of the machine; None: it has none.
        feature_control: what firmware should write into MSR 0x3a of every CPU; None where the CPUs don't have it.

    Raises:
        ConfigError: a key or name is taken.
    """
    numbers = {
        Key.RAM_SIZE: struct.pack("<Q", memory),
        Key.NOGRAPHIC: struct.pack("<H", not graphics),
        Key.NB_CPUS: struct.pack("<H", cpus) if isinstance(cpus, int) else cpus,
        Key.BOOT_MENU: struct.pack("<H", boot_menu),
        Key.MAX_CPUS: struct.pack("<H", apic_id_limit),
        Key.IRQ0_OVERRIDE: struct.pack("<I", 1),
    }
    for key, data in numbers.items():
        fw_cfg.add_item(key, data)
    fw_cfg.add_item(Key.UUID, uuid)
    fw_cfg.add_item(Key.NUMA, numa(apic_id_limit, cpu_nodes, numa_nodes))
    if acpi_tables:
        fw_cfg.add_item(Key.ACPI_TABLES, acpi_tables)
    fw_cfg.add_item(Key.HPET, _hpet(hpet))
    fw_cfg.add_file("bootorder", bootorder)
    fw_cfg.add_file(E820_FILE, e820)
    fw_cfg.add_file("etc/system-states", system_states)
    fw_cfg.add_file("etc/boot-fail-wait", struct.pack("<i", reboot_timeout))
    if feature_control is not None:
        fw_cfg.add_file("etc/msr_feature_control", struct.pack("<Q", feature_control))
    if splash_time is not None:
        fw_cfg.add_file("etc/boot-menu-wait", struct.pack("<H", splash_time))


def numa(apic_id_limit: int, cpu_nodes: Mapping[int, int], nodes: Sequence[int]) -> bytes:
    """The number of nodes, the node of each APIC id, the RAM of each node: all u64."""
    words = [len(nodes), *(cpu_nodes.get(apic_id, 0) for apic_id in range(apic_id_limit)), *nodes]
    return struct.pack(f"<{len(words)}Q", *words)


def _hpet(hpet: Hpet | None) -> bytes:
    """One event timer block: u32 block id, u64 address, u16 minimum tick, u8 page protection; 255 blocks mean none."""
    if hpet is None:
        return b"\xff".ljust(HPET_SIZE, b"\0")
    block = struct.pack("<IQHB", hpet.block_id, hpet.address, hpet.minimum_ticks, 0)
    return (b"\1" + block).ljust(HPET_SIZE, b"\0")
