"""Which firmware interface the machine has at ports 0x510 and up, and what it tells the guest.

fw_cfg and fwctl claim the same ports, so a machine has one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vmm import layout
from vmm.config.machine import MachineConfig, MachineType
from vmm.devices.fw_cfg import FwCfg
from vmm.devices.fw_cfg_format import CPU_COUNT_FILE
from vmm.devices.fw_cfg_items import (
    BOOT_FAIL_WAIT_FOREVER,
    SYSTEM_STATES,
    SYSTEM_STATES_S3,
    Hpet,
    add_pc_items,
)
from vmm.devices.hpet import BLOCK_ID, MINIMUM_TICKS
from vmm.handoff import tables
from vmm.tables import e820
from vmm.tables.boot_order import check_paths, encode_boot_order
from vmm.tables.files import ACPI_FILES, E820_FILE, RESERVED_END_FILE, SMBIOS_FILES, WRITABLE_FILES
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from vmm.bus import Bus, IoLock
    from vmm.cpu.processors import Processors
    from vmm.devices.fwctl import Fwctl
    from vmm.devices.vmcoreinfo import VmCoreInfo
    from vmm.memory import GuestMemory
    from vmm.platform import Platform


CPU_COUNT_OID = "hw.ncpu"
"""FreeBSD, usr.sbin/bhyve/amd64/fwctl.c: the only OID that bhyve has; a 4-byte integer."""


Customize = Callable[[FwCfg], None]
"""Called before the items are published: may add items."""

Alter = Callable[[dict[str, bytes]], dict[str, bytes]]
"""Gets the files of tables, etc/e820 among them, and gives those to publish instead: before the items are published,
and again whenever ACPI's are built again, with all of them, the sizes as they were."""


def build_fw_cfg(
    config: MachineConfig,
    memory: GuestMemory,
    core: Any,
    processors: Processors,
    platform: Platform,
    on_failure: Callable[[BaseException], None],
    *,
    on_vmcoreinfo: Callable[[VmCoreInfo | None], None],
    customize: Customize | None = None,
    alter: Alter | None = None,
    known_files: Sequence[str] = (),
) -> FwCfg:
    """QEMU's fw_cfg with a PC's items and the user's.

    Args:
        config: the machine.
        memory: of the machine.
        core: the C core's ``struct vmm_vm``.
        processors: of the machine.
        platform: its board. The boot indices of devices come behind the config's own paths.
        on_failure: told when an item's callback raised.
        on_vmcoreinfo: told what a guest's kernel writes into etc/vmcoreinfo.
        customize: for whoever adds items.
        alter: for whoever looks at the tables, or changes them.
        known_files: of a machine that was restored: the files that its guest knows already, by their keys. What is in
            RAM then is there already, too.

    Raises:
        ConfigError: a name is taken, overlong or unreadable.
    """
    fw_cfg = FwCfg(core, on_failure=on_failure)
    roms = [(rom.bootindex, rom.path) for rom in config.option_roms if rom.bootindex is not None]
    bootorder = (*config.bootorder, *(path for _, path in sorted([*platform.boot_indices, *roms])))
    check_paths(bootorder)
    ram = memory.places
    memory_map = e820.encode(tables.e820_map(config, ram))
    acpi = tables.AcpiFiles(config, ram)

    def build_acpi() -> dict[str, bytes]:
        files = acpi.build(platform.standing()) if config.acpi else {}
        return files if alter is None else alter({**fixed, **files})

    def build_smbios() -> dict[str, bytes]:
        return tables.smbios_files(config, ram, processors.processor_id)

    fixed: dict[str, bytes] = {}
    files: dict[str, bytes] | None = None
    if customize is not None:
        customize(fw_cfg)
    if alter is not None or tables.has_own_tables(config):
        fixed = {E820_FILE: memory_map, **build_smbios()}
        files = {**fixed, **build_acpi()}
        memory_map = files.pop(E820_FILE)
    add_pc_items(
        fw_cfg,
        memory=config.memory,
        cpus=platform.cpu_count,
        apic_id_limit=config.cpu_topology.apic_id(config.max_cpus - 1) + 1,
        cpu_nodes=cpu_nodes(config),
        numa_nodes=() if config.numa is None else tuple(node.memory for node in config.numa.nodes),
        e820=memory_map,
        uuid=config.uuid or bytes(16),
        hpet=Hpet(layout.HPET.start, BLOCK_ID, MINIMUM_TICKS) if config.hpet else None,
        bootorder=encode_boot_order(bootorder, strict=config.boot.strict),
        boot_menu=config.boot.menu,
        splash_time=config.boot.splash_time_ms,
        reboot_timeout=BOOT_FAIL_WAIT_FOREVER
        if config.boot.reboot_timeout_ms is None
        else config.boot.reboot_timeout_ms,
        feature_control=processors.feature_control,
        system_states=SYSTEM_STATES_S3 if config.s3 else SYSTEM_STATES,
    )
    if ram.room:
        fw_cfg.add_file(RESERVED_END_FILE, tables.reserved_end(ram).to_bytes(8, "little"))
    if platform.smi_features is not None:
        platform.smi_features.add_to(fw_cfg)
    own = {item.name for item in config.fw_cfg}
    if config.machine_type is MachineType.BHYVE and config.cpu_count and CPU_COUNT_FILE not in own:
        fw_cfg.add_file(CPU_COUNT_FILE, config.cpus.to_bytes(4, "little"))
    for item in (*config.fw_cfg, *(rom.item for rom in config.option_roms)):
        fw_cfg.add_user_file(item.name, item.data)
    if config.boot.splash is not None:
        fw_cfg.add_file(config.boot.splash.name, config.boot.splash.data)
    if config.kernel is not None and not config.direct:
        from vmm.handoff.kernel import load_kernel

        kernel = load_kernel(config.kernel, config.initrd, config.append or b"", memory.low_size)
        kernel.add_to(fw_cfg)
        if not known_files:
            kernel.store(memory.write)
        fw_cfg.at_reset(lambda: kernel.store(memory.write))
        if config.kernel_rom is not None:
            fw_cfg.add_file(f"genroms/{config.kernel_rom.path.name}", config.kernel_rom.data)
    if config.vmcoreinfo:
        from vmm.devices.vmcoreinfo import add_vmcoreinfo

        add_vmcoreinfo(fw_cfg, on_vmcoreinfo)
    if config.pvpanic:
        from vmm.devices.pvpanic import add_pvpanic

        add_pvpanic(fw_cfg)
    if files is None:
        fw_cfg.add_late_files(SMBIOS_FILES, build_smbios)
        if config.acpi:
            fw_cfg.add_late_files(ACPI_FILES, build_acpi, follow_guest=True)
    else:
        late = [name for name in ACPI_FILES if name in files]
        if late:
            fw_cfg.add_late_files(late, build_acpi, first=files, follow_guest=True)
        for name, data in files.items():
            if name not in late:
                fw_cfg.add_file(name, data, writable=name in WRITABLE_FILES)
    fw_cfg.publish(known_files)
    return fw_cfg


