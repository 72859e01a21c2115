"""Starts a Linux kernel without firmware: does to the machine what firmware and a boot loader would have done.

The chipset gets its addresses, RAM appears below 1 MiB, the table-loader script is run here instead of in the guest,
SMBIOS goes where a BIOS puts it, and the first vCPU starts at the kernel's 32-bit entry with boot_params that say where
everything is. Other processors stay as they are after power-on: Linux wakes them by INIT and SIPI.

Sources: Documentation/arch/x86/boot.rst and zero-page.rst of Linux (boot_params; the 32-bit boot protocol); the chipset
registers are those that `vmm.devices.chipset` names.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from vmm import layout
from vmm.config.machine import MachineType
from vmm.cpu import cpuid
from vmm.cpu.reset import APIC_BASE_X2APIC, MSR_MTRR_DEF_TYPE
from vmm.devices.fw_cfg_format import Key
from vmm.errors import ConfigError
from vmm.handoff.kernel import HEADER_MAGIC, LOAD_FLAGS, LOADED_HIGH, PROTOCOL, load_kernel
from vmm.tables import e820, loader_rules, smbios_placement, table_loader
from vmm.tables.e820 import E820Entry, E820Type
from vmm.tables.files import E820_FILE, LOADER_FILE, RSDP_FILE, SMBIOS_ANCHOR_FILE, SMBIOS_FILE
from vmm.tables.loader_result import Rules
from vmm.tables.table_loader import Allocate, Zone

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm.bus import IoLock
    from vmm.config.machine import MachineConfig
    from vmm.devices.fw_cfg import FwCfg
    from vmm.kvm import Vcpu
    from vmm.memory import GuestMemory
    from vmm.platform import Platform

GDT: Final = 0x500
BOOT_PARAMS: Final = 0x7000
"""In base memory that is not used before Linux runs; the command line is at 0x20000, where `load_kernel` puts it."""

ACPI_LOW: Final = range(0xE0000, 0xF0000)
SMBIOS: Final = range(0xF0000, 0x100000)
"""Linux looks for an RSDP in 0xe0000-0xfffff and for an SMBIOS entry point in 0xf0000-0xfffff."""

_BOOT_CS, _BOOT_DS = 0x10, 0x18
_FLAT_CODE, _FLAT_DATA = 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF
"""SDM volume 3, 3.4.5: base 0, 4 GiB, accessed, present."""

_ACPI_RSDP_ADDR, _E820_ENTRIES, _SETUP_HEADER, _E820_TABLE, _BOOT_PARAMS_SIZE = 0x070, 0x1E8, 0x1F1, 0x2D0, 4096
_E820_MOST: Final = 128
_SETUP_DATA: Final = struct.Struct("<QII")
"""boot.rst, setup_data: GPA of the next, type, bytes that follow."""
_SETUP_DATA_POINTER: Final = 0x250
_SETUP_E820_EXT: Final = 1
_KNOWS_SETUP_DATA: Final = 0x209
_PREF_ADDRESS, _INIT_SIZE = 0x258, 0x260

_WRITE_BACK: Final = 0x806
"""MTRRs on, everything write-back (SDM volume 3, 12.11.2.1); Linux's page tables make devices uncached."""

_PAM_RAM: Final = (0x30, *[0x33] * 6)


def prepare(
    config: MachineConfig,
    memory: GuestMemory,
    fw_cfg: FwCfg | None,
    platform: Platform,
    io_lock: IoLock,
    vcpus: Sequence[Vcpu],
) -> None:
    """Load the kernel, the tables and the first vCPU's registers into a machine that was not run yet.

    Args:
        config: names the kernel.
        memory: of the machine.
        fw_cfg: its items are where the tables come from.
        platform: the board.
        io_lock: of the machine.
        vcpus: as after power-on.

    Raises:
        ConfigError: the kernel cannot be started this way, or does not fit.
    """
    if config.kernel is None or fw_cfg is None:
        raise ConfigError("-direct: needs a kernel (-kernel PATH) and fw_cfg")
    _set_up_chipset(config.machine_type, platform, io_lock)
    top, rsdp = _place_acpi(fw_cfg, memory)
    files = {name: fw_cfg.contents(name) for name in (SMBIOS_ANCHOR_FILE, SMBIOS_FILE)}
    memory.write(SMBIOS.start, smbios_placement.place(files, SMBIOS.start, len(SMBIOS)))
    offered = e820.decode(fw_cfg.contents(E820_FILE))
    ranges = _memory_map(offered, memory.low_size, top, platform.standing().ecam)
    more = extended_map(ranges)
    end = top - len(more) & -layout.PAGE
    memory.write(end, more)
    kernel = load_kernel(config.kernel, config.initrd, config.append or b"", end)
    setup = bytes(kernel.keys.get(Key.SETUP_DATA, b""))
    initrd = int.from_bytes(kernel.keys.get(Key.INITRD_ADDR, b""), "little") or end
    _check(config, setup, initrd, max(0, len(ranges) - _E820_MOST))
    entry = int.from_bytes(kernel.keys[Key.KERNEL_ADDR], "little")
    for address, data in (
        (entry, kernel.keys[Key.KERNEL_DATA]),
        (int.from_bytes(kernel.keys[Key.CMDLINE_ADDR], "little"), kernel.keys[Key.CMDLINE_DATA]),
        (initrd, kernel.keys.get(Key.INITRD_DATA, b"")),
    ):
        memory.write(address, bytes(data))
    memory.write(BOOT_PARAMS, boot_params(setup, ranges[:_E820_MOST], rsdp, end if more else 0))
    memory.write(GDT, struct.pack("<4Q", 0, 0, _FLAT_CODE, _FLAT_DATA))
    for vcpu in vcpus:
        vcpu.set_msrs({MSR_MTRR_DEF_TYPE: _WRITE_BACK})
        if config.cpu_topology.has_wide_ids and cpuid.offers_x2apic(vcpu.get_cpuid2()):
            _enter_x2apic_mode(vcpu)
    _enter_protected_mode(vcpus[0], entry)


def boot_params(setup: bytes, ranges: Iterable[E820Entry], rsdp: int, more: int = 0) -> bytes:
    """Return the "zero page": the kernel's own setup header, the memory map, the RSDP's address.

    Args:
        setup: the kernel's setup area, its header filled in.
        ranges: at most 128.
        rsdp: GPA; 0 for none.
        more: GPA of the rest of the memory map, a `_SETUP_DATA`; 0 for none.
    """
    page = bytearray(_BOOT_PARAMS_SIZE)
    end = 0x202 + setup[0x201]
    page[_SETUP_HEADER:end] = setup[_SETUP_HEADER:end]
    struct.pack_into("<Q", page, _ACPI_RSDP_ADDR, rsdp)
    if more:
        struct.pack_into("<Q", page, _SETUP_DATA_POINTER, more)
    records = e820.encode(ranges)
    page[_E820_ENTRIES] = len(records) // e820.RECORD.size
    page[_E820_TABLE : _E820_TABLE + len(records)] = records
    return bytes(page)


def extended_map(ranges: Sequence[E820Entry]) -> bytes:
    """Return what of the memory map boot_params has no room for, as the kernel's setup data; nothing if all fits."""
    records = e820.encode(ranges[_E820_MOST:])
    return _SETUP_DATA.pack(0, _SETUP_E820_EXT, len(records)) + records if records else b""


def _check(config: MachineConfig, setup: bytes, end: int, more: int) -> None:
    path = config.kernel.path if config.kernel is not None else None
    if setup[HEADER_MAGIC : HEADER_MAGIC + 4] != b"HdrS" or not setup[LOAD_FLAGS] & LOADED_HIGH:
        raise ConfigError(f"-direct: {path} is no Linux bzImage; boot it through firmware, without -direct")
    (protocol,) = struct.unpack_from("<H", setup, PROTOCOL)
    if more and protocol < _KNOWS_SETUP_DATA:
        raise ConfigError(f"-direct: {path} takes {_E820_MOST} entries of a memory map, there are {more} more")
    if protocol >= 0x20A:
        preferred, size = struct.unpack_from("<QI", setup, _PREF_ADDRESS)
        if preferred + size > end:
            raise ConfigError(
                f"-m {config.memory >> 20}M: {path} needs {(preferred + size) >> 20} MiB below its initrd at "
                f"{end >> 20} MiB; more RAM would help"
            )


def _set_up_chipset(machine_type: MachineType, platform: Platform, io_lock: IoLock) -> None:
    """Decode ECAM and the ACPI block, and turn the legacy area into RAM; the tables say the same addresses."""
    functions = platform.pci.functions()
    host = functions[0, 0]
    pmbase = (layout.PMBASE_DEFAULT | 1, 4)
    writes: list[tuple[tuple[int, int], int, int, int]] = []
    if machine_type is MachineType.Q35:
        pam = 0x90
        writes += [((0, 0), 0x60, layout.ECAM_DEFAULT | 1, 4), ((31, 0), 0x40, *pmbase), ((31, 0), 0x44, 0x80, 1)]
    elif machine_type is MachineType.PC:
        pam = 0x59
        writes += [((1, 3), 0x40, *pmbase), ((1, 3), 0x80, 0x01, 1)]
    else:
        raise ConfigError(f"-direct: for the machines q35 and pc, not for {machine_type}")
    with io_lock:
        for register, value in enumerate(_PAM_RAM, pam):
            host.write_config(register, 1, value)
        for where, register, value, size in writes:
            functions[where].write_config(register, size, value)