def cpu_nodes(config: MachineConfig) -> dict[int, int]:
    """The NUMA node of each APIC id."""
    numa, topology = config.numa, config.cpu_topology
    if numa is None:
        return {}
    return {topology.apic_id(index): numa.node_of(index) for index in range(config.max_cpus)}


def attach_fw_cfg(fw_cfg: FwCfg, ports: Bus, core: Any, *, in_python: bool) -> None:
    """Let a published fw_cfg answer its ports.

    Args:
        fw_cfg: of the machine.
        ports: the machine's port bus.
        core: the C core's ``struct vmm_vm``.
        in_python: by `vmm.devices.fw_cfg_python` instead of C, to show what that costs.

    Raises:
        ConfigError: another device has some of the ports.
    """
    if not in_python:
        fw_cfg.attach(ports)
        return
    from vmm.devices.fw_cfg_python import PythonFwCfg

    fw_cfg.attach(ports, PythonFwCfg(fw_cfg, core))


def build_ahead(fw_cfg: FwCfg) -> None:
    """Build the tables while firmware executes its first instructions, or it would soon have to wait for them."""
    tables.load_builders()  # without the lock, for it takes milliseconds
    fw_cfg.build_late_files()


def build_fwctl(config: MachineConfig) -> Fwctl:
    """What bhyve has as fwctl: its OID, and the user's, which may replace it.

    Raises:
        ConfigError: a name or a value that the protocol cannot carry.
    """
    from vmm.devices.fwctl import Fwctl

    fwctl = Fwctl(extensions=config.fwctl_extensions)
    if config.cpu_count:
        fwctl.register(CPU_COUNT_OID, config.cpus)
    for item in config.fwctl:
        fwctl.register(item.name, item.value)
    return fwctl


def hand_over(
    config: MachineConfig,
    memory: GuestMemory,
    processors: Processors,
    fw_cfg: FwCfg | None,
    platform: Platform,
    io_lock: IoLock,
) -> None:
    """Do what must be done before the guest's first instruction, after a reset again; all of it is the machine's.

    Raises:
        ConfigError: a ``-smbios`` option makes no sense, or the kernel cannot be started.
    """
    if config.machine_type is MachineType.BHYVE:
        tables.place_smbios(config, memory, processors.processor_id)
    if config.direct:
        from vmm.handoff import direct

        direct.prepare(config, memory, fw_cfg, platform, io_lock, processors.vcpus)