def _place_acpi(fw_cfg: FwCfg, memory: GuestMemory) -> tuple[int, int]:
    """Run the table-loader script; return where the tables at the end of low RAM begin, and the RSDP's GPA, or 0."""
    names = [item.name for item in fw_cfg.items() if 0x20 <= item.key < 0x4000]
    files = {name: fw_cfg.contents(name) for name in names}
    if LOADER_FILE not in files:  # -machine acpi=off
        return memory.low_size, 0
    script = files[LOADER_FILE]
    commands = [command for command in table_loader.decode(script) if isinstance(command, Allocate)]
    bases: dict[str, int] = {}
    low, top = ACPI_LOW.start, memory.low_size
    for command in commands:
        align, size = max(command.align, 16), len(files.get(command.file, b""))
        if command.zone == Zone.FSEG:
            bases[command.file] = low = -(-low // align) * align
            low += size
        else:
            bases[command.file] = top = (top - size) & -align
    top &= -layout.PAGE
    if low > ACPI_LOW.stop:
        raise ConfigError(f"-direct: {low - ACPI_LOW.start} bytes of tables belong below 1 MiB, {len(ACPI_LOW)} fit")
    writable = [name for name in names if fw_cfg.is_writable(name)]
    result = loader_rules.run(script, files, Rules.SEABIOS, bases=bases, writable=writable)
    if not result.ok:
        raise ConfigError(f"-direct: the ACPI tables cannot be linked: {result.reason}")
    for blob in result.blobs.values():
        memory.write(blob.base, bytes(blob.data))
    for name, data in result.written.items():
        fw_cfg.replace_file(name, data)
    return top, bases[RSDP_FILE]


def _memory_map(offered: Iterable[E820Entry], low_size: int, top: int, ecam: range | None) -> tuple[E820Entry, ...]:
    """What etc/e820 says, with low RAM divided as a PC's firmware divides it."""
    ours = [E820Entry(ACPI_LOW.start, SMBIOS.stop - ACPI_LOW.start, E820Type.RESERVED)]
    if low_size > top:
        ours.append(E820Entry(top, low_size - top, E820Type.ACPI))
    video = E820Entry(layout.LEGACY_VIDEO.start, layout.LEGACY_END - layout.LEGACY_VIDEO.start, E820Type.RESERVED)
    others = [
        part
        for entry in offered
        for part in e820.without(entry, [*ours, video] if entry.type == E820Type.RAM else ours)
    ]
    if ecam is not None and not any(other.base < ecam.stop and ecam.start < other.end for other in others):
        # Linux uses ECAM only where the memory map or the DSDT reserves it.
        ours.append(E820Entry(ecam.start, len(ecam), E820Type.RESERVED))
    return tuple(sorted(ours + others))


def _enter_x2apic_mode(vcpu: Vcpu) -> None:
    """As firmware does where xAPIC has too few ids: Linux takes an id above 254 from the MADT in that mode alone."""
    sregs = vcpu.get_sregs()
    sregs.apic_base |= APIC_BASE_X2APIC
    vcpu.set_sregs(sregs)


def _enter_protected_mode(vcpu: Vcpu, entry: int) -> None:
    """As boot.rst's "32-bit boot protocol" wants it: flat segments, no paging, interrupts off."""
    sregs = vcpu.get_sregs()
    flat = {"base": 0, "limit": 0xFFFFFFFF, "present": 1, "s": 1, "db": 1, "g": 1}
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        segment = getattr(sregs, name)
        code = name == "cs"
        for key, value in (flat | {"selector": _BOOT_CS if code else _BOOT_DS, "type": 11 if code else 3}).items():
            setattr(segment, key, value)
    sregs.gdt.base, sregs.gdt.limit = GDT, 4 * 8 - 1
    sregs.cr0 = 0x11  # PE, ET
    vcpu.set_sregs(sregs)
    regs = vcpu.get_regs()
    for name in ("rax", "rbx", "rcx", "rdx", "rdi", "rbp", "rsp"):
        setattr(regs, name, 0)
    regs.rip, regs.rsi, regs.rflags = entry, BOOT_PARAMS, 2
    vcpu.set_regs(regs)
